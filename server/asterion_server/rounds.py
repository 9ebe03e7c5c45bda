"""The round loop. It knows no network: it asks a cohort for reports and folds them.

Live, the cohort is Flower; simulated, it is an engine. A round is: select, ask, check and fold
each report, take the centre's step, store a checkpoint. The metrics of the model after round r
come back with the reports of round r + 1, so a round costs one exchange, not two.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from asterion_server.asked_rounds import asking_of, charge_asking, times_asked
from asterion_server.asking import Asking
from asterion_server.best_model import best_before, best_round, write_best, write_last
from asterion_server.central_step import CentralStep, central_step_of
from asterion_server.checkpoint import Checkpoint, load_latest, rounds_of, store
from asterion_server.deadlines import Deadlines, evaluates
from asterion_server.initial_weights import begin, known_layout
from asterion_server.known_sites import KnownSites
from asterion_server.measured import Measured
from asterion_server.outcomes import outcome_of, require_quorum, round_result
from asterion_server.quarantine import Quarantine
from asterion_server.report_fold import fold_answer
from asterion_server.round_log import FinalRounds
from asterion_server.run_result import RunFacts, Simulated, result_of, utc_now
from asterion_server.selection import open_orders, select, selected
from asterion_shared.blocks import distance
from asterion_shared.errors import PrivacyProofError, QuorumLostError, RunStoppedError
from asterion_shared.events import Listener, RoundFinished, RunFinished, RunStarted, ignore
from asterion_shared.link.steps import reached
from asterion_shared.messages import (
    Answer,
    Cohort,
    FoldingCohort,
    Order,
    PartialFold,
    Phase,
    RepeatingCohort,
    Report,
)
from asterion_shared.metrics.reliability import Reliability
from asterion_shared.parameters import Layout, Vector
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import rounds_allowed
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.privacy.secure_sum import Verify
from asterion_shared.result import Result, RoundResult, SiteOutcome, Status, write_result

Participants = Callable[[int], Sequence[str] | None]


def run_rounds(
    plan: Plan,
    cohort: Cohort,
    folder: Path,
    *,
    run: str,
    expected_sites: Sequence[str],
    carrier: Literal["flower", "link", "simulation"],
    emit: Listener = ignore,
    plan_folder: Path = Path(),
    participants: Participants | None = None,
    simulation: Simulated | None = None,
    verify: Verify | None = None,
    audit: PrivacyAudit | None = None,
) -> Result:
    """Carry out a plan, or what is left of it when ``folder`` holds checkpoints of the run.

    Args:
        plan: what to do.
        cohort: who does it.
        folder: where checkpoints, the last and the best model, and ``result.json`` go.
        run: identity of the run, the same when it is started again.
        expected_sites: the sites that shall take part; those that never appear are reported.
        carrier: for the result.
        emit: is told of each event as it happens.
        plan_folder: where the plan's ``init.file`` is looked up.
        participants: the sites that can be selected in a round, or None for all of them; only
            a simulation that replays a recording knows them beforehand.
        simulation: what a simulation adds to the result, from the sites asked in each round.
        verify: by the sites' identities, for secure sums over messages; None in a simulation.
        audit: what an attack on the plan's privacy showed; a run whose claim it broke has failed.

    Returns:
        The result, as it was written to ``folder/result.json``.

    Raises:
        QuorumLostError: too few sites answered; the result and the checkpoints are written.
        RunStoppedError: somebody stopped the run; likewise.
        PrivacyProofError: the plan exceeds its own epsilon, and then nobody was asked; or it was
            interrupted so often that no round is left, and then the result is written.
        PlanMismatchError: the folder holds another run, or the plan and its model do not fit.
        DiskProblemError: the disk is full; finished rounds are kept.
    """
    facts = RunFacts(
        plan=plan,
        plan_sha256=plan.sha256,
        run=run,
        expected_sites=tuple(sorted(expected_sites)),
        carrier=carrier,
        simulation=simulation,
        audit=audit,
    )
    loop = _Loop(facts, cohort, folder, emit, participants or (lambda _: None), verify)
    loop.resume_or_begin(plan_folder)
    try:
        loop.carry_out()
    except QuorumLostError:
        loop.finish("quorum_lost")
        raise
    except (RunStoppedError, PrivacyProofError):
        loop.finish("stopped")
        raise
    return loop.finish("failed" if audit is not None and audit.broken else "finished")


@dataclass
class _Loop:
    facts: RunFacts
    cohort: Cohort
    folder: Path
    emit: Listener
    participants: Participants
    verify: Verify | None
    plan: Plan = field(init=False)
    deadlines: Deadlines = field(init=False)
    folding: FoldingCohort | None = field(init=False)
    """The cohort, if it can fold."""

    asking: Asking = field(init=False)
    layout: Layout = field(init=False)
    weights: Vector = field(init=False)
    step: CentralStep = field(init=False)
    quarantine: Quarantine | None = None
    """The step itself, where the plan has one."""

    rounds_allowed: int | None = field(init=False)
    """How often privacy lets a site be asked to train; None: as often as the plan says."""

    rounds: dict[int, RoundResult] = field(default_factory=dict)
    sites: KnownSites = field(default_factory=KnownSites)
    started: str = ""
    site_calibration: dict[int, Mapping[str, Reliability]] = field(default_factory=dict)
    """Of the model measured last, by its round: of all rounds it would be long."""

    done: int = -1
    """Last finished round; -1 before the count."""

    best: int | None = None
    """The best of the rounds before it; None when none of them was measured."""

    stored: Checkpoint | None = None
    """The last checkpoint."""

    def resume_or_begin(self, plan_folder: Path) -> None:
        self.plan = self.facts.plan
        live = self.facts.carrier != "simulation"
        self.deadlines = Deadlines(self.plan, self.emit if live else None)
        self.folding = self.cohort if isinstance(self.cohort, FoldingCohort) else None
        self.rounds_allowed = rounds_allowed(self.plan)
        self.step = central_step_of(self.plan, self.folder / "early")
        checkpoints = self.folder / "checkpoints"
        found = load_latest(checkpoints, self.facts.run, self.plan)
        self.started = utc_now()
        if found is None:
            self.layout, self.weights = begin(self.plan, plan_folder, self.folder)
        else:
            self.layout = known_layout(self.plan, self.folder)
        if (wanted := self.plan.quarantine) is not None:
            where = (self.layout, self.folder, self.facts.run)
            self.step = self.quarantine = Quarantine(self.step, wanted, *where)
        self.asking = Asking(self.cohort, self.layout, self.verify)
        if found is not None:
            self.weights, self.started, self.done = found.weights, found.started, found.round
            self.rounds = {r.round: r for r in rounds_of(found, checkpoints)}
            measured = {n: r for n, r in self.rounds.items() if n < self.done}
            self.best = (best_round(measured, self.plan.task) or (None,))[0]
            self.sites.restore(found.sites)
            self.step.restore(found.strategy)
            self.stored = found
            if self.folding is not None:
                self.folding.restore(found.cohort)
        self.emit(
            RunStarted(
                run=self.facts.run,
                plan=self.plan.name,
                task=self.plan.task,
                sites=self.facts.expected_sites,
                rounds=self.facts.rounds_planned,
            )
        )

    def carry_out(self) -> None:
        if self.done < 0:
            self._count()
        if self.plan.kind == "train":
            for number in range(self.done + 1, self.plan.rounds.count + 1):
                self._train(number)
        if self.plan.kind != "count":
            self._evaluate()
        else:
            self.emit(RoundFinished(round_result=self.rounds[0]))

    def finish(self, status: Status) -> Result:
        model = best = None
        if self.plan.kind == "train" and self.done > 0:
            what = (self.layout, {"run": self.facts.run, "plan_sha256": self.facts.plan_sha256})
            model = write_last(self.folder, self.weights, *what, self.done)
            best = write_best(self.folder, *what, self.rounds, self.plan.task, model, self.done)
        result = result_of(
            self.facts,
            status,
            started=self.started,
            rounds=self.rounds,
            done=self.done,
            sites=self.sites.summaries,
            asked=times_asked(self._asked),
            model=model,
            best=best,
            site_calibration=self.site_calibration.get(self.done, {}),
        )
        written = write_result(result, self.folder / "result.json")
        reached("C8")
        self.emit(RunFinished(result=written))
        return written

    @property
    def _asked(self) -> Path:
        return self.folder / "asked.jsonl"

    def _count(self) -> None:
        """Round 0: every expected site says how much data it has."""
        began = time.monotonic()
        outcomes: dict[str, SiteOutcome] = {}
        deadline = self.deadlines.of_count()
        order = self._order("count", 0, deadline, evaluate=False)
        for answer in self.asking.ask(order, self.facts.expected_sites):
            if isinstance(answer, Report):
                answer = answer if self.plan.secure_sum is None else answer.bare()
                self.sites.remember(answer)
            outcomes[answer.site] = outcome_of(answer)
        self.rounds[0] = round_result(0, outcomes, began, deadline)
        require_quorum(self.rounds[0], self.plan.rounds.quorum)
        self._store(0)

    def _train(self, number: int) -> None:
        began = time.monotonic()
        there = self.participants(number)
        names = self.facts.expected_sites if there is None else there
        busy = open_orders(self.plan, self.cohort, number, names)
        times = selected(self.plan, number, self.sites.sizes(names), busy)
        chosen = tuple(times)
        asked = [site for site in chosen if site not in busy]
        due = evaluates(self.plan, number)
        outcomes: dict[str, SiteOutcome] = {}
        measured = Measured(self.plan, chosen)
        if self.quarantine is not None:
            self.quarantine.open_round(number)
        self.step.begin(chosen, self.layout.size)
        deadline = self.deadlines.of_round(number, asked or chosen, self.rounds)
        order = self._order("train", number, deadline, evaluate=due)
        if self.rounds_allowed is not None:
            repeats = isinstance(self.cohort, RepeatingCohort) and self.cohort.repeats_answers
            asking = asking_of(order, repeats_answers=repeats)
            charge_asking(self._asked, number, asked, asking, self.rounds_allowed)
        lost: QuorumLostError | None = None
        if self.plan.secure_sum is not None:
            secure = self.asking.sum_securely(order, chosen)
            outcomes = {answer.site: outcome_of(answer) for answer in secure.answers}
            lost = secure.problem
            if secure.summed is not None:
                measured.add_sum(secure.summed.statistics)
                self.step.add_sum(chosen, secure.summed.update, secure.summed.weight)
        else:
            for answer in self._trained(order, times, busy):
                site = answer.site
                outcomes[site] = fold_answer(
                    self.plan, self.step, answer, times=times[site], round_=number
                )
                if isinstance(answer, Report):
                    self.sites.remember(answer)
                    if answer.made_for is None:  # else its metrics are of an older model
                        measured.add(site, answer.statistics)
        if self.quarantine is not None:
            outcomes = self.quarantine.close(outcomes)
        if due:
            self._measured(number - 1, measured)
        if number > 1 or due:
            self.emit(RoundFinished(round_result=self.rounds[number - 1]))
        more: dict[str, object] = {"clip_norm": self.step.clip_norm}
        if self.quarantine is not None:
            more["released"] = self.quarantine.released
        found = round_result(number, outcomes, began, deadline)
        self.rounds[number] = found.model_copy(update=more)
        if lost is not None:
            raise lost
        require_quorum(self.rounds[number], self.plan.rounds.quorum)
        num_clipped = sum(outcome.clipped for outcome in outcomes.values())
        num_answered = len(self.rounds[number].answered)
        self.step.count_clipped(num_answered - num_clipped, num_clipped)
        before = self.weights
        self.weights = self.step.finish(number, before)
        reached("C5")
        norm = distance(self.weights, before)
        self.rounds[number] = self.rounds[number].model_copy(update={"update_norm": norm})
        self._store(number)

    def _trained(
        self, order: Order, times: Mapping[str, int], busy: Mapping[str, int]
    ) -> Iterator[Answer]:
        """One answer for each site; those of a partial fold are in the step's sum already."""
        if not self.step.linear or self.folding is None:
            yield from self.asking.ask(order, tuple(times), busy)
            return
        for part in self.asking.fold(self.folding, order, times, busy):
            if isinstance(part, PartialFold):
                reported = [a.site for a in part.answers if isinstance(a, Report)]
                self.step.add_sum(reported, part.total, part.weight)
                yield from part.answers
            else:
                yield part

    def _evaluate(self) -> None:
        """Measure the final model (or the given one) at every site; nobody trains."""
        number = max(self.done, 0)
        measured = Measured(self.plan, self.facts.expected_sites)
        if self.plan.secure_sum is not None:
            self._evaluate_securely(number, measured)
            return
        sites = self.facts.expected_sites
        deadline = self.deadlines.of_evaluation(number + 1, sites, self.rounds)
        order = self._order("evaluate", number + 1, deadline, evaluate=True)
        for answer in self.asking.ask(order, sites):
            if isinstance(answer, Report):
                self.sites.remember(answer)
                measured.add(answer.site, answer.statistics)
            elif number == 0:
                outcomes = {**self.rounds[0].outcomes, answer.site: outcome_of(answer)}
                self.rounds[0] = self.rounds[0].model_copy(update={"outcomes": outcomes})
        self._measured(number, measured)
        self.emit(RoundFinished(round_result=self.rounds[number]))

    def _evaluate_securely(self, number: int, measured: Measured) -> None:
        """Measure at as many sites as a round asks; their sum is all that is learnt."""
        sites = dict.fromkeys(self.facts.expected_sites, 0)
        chosen = tuple(select(self.plan, number + 1, sites))
        deadline = self.deadlines.of_evaluation(number + 1, chosen, self.rounds)
        order = self._order("evaluate", number + 1, deadline, evaluate=True)
        found = self.asking.sum_securely(order, chosen)
        if found.problem is not None:
            raise found.problem
        assert found.summed is not None  # noqa: S101  # there was no problem
        measured.add_sum(found.summed.statistics)
        self._measured(number, measured)
        self.emit(RoundFinished(round_result=self.rounds[number]))

    def _order(self, phase: Phase, number: int, deadline: float, *, evaluate: bool) -> Order:
        return Order(
            run=self.facts.run,
            plan=self.plan,
            round=number,
            phase=phase,
            weights=None if phase == "count" else self.weights,
            layout_sha256="" if phase == "count" else self.layout.sha256,
            evaluate=evaluate,
            deadline_seconds=deadline,
            clip_norm=self.step.clip_norm,
        )

    def _measured(self, number: int, measured: Measured) -> None:
        """Write the metrics of the model after a round beside that round."""
        found = measured.finish()
        self.site_calibration = {number: found.site_calibration}
        self.rounds[number] = found.told_beside(self.rounds[number])

    def _store(self, number: int) -> None:
        checkpoint = Checkpoint(
            run=self.facts.run,
            plan_sha256=self.facts.plan_sha256,
            round=number,
            weights=self.weights,
            last=self.rounds[number],
            final=FinalRounds()
            if self.stored is None
            else self.stored.final.followed_by(self.rounds[number - 1]),
            sites=self.sites.text(),
            started=self.started,
            strategy=dict(self.step.state()),
            cohort={} if self.folding is None else dict(self.folding.settings()),
        )
        self.best = best_before(self.rounds, self.plan.task, self.best, number)
        self.stored = store(checkpoint, self.folder / "checkpoints", self.best)
        self.weights = self.stored.weights
        self.done = number
