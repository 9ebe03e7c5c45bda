"""Private keys and secrets on disk: made for their owner alone, refused when others can read them.

A file never exists with a wider mode than 0600, not even while it is written.
"""

import os
import secrets
import stat
from pathlib import Path

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, sync_folder


def write_private(path: Path, content: bytes) -> None:
    """Write a private file in place of what is there; missing folders are made.

    Args:
        path: where it shall stand, with mode 0600.
        content: the whole file; may be empty.

    Raises:
        DiskProblemError: the disk is full or the folder is not writable.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(path.parent)
        try:
            part.touch(0o600, exist_ok=False)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def read_private(path: Path, fix: str = "check the path") -> bytes:
    """Read a private file, if nobody but its owner can.

    Args:
        path: the file.
        fix: what to do when it is missing.

    Raises:
        FileProblemError: it is missing, others can read or write it, or it is another account's.
    """
    check_private(path, fix)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None


def check_private(path: Path, fix: str = "check the path") -> None:
    """Refuse a private file that others than its owner can read or write.

    Its owner must be the account of this process, or root.

    Raises:
        FileProblemError: as :func:`read_private`.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        what = f"has mode {mode:04o}: others can read it"
        raise FileProblemError(path, what, f"chmod 600 {path}")
    if found.st_uid not in (os.geteuid(), 0):
        what = f"belongs to the account with number {found.st_uid}, not to this process's"
        raise FileProblemError(path, what, f"chown {os.geteuid()} {path} && chmod 600 {path}")
