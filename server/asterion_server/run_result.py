"""The result of a run, from what its loop knows when it ends."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

from asterion_shared.metrics.reliability import Reliability
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import account_of, in_one_line
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.result import (
    BestModel,
    FinalModel,
    Result,
    RoundResult,
    SiteSummary,
    Status,
)
from asterion_shared.simulation_facts import Simulation

Simulated = Callable[[Mapping[int, Sequence[str]]], Simulation]
"""What a simulation adds to the result, from the sites asked in each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What stays the same while a run goes on.

    Attributes:
        plan: what is done.
        plan_sha256: its hash.
        run: identity of the run, the same over a resume.
        expected_sites: the sites that shall take part, sorted.
        carrier: what carries the orders.
        simulation: what a simulation adds; None in a live run.
        audit: what an attack on the plan's privacy showed; None when there was none.
    """

    plan: Plan
    plan_sha256: str
    run: str
    expected_sites: tuple[str, ...]
    carrier: Literal["flower", "link", "simulation"]
    simulation: Simulated | None
    audit: PrivacyAudit | None

    @property
    def rounds_planned(self) -> int:
        """Rounds of training that the plan asks for."""
        return self.plan.rounds.count if self.plan.kind == "train" else 0


def result_of(
    facts: RunFacts,
    status: Status,
    *,
    started: str,
    rounds: Mapping[int, RoundResult],
    done: int,
    sites: Mapping[str, SiteSummary],
    asked: Mapping[str, int],
    model: FinalModel | None,
    best: BestModel | None,
    site_calibration: Mapping[str, Reliability],
) -> Result:
    """Everything that ``result.json`` says, but its headline.

    Args:
        facts: of the run.
        status: how it ended.
        started: when it began, UTC, ISO 8601.
        rounds: by number; also one that lost its quorum.
        done: last finished round; -1 before the count.
        sites: what those that answered said of their data, by name.
        asked: how often each site was asked to train, as privacy counts it.
        model: the last one's file; None when none was made.
        best: the best one's; None when none was measured.
        site_calibration: of the model after ``done``, by site; empty where it was not measured.
    """
    plan, last = facts.plan, rounds.get(done)
    account = account_of(plan, asked)
    in_order = tuple(rounds[number] for number in sorted(rounds))
    names = sorted({*facts.expected_sites, *sites})
    return Result(
        run=facts.run,
        name=plan.name,
        kind=plan.kind,
        task=plan.task,
        plan_sha256=facts.plan_sha256,
        status=status,
        started=started,
        finished=utc_now(),
        carrier=facts.carrier,
        privacy=in_one_line(account, secure_sum=plan.secure_sum is not None),
        privacy_account=account,
        secure_sum=plan.secure_sum is not None,
        privacy_audit=facts.audit,
        versions=_versions(),
        rounds_planned=facts.rounds_planned,
        rounds=in_order,
        final_metrics={} if last is None else dict(last.pooled),
        final_calibration=None if last is None else last.calibration,
        site_calibration=dict(site_calibration),
        decisions=None if last is None else last.decisions,
        final_model=model,
        best_model=best,
        sites=tuple(sites.get(name, SiteSummary(name=name)) for name in names),
        simulation=None
        if facts.simulation is None
        else facts.simulation({r.round: r.asked for r in in_order}),
    )


def utc_now() -> str:
    """The time to the second, ISO 8601, ending in ``Z``."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions() -> dict[str, str]:
    packages = ("asterion-shared", "torch", "numpy", "monai", "flwr")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
