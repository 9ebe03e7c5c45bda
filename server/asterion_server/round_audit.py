"""What the coordinator writes into its audit trail: runs, a round's orders, what came of them."""

import re
from collections.abc import Iterable
from pathlib import Path

from flwr.app import RecordDict

from asterion_shared.audit import FOLDER, AuditTrail, side_of_folder
from asterion_shared.audit_records import Fact, Head
from asterion_shared.audit_verify import COORDINATOR, answer_text
from asterion_shared.events import Event, RunFinished
from asterion_shared.link.records import content_sha256
from asterion_shared.messages import Answer, Order, Report, order_sha256
from asterion_shared.plan import Plan
from asterion_shared.signed_plan import PlanSignature


def coordinator_trail(folder: Path) -> AuditTrail:
    """The trail of a coordinator, known by the name that its folder had when the trail began.

    A coordinator that was moved, or restored into another folder, goes on with its trail.

    Args:
        folder: the coordinator's.

    Raises:
        AuditBrokenError: the trail's last line is not a record.
    """
    trail = folder / FOLDER
    name = re.sub(r"[^!-~]", "_", folder.resolve().name)[:100]
    return AuditTrail(trail, side_of_folder(trail) or f"{COORDINATOR}:{name}")


def record_launch(
    trail: AuditTrail, run: str, plan: Plan, sites: Iterable[str], signature: PlanSignature | None
) -> None:
    """Write down that a process carries out a run, or goes on with it.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
    """
    operator = None if signature is None else signature.operator
    facts: dict[str, Fact] = {
        "plan_sha256": plan.sha256,
        "operator": operator,
        "sites": " ".join(sorted(sites)),
    }
    trail.append("plan_launched", run=run, facts=facts)


def record_end(trail: AuditTrail, run: str, event: Event) -> None:
    """Write down that a run has ended, and the model that it gave; of other events nothing.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
    """
    if not isinstance(event, RunFinished):
        return
    model = event.result.final_model
    if model is not None:
        trail.append("release", run=run, facts={"model_sha256": model.sha256})
    trail.append("run_ended", run=run, facts={"status": event.result.status})


class RoundAudit:
    """One order to the sites: a record before it is sent, and one of all that came.

    Args:
        trail: None: nothing is written.
        order: that is sent.
    """

    def __init__(self, trail: AuditTrail | None, order: Order) -> None:
        self._trail, self._order = trail, order
        self._facts: dict[str, Fact] = {}
        self._heads: dict[str, Head] = {}

    def begin(self, sites: Iterable[str]) -> Head | None:
        """Write down who is asked for what; the head that goes with the orders.

        Raises:
            AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
        """
        asked = " ".join(sorted(sites))
        if self._trail is None or not asked:
            return None
        order = self._order
        facts: dict[str, Fact] = {
            "phase": order.phase,
            "plan_sha256": order.plan.sha256,
            "order_sha256": order_sha256(order),
            "sites": asked,
        }
        return self._trail.append("orders", run=order.run, round_=order.round, facts=facts)

    def came(self, site: str, content: RecordDict, answer: Answer) -> None:
        """Take note of an answer, as it was read."""
        if self._trail is None:
            return
        if isinstance(answer, Report):
            self._facts[f"site:{site}"] = answer_text(content_sha256(content), None)
        else:
            self._facts[f"site:{site}"] = answer_text(None, answer.code)
        if answer.audit_head is not None:
            self._heads[f"site:{site}"] = answer.audit_head

    def nothing_came(self, site: str, why: str) -> None:
        """Take note of a site that gave no answer, or none that can be read."""
        self._facts[f"site:{site}"] = why

    def close(self) -> None:
        """Write down all that came.

        Raises:
            AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`.
        """
        if self._trail is None or not self._facts:
            return
        order, facts = self._order, {"phase": self._order.phase, **self._facts}
        self._trail.append(
            "answers", run=order.run, round_=order.round, facts=facts, other=self._heads
        )
