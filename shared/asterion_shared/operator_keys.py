"""An operator's pair of keys, and how a key is read aloud."""

import hashlib
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.key_files import write_private

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def make_operator_key(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Make an operator's keys.

    Args:
        folder: where ``NAME.key`` (mode 0600) and ``NAME.pem`` go.
        name: of the operator.

    Returns:
        Both paths, and the public key's fingerprint.

    Raises:
        UserInputError: the name is not allowed, or such a key is there: it is never replaced.
        DiskProblemError: the folder is not writable.
    """
    if _NAME.fullmatch(name) is None:
        msg = f"the operator's name is {name!r}; use lower-case letters, digits, '_', '.', '-'"
        raise UserInputError(msg)
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    if private.exists():
        msg = f"{private} is there; move it away, or choose another name"
        raise UserInputError(msg)
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_atomically(public, pem)
    return private, public, fingerprint(pem)


def fingerprint(public_key: bytes) -> str:
    """What two people read to each other to compare a public key.

    Args:
        public_key: PEM.

    Returns:
        The first 128 bits of the SHA-256 of its DER form, in eight groups of four hex digits.

    Raises:
        ValueError: it is no public key.
    """
    key = load_pem_public_key(public_key)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digits = hashlib.sha256(der).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))
