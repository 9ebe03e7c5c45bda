"""What a private round costs is charged in the site's ledger before the report leaves."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from asterion_client.privacy_entries import Release
from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.settings import SiteSettings
from asterion_shared.cases import SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.messages import Order
from asterion_shared.plan import Plan
from asterion_shared.privacy.planned import charge_of
from asterion_shared.privacy.settings import Protected


def refuse_readable(settings: SiteSettings, plan: Plan) -> None:
    """Refuse a run whose updates the coordinator could read, if the site does not trust it so far.

    Raises:
        OrderRefusedError: ``coordinator_not_trusted``.
    """
    if settings.privacy is None or settings.privacy.coordinator_may_read or plan.kind != "train":
        return
    in_clear = plan.privacy is None and plan.secure_sum is None
    if in_clear or (plan.privacy is not None and plan.privacy.noise == "centre"):
        msg = (
            "privacy.coordinator_may_read is false and the coordinator could read this run's "
            "updates; ask for a plan with noise at the site, or with a secure sum"
        )
        raise OrderRefusedError(msg, code="coordinator_not_trusted")


def require_head(settings: SiteSettings, folder: Path, order: Order) -> None:
    """Check that the ledger has the head which the coordinator was told last.

    A coordinator that sends a made-up head makes the site refuse, and can do no more with it.

    Args:
        settings: the site's.
        folder: of ``site.toml``.
        order: any; one without a head is not checked.

    Raises:
        LedgerStoppedError: the ledger lacks it, or is not whole.
        DiskProblemError: the ledger cannot be written.
    """
    if order.ledger_head is None:
        return
    with Ledger(ledger_folder(settings, folder), settings.privacy) as ledger:
        ledger.require_head(order.ledger_head, run=order.run)


def charge_release(
    settings: SiteSettings, folder: Path, order: Order, data: SiteData, payload: bytes | None
) -> str | None:
    """Charge what leaves of a private training; nothing under another plan.

    Noise that the coordinator adds is charged as well: the site gave its update for a result that
    is so noised. It cannot check that, which is what trusting the coordinator means.

    Args:
        settings: the site's.
        folder: of ``site.toml``.
        order: the train order.
        data: the frozen data set.
        payload: bytes of the update, or of the vector for a secure sum, about to leave; None
            when there is none.

    Returns:
        The head of the ledger after the charge, for the coordinator; None: nothing was charged.

    Raises:
        BudgetSpentError: it would exceed the site's limit; the payload must not leave.
        DiskProblemError: the ledger cannot be written.
        LedgerStoppedError: the ledger is not whole, or was put back from a backup.
    """
    privacy, charge = order.plan.privacy, charge_of(order.plan, 1)
    if privacy is None or charge is None or payload is None:
        return None
    with Ledger(ledger_folder(settings, folder), settings.privacy) as ledger:
        ledger.charge(
            Release(
                run=order.run,
                round=order.round,
                phase=order.phase,
                payload_sha256=hashlib.sha256(payload).hexdigest(),
                charges=(charge,),
                fingerprint=data.manifest_sha256,
                unit_kind=privacy.protects,
                units=_units(privacy.protects, data, ledger.unit_hash),
            )
        )
        # The newest head and not that of the charge: a free release was charged long ago.
        return ledger.head().sha256


def group_salt(settings: SiteSettings, folder: Path, plan: Plan) -> str:
    """What patients' names are hashed with in a private run: one salt for all the site's data.

    So the ledger knows a patient again in another data set. Empty where the plan is not private:
    then each data set has a salt of its own.

    Raises:
        OrderRefusedError: ``no_privacy_budget``: the site's settings have no ``[privacy]``.
        DiskProblemError: the ledger cannot be made.
        LedgerStoppedError: the ledger is not whole, or was put back from a backup.
    """
    if plan.privacy is None:
        return ""
    if settings.privacy is None:
        msg = "the plan is private and site.toml has no [privacy]; add epsilon_limit and delta"
        raise OrderRefusedError(msg, code="no_privacy_budget")
    with Ledger(ledger_folder(settings, folder), settings.privacy) as ledger:
        return ledger.unit_hash("salt of groups")


def _units(protects: Protected, data: SiteData, hashed: Callable[[str], str]) -> frozenset[str]:
    match protects:
        case "site":
            return frozenset()
        case "record":
            return frozenset(hashed(case.id) for case in data.train)
        case "patient":
            return frozenset(hashed(case.group) for case in data.train)
