"""The Ed25519 key that one side signs its audit records with."""

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, sync_folder

KEY, NEXT_KEY = "audit.key", "audit.key.next"
"""In the trail's folder: the key in use, and one that is about to take its place."""

BACK = "put it back from a backup; without it the trail cannot go on"


def audit_key(folder: Path) -> Ed25519PrivateKey:
    """The key of a trail; made on first use, with mode 0600 from its creation.

    Args:
        folder: of the trail.

    Raises:
        FileProblemError: others can read it, it is not an Ed25519 key, or it is gone while its
            trail is here.
        DiskProblemError: it cannot be made or read.
    """
    path = folder / KEY
    try:
        if not path.exists():
            if any(folder.glob("audit-*.jsonl")):
                raise FileProblemError(path, "the key is gone, its trail is here", BACK)
            write_key(path, Ed25519PrivateKey.generate())
        return read_key(path)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def read_key(path: Path) -> Ed25519PrivateKey:
    """A private key that is there.

    Raises:
        FileProblemError: others can read it, or it is not an Ed25519 key.
        OSError: it cannot be read.
    """
    known = path.stat()
    if known.st_mode & 0o077:
        raise FileProblemError(path, "others can read this key", f"chmod 600 {path}")
    return _read(path, known.st_ino, known.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, _inode: int, _modified: int) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FileProblemError(path, "is not an Ed25519 key in PEM", BACK)
    return key


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a key that only its owner can read; of two processes at once the first one's stays.

    Raises:
        OSError: the folder is not writable.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    make_folder(path.parent, 0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        part.touch(0o600, exist_ok=False)
        with part.open("wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a key that another process just made.
        with suppress(FileExistsError):
            path.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def public_pem(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public half, PEM, as records name it."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public(pem: str) -> Ed25519PublicKey | None:
    """A public key from its PEM; None where it is not an Ed25519 one."""
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError:
        return None
    return key if isinstance(key, Ed25519PublicKey) else None
