"""The two files of an enrolment: a site's request, and the coordinator's answer.

A request proves by its signature that whoever made it holds the site's private key; an answer is
signed with the key of the coordinator's certificate. Neither holds a secret. That the keys are the
right people's is for two persons to say, who read a fingerprint to each other.
"""

import base64
import json
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import Field

from asterion_shared.carrier import Carrier
from asterion_shared.errors import FileProblemError
from asterion_shared.fingerprints import only_certificate, public_pem, read_public_key
from asterion_shared.plan import Name
from asterion_shared.settings_files import Settings, read_versioned_json, validate

VERSION = 1
REQUEST_SUFFIX, ENROLMENT_SUFFIX = ".request.json", ".enrolment.json"
MOST_BYTES = 2**20
"""Of either file, on any way it comes."""

Address = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$", max_length=300)
]
"""No quote, blank or line end: a site writes it into its settings."""

_REQUEST_HEAD = b"asterion enrolment request 1\n"
_ENROLMENT_HEAD = b"asterion enrolment 1\n"
_ECDSA = ec.ECDSA(hashes.SHA384())


class EnrolmentRequest(Settings):
    """``NAME.request.json``: a site asks to be enrolled."""

    schema_version: Literal[1] = 1
    site: Name
    """The site's name."""

    public_key: str
    """The site's EC public key, PEM."""

    audit_public_key: str
    """The Ed25519 public key of the site's audit records, PEM."""

    asterion_version: str = Field(max_length=40)
    """What wrote the request."""

    previous_public_key: str | None = None
    """The key that this one replaces, PEM, when the site rotates its key."""

    signature: str = ""
    """Of all of the above by ``public_key``: ECDSA with SHA-384, base 64."""

    previous_signature: str | None = None
    """The same by ``previous_public_key``."""


class Enrolment(Settings):
    """``NAME.enrolment.json``: what an enrolled site gets."""

    schema_version: Literal[1] = 1
    site: Name
    """Whom it is for."""

    root_certificate: str
    """Of the authority, PEM."""

    certificate: str
    """The site's, PEM."""

    addresses: tuple[Address, ...] = Field(min_length=1)
    """``host:port`` under which the coordinator is reached; the first is for most sites."""

    carrier: Carrier
    """Of the messages."""

    peers: dict[Name, str]
    """Public keys of all enrolled sites by name, PEM."""

    operators: dict[Name, str]
    """Ed25519 public keys of the operators by name, PEM."""

    audit_public_key: str
    """The Ed25519 public key of the coordinator's audit records, PEM."""

    server_certificate: str
    """The coordinator's, PEM; its key signs this file."""

    signature: str = ""
    """Of all of the above: ECDSA with SHA-384, base 64."""


def signed_request(
    request: EnrolmentRequest,
    key: ec.EllipticCurvePrivateKey,
    previous: ec.EllipticCurvePrivateKey | None = None,
) -> EnrolmentRequest:
    """The request with its signatures.

    Args:
        request: without signatures.
        key: of its ``public_key``.
        previous: of its ``previous_public_key``; None when it has none.
    """
    body = _body(request, _REQUEST_HEAD)
    signatures = {"signature": _sign(key, body)}
    if previous is not None:
        signatures["previous_signature"] = _sign(previous, body)
    return request.model_copy(update=signatures)


def request_from(values: dict[str, object], source: str) -> EnrolmentRequest:
    """A request whose signatures hold.

    Args:
        values: what came.
        source: of the request, for messages.

    Raises:
        SettingsError: a field is missing, unknown or wrong.
        FileProblemError: a key is none, or a signature does not hold.
    """
    request = validate(EnrolmentRequest, values, source)
    fix = "have the site make it again: asterion site init"
    try:
        keys = [ec_key(request.public_key)]
        if request.previous_public_key is not None:
            keys.append(ec_key(request.previous_public_key))
        signing_key(request.audit_public_key)
    except ValueError as error:
        raise FileProblemError(source, f"a key in it {error}", fix) from None
    signatures = [request.signature, request.previous_signature or ""]
    body = _body(request, _REQUEST_HEAD)
    for key, signature in zip(keys, signatures, strict=False):
        if not _holds(key, signature, body):
            what = "was changed after it was signed, or not signed by the key in it"
            raise FileProblemError(source, what, fix)
    return request


def read_request(path: Path) -> EnrolmentRequest:
    """Read a request whose signatures hold.

    Raises:
        FileProblemError: the file is missing, no request, of another version, or was changed.
        SettingsError: a field is missing, unknown or wrong.
    """
    _check_size(path)
    values = read_versioned_json(path, VERSION, "have the site send it again")
    return request_from(values, str(path))


def signed_enrolment(enrolment: Enrolment, key: ec.EllipticCurvePrivateKey) -> Enrolment:
    """The answer with its signature by the key of its ``server_certificate``."""
    body = _body(enrolment, _ENROLMENT_HEAD)
    return enrolment.model_copy(update={"signature": _sign(key, body)})


def enrolment_from(values: dict[str, object], source: str) -> Enrolment:
    """An answer that the coordinator signed whose certificate is in it.

    Whether the authority behind that certificate is the right one is not looked at here.

    Raises:
        SettingsError: a field is missing, unknown or wrong.
        FileProblemError: the signature does not hold, or is not of a server's certificate of the
            authority in the file.
    """
    given = validate(Enrolment, values, source)
    fix = "ask the coordinator's operator for the file anew"
    try:
        root = only_certificate(given.root_certificate.encode())
        server = only_certificate(given.server_certificate.encode())
        only_certificate(given.certificate.encode())
        for pem in given.peers.values():
            ec_key(pem)
        for pem in (*given.operators.values(), given.audit_public_key):
            signing_key(pem)
    except ValueError:
        what = "holds what is no key or certificate, or several in place of one"
        raise FileProblemError(source, what, fix) from None
    try:
        server.verify_directly_issued_by(root)
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    key = server.public_key()
    signed = isinstance(key, ec.EllipticCurvePublicKey) and _holds(
        key, given.signature, _body(given, _ENROLMENT_HEAD)
    )
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage or not signed:
        what = "was changed after it was signed, or not signed by a coordinator of its authority"
        raise FileProblemError(source, what, fix)
    return given


def read_enrolment(path: Path) -> Enrolment:
    """Read an answer; see :func:`enrolment_from`.

    Raises:
        FileProblemError: the file is missing, no answer, of another version, or was changed.
        SettingsError: a field is missing, unknown or wrong.
    """
    _check_size(path)
    values = read_versioned_json(path, VERSION, "ask the coordinator's operator for it anew")
    return enrolment_from(values, str(path))


def text_of(value: EnrolmentRequest | Enrolment) -> bytes:
    """Either of the two as a file."""
    return (value.model_dump_json(indent=2) + "\n").encode()


def ec_key(pem: str) -> ec.EllipticCurvePublicKey:
    """A site's public key from PEM.

    Raises:
        ValueError: it is not an EC public key on the curve P-384.
    """
    key = read_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = "is not an EC public key on the curve P-384"
        raise ValueError(msg)  # noqa: TRY004  # what the file holds, not what the caller passed
    return key


def signing_key(pem: str) -> Ed25519PublicKey:
    """A public key that checks signatures of plans or audit records, from PEM.

    Raises:
        ValueError: it is not an Ed25519 public key.
    """
    key = read_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        msg = "is not an Ed25519 public key"
        raise ValueError(msg)  # noqa: TRY004  # what the file holds, not what the caller passed
    return key


def same_key(first: str, second: str) -> bool:
    """Whether two PEM public keys are one key."""
    return public_pem(read_public_key(first)) == public_pem(read_public_key(second))


def _check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise FileProblemError(path, f"has more than {MOST_BYTES} bytes", "check the path")


def _body(value: EnrolmentRequest | Enrolment, head: bytes) -> bytes:
    fields = value.model_dump(mode="json", exclude={"signature", "previous_signature"})
    return head + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _sign(key: ec.EllipticCurvePrivateKey, body: bytes) -> str:
    return base64.b64encode(key.sign(body, _ECDSA)).decode()


def _holds(key: ec.EllipticCurvePublicKey, signature: str, body: bytes) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), body, _ECDSA)
    except (ValueError, InvalidSignature):
        return False
    return True
