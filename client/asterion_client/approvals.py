"""A person's word at the site: which plan may run, as which run, until when.

An approval is signed with the site's own key, so that a file put there by somebody else approves
nothing. Plans that came and were not approved wait here for a person's eyes.
"""

import base64
import json
import time
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from asterion_client.settings import SiteSettings
from asterion_client.site_keys import paths_of, read_key
from asterion_shared.errors import DiskProblemError, OrderRefusedError, SettingsError
from asterion_shared.files import sync_folder, write_atomically
from asterion_shared.messages import Order
from asterion_shared.plan import Name, Plan, parse_plan
from asterion_shared.settings_files import Settings, validate

DOMAIN = b"asterion site approval 1\n"
FOLDER, WAITING = "consent/approvals", "consent/waiting"
MOST_WAITING = 50
"""Plans that may wait; a flood of others is refused all the same, and not kept."""


class Approval(Settings):
    """That a plan may run at this site."""

    site: Name
    run: Name
    plan: str
    """In its canonical form."""

    approved_at: Annotated[int, Field(ge=0, lt=2**53)]
    """UTC, seconds since 1970."""

    ends_at: Annotated[int, Field(ge=0, lt=2**53)]
    """UTC, seconds since 1970."""

    signature: str = ""
    """ECDSA with SHA-384 over :meth:`message` with the site's key, DER in base64."""

    def message(self) -> bytes:
        """The bytes that are signed."""
        values = self.model_dump(exclude={"signature"})
        return DOMAIN + json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


class WaitingPlan(Settings):
    """A plan that came in an order and nobody has approved."""

    run: Name
    plan: str
    operator: Name
    """Who signed it; the signature was checked."""

    came_at: Annotated[int, Field(ge=0, lt=2**53)]
    """UTC, seconds since 1970."""


def approve(
    settings: SiteSettings, folder: Path, plan: Plan, run: str, now: float | None = None
) -> Approval:
    """Sign that a plan may run, and store it.

    Args:
        settings: the site's, with ``[consent]``.
        folder: where ``site.toml`` lies.
        plan: what may run.
        run: as which run.
        now: UTC, seconds since 1970; None: the clock's.

    Raises:
        FileProblemError: the site has no key of its own.
        DiskProblemError: it cannot be written.
    """
    assert settings.consent is not None  # noqa: S101  # the command looks before it asks
    began = int(time.time() if now is None else now)
    unsigned = Approval(
        site=settings.name,
        run=run,
        plan=plan.canonical(),
        approved_at=began,
        ends_at=began + settings.consent.approval_days * 86_400,
    )
    signature = read_key(paths_of(settings, folder).private_key).sign(
        unsigned.message(), ec.ECDSA(hashes.SHA384())
    )
    signed = unsigned.model_copy(update={"signature": base64.b64encode(signature).decode()})
    write_atomically(_path(settings, folder, run), signed.model_dump_json().encode())
    (folder / settings.state_folder / WAITING / f"{run}.json").unlink(missing_ok=True)
    return signed


def withdraw_approval(settings: SiteSettings, folder: Path, run: str) -> bool:
    """Take an approval back, durably; whether there was one.

    Raises:
        DiskProblemError: it cannot be removed.
    """
    path = _path(settings, folder, run)
    try:
        path.unlink()
        sync_folder(path.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    return True


def check_approval(settings: SiteSettings, folder: Path, plan: Plan, run: str, now: float) -> None:
    """See to it that a person here has approved just this plan as this run.

    Raises:
        OrderRefusedError: ``approval_missing`` or ``approval_ended``.
        FileProblemError: the site has no key of its own.
    """
    found = read_approval(settings, folder, run)
    if found is None or found.plan != plan.canonical():
        what = f"plan {plan.sha256[:12]} as run {run!r} is not approved here"
        raise OrderRefusedError(what, code="approval_missing")
    if now > found.ends_at:
        what = f"the approval of run {run!r} ended; review the plan and approve it again"
        raise OrderRefusedError(what, code="approval_ended")


def read_approval(settings: SiteSettings, folder: Path, run: str) -> Approval | None:
    """The approval of a run; None when there is none that this site's key has signed.

    Raises:
        FileProblemError: the site has no key of its own.
    """
    values = _json(_path(settings, folder, run))
    if values is None:
        return None
    try:
        found = validate(Approval, values, "approval")
        signature = base64.b64decode(found.signature, validate=True)
        public = read_key(paths_of(settings, folder).private_key).public_key()
        public.verify(signature, found.message(), ec.ECDSA(hashes.SHA384()))
    except (SettingsError, ValueError, InvalidSignature):
        return None
    return found if (found.site, found.run) == (settings.name, run) else None


def approvals(settings: SiteSettings, folder: Path) -> list[Approval]:
    """All approvals that hold or have ended, the newest last."""
    names = (path.stem for path in (folder / settings.state_folder / FOLDER).glob("*.json"))
    found = (read_approval(settings, folder, name) for name in names)
    return sorted((a for a in found if a is not None), key=lambda a: (a.approved_at, a.run))


def keep_waiting(state: Path, order: Order) -> None:
    """Keep the plan of an order for a person to look at.

    Args:
        state: the site's state folder.
        order: whose signature was checked.

    Raises:
        DiskProblemError: it cannot be written.
    """
    folder = state / WAITING
    path = folder / f"{order.run}.json"
    if order.signature is None or (not path.exists() and len(waiting(state)) >= MOST_WAITING):
        return
    plan = order.plan.canonical()
    known = _json(path)
    if known is not None and known.get("plan") == plan:
        return
    kept = WaitingPlan(
        run=order.run, plan=plan, operator=order.signature.operator, came_at=int(time.time())
    )
    write_atomically(path, kept.model_dump_json().encode())


def waiting(state: Path) -> list[WaitingPlan]:
    """The plans that wait for a person, the oldest first."""
    values = [_json(path) for path in (state / WAITING).glob("*.json")]
    found = [validate(WaitingPlan, one, "waiting plan") for one in values if one is not None]
    return sorted(found, key=lambda plan: (plan.came_at, plan.run))


def last_approved(settings: SiteSettings, folder: Path) -> Plan | None:
    """The plan that was approved last; None when none was, or it no longer holds here."""
    found = approvals(settings, folder)
    try:
        return parse_plan(found[-1].plan) if found else None
    except SettingsError:
        return None  # of a version whose plans had other settings: there is nothing to compare


def _path(settings: SiteSettings, folder: Path, run: str) -> Path:
    return folder / settings.state_folder / FOLDER / f"{run}.json"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
