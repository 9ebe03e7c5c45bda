"""Whole runs over a grid without a network whose sites take their time on a made-up clock."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message
from tests.flower.conftest import FakeSites, make_plan, make_report

from asterion_server.in_process_grid import InProcessGrid
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_server.selection import staleness_factor
from asterion_shared.events import Event
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import Vector, from_bytes
from asterion_shared.plan import Plan
from asterion_shared.result import Result

SITES = ("north", "south", "west")
WEIGHTS = {"north": 7, "south": 3, "west": 5}
Takes = Callable[[str, str, int], float]
"""Seconds from the order to the answer, by site, phase and round."""


@dataclass
class Clock:
    """Time that passes only in pauses; what must happen at a time happens in them."""

    now: float = 1000.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, act in due:
            act()


class SlowGrid(InProcessGrid):
    """Answers are there when their time has come; sites work also while nobody looks."""

    def __init__(self, inner: InProcessGrid, clock: Clock, takes: Takes) -> None:
        super().__init__(inner.sites)
        self.clock, self.takes = clock, takes
        self.due: dict[str, float] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        ids = list(super().push_messages(pushed))
        for identity, message in zip(ids, pushed, strict=True):
            order = message.content["order"]
            site = self.sites[message.metadata.dst_node_id].name
            seconds = self.takes(site, str(order["phase"]), int(order["round"]))  # type: ignore[arg-type]
            self.due[identity] = self.clock.now + seconds
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(
            [identity for identity in message_ids if self.due[identity] <= self.clock.now]
        )


class DurableSlowGrid(SlowGrid):
    durable = True


def update_of(site: str, round_: int, size: int) -> Vector:
    """An update that tells whose it is and of which round, whatever the weights are."""
    return np.full(size, 0.01 * (SITES.index(site) + 1) + 0.1 * round_, np.float32)


def answer(site: str, order: Order) -> Report:
    trained = order.phase == "train" and order.weights is not None
    update = update_of(site, order.round, len(order.weights)) if trained else None  # type: ignore[arg-type]
    return make_report(order, site, update=update, num_examples=WEIGHTS[site], seconds=0.5)


@dataclass
class Federation:
    """Three sites of which each takes as long as a test says."""

    folder: Path
    takes: Takes = lambda site, phase, round_: 0.0
    clock: Clock = field(default_factory=Clock)
    sites: FakeSites = field(default_factory=lambda: FakeSites(SITES, answer))
    events: list[Event] = field(default_factory=list)
    kind: type[SlowGrid] = SlowGrid

    def __post_init__(self) -> None:
        self.grid = self.kind(self.sites.grid(), self.clock, self.takes)

    def cohort(self, **options: object) -> LiveCohort:
        return LiveCohort(
            self.grid,
            open_orders=self.folder / "open_orders.json",
            emit=self.events.append,
            now=lambda: self.clock.now,
            wall=lambda: 1.7e9 + self.clock.now,
            pause=self.clock.pause,
            **options,  # type: ignore[arg-type]
        )

    def run(self, plan: Plan, **options: object) -> Result:
        return run_rounds(
            plan, self.cohort(**options), self.folder, run="r", expected_sites=SITES,
            carrier="flower", emit=self.events.append,
        )  # fmt: skip

    def model(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


def late_plan(late: str, *, count: int = 4, deadline: float | None = 5.0, **more: object) -> Plan:
    rounds = {"count": count, "late": late} | more
    if deadline is not None:
        rounds["deadline_seconds"] = deadline
    return make_plan(rounds=rounds)


def told_weights(plan: Plan, result: Result, folder: Path) -> tuple[Vector, Vector]:
    """The final weights, and what they must be if the result tells all that was folded.

    Updates do not depend on the weights, so the final ones are the first and each round's mean.
    """
    from asterion_server.initial_weights import initial_weights

    layout, weights = initial_weights(plan, folder)
    told = weights.astype(np.float64)
    for round_ in result.rounds[1:]:
        total, whole = np.zeros(layout.size), 0.0
        for site, outcome in round_.outcomes.items():
            if outcome.outcome in ("answered", "carried"):
                made_for = round_.round if outcome.made_for is None else outcome.made_for
                weight = WEIGHTS[site] * staleness_factor(plan, round_.round - made_for)
                total += weight * update_of(site, made_for, layout.size).astype(np.float64)
                whole += weight
        told = told + total / whole
    final = from_bytes((folder / "model.safetensors").read_bytes(), layout)
    return final, told.astype(np.float32)
