"""Fingerprints of public keys, made to be read aloud on the telephone."""

import base64
import hashlib
import hmac

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

GROUP = 4
"""Letters and digits of a group."""

BYTES = 20
"""Of the SHA-256 that a fingerprint shows: 160 bits, so eight groups."""

PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


def fingerprint(public_key: str) -> str:
    """The fingerprint of a public key: eight groups of four letters and digits.

    It is the start of the SHA-256 of the key (DER, SubjectPublicKeyInfo) in base 32 of RFC 4648:
    letters and the digits 2 to 7, so that no 0 is taken for an O and no 1 for an I.

    Args:
        public_key: PEM.

    Raises:
        ValueError: it is no EC or Ed25519 public key.
    """
    digest = hashlib.sha256(_der(read_public_key(public_key))).digest()
    return in_groups(base64.b32encode(digest[:BYTES]).decode())


def only_certificate(pem: bytes) -> x509.Certificate:
    """The certificate in PEM text that has just one.

    Of several the first would be looked at, and all of them be trusted.

    Raises:
        ValueError: it is no certificate, or there are more.
    """
    found = x509.load_pem_x509_certificates(pem)
    if len(found) != 1:
        msg = f"holds {len(found)} certificates in place of one"
        raise ValueError(msg)
    return found[0]


def certificate_fingerprint(certificate: bytes) -> str:
    """The fingerprint of the public key in a PEM certificate, of any kind of key.

    Raises:
        ValueError: it is no certificate, or more than one.
    """
    key = only_certificate(certificate).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return in_groups(base64.b32encode(hashlib.sha256(der).digest()[:BYTES]).decode())


def matches(told: str, shown: str) -> bool:
    """Whether two fingerprints are the same, however they are grouped and in either case.

    >>> matches("abcd efgh", "ABCD-EFGH")
    True
    """
    return hmac.compare_digest(plain(told).encode(), plain(shown).encode())


def plain(text: str) -> str:
    """Letters and digits alone, in capitals.

    >>> plain("abcd-ef 23")
    'ABCDEF23'
    """
    return "".join(letter for letter in text.upper() if letter.isalnum())


def in_groups(text: str) -> str:
    """Groups of four with hyphens between them.

    >>> in_groups("ABCDEFGH")
    'ABCD-EFGH'
    """
    return "-".join(text[i : i + GROUP] for i in range(0, len(text), GROUP))


def read_public_key(pem: str) -> PublicKey:
    """A public key from PEM.

    Raises:
        ValueError: it is no EC or Ed25519 public key.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except UnsupportedAlgorithm:
        key = None
    if not isinstance(key, PublicKey):
        msg = "is no EC or Ed25519 public key"
        raise ValueError(msg)  # noqa: TRY004  # what the file holds, not what the caller passed
    return key


def public_pem(key: PublicKey) -> str:
    """A public key as PEM, always with the same bytes."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _der(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
