"""What crosses between the coordinator and a site: an order out, a report or a reason back."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from asterion_shared.audit_records import Head
from asterion_shared.blocks import hash_through
from asterion_shared.metrics import Statistic
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.signed_plan import PlanSignature
from asterion_shared.update_codec import EncodedUpdate

Phase = Literal["count", "train", "evaluate", "sum"]

SumStep = Literal["keys", "reveal", "shares", "masked", "agree", "unmask"]
"""The steps of a secure sum, in order; ``docs/secure-sum.md`` has them."""

CONSENT_CODES: dict[str, str] = {
    "audit_broken": "the site's audit trail was changed; a person there decides",
    "no_consent": "the site's settings have no [consent], so it agrees to nothing",
    "unsigned_plan": "no operator has signed the plan",
    "unknown_operator": "the site does not run plans of the operator who signed this one",
    "signature_invalid": "the signature under the plan is not the operator's",
    "plan_altered": "the operator signed another plan, or this one for another run",
    "signature_ended": "the operator's signature has ended, or does not hold yet",
    "kind_not_allowed": "the site does not agree to what the plan asks for",
    "model_not_allowed": "the site does not agree to the plan's network",
    "noise_not_allowed": "the site does not agree to where the plan's noise is added, or to none",
    "epsilon_too_large": "the plan may cost more epsilon than the site allows for one",
    "cohort_too_small": "fewer sites may make a round than the site asks for",
    "secure_sum_needed": "the site takes part in secure sums only",
    "not_in_plan": "the order asks for what its plan does not have",
    "approval_missing": "a person at the site has not approved the plan",
    "approval_ended": "the approval of the plan at the site has ended",
    "plans_spent": "the site has had as many new runs today as it allows",
    "rounds_spent": "the site has had as many rounds today as it allows",
    "bytes_spent": "the site has moved as many bytes today as it allows",
    "device_hours_spent": "the site has worked as long today as it allows",
    "outside_hours": "the site works at other hours",
    "site_paused": "a person at the site has paused it",
    "site_busy": "the site's machine is needed for other work now",
    "foreign_bundle": "the run was submitted with code or a version that is not the site's own",
}
"""Why a site does not agree to an order."""

REASON_CODES: dict[str, str] = CONSENT_CODES | {
    "wrong_task": "the site's data are for another task",
    "plan_invalid": "the plan does not hold for this version of the site",
    "layout_mismatch": "the network differs between the coordinator and the site",
    "no_data": "the site has no readable example for this plan",
    "too_many_bad_files": "more files are unreadable than the site allows",
    "too_few_patients": "the site has fewer patients than it trains on or counts",
    "unknown_patients": "patients are protected and a case does not say whose it is",
    "no_privacy_budget": "the plan is private and the site has set no limit of its own",
    "coordinator_not_trusted": "the coordinator could read updates, which the site does not allow",
    "budget_spent": "the report would cost more privacy than the site allows",
    "ledger_stopped": "the site's privacy ledger lacks what it once had; a person there decides",
    "no_roster": "the plan has a secure sum and the site knows no keys of the other sites",
    "secure_sum_malformed": "a message of the secure sum cannot be read",
    "secure_sum_forged": "a signature of the secure sum is not its sender's",
    "secure_sum_too_few": "too few sites are left for the secure sum",
    "secure_sum_two_sets": "the secure sum was asked for with two sets of survivors",
    "secure_sum_out_of_step": "a message of the secure sum came out of turn",
    "secure_sum_out_of_range": "a number is too large for the secure sum",
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
class SumOrder:
    """One step of a secure sum of what sites hold since they trained or evaluated.

    Attributes:
        id: identity of the sum; another try has another.
        of: what is summed: the updates and metrics of a train order, or metrics alone.
        step: the step that is due.
        sites: all that the sum was begun with, sorted; the same in each step.
        size: numbers in an update; 0 when metrics alone are summed.
        content: the coordinator's message for each site that is asked; none in the first step.
    """

    id: str
    of: Literal["train", "evaluate"]
    step: SumStep
    sites: tuple[str, ...]
    size: int
    content: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the coordinator asks of sites in one round.

    Attributes:
        run: identity of the run, the same over a resume.
        plan: the whole plan.
        round: 1, 2, ...; 0 for the first count.
        phase: count the examples, train (and evaluate the incoming weights when ``evaluate``),
            only evaluate them, or take a step of a secure sum.
        weights: the global weights, shape ``(layout.size,)``; None when counting.
        layout_sha256: hash of the layout they belong to; empty when counting.
        evaluate: whether a training site also evaluates the incoming weights.
        deadline_seconds: of the round; the plan's ``rounds.late`` says what happens then.
        sum: the step of a secure sum; None in the other phases.
        clip_norm: the round's, where it adapts, for whoever makes a :class:`PartialFold`; it does
            not travel. None: the plan's.
        ledger_head: in an order to one site, the head of its privacy ledger that the coordinator
            was told last, 64 hex digits; None: never told, or the plan is not private.
        signature: an operator's, under plan and run; None: nobody signed.
        audit_head: of the coordinator's audit trail; None: it has none.
        hashes: what :func:`order_sha256` has found, by site; of large weights it takes a while.
    """

    run: str
    plan: Plan
    round: int
    phase: Phase
    weights: Vector | None = None
    layout_sha256: str = ""
    evaluate: bool = True
    deadline_seconds: float = 600.0
    sum: SumOrder | None = None
    clip_norm: float | None = None
    ledger_head: str | None = None
    signature: PlanSignature | None = None
    audit_head: Head | None = None
    hashes: dict[str, str] = field(init=False, default_factory=dict, compare=False, repr=False)


def order_sha256(order: Order, site: str = "") -> str:
    """Hash of what an order asks, 64 hex digits.

    Deadline, heads and signature are not in it: they may be others when the same order is sent
    again.

    Args:
        order: of any phase.
        site: the one it is addressed to, and then with what a step of a secure sum tells this
            site; empty: what is the same at every site.
    """
    if site in order.hashes:
        return order.hashes[site]
    plain = order.run, order.plan.sha256, order.round, order.phase, order.layout_sha256
    digest = hashlib.sha256(repr((*plain, order.evaluate, site)).encode())
    if order.sum is not None:
        step = order.sum
        digest.update(repr((step.id, step.of, step.step, step.sites, step.size)).encode())
        digest.update(step.content.get(site, b""))
    if order.weights is not None:
        hash_through(digest.update, np.ascontiguousarray(order.weights, "<f4"))
    order.hashes[site] = digest.hexdigest()
    return order.hashes[site]


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
        update_norm: Euclidean length of an update that is in a :class:`PartialFold` instead of
            here; None when the update itself is here, or nothing was trained.
        sum_message: the site's message in a step of a secure sum; empty in the other phases.
        ledger_head: of the site's privacy ledger once the update was charged, 64 hex digits; None
            when nothing was charged.
        encoded: at the site, the codes that leave in place of ``update``, which is then what they
            stand for; None where the plan does not round, and at the coordinator.
        transfer_seconds: from the order's leaving to the answer's arrival, less ``seconds``; the
            coordinator fills it in, and it is 0 in a simulation.
        late_seconds: how long after the deadline it came where the round waits; 0 in time. The
            coordinator fills it in.
        made_for: the earlier round that its order was for, where it is carried over; else None.
        audit_head: of the site's audit trail, once it says that this report leaves; None: none.
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
    update_norm: float | None = None
    sum_message: bytes = b""
    ledger_head: str | None = None
    encoded: EncodedUpdate | None = None
    transfer_seconds: float = 0.0
    late_seconds: float = 0.0
    made_for: int | None = None
    audit_head: Head | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it says no more than that the site is ready, beside its message of a sum."""
        counts = (self.num_examples, self.num_test, self.num_bad_files, self.num_steps)
        numbers = (self.update, self.encoded, self.train_loss, self.update_norm)
        unsaid = all(number is None for number in numbers)
        return unsaid and not self.statistics and not any(counts)

    def bare(self) -> "Report":
        """That the site is ready for a secure sum, and nothing of what it will put in."""
        return Report(
            site=self.site,
            num_examples=0,
            num_test=0,
            num_bad_files=0,
            manifest_sha256=self.manifest_sha256,
            seconds=self.seconds,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            transfer_seconds=self.transfer_seconds,
            late_seconds=self.late_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReport:
    """Why a site that was asked has no report in the round.

    Attributes:
        site: the site's name.
        outcome: it refused, it failed, or it had not answered at the deadline.
        code: one of :data:`REASON_CODES`; empty when late.
        stage: what it was doing: ``receiving``, ``reading data``, ``training``, ``evaluating``,
            ``sending`` or ``""``.
        audit_head: of the site's audit trail, once it says that this refusal leaves; None: none.
    """

    site: str
    outcome: Literal["refused", "failed", "late"]
    code: str = ""
    stage: str = ""
    audit_head: Head | None = None


Answer = Report | NoReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialFold:
    """Answers of several sites whose updates are added up already.

    Attributes:
        answers: one for each site, in the order they were asked; the reports have no update.
        total: sum of the sites' updates, each shortened to the round's clip norm and times its
            weight, float64 ``(layout.size,)``.
        weight: sum of those weights; 0 when no site has an update.
    """

    answers: tuple[Answer, ...]
    total: npt.NDArray[np.float64]
    weight: float


class Cohort(Protocol):
    """Asks sites to work. Live: Flower messages. Simulated: an engine on one machine."""

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be asked now, sorted."""
        ...

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """Send an order; yield exactly one answer for each site, in any order.

        They come by the deadline, or when they come where the plan says ``late = "wait"``.
        """
        ...


@runtime_checkable
class CarryingCohort(Cohort, Protocol):
    """A cohort that keeps the orders of late sites open, for ``late = "carry_over"``."""

    def open_orders(self, round_: int, most_stale: int) -> Mapping[str, int]:
        """Sites whose train order of an earlier round is still open, with that round.

        Such a site is named in the next train order all the same: it gets nothing new, and its
        answer is the one to its open order, with ``made_for``, or that it is ``late`` once more.

        Args:
            round_: the one that comes next.
            most_stale: how many rounds before it an order may be from; others are closed here,
                and what comes of them is never used.
        """
        ...


@runtime_checkable
class RepeatingCohort(Cohort, Protocol):
    """A cohort that knows whether its sites answer the same order with the same bytes."""

    @property
    def repeats_answers(self) -> bool:
        """Whether they do, also after the site or the coordinator was killed in between."""
        ...


@runtime_checkable
class FoldingCohort(Cohort, Protocol):
    """A cohort that can add up its sites' updates itself: a simulation's engine."""

    def fold(self, order: Order, times: Mapping[str, int]) -> Iterator[Answer | PartialFold]:
        """Send a train order; yield each site's answer once, alone or in a partial fold.

        Args:
            order: as for ``ask``.
            times: how often each site was selected, which counts in its weight.
        """
        ...

    def settings(self) -> Mapping[str, str | int]:
        """How the numbers are formed, for the checkpoint; empty when nothing is decided yet."""
        ...

    def restore(self, settings: Mapping[str, str | int]) -> None:
        """Go on as a checkpoint says."""
        ...
