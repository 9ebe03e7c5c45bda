"""The Ed25519 key that one side signs its audit records with."""

from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from asterion_shared.errors import FileProblemError
from asterion_shared.key_files import check_private, read_private, write_private

KEY, NEXT_KEY = "audit.key", "audit.key.next"
"""In the trail's folder: the key in use, and one that is about to take its place."""

BACK = "put it back from a backup; without it the trail cannot go on"


def audit_key(folder: Path) -> Ed25519PrivateKey:
    """The key of a trail; made on first use. The caller holds the trail's lock.

    Args:
        folder: of the trail.

    Raises:
        FileProblemError: others can read it, it is not an Ed25519 key, or it is gone while its
            trail is here.
        DiskProblemError: it cannot be made.
    """
    path = folder / KEY
    if not path.exists():
        if any(folder.glob("audit-*.jsonl")):
            raise FileProblemError(path, "the key is gone, its trail is here", BACK)
        write_key(path, Ed25519PrivateKey.generate())
    return read_key(path)


def read_key(path: Path) -> Ed25519PrivateKey:
    """A private key that is there.

    Raises:
        FileProblemError: it is gone, others can read it, or it is not an Ed25519 key.
    """
    check_private(path, BACK)
    known = path.stat()
    return _read(path, known.st_ino, known.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, _inode: int, _modified: int) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_private(path, BACK), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FileProblemError(path, "is not an Ed25519 key in PEM", BACK)
    return key


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a key that only its owner can read.

    Raises:
        DiskProblemError: the folder is not writable.
    """
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_pem(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public half, PEM, as records name it."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public(pem: str) -> Ed25519PublicKey | None:
    """A public key from its PEM; None where it is not an Ed25519 one."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None


def read_public_file(path: Path, fix: str) -> Ed25519PublicKey:
    """A public key from a file.

    Args:
        path: PEM.
        fix: what to do when it is none.

    Raises:
        FileProblemError: it is missing, unreadable, or not an Ed25519 public key.
    """
    try:
        key = read_public(path.read_text(encoding="ascii"))
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
    except ValueError:
        key = None
    if key is None:
        raise FileProblemError(path, "is not an Ed25519 public key in PEM", fix)
    return key
