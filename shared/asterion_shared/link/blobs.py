"""Large parts on disk: one file each, named by its content, filled chunk by chunk.

A part that is being received has two files: ``ID.part`` with its bytes so far and ``ID.have`` with
a byte for each chunk, 1 once the chunk is durable. A whole one has ``ID`` with its bytes and
``ID.chunks`` with its chunks' hashes; one of our own is written as ``ID.new`` first. Nothing here
is trusted after a crash: a chunk counts only when its byte says so, and that is written after the
chunk is synced. ``ID.chunks`` is not synced: without it other parts cannot share its chunks.
"""

import hashlib
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import make_folder, sync_folder
from asterion_shared.link.parcels import CHUNK_BYTES, HASH_BYTES, INLINE_BYTES, Part

Buffer = bytes | bytearray | memoryview

KINDS = ("", "chunks", "part", "have", "new")
"""Endings of a part's files."""


@dataclass(slots=True)
class _Arriving:
    """A part of which some chunks are missing.

    Attributes:
        file: descriptor of its bytes.
        have: a byte a chunk; 1: written, and durable at the next sync.
        synced: whether ``have`` is on disk as it is here.
    """

    file: int
    have: bytearray
    synced: bool = True


class BlobStore:
    """Parts on disk. Any thread may use it; one process writes arriving parts.

    Args:
        folder: where they lie; made when missing.

    Raises:
        DiskProblemError: the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = RLock()
        self._arriving: dict[str, _Arriving] = {}
        self._known: dict[bytes, tuple[str, int]] = {}
        try:
            make_folder(folder)
            sync_folder(folder)  # whoever was killed here may have renamed without a sync
        except OSError as error:
            raise _problem(folder, error) from error
        for path in folder.glob("*.chunks"):
            self._learn(path.stem, path.read_bytes())

    def add(self, data: Buffer) -> Part:
        """Store bytes of our own; durable when it returns. Few bytes are not stored but inline.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        view = memoryview(data).cast("B")
        if len(view) <= INLINE_BYTES:
            return Part(len(view), bytes(view))
        starts = range(0, len(view), CHUNK_BYTES)
        cut = (view[start : start + CHUNK_BYTES] for start in starts)
        part = Part(len(view), None, b"".join(hashlib.sha256(piece).digest() for piece in cut))
        with self._lock:
            if not self.holds(part):
                self._drop_arriving(part.id)
                self._write_whole(part, view)
        return part

    def holds(self, part: Part) -> bool:
        """Whether all of it is here."""
        return part.inline is not None or self._path(part).exists()

    def missing(self, part: Part) -> list[int]:
        """Numbers of the chunks that are not here; those that other parts have are copied.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        with self._lock:
            if self.holds(part):
                return []
            arriving = self._begin(part)
            absent = [n for n in range(part.num_chunks) if not arriving.have[n]]
            for number in absent:
                copy = self._copy_of(part.hash_of(number))
                if copy is not None:
                    self._put(arriving, part, number, copy)
            missing = [n for n in absent if not arriving.have[n]]
            if not missing:  # also when a crash came after the last chunk, before the rename
                self.sync(part)
            return missing

    def write(self, part: Part, number: int, data: Buffer) -> None:
        """Take a chunk that arrived; it counts after the next :meth:`sync`.

        Raises:
            ValueError: it is not that chunk.
            DiskProblemError: the disk is full or not writable.
        """
        if not 0 <= number < part.num_chunks or len(data) != part.size_of(number):
            msg = f"chunk {number} of {part.num_chunks} has {len(data)} bytes"
            raise ValueError(msg)
        if hashlib.sha256(data).digest() != part.hash_of(number):
            msg = f"chunk {number} has another hash than was announced"
            raise ValueError(msg)
        with self._lock:
            if not self.holds(part):
                arriving = self._begin(part)
                if not arriving.have[number]:
                    self._put(arriving, part, number, data)

    def sync(self, part: Part) -> bool:
        """Make what arrived durable; True when the part is whole, False when it was removed.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        with self._lock:
            if self.holds(part):
                return True
            arriving = self._arriving.get(part.id)
            if arriving is None:
                return False
            try:
                if not arriving.synced:
                    os.fdatasync(arriving.file)
                    with self._path(part, "have").open("r+b") as file:
                        file.write(arriving.have)
                        file.flush()
                        os.fdatasync(file.fileno())
                    arriving.synced = True
                if not all(arriving.have):
                    return False
                self._complete(part)
            except OSError as error:
                raise _problem(self.folder, error) from error
            return True

    def read(self, part: Part, number: int) -> bytes:
        """A chunk of a whole part.

        Raises:
            FileNotFoundError: the part is not here, or no longer.
        """
        return read_chunk(self.folder, part, number)

    def view(self, part: Part) -> memoryview:
        """The bytes of a whole part, read-only; a large one is mapped, not read.

        Raises:
            FileNotFoundError: the part is not here, or no longer.
        """
        return self._mapped(part, mmap.ACCESS_READ)

    def private_view(self, part: Part) -> memoryview:
        """The same for someone who may write: a page is copied when it is, the file stays.

        Pages of such a view are not let go by :mod:`asterion_shared.blocks`.

        Raises:
            FileNotFoundError: the part is not here, or no longer.
        """
        return self._mapped(part, mmap.ACCESS_COPY)

    def _mapped(self, part: Part, access: int) -> memoryview:
        if part.inline is not None:
            return memoryview(part.inline)
        with self._path(part).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=access))

    def keep_only(self, parts: Iterable[Part]) -> None:
        """Remove every other part, whole or arriving. Views that are open stay good."""
        wanted = {part.id for part in parts}
        with self._lock:
            for path in self.folder.iterdir():
                if path.name.split(".")[0] not in wanted:
                    self._forget(path)

    def remove(self, parts: Iterable[Part]) -> None:
        """Remove these parts; those that are not here are none."""
        with self._lock:
            for part in parts:
                for kind in KINDS:
                    self._forget(self._path(part, kind))

    def close(self) -> None:
        """Let go of open files; what was not synced does not count."""
        with self._lock:
            for name in list(self._arriving):
                self._drop_arriving(name)

    def num_bytes(self) -> int:
        """Disk space of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _path(self, part: Part, kind: str = "") -> Path:
        return self.folder / (f"{part.id}.{kind}" if kind else part.id)

    def _begin(self, part: Part) -> _Arriving:
        known = self._arriving.get(part.id)
        if known is not None:
            return known
        have = bytearray(part.num_chunks)
        try:
            noted, path = self._path(part, "have"), self._path(part, "part")
            there = noted.exists() and path.exists() and noted.stat().st_size == len(have)
            if there:
                have[:] = noted.read_bytes()
            else:
                # One of an earlier time must not come back: it would count chunks of the new file.
                noted.unlink(missing_ok=True)
                sync_folder(self.folder)
                _write_synced(noted, have)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._arriving[part.id] = _Arriving(file, have)
            os.ftruncate(file, part.size)
            if not there:
                sync_folder(self.folder)  # else a power cut could leave one file without the other
        except OSError as error:
            self._drop_arriving(part.id)
            raise _problem(self.folder, error) from error
        return self._arriving[part.id]

    def _put(self, arriving: _Arriving, part: Part, number: int, data: Buffer) -> None:
        try:
            os.pwrite(arriving.file, data, number * CHUNK_BYTES)
        except OSError as error:
            raise _problem(self.folder, error) from error
        arriving.have[number], arriving.synced = 1, False

    def _complete(self, part: Part) -> None:
        self._path(part, "chunks").write_bytes(part.chunks)
        os.close(self._arriving.pop(part.id).file)
        self._path(part, "part").replace(self._path(part))
        sync_folder(self.folder)  # the note goes after that: it alone could be what is lost
        self._path(part, "have").unlink(missing_ok=True)
        self._learn(part.id, part.chunks)

    def _write_whole(self, part: Part, view: memoryview) -> None:
        try:
            # Under a name of its own: of an arriving part, the chunks that are noted must stay.
            _write_synced(self._path(part, "new"), view)
            self._path(part, "chunks").write_bytes(part.chunks)
            self._path(part, "new").replace(self._path(part))
            sync_folder(self.folder)
            for kind in ("part", "have"):
                self._path(part, kind).unlink(missing_ok=True)
        except OSError as error:
            self._path(part, "new").unlink(missing_ok=True)
            raise _problem(self.folder, error) from error
        self._learn(part.id, part.chunks)

    def _learn(self, name: str, chunks: bytes) -> None:
        for number in range(len(chunks) // HASH_BYTES):
            self._known[chunks[number * HASH_BYTES : (number + 1) * HASH_BYTES]] = (name, number)

    def _copy_of(self, digest: bytes) -> bytes | None:
        """A chunk that another part has; it is hashed again, as that part may be gone by now."""
        name, number = self._known.get(digest, ("", 0))
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), CHUNK_BYTES, number * CHUNK_BYTES)
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == digest else None

    def _drop_arriving(self, name: str) -> None:
        known = self._arriving.pop(name, None)
        if known is not None:
            os.close(known.file)

    def _forget(self, path: Path) -> None:
        name = path.name.split(".")[0]
        self._drop_arriving(name)
        if path.suffix == ".chunks" and path.exists():
            chunks = path.read_bytes()
            for number in range(len(chunks) // HASH_BYTES):
                digest = chunks[number * HASH_BYTES : (number + 1) * HASH_BYTES]
                if self._known.get(digest, ("", 0))[0] == name:
                    del self._known[digest]
        path.unlink(missing_ok=True)


def _write_synced(path: Path, data: Buffer) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fdatasync(file.fileno())


def _problem(path: Path, error: OSError) -> DiskProblemError:
    return DiskProblemError(path, error.strerror or type(error).__name__)


def read_chunk(folder: Path, part: Part, number: int) -> bytes:
    """A chunk of a whole part in the folder of a :class:`BlobStore`.

    Raises:
        FileNotFoundError: the part is not there, or no longer.
    """
    with (folder / part.id).open("rb", buffering=0) as file:
        return os.pread(file.fileno(), part.size_of(number), number * CHUNK_BYTES)
