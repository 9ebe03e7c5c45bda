"""An operator's pair of keys."""

import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.fingerprints import fingerprint, public_pem
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
    pem = public_pem(key.public_key())
    write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_atomically(public, pem.encode())
    return private, public, fingerprint(pem)
