"""What a site writes into its audit trail of the orders that come and the answers that leave."""

import hashlib
import re
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from asterion_client.settings import SiteSettings
from asterion_shared.audit import FOLDER, AuditTrail
from asterion_shared.audit_records import Fact, Head
from asterion_shared.audit_verify import COORDINATOR
from asterion_shared.flower_messages import num_bytes
from asterion_shared.link.records import content_sha256, with_audit_head
from asterion_shared.messages import Order, order_sha256

Place = tuple[str, int | None]
"""Run and round."""

NOWHERE: Place = ("", None)
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def site_trail(settings: SiteSettings, folder: Path) -> AuditTrail:
    """The trail of a site.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
    """
    return AuditTrail(folder / settings.state_folder / FOLDER, f"site:{settings.name}")


def record_order(trail: AuditTrail, order: Order, *, new_plan: bool) -> None:
    """Write down an order before anything is done for it.

    Args:
        trail: the site's.
        order: that was decoded; it may break every other rule.
        new_plan: whether its plan came for the first time since the site's process began.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
    """
    run, round_ = _place(order)
    if new_plan:
        plan = order.plan
        seen = {"plan_sha256": plan.sha256, "name": plan.name, "task": plan.task}
        trail.append("plan_seen", run=run, facts=seen)
    facts: dict[str, Fact] = {
        "phase": order.phase,
        "plan_sha256": order.plan.sha256,
        "order_sha256": order_sha256(order),
    }
    trail.append("order", run=run, round_=round_, facts=facts, other=_told(order))


def record_answer(
    trail: AuditTrail, content: RecordDict, order: Order | None, stated: Place = NOWHERE
) -> RecordDict:
    """Write down what is about to leave.

    Args:
        trail: the site's.
        content: a report or a refusal, as it was let out.
        order: that it answers; None where that could not be read.
        stated: run and round that belong to an order that was not read.

    Returns:
        The same with the trail's head, for the coordinator; only this may leave.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
    """
    run, round_ = stated if order is None else _place(order)
    facts: dict[str, Fact] = {} if order is None else {"phase": order.phase}
    refused = content.get("refusal")
    if isinstance(refused, ConfigRecord):
        facts |= {"code": str(refused["code"]), "stage": str(refused["stage"])}
        head = trail.append("refusal", run=run, round_=round_, facts=facts)
    else:
        facts |= {"sha256": content_sha256(content), "bytes": num_bytes(content)}
        head = trail.append("report", run=run, round_=round_, facts=facts)
    return with_audit_head(content, head)


def record_charge(trail: AuditTrail, order: Order, ledger_head: str) -> None:
    """Write down that a release was charged, before it leaves.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
    """
    run, round_ = _place(order)
    trail.append("charge", run=run, round_=round_, facts={"ledger_head": ledger_head})


def _told(order: Order) -> dict[str, Head]:
    return {} if order.audit_head is None else {COORDINATOR: order.audit_head}


def _place(order: Order) -> Place:
    return place_of(order.run, order.round)


def place_of(run: str, round_: int) -> Place:
    """Run and round within the bounds of a record: of an order that nobody has checked yet.

    Args:
        run: any text; one that is no name is hashed.
        round_: any; None stands for one that is not counted.
    """
    if _NAME.fullmatch(run) is None:
        run = f"sha256 {hashlib.sha256(run.encode()).hexdigest()}"
    return run, round_ if 0 <= round_ < 2**53 else None
