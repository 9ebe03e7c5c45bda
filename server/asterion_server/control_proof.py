"""Who may use the SuperLink's control interface: proofs of single calls, made and checked.

A proof says who calls what: account, coordinator, path, hash of the body, time, and a number used
once. An operator signs it with the Ed25519 key (RFC 8032) whose public half lies in the
coordinator's ``operators`` folder; the coordinator's own processes make an HMAC with its secret.
It is good for that one call, once, and for a minute at most.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from asterion_server.keys import Provisioned
from asterion_shared.errors import FileProblemError, ProofRefusedError, UserInputError
from asterion_shared.key_files import read_private
from asterion_shared.signed_plan import read_operator_key

FORMAT = 1
LIFE_SECONDS = 60
"""So long after its making a proof is accepted."""

SKEW_SECONDS = 10
"""So far an operator's clock may be ahead; the time it may be behind is taken from the life."""

COORDINATOR = "coordinator"
"""The account of the coordinator's own processes."""

OPERATOR = re.compile(r"operator:([a-z0-9][a-z0-9_.-]{0,62})")
"""The account of an operator."""

MOST_PROOF_CHARACTERS = 1024
_DOMAIN = b"asterion control proof 1\n"
_CLAIMS = {"format": int, "account": str, "audience": str, "path": str, "body_sha256": str,
           "issued_ms": int, "nonce": str}  # fmt: skip

Prove = Callable[[str, bytes], str]


@dataclass(frozen=True, slots=True)
class Accounts:
    """What proofs are checked against.

    Attributes:
        operators: the folder of their public keys, read anew for each proof.
        secret: of the coordinator's own processes.
        audience: this coordinator, as :func:`audience_of` names it.
        started: when this process began to remember nonces, in seconds since 1970; an older proof
            might have been used already.
    """

    operators: Path
    secret: bytes
    audience: str
    started: float


@dataclass(frozen=True, slots=True)
class Claims:
    """What a proof says, once its signature has been found right.

    Attributes:
        account: ``coordinator`` or ``operator:NAME``.
        path: of the call.
        body_sha256: of the call's body.
        nonce: of this proof alone.
        ends: after this moment the proof is refused, in seconds since 1970.
    """

    account: str
    path: str
    body_sha256: str
    nonce: str
    ends: float


def audience_of(root_certificate: Path) -> str:
    """The coordinator that a proof is for: SHA-256 of its authority's certificate, hexadecimal.

    Raises:
        FileProblemError: the file is missing or holds no certificate.
    """
    try:
        certificate = load_pem_x509_certificate(root_certificate.read_bytes())
    except (OSError, ValueError) as error:
        fix = "take the coordinator's ca.pem"
        raise FileProblemError(root_certificate, "is not a certificate", fix) from error
    return certificate.fingerprint(hashes.SHA256()).hex()


def operator_prover(name: str, private_key: Path, root_certificate: Path) -> Prove:
    """Makes an operator's proofs.

    Args:
        name: under which the coordinator knows the operator.
        private_key: PEM file of the Ed25519 key, mode 0600.
        root_certificate: the coordinator's ``ca.pem``.

    Raises:
        UserInputError: the name is not one.
        FileProblemError: a file is missing or is not what it should be, or others can read the key.
    """
    account = f"operator:{name}"
    if OPERATOR.fullmatch(account) is None:
        msg = f"the operator's name is {name!r}; use lower-case letters, digits, '_', '.', '-'"
        raise UserInputError(msg)
    key = read_operator_key(private_key)
    audience = audience_of(root_certificate)
    return lambda path, body: _proof(account, audience, path, body, key.sign)


def coordinator_prover(made: Provisioned) -> Prove:
    """Makes the proofs of the coordinator's own processes.

    Args:
        made: its folder.

    Raises:
        FileProblemError: ``ca.pem`` is not a certificate, or others can read the secret.
    """
    secret, audience = _secret(made), audience_of(made.root_certificate)
    return lambda path, body: _proof(
        COORDINATOR, audience, path, body, lambda claims: _mac(secret, claims)
    )


def accounts_of(made: Provisioned) -> Accounts:
    """The accounts of a coordinator, for a process that begins now.

    Raises:
        FileProblemError: ``ca.pem`` is not a certificate, or others can read the secret.
    """
    audience = audience_of(made.root_certificate)
    return Accounts(made.operators, _secret(made), audience, time.time())


def read_proof(proof: str, accounts: Accounts, now: float) -> Claims:
    """Check a proof's signature, its coordinator and its time. The call itself is not looked at.

    Args:
        proof: as it came.
        accounts: of this coordinator.
        now: seconds since 1970.

    Raises:
        ProofRefusedError: ``malformed``, ``not_accepted`` or ``expired``.
    """
    text, signature, claims = _split(proof)
    _check_signature(claims["account"], text, signature, accounts)
    if not hmac.compare_digest(claims["audience"], accounts.audience):
        raise ProofRefusedError(code="not_accepted")
    issued = claims["issued_ms"] / 1000
    # The coordinator's own processes have its clock.
    skew = 0 if claims["account"] == COORDINATOR else SKEW_SECONDS
    ends = issued + LIFE_SECONDS
    if not issued - skew <= now <= ends or issued < accounts.started + skew:
        raise ProofRefusedError(code="expired")
    return Claims(claims["account"], claims["path"], claims["body_sha256"], claims["nonce"], ends)


def _check_signature(account: str, text: bytes, signature: bytes, accounts: Accounts) -> None:
    if account == COORDINATOR:
        if hmac.compare_digest(signature, _mac(accounts.secret, _DOMAIN + text)):
            return
    elif operator := OPERATOR.fullmatch(account):
        # Read for each call: an operator whose file is removed is shut out at once.
        path = accounts.operators / f"{operator[1]}.pem"
        try:
            key = load_pem_public_key(path.read_bytes())
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, _DOMAIN + text)
                return
        except (OSError, ValueError, UnsupportedAlgorithm, InvalidSignature):
            pass  # whoever guesses names learns nothing: all of these are the one refusal below
    raise ProofRefusedError(code="not_accepted")


def _proof(
    account: str, audience: str, path: str, body: bytes, sign: Callable[[bytes], bytes]
) -> str:
    claims = {
        "format": FORMAT,
        "account": account,
        "audience": audience,
        "path": path,
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "issued_ms": time.time_ns() // 1_000_000,
        "nonce": secrets.token_hex(16),
    }
    text = json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()
    return f"{_in_header(text)}.{_in_header(sign(_DOMAIN + text))}"


def _split(proof: str) -> tuple[bytes, bytes, dict[str, Any]]:
    try:
        # A longer one is cut, and then it has no right signature.
        text, signature = (_from_header(x) for x in proof[:MOST_PROOF_CHARACTERS].split("."))
        claims = json.loads(text)
        right = isinstance(claims, dict) and claims.keys() == _CLAIMS.keys() and all(
            type(claims[name]) is kind for name, kind in _CLAIMS.items()
        )  # fmt: skip
    except (ValueError, RecursionError):
        raise ProofRefusedError(code="malformed") from None
    if not right or claims["format"] != FORMAT or abs(claims["issued_ms"]) > 2**53:
        raise ProofRefusedError(code="malformed")
    if re.fullmatch(r"[0-9a-f]{32}", claims["nonce"]) is None or not claims["path"].isascii():
        raise ProofRefusedError(code="malformed")
    if not claims["audience"].isascii() or not claims["body_sha256"].isascii():
        raise ProofRefusedError(code="malformed")
    return text, signature, claims


def _secret(made: Provisioned) -> bytes:
    return read_private(made.secret, f"make it again: asterion server init {made.folder}")


def _mac(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, "sha256")


def _in_header(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _from_header(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
