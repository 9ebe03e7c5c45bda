"""The live cohort: orders and answers travel as Flower messages.

It keeps what the stock loop lacks: one deadline, one answer at a time in memory, an order sent
again to a site that restarted, and a name and a reason for every site that gave no report.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from asterion_server.flower_server_compat import (
    MESSAGE_LOST,
    NODE_UNAVAILABLE,
    SITE_CRASHED,
    ObjectPushError,
)
from asterion_server.ledger_heads import LedgerHeads
from asterion_shared.errors import ReportRejectedError, RunStoppedError
from asterion_shared.flower_messages import (
    MESSAGE_TYPES,
    decode_answer,
    encode_order,
    num_bytes,
)
from asterion_shared.messages import Answer, NoReport, Order, Report

POLL_SECONDS = 0.2
"""Pause between two looks for answers."""

NODES_SECONDS = 2.0
"""Pause between two looks at who is online."""

GRACE_SECONDS = 20.0
"""How long a site that went away during the run may take to come back before it is given up."""

MOST_SENDS = 3
"""How often one order is sent to one site: an order that kills the site each time is given up."""


@dataclass(frozen=True, slots=True)
class _Node:
    number: int
    activated: str


@dataclass(slots=True)
class _Asked:
    """What is known of one site while its answer is outstanding.

    Attributes:
        message: id of the order's message; empty while the site is away.
        activated: session the order was sent to.
        away_since: when it was found to be offline; None while it is online.
        num_sends: how often the order was sent to it.
        num_bytes: size of the order.
    """

    message: str = ""
    activated: str = ""
    away_since: float | None = None
    num_sends: int = 0
    num_bytes: int = 0


class LiveCohort:
    """Asks sites over a Flower grid.

    Args:
        grid: any grid; sites are known by the names they are enrolled under.
        stop_requested: asked at each look for answers; True ends the run.
        grace_seconds: how long a site that went away may take to come back.
        ledger_heads: what sites said of their privacy ledgers; None: nothing is remembered.
        now, pause: the clock and the sleep; tests bring their own.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        stop_requested: Callable[[], bool] = lambda: False,
        grace_seconds: float = GRACE_SECONDS,
        ledger_heads: LedgerHeads | None = None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid, self._stop_requested, self._grace = grid, stop_requested, grace_seconds
        self._now, self._pause, self._heads = now, pause, ledger_heads
        self._present: set[str] = set()

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are online, sorted."""
        return tuple(sorted(self._nodes()))

    def wait_for(self, sites: Iterable[str], seconds: float) -> tuple[str, ...]:
        """Wait until all these sites are online, at most so long; return those that are not.

        Raises:
            RunStoppedError: somebody stopped the run meanwhile.
        """
        wanted, until = set(sites), self._now() + seconds
        while True:
            self._obey_stop()
            missing = wanted - set(self._nodes())
            if not missing or self._now() >= until:
                return tuple(sorted(missing))
            self._pause(POLL_SECONDS)

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """Send an order; yield one answer a site, as they come, by the deadline.

        A site that is offline and was so before is answered for at once (``unreachable``). One
        that went away since has ``grace_seconds`` to come back and gets the order again.

        Raises:
            RunStoppedError: somebody stopped the run.
            DiskProblemError: the head of a site's ledger cannot be kept.
            FileProblemError: one that was kept cannot be read.
        """
        return _Round(self, order, sites).answers()

    def _nodes(self) -> dict[str, _Node]:
        nodes: dict[str, _Node] = {}
        for info in self._grid.get_nodes():
            known = nodes.get(info.name)
            if info.name and (known is None or known.activated < info.last_activated_at):
                nodes[info.name] = _Node(info.node_id, info.last_activated_at)
        self._present |= nodes.keys()
        return nodes

    def _obey_stop(self) -> None:
        if self._stop_requested():
            msg = "the run was stopped; launch it again under the same name to go on"
            raise RunStoppedError(msg)


class _Round:
    """One order on its way."""

    def __init__(self, cohort: LiveCohort, order: Order, sites: Iterable[str]) -> None:
        self._cohort, self._order = cohort, order
        self._grid, self._now = cohort._grid, cohort._now
        self._heads = cohort._heads if order.plan.privacy is not None else None
        self._deadline = self._now() + order.deadline_seconds
        self._size = None if order.weights is None else order.weights.size
        self._asked = {site: _Asked() for site in sites}
        self._nodes = cohort._nodes()
        self._looked = self._now()

    def answers(self) -> Iterator[Answer]:
        for site, asked in list(self._asked.items()):
            if site in self._nodes:
                self._send(site)
            elif site in self._cohort._present:
                asked.away_since = self._now()
            else:
                yield self._give_up(site, _unreachable(site))
        while self._asked:
            self._cohort._obey_stop()
            for site in list(self._asked):
                answer = self._pull(site)
                if answer is not None:
                    yield answer
            yield from self._look_at_nodes()
            if self._now() >= self._deadline:
                yield from self._close()
            elif self._asked:
                self._cohort._pause(POLL_SECONDS)

    def _send(self, site: str) -> None:
        node, asked = self._nodes[site], self._asked[site]
        head = None if self._heads is None else self._heads.of(site)
        content = encode_order(replace(self._order, ledger_head=head), site)
        message = Message(
            content,
            node.number,
            MESSAGE_TYPES[self._order.phase],
            ttl=max(self._deadline - self._now(), 1.0),
            group_id=str(self._order.round),
        )
        ids = self._push(message)
        asked.message = ids[0] if ids and ids[0] else ""
        asked.activated, asked.away_since = node.activated, None
        asked.num_sends += 1
        asked.num_bytes = num_bytes(content)

    def _push(self, message: Message) -> list[str]:
        """Push a message; an empty list when that was not possible by the deadline.

        A SuperLink that dies while a message is pushed keeps half of it, and the site waits for
        the rest. The same message again completes it: SuperLink takes it as the one it knows.
        """
        while self._now() < self._deadline:
            try:
                return list(self._grid.push_messages([message]))
            except ObjectPushError:
                self._cohort._obey_stop()
                self._cohort._pause(1.0)
        return []

    def _pull(self, site: str) -> Answer | None:
        asked = self._asked[site]
        if not asked.message:
            return None
        # One id a call: however many sites there are, one answer is in memory.
        reply = next(iter(self._grid.pull_messages([asked.message])), None)
        if reply is None:
            return None
        if reply.has_error():
            return self._failure(site, reply.error.code)
        try:
            kind = self._order.plan.transport.update
            answer = decode_answer(reply.content, site, self._size, kind)
        except ReportRejectedError as error:
            answer = NoReport(site=site, outcome="failed", code=error.code, stage="receiving")
        if isinstance(answer, Report):
            if self._heads is not None and answer.ledger_head is not None:
                self._heads.keep(site, answer.ledger_head)
            answer = replace(answer, bytes_down=asked.num_bytes)
        del self._asked[site]
        return answer

    def _failure(self, site: str, code: int) -> Answer | None:
        asked = self._asked[site]
        if code == NODE_UNAVAILABLE:
            self._away(asked)
            return None
        if code == SITE_CRASHED and asked.num_sends < MOST_SENDS and site in self._nodes:
            self._send(site)  # its runner starts again by itself
            return None
        if code in MESSAGE_LOST:
            late = self._now() >= self._deadline - 1.0
            return self._give_up(
                site, NoReport(site=site, outcome="late") if late else _unreachable(site)
            )
        return self._give_up(site, _failed(site))

    def _look_at_nodes(self) -> Iterator[Answer]:
        """Send again to sites that restarted; give up those that stay away."""
        if self._now() < self._looked + NODES_SECONDS:
            return
        self._looked, self._nodes = self._now(), self._cohort._nodes()
        for site, asked in list(self._asked.items()):
            node = self._nodes.get(site)
            if node is None:
                self._away(asked)
                if self._now() >= (asked.away_since or 0.0) + self._cohort._grace:
                    yield self._give_up(site, _unreachable(site))
            elif node.activated != asked.activated or not asked.message:
                if asked.num_sends < MOST_SENDS:
                    self._send(site)
                else:
                    yield self._give_up(site, _failed(site))

    def _away(self, asked: _Asked) -> None:
        asked.message = ""
        if asked.away_since is None:
            asked.away_since = self._now()

    def _close(self) -> Iterator[Answer]:
        for site, asked in list(self._asked.items()):
            online = asked.away_since is None
            yield self._give_up(
                site, NoReport(site=site, outcome="late") if online else _unreachable(site)
            )

    def _give_up(self, site: str, answer: NoReport) -> NoReport:
        del self._asked[site]
        if answer.code == "unreachable":
            self._cohort._present.discard(site)
        return answer


def _unreachable(site: str) -> NoReport:
    return NoReport(site=site, outcome="failed", code="unreachable")


def _failed(site: str) -> NoReport:
    return NoReport(site=site, outcome="failed", code="internal_error")
