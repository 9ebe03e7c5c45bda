"""Backups: one tar with the SHA-256 of every file in it, its owner's alone; whole or refused.

The last member is ``manifest.json``, with the kind of archive and each file's hash and mode.
"""

import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from asterion_shared import __version__
from asterion_shared.errors import DiskProblemError, FileProblemError, UserInputError
from asterion_shared.files import make_folder, sync_folder

MANIFEST = "manifest.json"
FORMAT = 1
DATABASES = (".sqlite", ".db")
BESIDE_DATABASES = ("-wal", "-shm", "-journal")
CHUNK_BYTES = 2**20
_FIX = "take another copy of the archive, or an older archive"


@dataclass(frozen=True, slots=True)
class Archived:
    """What an archive says of itself.

    Attributes:
        at: when it was begun, UTC, ISO 8601.
        num_files: in it, the manifest not counted.
        num_bytes: of these files.
    """

    at: str
    num_files: int
    num_bytes: int


class _Hashed:
    """Reads a file and hashes what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def write_archive(out: Path, kind: str, files: Iterable[tuple[str, Path]]) -> Archived:
    """Pack files of a system that may be running; mode 0600 from its creation, whole or absent.

    A database of SQLite is copied as it was at one moment, a file that grows as far as it was when
    it was opened. A file that is gone by then is left out; so are links and what is no plain file.

    Args:
        out: of the archive; nothing may be there.
        kind: what it is a backup of.
        files: name in the archive and path, in the order in which they are copied.

    Raises:
        UserInputError: something stands at ``out`` already.
        FileProblemError: a file shrank while it was copied, or cannot be read.
        DiskProblemError: the disk is full or not writable.
    """
    if out.exists():
        msg = f"{out} is there already; name another file"
        raise UserInputError(msg)
    at, rows = _now(), dict[str, dict[str, Any]]()
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(out.parent)
        try:
            descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    for name, path in files:
                        if not path.is_symlink() and path.is_file():
                            _add(tar, name, path, part, rows)
                    text = {"format": FORMAT, "kind": kind, "at": at, "version": __version__}
                    _add_bytes(tar, json.dumps(text | {"files": rows}).encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(out.parent)
    except OSError as error:
        raise DiskProblemError(out, error.strerror or type(error).__name__) from error
    return _archived(at, rows)


def read_archive(
    archive: Path, kind: str, target: Path, prepare: Callable[[Path, Archived], None]
) -> Archived:
    """Unpack an archive, whole or not at all: every hash is checked before anything is in place.

    Args:
        archive: as :func:`write_archive` wrote it.
        kind: what it has to be a backup of.
        target: a folder that is not there, or empty.
        prepare: is called with the unpacked folder before it is put into place.

    Raises:
        UserInputError: the target is not empty.
        FileProblemError: it is no such archive, was changed, or names a place outside of it.
        DiskProblemError: the disk is full or not writable.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        msg = f"{target} is not empty; restore into a new folder, and move it when it is right"
        raise UserInputError(msg)
    resolved = target.resolve()
    part = resolved.with_name(f".{resolved.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(part, 0o700)
        try:
            found = _unpack(archive, kind, part)
            prepare(part, found)
            part.replace(resolved)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sync_folder(resolved.parent)
    except OSError as error:
        raise DiskProblemError(target, error.strerror or type(error).__name__) from error
    return found


def files_below(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Every plain file below a folder with its name in an archive, sorted, databases last.

    Unfinished files (``*.part``) and what SQLite keeps beside a database are left out.
    """
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_wanted(path)]
    for path in sorted(found, key=lambda path: path.suffix in DATABASES):
        yield f"{prefix}{path.relative_to(folder).as_posix()}", path


def _is_wanted(path: Path) -> bool:
    return not (path.name.endswith((".part", *BESIDE_DATABASES)) or path.is_symlink())


def _add(
    tar: tarfile.TarFile, name: str, path: Path, beside: Path, rows: dict[str, dict[str, Any]]
) -> None:
    with _as_it_is(path, beside) as copied:
        try:
            file = copied.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            why = (error.strerror or "unreadable").lower()
            raise FileProblemError(path, why, "see that its owner makes the backup") from None
        with file:
            facts, read = tarfile.TarInfo(name), _Hashed(file)
            facts.size = os.fstat(file.fileno()).st_size
            facts.mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
            try:
                tar.addfile(facts, read)
            except OSError as error:
                if error.errno is not None:
                    raise
                what = "became shorter while it was copied"
                raise FileProblemError(path, what, "make the backup again") from None
            digest = read.digest.hexdigest()
            rows[name] = {"sha256": digest, "mode": facts.mode, "bytes": facts.size}


def _add_bytes(tar: tarfile.TarFile, content: bytes) -> None:
    facts = tarfile.TarInfo(MANIFEST)
    facts.size, facts.mode = len(content), 0o600
    tar.addfile(facts, io.BytesIO(content))


@contextmanager
def _as_it_is(path: Path, beside: Path) -> Iterator[Path]:
    """The file itself; of a database a copy of one moment, removed afterwards."""
    if path.suffix not in DATABASES:
        yield path
        return
    copy = beside.with_name(f"{beside.name}.{path.name}")
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        source = f"{path.resolve().as_uri()}?mode=rw"
        with (
            closing(sqlite3.connect(source, uri=True, timeout=60.0)) as database,
            closing(sqlite3.connect(copy)) as target,
        ):
            database.backup(target)
        yield copy
    except sqlite3.Error as error:
        what = f"the database cannot be copied ({error})"
        raise FileProblemError(
            path, what, "see that it is whole, and make the backup again"
        ) from error
    finally:
        copy.unlink(missing_ok=True)


def _unpack(archive: Path, kind: str, folder: Path) -> Archived:
    found, manifest = dict[str, str](), b""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or manifest:
                    raise FileProblemError(archive, "holds what no backup holds", _FIX)
                if member.name == MANIFEST:
                    manifest = source.read()
                    continue
                path = _place(archive, folder, member.name)
                found[member.name] = _write(source, path)
    except (tarfile.TarError, EOFError):
        raise FileProblemError(archive, "is not a whole tar file", _FIX) from None
    except FileNotFoundError:
        raise FileProblemError(archive, "no such file", "correct its name") from None
    try:
        told = json.loads(manifest)
        if (told["format"], told["kind"]) != (FORMAT, kind):
            what = f"is a backup of kind {told['kind']!r}, format {told['format']}"
            raise FileProblemError(archive, what, f"name one of kind {kind!r}, format {FORMAT}")
        at, rows = str(told["at"]), dict(told["files"])
        wanted = {name: row["sha256"] for name, row in rows.items()}
        modes = {name: int(row["mode"]) & 0o777 for name, row in rows.items()}
        result = _archived(at, rows)
    except (ValueError, KeyError, TypeError):
        raise FileProblemError(archive, "has no manifest at its end", _FIX) from None
    if wrong := sorted(
        name for name in wanted.keys() | found if wanted.get(name) != found.get(name)
    ):
        what = (
            f"was changed: {len(wrong)} files are not those of its manifest, such as {wrong[0]!r}"
        )
        raise FileProblemError(archive, what, _FIX)
    for name, mode in modes.items():
        (folder / name).chmod(mode)
    return result


def _place(archive: Path, folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or "\0" in name:
        raise FileProblemError(archive, f"names a place outside of it ({name!r})", _FIX)
    path = folder / pure
    if path.exists():
        raise FileProblemError(archive, f"names {name!r} twice", _FIX)
    return path


def _write(source: Any, path: Path) -> str:
    """Write what can be read, durably; its SHA-256."""
    digest = hashlib.sha256()
    make_folder(path.parent, 0o700)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        while data := source.read(CHUNK_BYTES):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return digest.hexdigest()


def _archived(at: str, rows: dict[str, dict[str, Any]]) -> Archived:
    return Archived(at, len(rows), sum(int(row["bytes"]) for row in rows.values()))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
