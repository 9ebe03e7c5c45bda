"""Files that are either the old one or the new one, never half of it; and files of lines."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from asterion_shared.errors import DiskProblemError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, bring it to the disk, then rename it into place.

    Missing folders are made. A reader sees the old content or the new, also after a power cut;
    when writing fails the old file is untouched and the temporary one is removed.

    Args:
        path: where the content shall stand; an existing file is replaced.
        content: the whole file; may be empty.

    Raises:
        DiskProblemError: the disk is full or the folder is not writable.
    """
    write_parts_atomically(path, [content])


def write_parts_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """The same for a file that is made part by part and never is in memory as a whole.

    Args:
        path: where the file shall stand; an existing one is replaced.
        parts: what it consists of, in order; each is written before the next is asked for.

    Raises:
        DiskProblemError: the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file of text lines, and bring them to the disk.

    A last line that a crash tore is ended first and stays, so a reader has to skip what is no
    record. Missing folders are made.

    Args:
        path: of the file; made when missing.
        lines: without their ends.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    text = "".join(f"{line}\n" for line in lines)
    try:
        make_folder(path.parent)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


_on_disk: set[Path] = set()
"""Folders whose entry this process has synced."""


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and what is missing above it; their entries are on the disk on return.

    The entry of a folder that is there already is synced as well, once by each process: whoever
    made it may have been killed before its own sync, or does not sync.

    Args:
        folder: may be there already.
        mode: permissions of the folder itself, less the process's umask.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    there = folder.is_dir()
    if there and folder in _on_disk:
        return
    if not there:
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
    try:
        sync_folder(folder.parent)
    except OSError:
        if not there:
            raise
        # What lies above may be another's, not readable or of a kind that cannot be synced.
    _on_disk.add(folder)


def sync_folder(folder: Path) -> None:
    """Bring the folder's own entry to the disk: without it a rename may be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
