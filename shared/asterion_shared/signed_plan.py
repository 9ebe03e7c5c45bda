"""An operator's signature under a plan: who wants this run, checked by each site for itself.

The signature names the plan's hash and the run, so that a coordinator that is taken over can
neither change a signed plan nor run it under other names. It ends by itself.
"""

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import Field

from asterion_shared.errors import FileProblemError, OrderRefusedError
from asterion_shared.key_files import read_private
from asterion_shared.plan import Name, Plan, Sha256
from asterion_shared.settings_files import Settings, validate

DOMAIN = b"asterion plan signature 1\n"
VALID_DAYS = 30
CLOCK_SECONDS = 3600
"""How far a signature's beginning may lie ahead of the site's clock."""


class PlanSignature(Settings):
    """What an operator signed, and the signature. It travels with each order."""

    operator: Name
    """Under this name the sites know the key."""

    run: Name
    plan_sha256: Sha256
    signed_at: Annotated[int, Field(ge=0, lt=2**53)]
    """UTC, seconds since 1970."""

    ends_at: Annotated[int, Field(ge=0, lt=2**53)]
    """UTC, seconds since 1970; no site carries out an order after it."""

    signature: Annotated[str, Field(min_length=88, max_length=88)]
    """Ed25519 (RFC 8032) over :meth:`message`, base64."""

    def message(self) -> bytes:
        """The bytes that are signed."""
        values = self.model_dump(exclude={"signature"})
        return DOMAIN + json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def sign_plan(
    plan: Plan,
    run: str,
    operator: str,
    key: Ed25519PrivateKey,
    *,
    now: float | None = None,
    days: int = VALID_DAYS,
) -> PlanSignature:
    """Sign a plan for one run.

    Args:
        plan: what shall run.
        run: name of the run.
        operator: the name under which the sites know the key.
        key: the operator's.
        now: UTC, seconds since 1970; None: the clock's.
        days: how long it holds, >= 1.

    Raises:
        SettingsError: the operator's or the run's name is none.
    """
    began = int(time.time() if now is None else now)
    values = {"operator": operator, "run": run, "plan_sha256": plan.sha256, "signed_at": began,
              "ends_at": began + days * 86_400}  # fmt: skip
    unsigned = validate(PlanSignature, values | {"signature": "A" * 88}, "the signature")
    signature = base64.b64encode(key.sign(unsigned.message())).decode()
    return unsigned.model_copy(update={"signature": signature})


def check_signature(
    signature: PlanSignature | None,
    plan: Plan,
    run: str,
    keys: Mapping[str, Ed25519PublicKey],
    now: float,
) -> None:
    """See to it that somebody who may, wants just this plan as this run, now.

    Args:
        signature: that came with the order; None: none did.
        plan: of the order.
        run: of the order.
        keys: public keys by operator, of those whose plans may run.
        now: UTC, seconds since 1970.

    Raises:
        OrderRefusedError: ``unsigned_plan``, ``unknown_operator``, ``signature_invalid``,
            ``plan_altered`` (signed was another plan or run) or ``signature_ended``.
    """
    if signature is None:
        what = "nobody has signed the plan; launch it with --key"
        raise OrderRefusedError(what, code="unsigned_plan")
    key = keys.get(signature.operator)
    if key is None:
        who = ", ".join(sorted(keys)) or "nobody"
        what = f"operator {signature.operator!r} signed it, and consent.operators allows {who}"
        raise OrderRefusedError(what, code="unknown_operator")
    try:
        key.verify(_decoded(signature.signature), signature.message())
    except (InvalidSignature, ValueError):
        what = f"the signature is not made with the key of operator {signature.operator!r}"
        raise OrderRefusedError(what, code="signature_invalid") from None
    if (signature.plan_sha256, signature.run) != (plan.sha256, run):
        what = (
            f"signed is plan {signature.plan_sha256[:12]} as run {signature.run!r}, the order has "
            f"plan {plan.sha256[:12]} as run {run!r}"
        )
        raise OrderRefusedError(what, code="plan_altered")
    if now > signature.ends_at or signature.signed_at > now + CLOCK_SECONDS:
        what = f"the signature holds from {signature.signed_at} to {signature.ends_at}, it is {now}"
        raise OrderRefusedError(what, code="signature_ended")


def _decoded(text: str) -> bytes:
    """Base64 in the one form that it has: other characters could stand for the same bytes.

    Raises:
        ValueError: it is not of that form.
    """
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        msg = "not the canonical base64"
        raise ValueError(msg)
    return data


def read_operator_key(path: Path) -> Ed25519PrivateKey:
    """An operator's private key.

    Raises:
        FileProblemError: it is missing, is no Ed25519 key, or others can read it.
    """
    fix = "make one: asterion operator new NAME"
    try:
        key = load_pem_private_key(read_private(path, fix), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FileProblemError(path, "is not a private key in PEM", fix) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise FileProblemError(path, "is not an Ed25519 key", fix)
    return key


def read_operator_keys(folder: Path, names: tuple[str, ...]) -> dict[str, Ed25519PublicKey]:
    """The public keys of operators, by name.

    Args:
        folder: with ``NAME.pem`` for each.
        names: whose.

    Raises:
        FileProblemError: one is missing or is no Ed25519 key.
    """
    keys: dict[str, Ed25519PublicKey] = {}
    for name in names:
        path, fix = folder / f"{name}.pem", f"ask operator {name} for it, and compare fingerprints"
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            what = (error.strerror or "unreadable").lower()
            raise FileProblemError(path, what, fix) from None
        except (ValueError, UnsupportedAlgorithm):
            raise FileProblemError(path, "is not a public key in PEM", fix) from None
        if not isinstance(key, Ed25519PublicKey):
            raise FileProblemError(path, "is not an Ed25519 key", fix)
        keys[name] = key
    return keys


def read_signature(path: Path) -> PlanSignature:
    """A signature from its file.

    Raises:
        FileProblemError: it is missing or is not JSON.
        SettingsError: it was edited and does not hold.
    """
    fix = "sign the plan again: asterion operator sign PLAN --key KEY"
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
    except ValueError:
        raise FileProblemError(path, "is not JSON", fix) from None
    if not isinstance(values, dict):
        raise FileProblemError(path, "is not a signature", fix)
    return validate(PlanSignature, values, str(path))
