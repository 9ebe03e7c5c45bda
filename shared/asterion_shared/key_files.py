"""Private keys on disk: for their owner alone, from their creation on."""

import os
import stat
from pathlib import Path

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, sync_folder


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; it never exists with a wider mode.

    Args:
        path: of the file; one that is there is replaced. Missing folders are made.
        content: the whole file.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        make_folder(path.parent)
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def read_private(path: Path, fix: str) -> bytes:
    """Read a private key that nobody else can read.

    Args:
        path: of the file.
        fix: what to do when it is missing.

    Raises:
        FileProblemError: it is missing, or others can read it.
    """
    require_private(path, fix)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None


def require_private(path: Path, fix: str) -> None:
    """See to it that a private key is there and nobody else can read or change it.

    Raises:
        FileProblemError: it is missing, or its mode is wider than 0600.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
    if mode & 0o077:
        what = f"has mode {mode:04o}: others can read this private key"
        raise FileProblemError(path, what, f"chmod 600 {path}")
