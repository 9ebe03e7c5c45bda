"""What crosses between the coordinator and a site: an order out, a report or a reason back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from asterion_shared.metrics import Statistic
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan

Phase = Literal["count", "train", "evaluate"]

REASON_CODES: dict[str, str] = {
    "wrong_task": "the site's data are for another task",
    "plan_invalid": "the plan does not hold for this version of the site",
    "layout_mismatch": "the network differs between the coordinator and the site",
    "no_data": "the site has no readable example for this plan",
    "too_many_bad_files": "more files are unreadable than the site allows",
    "data_withdrawn": "a record of the run's frozen data set is gone or changed",
    "label_outside_classes": "a label is not one of the plan's classes",
    "mask_shape_mismatch": "a mask has another shape than its image",
    "settings_invalid": "the site's own settings are wrong",
    "missing_package": "a package that reads this data is not installed",
    "disk_problem": "the site's disk is full or not writable",
    "diverged": "local training gave a number that is not finite",
    "stale_order": "the order was too old when it was reached",
    "internal_error": "the site failed; its own log has the details",
    "unreachable": "the site could not be reached",
    "report_rejected": "the report broke the contract",
}
"""Every reason a site's part in a round may end with. Codes travel, words do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the coordinator asks of sites in one round.

    Attributes:
        run: identity of the run, the same over a resume.
        plan: the whole plan.
        round: 1, 2, ...; 0 for the first count.
        phase: count the examples, train (and evaluate the incoming weights when ``evaluate``),
            or only evaluate them.
        weights: the global weights, shape ``(layout.size,)``; None when counting.
        layout_sha256: hash of the layout they belong to; empty when counting.
        evaluate: whether a training site also evaluates the incoming weights.
        deadline_seconds: how long the coordinator waits from now.
    """

    run: str
    plan: Plan
    round: int
    phase: Phase
    weights: Vector | None = None
    layout_sha256: str = ""
    evaluate: bool = True
    deadline_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a site sends back.

    Attributes:
        site: the site's name.
        num_examples: training examples behind the update (images, volumes, rows), >= 0.
        num_test: examples behind the statistics, >= 0.
        num_bad_files: files skipped because they could not be read, >= 0.
        manifest_sha256: hash of the frozen data set.
        update: local minus global weights, shape ``(layout.size,)``; None unless trained.
        num_steps: optimiser steps done, >= 0.
        train_loss: mean loss over the steps; None when there were none.
        statistics: metrics of the *incoming* weights, by name; they add over sites.
        seconds: wall-clock time of the work at the site.
        bytes_down, bytes_up: what travelled; 0 in a simulation, where nothing does.
    """

    site: str
    num_examples: int
    num_test: int
    num_bad_files: int
    manifest_sha256: str
    update: Vector | None = None
    num_steps: int = 0
    train_loss: float | None = None
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReport:
    """Why a site that was asked has no report in the round.

    Attributes:
        site: the site's name.
        outcome: it refused, it failed, or it had not answered at the deadline.
        code: one of :data:`REASON_CODES`; empty when late.
        stage: what it was doing: ``receiving``, ``reading data``, ``training``, ``evaluating``,
            ``sending`` or ``""``.
    """

    site: str
    outcome: Literal["refused", "failed", "late"]
    code: str = ""
    stage: str = ""


Answer = Report | NoReport


class Cohort(Protocol):
    """Asks sites to work. Live: Flower messages. Simulated: an engine on one machine."""

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be asked now, sorted."""
        ...

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """Send an order; yield exactly one answer for each site, in any order, by the deadline."""
        ...
