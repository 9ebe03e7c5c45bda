"""What left a site: an append-only file of lines, on the disk before the reply is handed over.

``egress/YYYY-MM-DD.jsonl`` in the state folder holds the lines of a day (UTC), and of a day with
many the earlier ones stand in ``YYYY-MM-DD.NNNN.jsonl.gz``. Nothing is ever removed. A line is what
stood in one reply: numbers and words as they are, of vectors their length, bytes, norm and SHA-256.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import append_lines, make_folder, write_atomically
from asterion_shared.flower_messages import num_bytes
from asterion_shared.messages import Order, order_sha256

FOLDER = "egress"
MOST_BYTES = 16 * 2**20
"""Size from which the file of a day is packed and a new one begun."""

_TAIL_BYTES = 2**16
Entry = dict[str, Any]


class EgressLog:
    """Writes the log; one for a site and process.

    Args:
        state: the site's state folder.
        site: its name.
    """

    def __init__(self, state: Path, site: str) -> None:
        self._folder, self._state, self._site = state / FOLDER, state, site

    @cached_property
    def _answered(self) -> dict[str, str]:
        """Hash of the reply to each order of the last day that has any."""
        days = sorted({path.name[:10] for path in _files(self._folder)})
        lines = _entries(self._folder, days[-1]) if days else ()
        return {line["order"]: line["sha256"] for line in lines if line["order"]}

    def write(
        self, order: Order | None, content: RecordDict, stated: tuple[str, int | None] = ("", None)
    ) -> None:
        """Put a reply on record; it is on the disk when this returns.

        Args:
            order: what it answers; None for one that could not be read.
            content: the reply as it is handed to the carrier.
            stated: run and round that belong to an order that was not read.

        Raises:
            DiskProblemError: the disk is full or not writable; then the reply must not leave.
        """
        now = datetime.now(UTC)
        records = {name: _told(record) for name, record in content.items()}
        digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
        asked = "" if order is None else order_sha256(order, self._site)
        size = num_bytes(content)
        again = bool(asked) and self._answered.get(asked) == digest
        what = "again" if again else "refusal" if "refusal" in content else "report"
        entry = {
            "at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "run": stated[0] if order is None else order.run,
            "round": stated[1] if order is None else order.round,
            "phase": "" if order is None else order.phase,
            "what": what,
            "bytes": size,
            "day_bytes": bytes_left_on(self._state, now.date()) + size,
            "order": asked,
            "sha256": digest,
        } | ({} if again else {"records": records})
        path = self._folder / f"{now.date().isoformat()}.jsonl"
        try:
            make_folder(self._folder, 0o700)
            _rotate(path)
        except OSError as error:
            raise DiskProblemError(path, error.strerror or type(error).__name__) from error
        append_lines(path, [json.dumps(entry)])
        self._answered[asked] = digest


def bytes_left_on(state: Path, day: date) -> int:
    """Bytes of all replies that left on a day (UTC), before TLS and packing; 0 when none did.

    Each line has the day's total so far, so that only the end of one file is read.

    Args:
        state: the site's state folder.
        day: the day.
    """
    paths = _files(state / FOLDER, day.isoformat())
    if not paths:
        return 0
    last = _last_entry(paths[-1])
    if last is None and len(paths) > 1:
        last = _last_entry(paths[-2])
    return 0 if last is None else int(last["day_bytes"])


def read_log(state: Path, run: str | None = None) -> Iterator[Entry]:
    """Every line of the log, the oldest first.

    Args:
        state: the site's state folder.
        run: only of this run; None: of all.
    """
    for line in _entries(state / FOLDER):
        if run is None or line["run"] == run:
            yield line


def _files(folder: Path, day: str = "") -> list[Path]:
    """The files of the log in the order they were written."""
    found = sorted(folder.glob(f"{day}*.jsonl.gz")) + sorted(folder.glob(f"{day}*.jsonl"))
    # A packed file of a day comes before the open one of the same day.
    return sorted(found, key=lambda path: (path.name[:10], path.suffix != ".gz", path.name))


def _rotate(path: Path) -> None:
    if not path.exists() or path.stat().st_size < MOST_BYTES:
        return
    day = path.name[:10]
    content, number = path.read_bytes(), len(list(path.parent.glob(f"{day}.*.jsonl.gz")))
    packed = path.with_name(f"{day}.{number:04d}.jsonl.gz")
    before = path.with_name(f"{day}.{number - 1:04d}.jsonl.gz")
    # A process that was killed between the two steps has packed it already.
    if not (before.exists() and gzip.decompress(before.read_bytes()) == content):
        write_atomically(packed, gzip.compress(content, mtime=0))
    path.unlink()


def _entries(folder: Path, day: str = "") -> Iterator[Entry]:
    before = b""
    for path in _files(folder, day):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # A process that was killed between the steps of packing left the same lines twice.
        if content != before:
            yield from _parsed(content)
        before = content


def _parsed(content: bytes) -> Iterator[Entry]:
    for line in content.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # torn by a crash: then the reply did not leave
        yield found


def _last_entry(path: Path) -> Entry | None:
    """The last whole line of a file; None when there is none."""
    if path.suffix == ".gz":
        return next(reversed(list(_parsed(gzip.decompress(path.read_bytes())))), None)
    size, length = path.stat().st_size, _TAIL_BYTES
    while True:
        with path.open("rb") as file:
            file.seek(max(0, size - length))
            tail = file.read()
        # The first line of a part may lack its beginning.
        whole = tail if length >= size else tail.partition(b"\n")[2]
        found = list(_parsed(whole))
        if found or length >= size:
            return found[-1] if found else None
        length *= 8


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """One record of a reply as the log has it."""
    if isinstance(record, ArrayRecord):
        return {name: _array(array) for name, array in record.items()}
    # The head of the audit trail is new in each sending of the same answer, and says nothing.
    return {name: _bytes(value, "bytes", len(value)) if isinstance(value, bytes) else value
            for name, value in record.items() if name != "audit_head"}  # fmt: skip


def _array(array: Array) -> dict[str, Any]:
    match array.dtype:
        case "float32":
            numbers = np.frombuffer(array.data, "<f4")
        case "bfloat16":
            numbers = (np.frombuffer(array.data, "<u2").astype("<u4") << 16).view("<f4")
        case _:
            numbers = np.frombuffer(array.data, np.dtype(array.dtype))
    norm = float(np.linalg.norm(numbers.astype(np.float64)))
    return _bytes(array.data, array.dtype, numbers.size) | {"norm": norm}


def _bytes(data: Any, dtype: str, length: int) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"dtype": dtype, "length": length, "bytes": len(data), "sha256": digest}
