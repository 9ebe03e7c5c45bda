"""What goes wrong at virtual sites, as a pure function of (settings, seed, round, site).

Nothing here sleeps: a delay is a number of seconds that is compared with the round's deadline.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from asterion_shared.errors import Problem, SettingsError
from asterion_shared.randomness import stream
from asterion_shared.settings_files import Positive, Rule, Settings, rule

FaultKind = Literal["drop", "delay", "crash", "late", "wrong_update", "nan", "scaled", "label_flip"]
Outcome = Literal["refused", "failed", "late"]
RoundNumber = Annotated[int, Field(ge=0)]

_ABSENCES: dict[str, tuple[Outcome, str, str]] = {
    "drop": ("failed", "unreachable", ""),
    "crash": ("failed", "unreachable", "training"),
    "late": ("late", "", ""),
}
"""What the coordinator sees of a site that does not report: outcome, code and stage."""

UPDATE_KINDS = ("wrong_update", "nan", "scaled")
"""Faults that change the update of a site that reports."""

_RANGE = re.compile(r"(\d+)(-(\d*))?")


def _round_ranges(rounds: int | str | tuple[int | str, ...]) -> list[tuple[int, float]]:
    """First and last round of each range; an open one ends at infinity.

    >>> _round_ranges("3-5, 8, 10-"), _round_ranges((1, 2))
    ([(3, 5), (8, 8), (10, inf)], [(1, 1), (2, 2)])
    """
    listed = rounds if isinstance(rounds, tuple) else (rounds,)
    items = [part.strip() for entry in listed for part in str(entry).split(",")]
    found: list[tuple[int, float]] = []
    for item in items:
        match = _RANGE.fullmatch(item)
        if match is None:
            msg = f"{item!r} is no round: write 3, '3-5', '3-' or a list of them"
            raise ValueError(msg)
        first, last = int(match[1]), match[3]
        found.append((first, first if last is None else float(last or "inf")))
        if found[-1][1] < first:
            msg = f"{item!r} ends before it begins"
            raise ValueError(msg)
    return [(first, last if last == float("inf") else int(last)) for first, last in found]


def _known_rounds(rounds: int | str | tuple[int | str, ...]) -> int | str | tuple[int | str, ...]:
    _round_ranges(rounds)
    return rounds


class FaultSettings(Settings):
    """One ``[[faults]]`` entry of a scenario. Of several that strike at once the first counts."""

    kind: FaultKind
    """Drop: the order never arrives. Delay: the report comes after ``seconds``. Crash: the site
    dies in training, its work is lost. Late: the report comes after the deadline, whatever that
    is. Wrong update: a false one of the same length. Nan: a number of the update is no number.
    Scaled: the update times ``factor``. Label flip: the site trains on false labels all along."""

    sites: tuple[str, ...] = ("*",)
    """Names of sites, with ``*``, ``?`` and ``[...]``; each must fit at least one."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of those sites that the fault ever strikes, drawn once; at least one site."""

    rounds: Annotated[int | str | tuple[int | str, ...], AfterValidator(_known_rounds)] = "1-"
    """Rounds in which it may strike: ``3``, ``"3-5, 8"``, ``"10-"`` or a list of those. Round 0,
    the count before training, is struck only when it is named."""

    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability to strike a site in a round, independent of all others."""

    seconds: Positive | None = None
    """Delay: when the report comes after the order; with ``seconds_sigma`` the median."""

    seconds_sigma: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Delay: deviation of the logarithm of the seconds."""

    factor: float | None = None
    """Scaled: what the update is multiplied by; may be negative."""

    wrong: Literal["random", "sign_flipped"] = "random"
    """Wrong update: noise of the same length, or the true one with its sign changed."""

    labels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Label flip: the new number of each class; absent: the last becomes the first and so on."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda f: (f.seconds is None) == (f.kind != "delay"),
            lambda f: (
                f"kind is {f.kind!r} and seconds is {f.seconds}; "
                "'delay' needs seconds, no other kind takes it"
            ),
        ),
        rule(
            lambda f: f.seconds_sigma == 0 or f.kind == "delay",
            lambda f: f"kind is {f.kind!r} and seconds_sigma is given; give it with 'delay' only",
        ),
        rule(
            lambda f: (f.factor is None) == (f.kind != "scaled"),
            lambda f: (
                f"kind is {f.kind!r} and factor is {f.factor}; "
                "'scaled' needs factor, no other kind takes it"
            ),
        ),
        rule(
            lambda f: f.wrong == "random" or f.kind == "wrong_update",
            lambda f: f"kind is {f.kind!r} and wrong is given; give it with 'wrong_update' only",
        ),
        rule(
            lambda f: not f.labels or f.kind == "label_flip",
            lambda f: f"kind is {f.kind!r} and labels is given; give it with 'label_flip' only",
        ),
        rule(
            lambda f: f.kind != "label_flip" or (f.rounds, f.probability) == ("1-", 1.0),
            lambda f: (
                "kind is 'label_flip' and rounds or probability is given; labels are false for "
                "the whole run: choose the sites with sites and share"
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What befalls one site in one round.

    Attributes:
        kind: its name in a report: a :data:`FaultKind`, or ``recorded`` for another absence.
        outcome: how the site is missing; None when it reports.
        code, stage: why and where, as in :class:`~asterion_shared.messages.NoReport`.
        seconds: when the report comes after the order; None: as long as the work took.
        factor: of a scaled update.
        wrong: which wrong update.
    """

    kind: str
    outcome: Outcome | None = None
    code: str = ""
    stage: str = ""
    seconds: float | None = None
    factor: float = 1.0
    wrong: Literal["random", "sign_flipped"] = "random"


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened once, to be replayed; :mod:`asterion_sim.traces` reads it from files.

    Attributes:
        faults: what befell a site, by (round, site).
        participants: the sites that were there, sorted, by round, where it is known.
    """

    faults: Mapping[tuple[int, str], Fault] = field(default_factory=dict)
    participants: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sites(self) -> set[str]:
        """Every site that is named."""
        return {site for _, site in self.faults}.union(*self.participants.values())


def fault_of(entry: FaultSettings, draws: np.random.Generator) -> Fault:
    """The fault of an entry that strikes; only a delay draws."""
    seconds = entry.seconds
    if seconds is not None:
        seconds *= float(np.exp(entry.seconds_sigma * draws.standard_normal()))
    outcome, code, stage = _ABSENCES.get(entry.kind, (None, "", ""))
    factor = 1.0 if entry.factor is None else entry.factor
    return Fault(kind=entry.kind, outcome=outcome, code=code, stage=stage, seconds=seconds,
                 factor=factor, wrong=entry.wrong)  # fmt: skip


class FaultSchedule:
    """Which fault strikes which site in which round: the same answer whenever it is asked.

    A trace comes first; where it says nothing of a site in a round, the entries are tried in
    their order. Each draw has its own address, so a run that is resumed meets the same faults,
    and an entry that is added at the end changes none of the others.

    Args:
        entries: of the scenario.
        seed: the plan's.
        sites: names of all sites of the run.
        trace: what is replayed, if anything.

    Raises:
        SettingsError: a pattern fits no site, or the trace names a site that the run lacks.
    """

    def __init__(
        self,
        entries: Sequence[FaultSettings],
        seed: int,
        sites: Iterable[str],
        trace: Trace | None = None,
    ) -> None:
        self.entries, self.seed = tuple(entries), seed
        self._trace = Trace() if trace is None else trace
        names = sorted(sites)
        problems = list(_unknown_sites(self.entries, self._trace, names))
        if problems:
            raise SettingsError("the faults", problems)  # noqa: EM101  # the source, no message
        self._struck = [self._struck_by(n, entry, names) for n, entry in enumerate(self.entries)]
        self._rounds = [_round_ranges(entry.rounds) for entry in self.entries]

    def fault(self, round_: int, site: str) -> Fault | None:
        """The fault of a site in a round (0 is the count before training); None: all is well."""
        there = self._trace.participants.get(round_)
        recorded = self._trace.faults.get((round_, site))
        if recorded is None and there is not None and site not in there:
            return fault_of(FaultSettings(kind="drop"), np.random.default_rng(0))
        if recorded is not None:
            return recorded
        for number, entry in enumerate(self.entries):
            if entry.kind == "label_flip" or (round_ == 0 and entry.kind in UPDATE_KINDS):
                continue
            ranges = self._rounds[number]
            if site in self._struck[number] and any(a <= round_ <= b for a, b in ranges):
                draws = self._draws(round_, site, f"fault {number}")
                if draws.random() < entry.probability:
                    return fault_of(entry, draws)
        return None

    def label_flips(self) -> dict[str, tuple[int, ...]]:
        """The ``labels`` of the first label flip that strikes a site, by site."""
        flips: dict[str, tuple[int, ...]] = {}
        for number, entry in enumerate(self.entries):
            if entry.kind == "label_flip":
                flips = dict.fromkeys(sorted(self._struck[number]), entry.labels) | flips
        return dict(sorted(flips.items()))

    def participants(self, round_: int) -> tuple[str, ...] | None:
        """The sites that the trace says were there in a round, sorted; None: it does not say."""
        return self._trace.participants.get(round_)

    def _struck_by(self, number: int, entry: FaultSettings, names: Sequence[str]) -> frozenset[str]:
        fitting = [name for name in names if any(fnmatchcase(name, p) for p in entry.sites)]
        if entry.share == 1:
            return frozenset(fitting)
        lots = {n: self._draws(0, n, f"fault {number} share").random() for n in fitting}
        drawn = sorted(fitting, key=lots.__getitem__)
        return frozenset(drawn[: max(1, round(entry.share * len(fitting)))])

    def _draws(self, round_: int, site: str, purpose: str) -> np.random.Generator:
        return stream(self.seed, round_=round_, site=site, purpose=purpose)


def _unknown_sites(
    entries: Sequence[FaultSettings], trace: Trace, names: Sequence[str]
) -> Iterator[Problem]:
    known = f"the run's sites are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    for number, entry in enumerate(entries):
        for pattern in entry.sites:
            if not any(fnmatchcase(name, pattern) for name in names):
                what = f"{pattern!r} fits no site"
                yield Problem(where=f"faults.{number}.sites", what=what, fix=known)
    if unknown := sorted(trace.sites - set(names)):
        what = f"names {len(unknown)} unknown sites: {', '.join(unknown[:5])}"
        yield Problem(where="trace", what=what, fix=f"rename them; {known}")


def injected(schedule: FaultSchedule, rounds: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    """Every fault that struck a site that was asked, for the report.

    Args:
        schedule: of the run.
        rounds: the sites asked, by round (``{r.round: r.asked for r in result.rounds}``).

    Returns:
        Rows ``{"round", "site", "fault"}``, by round and site; with ``seconds`` of a delay,
        ``factor`` of a scaled update, ``wrong`` of a wrong one and ``code`` of an absence. A label
        flip stands in every round in which its site was asked to train.
    """
    flips = schedule.label_flips()
    rows: list[dict[str, Any]] = []
    for round_, asked in sorted(rounds.items()):
        for site in sorted(asked):
            if (fault := schedule.fault(round_, site)) is not None:
                rows.append({"round": round_, "site": site} | _facts(fault))
            if round_ > 0 and site in flips:
                rows.append({"round": round_, "site": site, "fault": "label_flip"})
    return rows


def _facts(fault: Fault) -> dict[str, Any]:
    facts: dict[str, Any] = {"fault": fault.kind}
    if fault.seconds is not None:
        facts["seconds"] = fault.seconds
    if fault.kind == "scaled":
        facts["factor"] = fault.factor
    if fault.kind == "wrong_update":
        facts["wrong"] = fault.wrong
    if fault.code:
        facts["code"] = fault.code
    return facts
