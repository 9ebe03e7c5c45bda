"""Which processes are killed where: the cases of the kill matrix, made from the step table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from tests.faults.step_table import PROTOCOL, step_table
from tests.live.conftest import SITES, plan_of

from asterion_shared.plan import Plan
from asterion_shared.randomness import stream

SEED = 5
ROUNDS = 3
Group = Literal["center", "north", "south", "west"]
Role = Literal["run", "link", "north", "south", "west"]

_SCALED = {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"],
           "scale": {"a": [0.5, 1.0], "b": [0.5, 1.0]}}  # fmt: skip
_NOISE = {"clip_norm": 0.5, "noise_multiplier": 3.0, "epsilon_limit": 1000.0}
_MOMENTUM = {"flower_strategy": "FedAvgM",
             "flower_arguments": {"server_learning_rate": 1.0, "server_momentum": 0.9}}  # fmt: skip
_BIG = {"name": "mlp", "widths": [768, 768]}
"""595,970 weights, 2.27 MiB: three chunks."""

_ONE_CHUNK = {"name": "mlp", "widths": [440, 440]}
"""197,122 weights, 0.75 MiB: one chunk, whose hash is the payload's in the ledger."""

_SECTIONS: dict[str, dict[str, Any]] = {
    "prox": {"model": _BIG},
    "momentum": {"model": _BIG, "algorithm": _MOMENTUM},
    "sitenoise": {"model": _ONE_CHUNK, "data": _SCALED,
                  "privacy": {"protects": "site", "noise": "site"} | _NOISE},
    "record": {"model": _ONE_CHUNK, "data": _SCALED,
               "privacy": {"protects": "record", "noise": "site", "sampling_rate": 0.2} | _NOISE},
    "centre": {"model": _ONE_CHUNK, "data": _SCALED, "algorithm": {"max_weight": 1},
               "privacy": {"protects": "site", "noise": "centre"} | _NOISE},
}  # fmt: skip
PLANS = tuple(_SECTIONS)
PRIVATE = tuple(kind for kind, sections in _SECTIONS.items() if "privacy" in sections)


def matrix_plan(kind: str) -> Plan:
    """The plan of a kind, one of :data:`PLANS`: three rounds that wait for every site."""
    rounds = {"count": ROUNDS, "deadline_seconds": 240.0, "late": "wait",
              "sites_per_round": len(SITES)}  # fmt: skip
    local = {"amount": 4, "learning_rate": 0.01}
    values = {"rounds": rounds, "local": local, **_SECTIONS[kind]}
    return plan_of(kind, ROUNDS, **values)


@dataclass(frozen=True, slots=True)
class Stop:
    """A process kills itself at a step.

    Attributes:
        step: of the protocol.
        group: the daemon whose processes are meant; a site, or ``center``.
        share: 0 to 1: where among the times that an undisturbed run takes the step.
    """

    step: str
    group: Group
    share: float


@dataclass(frozen=True, slots=True)
class Case:
    """A run and who dies in it.

    Attributes:
        plan: kind of the plan.
        stops: armed from the start.
        struck: processes that are killed as soon as the first stop was taken; ``all``: every
            process of the federation, daemons included.
    """

    plan: str
    stops: tuple[Stop, ...]
    struck: tuple[Role, ...] | Literal["all"] = ()

    def __str__(self) -> str:
        where = " ".join(f"{stop.step}@{stop.group}" for stop in self.stops)
        struck = "everything" if self.struck == "all" else " ".join(self.struck)
        return f"{self.plan} {where}" + (f" with {struck}" if struck else "")

    @property
    def dying(self) -> frozenset[str]:
        """Processes that die: ``run``, ``link``, sites."""
        if self.struck == "all":
            return frozenset(("run", "link", *SITES))
        return frozenset((*map(role_of, self.stops), *self.struck))


def role_of(stop: Stop) -> Role:
    """The process that takes a stop."""
    if stop.group != "center":
        return stop.group
    return "run" if stop.step[0] == "C" else "link"


TOGETHER: tuple[tuple[str, tuple[Role, ...]], ...] = (
    ("C2", ("link",)), ("C3", ("north",)), ("L2", ("south",)), ("S4", ("link",)),
    ("S5", ("run",)), ("L3", ("west",)), ("L5", ("run",)), ("C6", ("link",)),
)  # fmt: skip
"""A step, and who is killed at that moment too: both are down together."""

IN_TURN: tuple[tuple[str, str], ...] = (
    ("C3", "C4"), ("S2", "S4"), ("S4", "L5"), ("L3", "L4"), ("C5", "C6"), ("S5", "S6"),
)  # fmt: skip
"""Two steps at which processes die, one after the other, some the same one again."""

EVERYTHING = ("C3", "S4", "L4", "C5")
"""Steps at which every process of the federation is killed at once."""

NUM_DRAWN = 6
"""Pairs of steps drawn for each plan."""


def single_cases(steps: Iterable[str], plans: Sequence[str] = PLANS) -> list[Case]:
    """Each step alone, for each plan that takes it."""
    return [
        Case(plan, _alone(step, f"{plan} {step}", n))
        for plan in plans
        for n, step in enumerate(steps)
        if takes(plan, step)
    ]


def pair_cases(steps: Sequence[str], plans: Sequence[str] = PLANS) -> list[Case]:
    """Two processes or all of them, for each plan: those above, and some that are drawn."""
    cases: list[Case] = []
    for number, plan in enumerate(plans):
        for n, (step, struck) in enumerate(TOGETHER):
            cases.append(Case(plan, (_stop(step, f"{plan} {step} together", n),), struck))
        drawn = _drawn([s for s in steps if takes(plan, s) and s != "L1"], plan)
        turns = [*IN_TURN, *drawn]
        for n, (first, second) in enumerate(turns):
            about = f"{plan} {first} {second} {n}"
            cases.append(Case(plan, (_stop(first, about, n), _stop(second, f"{about}b", n + 1))))
        for step in EVERYTHING:
            cases.append(Case(plan, (_stop(step, f"{plan} {step} all", number),), "all"))
    return cases


def takes(plan: str, step: str) -> bool:
    """Whether runs of a plan take a step: askings are on record for private ones alone."""
    return step != "C1" or plan in PRIVATE


def whole_matrix() -> list[Case]:
    """Every case, in an order in which no process dies often in a minute.

    A process that dies again and again is started after longer and longer pauses.
    """
    steps = [row.step for row in step_table(PROTOCOL.read_text(encoding="utf-8"))]
    return spread([*single_cases(steps), *pair_cases(steps)])


FEW: tuple[tuple[str, str, str], ...] = (
    ("prox", "S1", "L1"), ("record", "C1", "S2"), ("prox", "C2", "S4"), ("centre", "C3", "S6"),
    ("sitenoise", "L2", "S5"), ("prox", "L3", "C4"), ("record", "S3", "L4"),
    ("centre", "L5", "C5"), ("sitenoise", "S7", "C6"), ("prox", "C7", "C8"),
)  # fmt: skip
"""Plans and steps of which every change tests each once, two in a run to save time."""


def few_cases() -> list[Case]:
    """What every change is tested with: :data:`FEW`, two processes together, and everything."""
    turns = [
        Case(plan, (_stop(first, f"few {first}", n), _stop(second, f"few {second}", n + 1)))
        for n, (plan, first, second) in enumerate(FEW)
    ]
    together = Case("prox", (_stop("S4", "few together", 0),), ("link",))
    everything = Case("sitenoise", (_stop("S4", "few everything", 2),), "all")
    return spread([*turns, together, everything])


def spread(cases: Iterable[Case]) -> list[Case]:
    """Cases of different victims in turn."""
    heaps: dict[frozenset[str], list[Case]] = {}
    for case in cases:
        heaps.setdefault(case.dying, []).append(case)
    layers = zip_longest(*heaps.values())
    return [case for layer in layers for case in layer if case is not None]


def times_of(stop: Stop, counted: Mapping[str, int]) -> int:
    """The how manieth time of a step a stop means.

    Args:
        stop: where.
        counted: how often its group takes each step in an undisturbed run.
    """
    times = max(counted[stop.step], 1)  # L1 is taken by nobody there
    return 1 + min(int(stop.share * times), times - 1)


def _alone(step: str, about: str, turn: int) -> tuple[Stop, ...]:
    """A step's own stop. A session opens (L1) only when a site comes back, so one has to go."""
    stop = _stop(step, about, turn)
    return (_stop("S1", f"{about} comes back", turn), stop) if step == "L1" else (stop,)


def _stop(step: str, about: str, turn: int) -> Stop:
    sites: tuple[Group, ...] = ("north", "south", "west")
    group: Group = sites[turn % 3] if step[0] == "S" else "center"
    return Stop(
        step, group, float(stream(SEED, round_=0, site="", purpose=f"stop {about}").random())
    )


def _drawn(steps: Sequence[str], plan: str) -> list[tuple[str, str]]:
    draws = stream(SEED, round_=0, site="", purpose=f"pairs of {plan}")
    pairs = [draws.choice(len(steps), 2, replace=False) for _ in range(NUM_DRAWN)]
    return [(steps[int(a)], steps[int(b)]) for a, b in pairs]
