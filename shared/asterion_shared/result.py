"""``result.json``: what a run did, in one file that programs can read. See ``docs/result.md``.

The metrics of a round are those of the global model *after* that round, measured when the sites
receive it (at the next order, or at the closing evaluation). Round 0 is the initial model.
"""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from asterion_shared.absences import absences, quarantine_sentences
from asterion_shared.errors import FileProblemError, SettingsError
from asterion_shared.files import write_atomically
from asterion_shared.metrics.decisions import Decisions
from asterion_shared.metrics.reliability import Reliability
from asterion_shared.plan import Name, Sha256, TaskName
from asterion_shared.privacy.account import NOTHING_CLAIMED, PrivacyAccount
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.settings_files import Rule, Settings, read_versioned_json, rule, validate
from asterion_shared.simulation_facts import Simulation

SCHEMA_VERSION: Literal[1] = 1
Status = Literal["finished", "stopped", "quorum_lost", "failed"]
Outcome = Literal["answered", "carried", "refused", "failed", "late", "quarantined"]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
UtcTime = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]


def _finite_or_none(value: object) -> object:
    """JSON has no NaN: a metric that is not finite is undefined, and undefined is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measure = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A measured number; None where it is undefined (an HD95 without an object) or not finite."""

Metrics = dict[str, Measure]
"""Metrics by flat name, as :func:`asterion_shared.metrics.summarise` names them."""


class SiteOutcome(Settings):
    """What became of one site in one round."""

    outcome: Outcome
    """It answered, its report of an earlier round was carried over into this one, it refused, it
    failed, it had not answered at the deadline, or its report was suspicious and is not in this
    round's model."""

    code: str = ""
    """Why not: one of :data:`asterion_shared.messages.REASON_CODES`; empty when it answered."""

    stage: str = ""
    """What it was doing when it failed; empty when it answered or nobody knows."""

    num_examples: Count = 0
    """Training examples behind its update."""

    num_test: Count = 0
    """Examples behind its metrics."""

    num_bad_files: Count = 0
    """Files that could not be read and were skipped."""

    num_steps: Count = 0
    """Optimiser steps done."""

    train_loss: Measure = None
    """Mean loss over those steps."""

    update_norm: Measure = None
    """Euclidean length of its update, before any clipping; None when it sent none."""

    clipped: bool = False
    """Whether its update was shortened to the clip norm of the plan, or of the round."""

    suspicious_layers: tuple[str, ...] = ()
    """Layers in which its update was unlike the others'; empty where none was, or nobody looked.
    With outcome ``answered`` it is in the model all the same, as the plan says."""

    seconds: Seconds = 0.0
    """Wall-clock time of the work at the site."""

    transfer_seconds: Seconds = 0.0
    """From the order's leaving to the answer's arrival, less ``seconds``; 0 in a simulation."""

    late_seconds: Seconds = 0.0
    """How long after the round's deadline its answer came, where the round waited for it; 0 in
    time."""

    made_for: Count | None = None
    """The earlier round whose order a carried report answers; None otherwise."""

    bytes_down: Count = 0
    """Bytes to the site."""

    bytes_up: Count = 0
    """Bytes from the site."""


class RoundResult(Settings):
    """One round: who was asked, what became of each, and the model after it."""

    round: Count
    """1, 2, ...; 0 is the count before training, and the initial model."""

    asked: tuple[Name, ...] = ()
    """Sites that were asked, sorted."""

    outcomes: dict[Name, SiteOutcome] = Field(default_factory=dict)
    """One for each site that was asked."""

    released: dict[Name, tuple[Count, ...]] = Field(default_factory=dict)
    """Quarantined reports of earlier rounds that a person released and that are in this round's
    model: their rounds, by site."""

    pooled: Metrics = Field(default_factory=dict)
    """Metrics of the model after this round over all sites; empty when it was not measured."""

    sites: dict[Name, Metrics] = Field(default_factory=dict)
    """The same, for each site that measured it."""

    calibration: Reliability | None = None
    """Confidence against correctness of the model after this round over all sites; classification
    alone."""

    decisions: Decisions | None = None
    """A temperature and thresholds of the model after this round, fitted on the cases it is judged
    on."""

    seconds: Seconds = 0.0
    """Wall-clock time of the round at the coordinator."""

    bytes_down: Count = 0
    bytes_up: Count = 0
    update_norm: Measure = None
    """Euclidean length of the change of the global weights; None when nothing was trained."""

    deadline_seconds: Seconds | None = None
    """Of the round: the plan's, or made from measured times; None where nobody was asked."""

    clip_norm: Measure = None
    """Length that longer updates were shortened to, where it adapts: made from what was noised in
    earlier rounds. None where it is the plan's."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda r: set(r.asked) == set(r.outcomes),
            lambda r: (
                f"asked is {r.asked} and outcomes has {sorted(r.outcomes)}; "
                "give one outcome for each site that was asked"
            ),
        ),
    )

    @property
    def answered(self) -> tuple[str, ...]:
        """Sites whose report of this round counted, sorted."""
        return tuple(sorted(s for s, o in self.outcomes.items() if o.outcome == "answered"))

    @property
    def missing(self) -> dict[str, str]:
        """Sites that were asked and have no report here, with the reason (a code, or ``late``)."""
        return {
            site: outcome.code or outcome.outcome
            for site, outcome in sorted(self.outcomes.items())
            if outcome.outcome not in ("answered", "carried")
        }

    @property
    def carried(self) -> dict[str, int]:
        """Sites whose report of an earlier round was folded here, with that round."""
        return {
            site: outcome.made_for
            for site, outcome in sorted(self.outcomes.items())
            if outcome.outcome == "carried" and outcome.made_for is not None
        }

    @property
    def waited_for(self) -> dict[str, float]:
        """Sites that answered after the deadline, with how many seconds after it."""
        late = {s: o.late_seconds for s, o in sorted(self.outcomes.items())}
        return {site: seconds for site, seconds in late.items() if seconds > 0}

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over the sites that answered, weighted by examples; else None."""
        known = [
            (outcome.num_examples, outcome.train_loss)
            for outcome in self.outcomes.values()
            if outcome.outcome == "answered"
            and outcome.train_loss is not None
            and outcome.num_examples > 0
        ]
        total = sum(count for count, _ in known)
        return sum(count * loss for count, loss in known) / total if total else None


class SiteSummary(Settings):
    """What a site brought to the run."""

    name: Name
    num_examples: Count = 0
    """Training examples."""

    num_test: Count = 0
    """Held-out examples."""

    num_bad_files: Count = 0
    """Files that could not be read and were skipped."""

    manifest_sha256: Sha256 | Literal[""] = ""
    """Hash of the frozen list of records; empty when the site never said."""


class FinalModel(Settings):
    """The trained model's file."""

    path: str
    """Relative to the folder of ``result.json``."""

    sha256: Sha256


class BestModel(FinalModel):
    """The file of the model with the highest pooled headline metric."""

    round: Count
    """After which it was made; of equal ones the first. 0 is the initial model."""

    metric: str
    """The headline metric's name."""

    value: float
    """Its pooled value, as the round's ``pooled`` says it."""


class Result(Settings):
    """What a run did."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    """Identity of the run, the same over a resume."""

    name: Name
    """The plan's name."""

    kind: Literal["train", "evaluate", "count"]
    task: TaskName
    plan_sha256: Sha256
    status: Status
    headline: str = ""
    """One sentence: how far it came, who was missing or late; :func:`write_result` fills it."""

    started: UtcTime
    """UTC, ISO 8601, ending in ``Z``."""

    finished: UtcTime
    carrier: Literal["flower", "link", "simulation"]
    privacy: str = NOTHING_CLAIMED
    """What is claimed, in one line."""

    privacy_account: PrivacyAccount | None = None
    """What the line stands on; None when nothing is claimed."""

    secure_sum: bool = False
    """Whether the coordinator saw sums over the sites alone: then each site's counts are 0 here,
    and no site has metrics of its own."""
    privacy_audit: PrivacyAudit | None = None
    """What an attack on the same privacy showed; None when there was none."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the programs the numbers depend on, by package."""

    rounds_planned: Count
    """Rounds that the plan asks for."""

    rounds: tuple[RoundResult, ...] = ()
    """In order, from round 0. With status ``quorum_lost`` the last is the round that lost it."""

    final_metrics: Metrics = Field(default_factory=dict)
    """Pooled metrics of the final model."""

    final_calibration: Reliability | None = None
    """The same as the ``calibration`` of the final model's round."""

    site_calibration: dict[Name, Reliability] = Field(default_factory=dict)
    """Confidence against correctness of the final model at each site that told it."""

    decisions: Decisions | None = None
    """The same as the ``decisions`` of the final model's round."""

    final_model: FinalModel | None = None
    """None when no model was made."""

    best_model: BestModel | None = None
    """None when none was measured; the final model's own file where that is the best."""

    sites: tuple[SiteSummary, ...] = ()
    """Every site of the run, sorted by name; also one that never answered."""

    simulation: Simulation | None = None
    """None in a live run."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda r: [x.round for x in r.rounds] == sorted({x.round for x in r.rounds}),
            lambda r: f"rounds are {[x.round for x in r.rounds]}; give each once, in order",
        ),
        rule(
            lambda r: len({s.name for s in r.sites}) == len(r.sites),
            lambda r: f"sites are {[s.name for s in r.sites]}; name each once",
        ),
        rule(
            lambda r: not r.claim_broken or r.status != "finished",
            lambda r: f"status is {r.status!r} and the attack broke the claim; it is 'failed'",
        ),
    )

    @property
    def is_live(self) -> bool:
        """Whether every site was a machine of its own."""
        return self.carrier != "simulation"

    @property
    def claim_broken(self) -> bool:
        """Whether an attack showed more than the claimed epsilon."""
        return self.privacy_audit is not None and self.privacy_audit.broken

    @property
    def num_finished(self) -> int:
        """Rounds of training that were finished; one that lost its quorum was not."""
        lost = self.status == "quorum_lost"
        done = self.rounds[:-1] if lost else self.rounds
        return sum(1 for r in done if r.round > 0 and r.answered)

    @property
    def final_sites(self) -> dict[str, Metrics]:
        """Metrics of the last measured model by site; empty when none was measured."""
        return next((dict(r.sites) for r in reversed(self.rounds) if r.sites), {})


def headline(result: Result) -> str:
    """One sentence for the title: how far the run came, and who was missing or late, when and why.

    For example ``5 of 5 rounds finished; site north missing in rounds 3-5 (unreachable)``.
    """
    lost = result.rounds[-1] if result.status == "quorum_lost" and result.rounds else None
    planned = f"{result.num_finished} of {result.rounds_planned} rounds"
    why = f": {len(lost.answered)} of {len(lost.asked)} sites answered" if lost else ""
    beginnings = {
        "finished": f"{planned} finished",
        "stopped": f"stopped after {planned}",
        "quorum_lost": f"quorum lost after {planned}{why}",
        "failed": f"failed after {planned}",
    }
    if result.kind != "train":
        work = {"count": "count", "evaluate": "evaluation"}[result.kind]
        ends = {"finished": " finished", "stopped": " stopped", "failed": " failed"}
        beginnings = {s: work + ends.get(s, f": quorum lost{why}") for s in beginnings}
    broken = ["the attack shows more than the claimed epsilon"] if result.claim_broken else []
    told = [*absences(result), *quarantine_sentences(result.rounds)]
    return "; ".join([beginnings[result.status], *broken, *told])


def write_result(result: Result, path: Path) -> Result:
    """Write ``result.json`` atomically, with its headline; return what was written.

    Raises:
        DiskProblemError: the disk is full or not writable; an older file is kept.
    """
    complete = result.model_copy(update={"headline": headline(result)})
    text = complete.model_dump_json(indent=2)
    write_atomically(path, (text + "\n").encode())
    return complete


def read_result(path: Path) -> Result:
    """Read and validate ``result.json``.

    Raises:
        FileProblemError: the file is missing, is not JSON, is of another schema version, or
            breaks the schema (the first problems are named).
    """
    again = "write it again by starting the run again"
    values = read_versioned_json(path, SCHEMA_VERSION, again)
    try:
        return validate(Result, values, str(path))
    except SettingsError as error:
        named = " | ".join(str(problem) for problem in error.problems[:3])
        fix = "do not edit it; start the run again to have it written anew"
        raise FileProblemError(path, f"breaks the schema: {named}", fix) from None


def result_schema() -> dict[str, Any]:
    """JSON schema of ``result.json``, for programs that read it in other languages."""
    return Result.model_json_schema()
