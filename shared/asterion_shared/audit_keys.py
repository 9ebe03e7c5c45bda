"""The Ed25519 key with which one end signs its audit records."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from asterion_shared.errors import FileProblemError
from asterion_shared.key_files import read_private, write_private

FILE = "audit.key"


def audit_public_key(folder: Path) -> str:
    """The public part of an end's audit key, PEM; the key is made on first use.

    Args:
        folder: of the end's audit records; the key is its file ``audit.key``, mode 0600.

    Raises:
        FileProblemError: the file is not such a key, or others can read it.
        DiskProblemError: the folder is not writable.
    """
    path = folder / FILE
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(path, pem)
    try:
        key = load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        fix = "put the key back from the backup"
        raise FileProblemError(path, "is not an Ed25519 private key", fix)
    form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form).decode()
