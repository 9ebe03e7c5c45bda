"""The cases of the network matrix: which condition, when in a round, and whom it hits."""

from dataclasses import dataclass
from typing import Literal

from tests.network.conditions import CONDITIONS, Condition, Direction, both, cut_for
from tests.network.federation import SITES

Moment = Literal["download", "training", "upload", "throughout"]
SLOW = {
    "large": both(Direction(rate_bits_per_second=16e6, queue_bytes=262_144)),
    "small": both(Direction(rate_bits_per_second=2.5e6, queue_bytes=65_536)),
    "private": both(Direction(rate_bits_per_second=2.5e6, queue_bytes=65_536)),
}
"""In force before and after a disturbance, so that a transfer lasts long enough to be hit: two
seconds."""

HIT = "north"


@dataclass(frozen=True, slots=True)
class Case:
    """A disturbance of one run.

    Attributes:
        name: of the case.
        condition: of the network.
        moment: of round 2 when it begins; ``throughout``: before the run.
        sites: that are hit.
        plan: kind of the plan.
        spare: fraction of the undisturbed run's bytes that may be sent beyond them, a chunk more.
    """

    name: str
    condition: Condition
    moment: Moment
    sites: tuple[str, ...]
    plan: str
    spare: float


def cases() -> list[Case]:
    """Every condition but the long cut, on one site and on all."""
    found: list[Case] = []
    for kind, where in (("one", (HIT,)), ("all", tuple(SITES))):
        for name, condition in CONDITIONS.items():
            if name in ("undisturbed", "cut-6-min"):
                continue
            if condition.lasts_seconds == float("inf"):
                # A tenth is lost, so a ninth is sent again; reordering makes TCP guess wrong.
                found.append(Case(f"{name}-{kind}", condition, "throughout", where, "small", 0.5))
                continue
            moments: tuple[Moment, ...] = ("download", "training", "upload")
            found += [
                Case(f"{name}-{moment}-{kind}", condition, moment, where, "large", 0.05)
                for moment in moments
                if "half-open" not in name or moment != "training"
            ]
    found.append(Case("cut-10-s-private", cut_for(10), "upload", tuple(SITES), "private", 0.3))
    return found
