"""The live cohort: orders and answers travel as Flower messages.

It keeps what the stock loop lacks: one deadline, one answer at a time in memory, an order sent
again to a site that restarted, and a name and a reason for every site that gave no report.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flwr.serverapp import Grid

from asterion_server.ledger_heads import LedgerHeads
from asterion_server.live_line import GRACE_SECONDS, POLL_SECONDS, Line
from asterion_server.live_round import LiveRound
from asterion_server.open_orders import OpenOrders
from asterion_shared.audit import AuditTrail
from asterion_shared.events import Listener, ignore
from asterion_shared.messages import Answer, Order
from asterion_shared.signed_plan import PlanSignature


class LiveCohort:
    """Asks sites over a Flower grid.

    Args:
        grid: any grid; sites are known by the names they are enrolled under. One that has a method
            ``wait`` is waited on instead of polled, and one whose orders outlive its processes
            says so (``WakingGrid`` and ``DurableGrid`` of :mod:`asterion_server.live_line`).
        stop_requested: asked at each look for answers; True ends the run.
        grace_seconds: how long a site that went away may take to come back, unless the plan waits.
        ledger_heads: what sites said of their privacy ledgers; None: nothing is remembered.
        signature: an operator's under plan and run, which goes with every order; None: nobody
            signed, and sites that decide refuse.
        audit: the coordinator's trail: orders are on record before they are sent, and what came of
            them before the round goes on; None: nothing is written down.
        open_orders: file for orders of late sites that stay open; None: they end with this process.
        emit: is told of sites that are waited for.
        now, wall, pause: a clock that never goes back, the time of day, and the sleep, which may
            return early; tests bring their own.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        stop_requested: Callable[[], bool] = lambda: False,
        grace_seconds: float = GRACE_SECONDS,
        ledger_heads: LedgerHeads | None = None,
        signature: PlanSignature | None = None,
        audit: AuditTrail | None = None,
        open_orders: Path | None = None,
        emit: Listener = ignore,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._line = Line(
            grid=grid,
            stop_requested=stop_requested,
            grace_seconds=grace_seconds,
            heads=ledger_heads,
            signature=signature,
            audit=audit,
            open_orders=OpenOrders(open_orders),
            emit=emit,
            now=now,
            wall=wall,
            pause=pause,
        )

    @property
    def repeats_answers(self) -> bool:
        """Whether sites answer the same order with the same bytes, whoever was killed meanwhile."""
        return self._line.durable

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are online, sorted."""
        return tuple(sorted(self._line.nodes()))

    def wait_for(self, sites: Iterable[str], seconds: float) -> tuple[str, ...]:
        """Wait until all these sites are online, at most so long; return those that are not.

        Raises:
            RunStoppedError: somebody stopped the run meanwhile.
        """
        line, wanted = self._line, set(sites)
        until = line.now() + seconds
        while True:
            line.obey_stop()
            missing = wanted - set(line.nodes())
            if not missing or line.now() >= until:
                return tuple(sorted(missing))
            line.rest(line.now() + POLL_SECONDS)

    def open_orders(self, round_: int, most_stale: int) -> Mapping[str, int]:
        """Sites whose order of one of the ``most_stale`` rounds before is open, with that round.

        Raises:
            DiskProblemError: that others are closed cannot be written.
        """
        found = self._line.open_orders.begin(round_, most_stale)
        return {site: order.round for site, order in sorted(found.items())}

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """Send an order; yield one answer a site, as they come.

        By the deadline, unless the plan says ``late = "wait"``: then a site that is away is waited
        for without limit and gets the order when it comes back, and events say so. Otherwise one
        that is offline and was so before is answered for at once (``unreachable``), and one that
        went away since has ``grace_seconds`` to come back and gets the order again. Under
        ``"carry_over"`` a site whose train order is open gets no other and answers that one.

        Raises:
            RunStoppedError: somebody stopped the run.
            DiskProblemError: the head of a site's ledger, an open order or a record of the audit
                trail cannot be kept.
            FileProblemError: one that was kept cannot be read.
            AuditBrokenError: the audit trail was changed.
        """
        return LiveRound(self._line, order, sites).answers()
