"""Signed receipts: a model was trained again without data that were withdrawn.

The signature is the coordinator's, Ed25519 over the receipt in its canonical JSON.
"""

import base64
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field

from asterion_server.run_folder import RunFolder
from asterion_server.run_result import utc_now
from asterion_shared.audit import FOLDER, audit_public_key
from asterion_shared.audit_key import KEY, read_key
from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Name, Sha256
from asterion_shared.result import Result, UtcTime, read_result
from asterion_shared.settings_files import Settings, validate

DOMAIN = b"asterion withdrawal receipt 1\n"
FEWEST_TOLD = 5
"""A receipt says that fewer patients than this withdrew, and not how many."""

What = Literal["site", "patients"]


class Withdrawal(Settings):
    """``withdrawal.json`` of a run: what it was begun without."""

    run: str
    """The run that had the data."""

    site: Name
    what: What
    """The whole site; or some of its patients, whom the site has left out of its own data."""

    num_patients: Annotated[int, Field(ge=1)] | None = None
    """As the site told the operator; None: of a site, or not told."""

    withdrawn_at: UtcTime


class Receipt(Settings):
    """What a coordinator signs."""

    withdrawal: Withdrawal
    """Without the number of patients where it is below :data:`FEWEST_TOLD`."""

    plan_sha256: Sha256
    retrained_as: str
    """The run that had not the data."""

    started_from: str
    rounds_redone: Annotated[int, Field(ge=0)]
    sites: tuple[str, ...]
    """Of the new run."""

    model_sha256_before: Sha256 | None
    """None: the first run has made no model yet."""

    model_sha256_after: Sha256
    manifest_sha256_before: str = ""
    """Of the site's data set as it told it last in each of the two runs; patients only."""

    manifest_sha256_after: str = ""
    notes: tuple[str, ...]
    issued_at: UtcTime

    def message(self) -> bytes:
        """The bytes that are signed."""
        values = self.model_dump(mode="json")
        return DOMAIN + json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


class SignedReceipt(Settings):
    """``receipt.json``."""

    receipt: Receipt
    signature: Annotated[str, Field(min_length=88, max_length=88)]
    """Base64."""


def issue_receipt(folder: RunFolder, result: Result) -> None:
    """Write the receipt of a run that was begun without withdrawn data, once it has finished.

    Raises:
        FileProblemError: a file of one of the runs, or the key, cannot be read.
        DiskProblemError: the folder is not writable.
    """
    model = result.final_model
    if not folder.withdrawal_file.exists() or result.status != "finished" or model is None:
        return
    asked = read_withdrawal(folder)
    first = RunFolder(folder.path.parent / asked.run)
    before = read_result(first.result) if first.result.exists() else None
    few = asked.num_patients is not None and asked.num_patients < FEWEST_TOLD
    of_site = asked.what == "site"
    plan = folder.read_plan()
    receipt = Receipt(
        withdrawal=asked.model_copy(update={"num_patients": None}) if few else asked,
        plan_sha256=result.plan_sha256,
        retrained_as=result.run,
        started_from="the weights that the plan's seed gives"
        if plan.init is None
        else f"the file of the plan's [init], SHA-256 {plan.init.sha256}",
        rounds_redone=result.rounds_planned,
        sites=tuple(site.name for site in result.sites),
        model_sha256_before=None
        if before is None or before.final_model is None
        else before.final_model.sha256,
        model_sha256_after=model.sha256,
        manifest_sha256_before="" if of_site else _manifest(before, asked.site),
        manifest_sha256_after="" if of_site else _manifest(result, asked.site),
        notes=_notes(asked, result, before, few=few),
        issued_at=utc_now(),
    )
    signature = coordinator_key(folder.path.parent.parent).sign(receipt.message())
    signed = SignedReceipt(receipt=receipt, signature=base64.b64encode(signature).decode())
    write_atomically(folder.receipt, (signed.model_dump_json(indent=1) + "\n").encode())


def read_withdrawal(folder: RunFolder) -> Withdrawal:
    """What a run was begun without.

    Raises:
        FileProblemError: the file is missing or not JSON.
        SettingsError: it was edited and does not hold.
    """
    fix = "launch the retraining again"
    return validate(Withdrawal, _json(folder.withdrawal_file, fix), str(folder.withdrawal_file))


def verify_receipt(path: Path, key: Path) -> Receipt:
    """Check a receipt by the coordinator's public key; nothing else is needed.

    Raises:
        FileProblemError: one of the two is not what it should be, or the signature does not hold.
        SettingsError: the receipt has other fields than a receipt.
    """
    fix = "ask the coordinator's operator for it again"
    signed = validate(SignedReceipt, _json(path, fix), str(path))
    try:
        public = load_pem_public_key(key.read_bytes())
    except OSError as error:
        raise FileProblemError(key, (error.strerror or "unreadable").lower(), fix) from None
    except (ValueError, UnsupportedAlgorithm):
        raise FileProblemError(key, "is not a public key in PEM", fix) from None
    if not isinstance(public, Ed25519PublicKey):
        raise FileProblemError(key, "is not an Ed25519 key", fix)
    try:
        data = base64.b64decode(signed.signature, validate=True)
        public.verify(data, signed.receipt.message())
    except (InvalidSignature, ValueError):
        what = "was changed, or is signed with another key"
        raise FileProblemError(path, what, fix) from None
    return signed.receipt


def coordinator_key(folder: Path) -> Ed25519PrivateKey:
    """The Ed25519 key with which a coordinator signs; made on first use, mode 0600.

    Args:
        folder: the coordinator's.

    Raises:
        FileProblemError: others can read it, or it is not such a key.
        DiskProblemError: it cannot be made.
    """
    audit_public_key(folder / FOLDER)  # makes it where there is none
    return read_key(folder / FOLDER / KEY)


def _notes(
    asked: Withdrawal, result: Result, before: Result | None, *, few: bool
) -> tuple[str, ...]:
    notes = ["The new run began anew: no checkpoint of the first one is in it."]
    if few:
        notes.append(f"Fewer than {FEWEST_TOLD} patients withdrew.")
    if asked.what == "patients":
        notes.append("Whose records were left out is the site's word: nobody else can see it.")
        if _manifest(before, asked.site) == _manifest(result, asked.site):
            notes.append(
                "The site's data set was the same at the end of both runs: they had left it before "
                "the first one's end, or have not left it."
            )
    if result.privacy_account is not None:
        notes.append(
            "What the first run spent of privacy stays spent in the sites' ledgers; the new run "
            "was charged besides."
        )
    notes.append("Copies of the first model that were given away are not called back by this.")
    return tuple(notes)


def _manifest(result: Result | None, site: str) -> str:
    sites = () if result is None else result.sites
    return next((found.manifest_sha256 for found in sites if found.name == site), "")


def _json(path: Path, fix: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise FileProblemError(path, "is not JSON", fix)
    return values
