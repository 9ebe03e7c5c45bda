"""The round loop. It knows no network: it asks a cohort for reports and folds them.

Live, the cohort is Flower; simulated, it is an engine. A round is: select, ask, check and fold
each report, take the centre's step, store a checkpoint. The metrics of the model after round r
come back with the reports of round r + 1, so a round costs one exchange, not two.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from asterion_server.asked_rounds import note_asked, times_asked
from asterion_server.asking import Asking
from asterion_server.central_step import CentralStep, central_step_of
from asterion_server.checkpoint import (
    Checkpoint,
    load_latest,
    read_sites,
    rounds_of,
    sites_text,
    store,
)
from asterion_server.initial_weights import begin, known_layout
from asterion_server.measured import Measured
from asterion_server.outcomes import outcome_of, round_result
from asterion_server.quarantine import Quarantine
from asterion_server.round_log import FinalRounds
from asterion_server.selection import clip_factor, select, weight_of
from asterion_shared.blocks import distance, length
from asterion_shared.errors import (
    PrivacyProofError,
    QuorumLostError,
    RunStoppedError,
)
from asterion_shared.events import Event, Listener, RoundFinished, RunFinished, RunStarted
from asterion_shared.messages import (
    Answer,
    Cohort,
    FoldingCohort,
    NoReport,
    Order,
    PartialFold,
    Phase,
    Report,
)
from asterion_shared.parameters import Layout, Vector, named_parts
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import account_of, in_one_line, rounds_allowed
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.privacy.secure_sum import Verify
from asterion_shared.result import (
    FinalModel,
    Result,
    RoundResult,
    Simulation,
    SiteOutcome,
    SiteSummary,
    Status,
    write_result,
)
from asterion_shared.tensor_files import write_tensors

Participants = Callable[[int], Sequence[str] | None]


def _ignore(event: Event) -> None:
    """Tell nobody."""


def run_rounds(
    plan: Plan,
    cohort: Cohort,
    folder: Path,
    *,
    run: str,
    expected_sites: Sequence[str],
    carrier: Literal["flower", "simulation"],
    emit: Listener = _ignore,
    plan_folder: Path = Path(),
    participants: Participants | None = None,
    simulation: Callable[[Mapping[int, Sequence[str]]], Simulation] | None = None,
    verify: Verify | None = None,
    audit: PrivacyAudit | None = None,
) -> Result:
    """Carry out a plan, or what is left of it when ``folder`` holds checkpoints of the run.

    Args:
        plan: what to do.
        cohort: who does it.
        folder: where checkpoints, ``model.safetensors`` and ``result.json`` go.
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
    loop = _Loop(
        plan,
        cohort,
        folder,
        run,
        tuple(sorted(expected_sites)),
        carrier,
        emit,
        participants or (lambda round_: None),
        simulation,
        verify,
        audit,
    )
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
    plan: Plan
    cohort: Cohort
    folder: Path
    run: str
    expected_sites: tuple[str, ...]
    carrier: Literal["flower", "simulation"]
    emit: Listener
    participants: Participants
    simulation: Callable[[Mapping[int, Sequence[str]]], Simulation] | None
    verify: Verify | None
    audit: PrivacyAudit | None
    plan_sha256: str = field(init=False)
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
    sites: dict[str, SiteSummary] = field(default_factory=dict)
    started: str = ""
    done: int = -1
    """Last finished round; -1 before the count."""

    stored: Checkpoint | None = None
    """The last checkpoint."""

    sites_text: str = ""
    """``sites`` as a checkpoint has them; empty when they changed since."""

    def resume_or_begin(self, plan_folder: Path) -> None:
        self.plan_sha256 = self.plan.sha256
        self.folding = self.cohort if isinstance(self.cohort, FoldingCohort) else None
        self.rounds_allowed = rounds_allowed(self.plan)
        self.step = central_step_of(self.plan, self.folder / "early")
        checkpoints = self.folder / "checkpoints"
        found = load_latest(checkpoints, self.run, self.plan)
        self.started = _now()
        if found is None:
            self.layout, self.weights = begin(self.plan, plan_folder, self.folder)
        else:
            self.layout = known_layout(self.plan, self.folder)
        if (wanted := self.plan.quarantine) is not None:
            where = (self.layout, self.folder, self.run)
            self.step = self.quarantine = Quarantine(self.step, wanted, *where)
        self.asking = Asking(self.cohort, self.layout, self.verify)
        if found is not None:
            self.weights, self.started, self.done = found.weights, found.started, found.round
            self.rounds = {r.round: r for r in rounds_of(found, checkpoints)}
            self.sites = {s.name: s for s in read_sites(found.sites)}
            self.step.restore(found.strategy)
            self.stored = found
            if self.folding is not None:
                self.folding.restore(found.cohort)
        self.emit(
            RunStarted(
                run=self.run,
                plan=self.plan.name,
                task=self.plan.task,
                sites=self.expected_sites,
                rounds=self._planned(),
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
        model = None
        if self.plan.kind == "train" and self.done > 0:
            facts = {"run": self.run, "round": str(self.done), "plan_sha256": self.plan_sha256}
            tensors = named_parts(self.weights, self.layout)
            header = {"asterion": json.dumps(facts, sort_keys=True)}
            digest = write_tensors(self.folder / "model.safetensors", tensors, header)
            model = FinalModel(path="model.safetensors", sha256=digest)
        rounds = tuple(self.rounds[number] for number in sorted(self.rounds))
        last = self.rounds.get(self.done)
        known = [*self.expected_sites, *self.sites]
        account = account_of(self.plan, times_asked(self._asked))
        result = Result(
            run=self.run,
            name=self.plan.name,
            kind=self.plan.kind,
            task=self.plan.task,
            plan_sha256=self.plan_sha256,
            status=status,
            started=self.started,
            finished=_now(),
            carrier=self.carrier,
            privacy=in_one_line(account, secure_sum=self.plan.secure_sum is not None),
            privacy_account=account,
            secure_sum=self.plan.secure_sum is not None,
            privacy_audit=self.audit,
            versions=_versions(),
            rounds_planned=self._planned(),
            rounds=rounds,
            final_metrics=dict(last.pooled) if last is not None else {},
            final_model=model,
            sites=tuple(
                self.sites.get(name, SiteSummary(name=name)) for name in sorted(set(known))
            ),
            simulation=self.simulation({r.round: r.asked for r in rounds})
            if self.simulation is not None
            else None,
        )
        written = write_result(result, self.folder / "result.json")
        self.emit(RunFinished(result=written))
        return written

    @property
    def _asked(self) -> Path:
        return self.folder / "asked.jsonl"

    def _planned(self) -> int:
        return self.plan.rounds.count if self.plan.kind == "train" else 0

    def _count(self) -> None:
        """Round 0: every expected site says how much data it has."""
        began = time.monotonic()
        outcomes: dict[str, SiteOutcome] = {}
        order = self._order("count", 0, evaluate=False)
        for answer in self.asking.ask(order, self.expected_sites):
            if isinstance(answer, Report):
                answer = answer if self.plan.secure_sum is None else answer.bare()
                self._remember(answer)
            outcomes[answer.site] = outcome_of(answer)
        self.rounds[0] = round_result(0, outcomes, began)
        self._require_quorum(0)
        self._store(0)

    def _train(self, number: int) -> None:
        began = time.monotonic()
        there = self.participants(number)
        sizes = {name: self.sites[name].num_examples if name in self.sites else 0
                 for name in (self.expected_sites if there is None else there)}  # fmt: skip
        times = select(self.plan, number, sizes)
        chosen = tuple(times)
        due = (number - 1) % self.plan.rounds.evaluate_every == 0
        outcomes: dict[str, SiteOutcome] = {}
        measured = Measured(self.plan, chosen)
        if self.quarantine is not None:
            self.quarantine.open_round(number)
        self.step.begin(chosen, self.layout.size)
        if self.rounds_allowed is not None:
            self._charge(number, chosen, self.rounds_allowed)
        lost: QuorumLostError | None = None
        if self.plan.secure_sum is not None:
            found = self.asking.sum_securely(self._order("train", number, evaluate=due), chosen)
            outcomes = {answer.site: outcome_of(answer) for answer in found.answers}
            lost = found.problem
            if found.summed is not None:
                measured.add_sum(found.summed.statistics)
                self.step.add_sum(chosen, found.summed.update, found.summed.weight)
        else:
            for answer in self._trained(number, times, evaluate=due):
                outcomes[answer.site] = self._folded(answer, times[answer.site])
                if isinstance(answer, Report):
                    self._remember(answer)
                    measured.add(answer.site, answer.statistics)
        if self.quarantine is not None:
            outcomes = self.quarantine.close(outcomes)
        if due:
            self._measured(number - 1, measured)
        if number > 1 or due:
            self.emit(RoundFinished(round_result=self.rounds[number - 1]))
        more: dict[str, object] = {"clip_norm": self.step.clip_norm}
        if self.quarantine is not None:
            more["released"] = self.quarantine.released
        self.rounds[number] = round_result(number, outcomes, began).model_copy(update=more)
        if lost is not None:
            raise lost
        self._require_quorum(number)
        num_clipped = sum(outcome.clipped for outcome in outcomes.values())
        num_answered = len(self.rounds[number].answered)
        self.step.count_clipped(num_answered - num_clipped, num_clipped)
        before = self.weights
        self.weights = self.step.finish(number, before)
        norm = distance(self.weights, before)
        self.rounds[number] = self.rounds[number].model_copy(update={"update_norm": norm})
        self._store(number)

    def _charge(self, number: int, chosen: Sequence[str], allowed: int) -> None:
        """Note durably that sites are asked, before they are; stop a run that was begun too often.

        Raises:
            PrivacyProofError: once more would exceed the plan's limit.
        """
        spent = times_asked(self._asked)
        if over := [site for site in chosen if spent.get(site, 0) >= allowed]:
            what = (
                f"site {over[0]} was asked {allowed} times, interrupted rounds included, which is "
                f"all that privacy.epsilon_limit allows, and round {number} is not done"
            )
            fix = "the model of the last checkpoint is the run's result"
            raise PrivacyProofError(what=what, fix=fix)
        note_asked(self._asked, number, chosen)

    def _trained(
        self, number: int, times: Mapping[str, int], *, evaluate: bool
    ) -> Iterator[Answer]:
        """One answer for each site; those of a partial fold are in the step's sum already."""
        order = self._order("train", number, evaluate=evaluate)
        if not self.step.linear or self.folding is None:
            yield from self.asking.ask(order, tuple(times))
            return
        for part in self.asking.fold(self.folding, order, times):
            if isinstance(part, PartialFold):
                reported = [a.site for a in part.answers if isinstance(a, Report)]
                self.step.add_sum(reported, part.total, part.weight)
                yield from part.answers
            else:
                yield part

    def _folded(self, answer: Answer, times: int) -> SiteOutcome:
        """Fold an answer's update, if it has one of its own; what became of the site."""
        if isinstance(answer, NoReport):
            self.step.leave_out(answer.site)
            return outcome_of(answer)
        norm, update = answer.update_norm, answer.update
        if update is not None:
            norm = length(update)
            factor = clip_factor(self.plan, norm, self.step.clip_norm)
            weight = weight_of(self.plan, answer.num_examples, times)
            self.step.add(answer.site, update, weight, factor)
        clipped = norm is not None and clip_factor(self.plan, norm, self.step.clip_norm) < 1
        return outcome_of(answer, norm, clipped=clipped)

    def _evaluate(self) -> None:
        """Measure the final model (or the given one) at every site; nobody trains."""
        number = max(self.done, 0)
        measured = Measured(self.plan, self.expected_sites)
        if self.plan.secure_sum is not None:
            self._evaluate_securely(number, measured)
            return
        order = self._order("evaluate", number + 1, evaluate=True)
        for answer in self.asking.ask(order, self.expected_sites):
            if isinstance(answer, Report):
                self._remember(answer)
                measured.add(answer.site, answer.statistics)
            elif number == 0:
                outcomes = {**self.rounds[0].outcomes, answer.site: outcome_of(answer)}
                self.rounds[0] = self.rounds[0].model_copy(update={"outcomes": outcomes})
        self._measured(number, measured)
        self.emit(RoundFinished(round_result=self.rounds[number]))

    def _evaluate_securely(self, number: int, measured: Measured) -> None:
        """Measure at as many sites as a round asks; their sum is all that is learnt."""
        chosen = tuple(select(self.plan, number + 1, dict.fromkeys(self.expected_sites, 0)))
        found = self.asking.sum_securely(self._order("evaluate", number + 1, evaluate=True), chosen)
        if found.problem is not None:
            raise found.problem
        assert found.summed is not None  # noqa: S101  # there was no problem
        measured.add_sum(found.summed.statistics)
        self._measured(number, measured)
        self.emit(RoundFinished(round_result=self.rounds[number]))

    def _order(self, phase: Phase, number: int, *, evaluate: bool) -> Order:
        return Order(
            run=self.run,
            plan=self.plan,
            round=number,
            phase=phase,
            weights=None if phase == "count" else self.weights,
            layout_sha256="" if phase == "count" else self.layout.sha256,
            evaluate=evaluate,
            deadline_seconds=self.plan.rounds.deadline_seconds,
            clip_norm=self.step.clip_norm,
        )

    def _remember(self, report: Report) -> None:
        said = {
            "num_examples": report.num_examples,
            "num_test": report.num_test,
            "num_bad_files": report.num_bad_files,
            "manifest_sha256": report.manifest_sha256,
        }
        known = self.sites.get(report.site)
        if known is None or any(getattr(known, name) != value for name, value in said.items()):
            self.sites[report.site] = SiteSummary.model_validate({"name": report.site} | said)
            self.sites_text = ""

    def _measured(self, number: int, measured: Measured) -> None:
        """Write the metrics of the model after a round beside that round."""
        pooled, sites = measured.finish()
        self.rounds[number] = self.rounds[number].model_copy(
            update={"pooled": pooled, "sites": sites}
        )

    def _require_quorum(self, number: int) -> None:
        result = self.rounds[number]
        answered, needed = len(result.answered), self.plan.rounds.quorum
        if answered < needed:
            raise QuorumLostError(
                round_=number,
                answered=answered,
                asked=len(result.asked),
                needed=needed,
                why=", ".join(f"{site}: {why}" for site, why in result.missing.items()),
            )

    def _store(self, number: int) -> None:
        if not self.sites_text:
            self.sites_text = sites_text(self.sites[name] for name in sorted(self.sites))
        checkpoint = Checkpoint(
            run=self.run,
            plan_sha256=self.plan_sha256,
            round=number,
            weights=self.weights,
            last=self.rounds[number],
            final=FinalRounds()
            if self.stored is None
            else self.stored.final.followed_by(self.rounds[number - 1]),
            sites=self.sites_text,
            started=self.started,
            strategy=dict(self.step.state()),
            cohort={} if self.folding is None else dict(self.folding.settings()),
        )
        self.stored = store(checkpoint, self.folder / "checkpoints")
        self.weights = self.stored.weights
        self.done = number


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions() -> dict[str, str]:
    packages = ("asterion-shared", "torch", "numpy", "monai", "flwr")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
