"""The network conditions a federation must live through, as data.

A condition says what happens to the packets of one site: ``up`` is from the site to the
coordinator, ``down`` the way back. Delays are one way, so that a round trip takes twice as long.
``CONDITIONS`` is the table; the fault matrix takes its rows, and `tests.network.namespaces`
sets them::

    with network(["north", "south"], seed=1) as net:
        net.set("north", CONDITIONS["loss-10-percent"])

A condition with ``lasts_seconds`` is meant to end: `Network.endure` sets it, waits and sets
``UNDISTURBED`` again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """What one direction of a link does to packets, in this order.

    Cut, loss, duplication, rate with its queue, delay with jitter, reordering. Fractions are
    probabilities of each packet alone.

    Raises:
        ValueError: a value outside of its range.
    """

    cut: bool = False
    """Nothing passes, and what is on its way is lost. One direction alone is a half-open link."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Fraction of packets held back by ``reorder_seconds``, so that later ones overtake them."""

    reorder_seconds: float = 0.02
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """The delay is uniform in delay +- jitter and never below zero. Jitter alone never reorders:
    a packet leaves no earlier than the one before it."""

    rate_bits_per_second: float = math.inf
    """Of whole IP packets, headers included. Infinite: no limit and no queue."""

    queue_bytes: int = 65_536
    """Room before a limited rate, the packet that is being sent included. What finds no room is
    dropped."""

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                msg = f"{name} is a fraction in [0, 1], got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("reorder_seconds", "delay_seconds", "jitter_seconds"):
            if not 0.0 <= getattr(self, name) < math.inf:
                msg = f"{name} is finite and not negative, got {getattr(self, name)}"
                raise ValueError(msg)
        if not self.rate_bits_per_second > 0:
            msg = f"rate_bits_per_second is positive, got {self.rate_bits_per_second}; use cut"
            raise ValueError(msg)
        if self.queue_bytes < 1:
            msg = f"queue_bytes is positive, got {self.queue_bytes}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Both directions of one site's link."""

    up: Direction = field(default_factory=Direction)
    down: Direction = field(default_factory=Direction)
    lasts_seconds: float = math.inf


def both(direction: Direction, lasts_seconds: float = math.inf) -> Condition:
    """The same in both directions."""
    return Condition(up=direction, down=direction, lasts_seconds=lasts_seconds)


def cut_for(seconds: float) -> Condition:
    """The cable is pulled, and put back after so many seconds."""
    return both(Direction(cut=True), lasts_seconds=seconds)


UNDISTURBED = Condition()

CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "undisturbed": UNDISTURBED,
        "cut-10-s": cut_for(10.0),
        "cut-6-min": cut_for(360.0),
        # The site's packets arrive and it hears nothing, and the other way round.
        "half-open-down": Condition(down=Direction(cut=True), lasts_seconds=30.0),
        "half-open-up": Condition(up=Direction(cut=True), lasts_seconds=30.0),
        "loss-10-percent": both(Direction(loss=0.1)),
        "delay-200-ms": both(Direction(delay_seconds=0.2)),
        "delay-2-s": both(Direction(delay_seconds=2.0)),
        # A quarter of a second of queue, as modems had it.
        "rate-0.5-mbit": both(Direction(rate_bits_per_second=500_000.0, queue_bytes=16_384)),
        "duplicated-and-reordered": both(Direction(duplicate=0.1, reorder=0.1)),
    }
)
