"""What a live cohort knows of its grid between orders: who is there, the clock, how to rest."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

from asterion_server.ledger_heads import LedgerHeads
from asterion_server.open_orders import OpenOrders
from asterion_shared.audit import AuditTrail
from asterion_shared.errors import RunStoppedError
from asterion_shared.events import Listener, ignore
from asterion_shared.signed_plan import PlanSignature

POLL_SECONDS = 0.2
"""Pause between two looks for answers, on a grid that wakes nobody."""

NODES_SECONDS = 2.0
"""Pause between two looks at who is online."""

GRACE_SECONDS = 20.0
"""How long a site that went away during the run may take to come back before it is given up."""


@runtime_checkable
class WakingGrid(Protocol):
    """A grid that can be waited on."""

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or as soon as a message came since the last pull."""
        ...


@runtime_checkable
class DurableGrid(Protocol):
    """A grid whose orders and answers outlive every process.

    It delivers an order again by itself, after a site or the coordinator was away or killed, and a
    site answers the same order with the bytes that it stored before it sent them first.
    """

    @property
    def durable(self) -> bool:
        """Whether it does."""
        ...


@dataclass(frozen=True, slots=True)
class Node:
    """A site that is online: its number on the grid and its session."""

    number: int
    session: str


@dataclass(slots=True, kw_only=True)
class Line:
    """A cohort's grid, and what is remembered of it from order to order.

    Attributes:
        grid: any grid.
        stop_requested: asked at each look for answers; True ends the run.
        grace_seconds: how long a site that went away may take to come back.
        heads: what sites said of their privacy ledgers; None: nothing is remembered.
        signature: an operator's under plan and run, for every order; None: nobody signed.
        audit: the coordinator's trail; None: nothing is written down.
        open_orders: of late sites, beyond their round.
        emit: is told of sites that are waited for.
        now: a clock that never goes back, s.
        wall: the time of day, seconds since 1970.
        pause: sleeps for some seconds; it may return early.
        present: names of sites that were online when last seen.
    """

    grid: Grid
    stop_requested: Callable[[], bool] = lambda: False
    grace_seconds: float = GRACE_SECONDS
    heads: LedgerHeads | None = None
    signature: PlanSignature | None = None
    audit: AuditTrail | None = None
    open_orders: OpenOrders = field(default_factory=OpenOrders)
    emit: Listener = ignore
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    present: set[str] = field(default_factory=set)

    @property
    def durable(self) -> bool:
        """Whether the grid's orders and answers outlive every process."""
        return isinstance(self.grid, DurableGrid) and self.grid.durable

    def nodes(self) -> dict[str, Node]:
        """The sites that are online, by name; of two sessions of one site the later."""
        found: dict[str, Node] = {}
        for info in self.grid.get_nodes():
            known = found.get(info.name)
            if info.name and (known is None or known.session < info.last_activated_at):
                found[info.name] = Node(info.node_id, info.last_activated_at)
        self.present |= found.keys()
        return found

    def obey_stop(self) -> None:
        """End the run if somebody asked for it.

        Raises:
            RunStoppedError: somebody did.
        """
        if self.stop_requested():
            msg = "the run was stopped; launch it again under the same name to go on"
            raise RunStoppedError(msg)

    def rest(self, until: float) -> None:
        """Wait for a message, at most until a moment of ``now``; a polled grid a moment only."""
        if isinstance(self.grid, WakingGrid):
            self.grid.wait(max(until - self.now(), 0.001))
        else:
            self.pause(POLL_SECONDS)

    def ago(self, seconds: float) -> str:
        """The time of day so long ago, UTC, ISO 8601, ending in ``Z``."""
        moment = datetime.fromtimestamp(self.wall() - seconds, UTC)
        return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
