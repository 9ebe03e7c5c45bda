"""One side's audit trail: hash-chained, signed records that are only ever added to.

A trail is a folder: the key, a lock, and files of JSON lines, one record a line. Each record holds
the hash of the line before it. A record is on the disk before what it is about is acted on; after a
kill in between, the trail says of something that it was sent when it may not have been.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_shared.audit_key import KEY, NEXT_KEY, audit_key, public_pem, read_key, write_key
from asterion_shared.audit_records import (
    KINDS,
    START,
    Fact,
    Head,
    Line,
    Record,
    read_line,
    signed_line,
)
from asterion_shared.errors import AuditBrokenError, DiskProblemError
from asterion_shared.files import make_folder, sync_folder

FOLDER = "audit"
"""Of a trail, in a site's state folder or the coordinator's folder."""

FILE_BYTES = 50_000_000
"""Size at which a new file is begun."""

UNDECIDED = "keep the folder as it is, run asterion audit verify on it, and let a person decide"

_READ_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class AuditTrail:
    """A trail that can be added to; several processes and threads may do so at once.

    Attributes:
        folder: made on first use.
        side: whose it is: ``site:NAME`` or ``coordinator:NAME``.
    """

    folder: Path
    side: str

    def append(
        self,
        kind: str,
        *,
        run: str = "",
        round_: int | None = None,
        facts: Mapping[str, Fact] | None = None,
        other: Mapping[str, Head] | None = None,
    ) -> Head:
        """Add a record; it is on the disk on return.

        Args:
            kind: one of :data:`asterion_shared.audit_records.KINDS`.
            run: that it is about; empty: none.
            round_: of the run; None: none.
            facts: numbers, codes, hashes and names of sites, and nothing of a patient.
            other: heads of other trails that came with what the record is about.

        Returns:
            The trail's new head, for the other side.

        Raises:
            AuditBrokenError: the trail's last line is not a record of this side.
            FileProblemError: the key can be read by others, or is none.
            DiskProblemError: the disk is full or not writable; the trail is as it was.
        """
        if kind not in KINDS:
            msg = f"{kind!r} is no kind of audit record"
            raise ValueError(msg)
        with self._opened() as end:
            told = {name: str(head) for name, head in (other or {}).items()}
            return end.add(kind, run, round_, dict(facts or {}), told)

    def head(self) -> Head:
        """Where the trail ends; it is begun where there is none. Raises as :meth:`append`."""
        with self._opened() as end:
            return end.head

    def rotate(self) -> Path:
        """Begin a new file; returns its path. Raises as :meth:`append`."""
        with self._opened() as end:
            end.begin_file()
            return end.path

    def change_key(self) -> str:
        """Sign with a new key from now on; its public half, PEM. Raises as :meth:`append`."""
        with self._opened() as end:
            key = Ed25519PrivateKey.generate()
            write_key(self.folder / NEXT_KEY, key)
            end.add("key_changed", facts={"public_key": public_pem(key)})
            _finish_change(self.folder, end.last)
            return public_pem(key)

    @contextmanager
    def _opened(self) -> Iterator["_End"]:
        with _locked(self.folder):
            yield _End(self)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the one process and thread that has a trail open."""
    try:
        make_folder(folder, 0o700)
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error


def audit_public_key(folder: Path) -> str:
    """The public key of a trail, PEM; the key is made where there is none.

    Raises:
        FileProblemError: the key can be read by others, or is none.
        DiskProblemError: it cannot be made or read.
    """
    with _locked(folder):
        return public_pem(audit_key(folder))


def trail_of_folder(folder: Path) -> AuditTrail:
    """The trail that lies in a folder.

    Raises:
        AuditBrokenError: there is none, or its last line is not a record.
    """
    side = side_of_folder(folder)
    if side is None:
        raise AuditBrokenError(
            folder, "holds no audit trail", "name a site's state/audit or the like"
        )
    return AuditTrail(folder, side)


def side_of_folder(folder: Path) -> str | None:
    """Whose trail lies in a folder; None: no record is there.

    Raises:
        AuditBrokenError: the last line is not a record.
    """
    for path in reversed(trail_files(folder)):
        with path.open("rb") as file:
            line = _last_line(file, _whole_bytes(file))
        if line:
            found = read_line(line)
            if found is None:
                raise _not_a_record(path)
            return found.record.side
    return None


def trail_files(folder: Path) -> list[Path]:
    """The files of a trail, oldest first."""
    return sorted(folder.glob("audit-*.jsonl"))


def _is_the_key_of(key: Ed25519PrivateKey, last: Line) -> bool:
    """Whether the record after ``last`` is to be signed with this key."""
    if last.record.kind == "key_changed":
        return last.record.facts.get("public_key") == public_pem(key)
    return last.is_signed_by(key.public_key())


class _End:
    """The end of a trail, while this process holds its lock."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail, self.last = trail, _cut_torn_line(trail.folder)
        files = trail_files(trail.folder)
        self.path = files[-1] if files else trail.folder / _name(1)
        if self.last is not None and self.last.record.side != trail.side:
            what = f"is the trail of {self.last.record.side}, not of {trail.side}"
            raise AuditBrokenError(trail.folder, what, "give this side a folder of its own")
        _finish_change(trail.folder, self.last)
        key = audit_key(trail.folder)
        if self.last is None:
            if not files:
                self._make_file(1)
            self.add("begun", facts={"public_key": public_pem(key)})
        elif not _is_the_key_of(key, self.last):
            what = f"record {self.last.record.number} is not signed with the key {KEY}"
            raise AuditBrokenError(self.path, what, UNDECIDED)
        elif self.path.stat().st_size == 0:
            self._continue()

    @property
    def head(self) -> Head:
        assert self.last is not None  # noqa: S101  # a trail has a first record once it is open
        return self.last.head

    def add(
        self,
        kind: str,
        run: str = "",
        round_: int | None = None,
        facts: dict[str, Fact] | None = None,
        other: dict[str, str] | None = None,
    ) -> Head:
        if self.path.stat().st_size >= FILE_BYTES and kind != "continued":
            self.begin_file()
        record = Record(
            number=0 if self.last is None else self.last.record.number + 1,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            side=self._trail.side,
            kind=kind,
            run=run,
            round=round_,
            facts=facts or {},
            other=other or {},
            previous=START if self.last is None else self.last.sha256,
        )
        line = signed_line(record, audit_key(self._trail.folder))
        _append(self.path, line + b"\n")
        self.last = read_line(line)
        return self.head

    def begin_file(self) -> None:
        """Begin a new file, which repeats the key so that it can be verified alone."""
        self._make_file(int(self.path.stem.split("-")[1]) + 1)
        self._continue()

    def _continue(self) -> None:
        self.add("continued", facts={"public_key": public_pem(audit_key(self._trail.folder))})

    def _make_file(self, number: int) -> None:
        self.path = self._trail.folder / _name(number)
        self.path.touch(0o600, exist_ok=False)
        sync_folder(self._trail.folder)


def _name(number: int) -> str:
    return f"audit-{number:06d}.jsonl"


def _append(path: Path, line: bytes) -> None:
    """Add a whole line or nothing."""
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _finish_change(folder: Path, last: Line | None) -> None:
    """Put a new key in its place once the trail names it; drop one that it does not name."""
    waiting = folder / NEXT_KEY
    if not waiting.exists():
        return
    if last is not None and last.record.kind == "key_changed" and _is_named(last, waiting):
        waiting.replace(folder / KEY)
    else:
        waiting.unlink()
    sync_folder(folder)


def _is_named(last: Line, key: Path) -> bool:
    return last.record.facts.get("public_key") == public_pem(read_key(key))


def _cut_torn_line(folder: Path) -> Line | None:
    """The last record; what a power cut left behind it goes: nobody had acted on it."""
    for path in reversed(trail_files(folder)):
        with path.open("r+b") as file:
            whole = _whole_bytes(file)
            if whole < file.seek(0, os.SEEK_END):
                file.truncate(whole)
                os.fsync(file.fileno())
            line = _last_line(file, whole)
        if not line:
            continue  # begun just before the power went
        found = read_line(line)
        if found is None:
            raise _not_a_record(path)
        return found
    return None


def _whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file are whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - _READ_BYTES, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _last_line(file: BinaryIO, whole: int) -> bytes:
    """The last of a file's whole lines, without its end; empty where there is none."""
    if whole == 0:
        return b""
    start, found = whole - 1, b""
    while start > 0:
        begin = max(start - _READ_BYTES, 0)
        file.seek(begin)
        block = file.read(start - begin)
        cut = block.rfind(b"\n")
        if cut >= 0:
            return block[cut + 1 :] + found
        found, start = block + found, begin
    return found


def _not_a_record(path: Path) -> AuditBrokenError:
    return AuditBrokenError(path, "its last line is no audit record", UNDECIDED)
