"""A cohort whose sites fail as a schedule says, around any cohort that works."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from asterion_shared.blocks import length
from asterion_shared.messages import (
    Answer,
    Cohort,
    FoldingCohort,
    NoReport,
    Order,
    PartialFold,
    Report,
)
from asterion_shared.parameters import Vector
from asterion_shared.randomness import stream
from asterion_sim.faults import UPDATE_KINDS, Fault, FaultSchedule


class FaultyCohort:
    """A cohort whose sites meet the faults of a schedule, in virtual time.

    Faults strike orders to train, and the count where the schedule names round 0; the closing
    evaluation is left alone, so that the final model is measured at every site. A site that is
    late has worked, so what it keeps for itself (tensors, what rounding lost) has moved on; one
    that crashed or was never reached has not.

    Where the plan says ``late = "wait"``, a site that is late or out of reach answers all the same.
    Where it says ``"carry_over"``, the report of a late site comes in the first later round in
    which no fault keeps it; a crash there loses it. Such reports are held in memory.

    Args:
        inner: the cohort that works; if it folds, sites whose update is as it should be are
            folded by it.
        schedule: what goes wrong.
        train_late: whether late sites do their lost work; False saves the time where a site
            keeps nothing from round to round, and changes nothing else.
    """

    def __init__(self, inner: Cohort, schedule: FaultSchedule, *, train_late: bool = True) -> None:
        self._inner, self._schedule, self._train_late = inner, schedule, train_late
        self._held: dict[str, Report] = {}

    def open_orders(self, round_: int, most_stale: int) -> Mapping[str, int]:
        """Sites whose late report has not come yet, with the round that it was made for."""
        self._held = {
            site: report
            for site, report in self._held.items()
            if report.made_for is not None and 1 <= round_ - report.made_for <= most_stale
        }
        return {site: r.made_for for site, r in self._held.items() if r.made_for is not None}

    def sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return self._inner.sites()

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """One answer for each site: first of those that do not work, then of the others."""
        asked = list(sites)
        faults = self._faults(order, asked)
        names = yield from self._carried(order, asked, faults)
        idle = {s for s in names if s in faults and self._is_idle(order, faults[s])}
        yield from (_absence(site, faults[site]) for site in sorted(idle))
        yield from self._alone(order, [site for site in names if site not in idle], faults)

    def fold(self, order: Order, times: Mapping[str, int]) -> Iterator[Answer | PartialFold]:
        """As ``ask`` for a train order; what the inner cohort can fold, it folds.

        Args:
            order: an order to train.
            times: how often each site was selected.
        """
        faults = self._faults(order, times)
        names = yield from self._carried(order, times, faults)
        idle = {s for s in names if s in faults and self._is_idle(order, faults[s])}
        alone = {s for s in names if s in faults and _needs_its_update(faults[s])} - idle
        rest = {site: times[site] for site in names if site not in idle and site not in alone}
        yield from (_absence(site, faults[site]) for site in sorted(idle))
        # Struck sites come first, as the fold stores what comes early; but an engine that is not
        # chosen yet is measured on the first sites it gets, which shall be the many well ones.
        if self.settings():
            yield from self._alone(order, sorted(alone), faults)
            yield from self._folded(order, rest, faults)
        else:
            yield from self._folded(order, rest, faults)
            yield from self._alone(order, sorted(alone), faults)

    def settings(self) -> Mapping[str, str | int]:
        """How the inner cohort forms its numbers; empty where it does not say."""
        return self._inner.settings() if isinstance(self._inner, FoldingCohort) else {}

    def restore(self, settings: Mapping[str, str | int]) -> None:
        """Let the inner cohort go on as a checkpoint says."""
        if isinstance(self._inner, FoldingCohort):
            self._inner.restore(settings)

    def _faults(self, order: Order, sites: Iterable[str]) -> dict[str, Fault]:
        """The fault of every site that has one; a delay beyond the deadline is an absence."""
        if order.phase == "evaluate":
            return {}
        found: dict[str, Fault] = {}
        for site in sites:
            if (fault := self._schedule.fault(order.round, site)) is not None:
                late = (fault.seconds or 0.0) > order.deadline_seconds
                found[site] = replace(fault, outcome="late") if late else fault
        if order.plan.rounds.late == "wait":
            return {site: _waited_out(fault) for site, fault in found.items()}
        return found

    def _carried(
        self, order: Order, sites: Iterable[str], faults: Mapping[str, Fault]
    ) -> Generator[Answer, None, list[str]]:
        """Answers of sites whose report of an earlier round is due; returns the other sites."""
        others: list[str] = []
        for site in sites:
            fault = faults.get(site)
            if site not in self._held or order.phase != "train":
                others.append(site)
            elif fault is None or fault.outcome is None:
                yield self._held.pop(site)
            else:
                if fault.stage == "training":  # it died on it
                    del self._held[site]
                yield _absence(site, fault)
        return others

    def _is_idle(self, order: Order, fault: Fault) -> bool:
        """Whether a site does no work for the order."""
        is_used = self._train_late or order.plan.rounds.late == "carry_over"
        works = fault.outcome == "late" and is_used and order.phase == "train"
        return fault.outcome is not None and not works

    def _alone(
        self, order: Order, sites: Iterable[str], faults: Mapping[str, Fault]
    ) -> Iterator[Answer]:
        asked = list(sites)
        for answer in self._inner.ask(order, asked) if asked else ():
            yield self._struck(order, answer, faults.get(answer.site))

    def _folded(
        self, order: Order, times: Mapping[str, int], faults: Mapping[str, Fault]
    ) -> Iterator[Answer | PartialFold]:
        """Answers whose updates are as they should be; a sum stays, its sites' seconds change."""
        if not isinstance(self._inner, FoldingCohort):
            yield from self._alone(order, times, faults)
            return
        for part in self._inner.fold(order, times) if times else ():
            if isinstance(part, PartialFold):
                answers = tuple(self._struck(order, a, faults.get(a.site)) for a in part.answers)
                yield replace(part, answers=answers)
            else:
                yield self._struck(order, part, faults.get(part.site))

    def _hold(self, report: Report, round_: int, fault: Fault) -> None:
        took = report.seconds if fault.seconds is None else fault.seconds
        update = None if report.update is None else report.update.copy()  # not a chunk's buffer
        self._held[report.site] = replace(report, made_for=round_, seconds=took, update=update)

    def _struck(self, order: Order, answer: Answer, fault: Fault | None) -> Answer:
        """What arrives of a site's answer."""
        if fault is not None and fault.outcome is not None:
            if order.plan.rounds.late == "carry_over" and isinstance(answer, Report):
                self._hold(answer, order.round, fault)
            return _absence(answer.site, fault)
        if fault is None or isinstance(answer, NoReport):
            return answer
        if fault.seconds is not None:
            late = max(fault.seconds - order.deadline_seconds, 0.0)  # > 0 where the round waits
            answer = replace(answer, seconds=fault.seconds, late_seconds=late)
        if answer.update is None or fault.kind not in UPDATE_KINDS:
            return answer
        draws = stream(
            self._schedule.seed, round_=order.round, site=answer.site, purpose="wrong update"
        )
        return replace(answer, update=changed_update(answer.update, fault, draws))


def _waited_out(fault: Fault) -> Fault:
    """A fault as a round that waits meets it: whoever is only late or out of reach answers."""
    if fault.outcome == "late" or fault.code == "unreachable":
        return replace(fault, outcome=None, code="", stage="")
    return fault


def _needs_its_update(fault: Fault) -> bool:
    """Whether a site's update cannot be folded with those of others: it is changed or unused."""
    return fault.outcome is not None or fault.kind in UPDATE_KINDS


def _absence(site: str, fault: Fault) -> NoReport:
    return NoReport(
        site=site, outcome=fault.outcome or "failed", code=fault.code, stage=fault.stage
    )


def changed_update(update: Vector, fault: Fault, draws: np.random.Generator) -> Vector:
    """What a faulty site sends instead of its update.

    Args:
        update: float32, shape (P,), P >= 1.
        fault: ``wrong_update``, ``nan`` or ``scaled``.
        draws: the noise of a random update, or the place of the NaN.

    Returns:
        float32, shape (P,). A random update has the Euclidean length of the true one; a scaled
        one is infinite where float32 ends, and then the coordinator refuses it.
    """
    if fault.kind == "scaled":
        with np.errstate(over="ignore"):
            return (update * np.float64(fault.factor)).astype(np.float32)
    if fault.kind == "nan":
        broken = update.copy()
        broken[draws.integers(len(update))] = np.nan
        return broken
    if fault.wrong == "sign_flipped":
        return -update
    noise = draws.standard_normal(len(update))
    return (noise * (length(update) / length(noise))).astype(np.float32)
