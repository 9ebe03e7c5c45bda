"""One order on its way to the sites of a live cohort, until each has an answer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from flwr.app import Message

from asterion_server.flower_server_compat import (
    MESSAGE_LOST,
    NODE_UNAVAILABLE,
    SITE_CRASHED,
    ObjectPushError,
)
from asterion_server.live_line import NODES_SECONDS, Line
from asterion_server.open_orders import OpenOrder
from asterion_server.round_audit import RoundAudit
from asterion_shared.audit_records import Head
from asterion_shared.errors import ReportRejectedError
from asterion_shared.events import SiteAwaited
from asterion_shared.flower_messages import (
    MESSAGE_TYPES,
    decode_answer,
    encode_order,
    num_bytes,
)
from asterion_shared.messages import Answer, NoReport, Order, Report
from asterion_shared.round_settings import MOST_DEADLINE_SECONDS
from asterion_shared.vector_records import vector_record

MOST_SENDS = 3
"""How often one order is sent to a site whose process ends on it each time."""


@dataclass(slots=True)
class _Asked:
    """What is known of one site while its answer is outstanding.

    Attributes:
        message: id of the order's message; empty while it has to be sent (again).
        session: that the order was sent to.
        sent: moment of the line's clock when it was, last.
        num_bytes: size of the order.
        away_since: moment when the site was found to be offline; None while it is online.
        num_deaths: how often its process ended on the order.
        made_for: the earlier round of an open order; None: the order is this round's.
        told: what whoever watches was told last of the wait for it.
    """

    message: str = ""
    session: str = ""
    sent: float = 0.0
    num_bytes: int = 0
    away_since: float | None = None
    num_deaths: int = 0
    made_for: int | None = None
    told: Literal["", "away", "late"] = ""


class LiveRound:
    """One order on its way.

    Args:
        line: the cohort's.
        order: what is asked.
        sites: who is asked.
    """

    def __init__(self, line: Line, order: Order, sites: Iterable[str]) -> None:
        self._line, self._order = line, order
        self._heads = line.heads if order.plan.privacy is not None else None
        self._deadline = line.now() + order.deadline_seconds
        self._size = None if order.weights is None else order.weights.size
        # One for all sites: it is hashed once. Our own carrier needs no copy of it.
        self._weights = (
            None if order.weights is None else vector_record(order.weights, copied=not line.durable)
        )
        rounds = order.plan.rounds
        self._waits = rounds.late == "wait"
        self._carries = rounds.late == "carry_over" and order.phase == "train"
        self._asked = {site: _Asked() for site in sites}
        if self._carries:
            self._take_up(rounds.most_stale)
        self._nodes = line.nodes()
        self._looked = line.now()
        self._audit = RoundAudit(line.audit, order)
        self._audit_head: Head | None = None

    def answers(self) -> Iterator[Answer]:
        """One answer a site, as they come."""
        asked = [site for site, asked in self._asked.items() if not asked.message]
        self._audit_head = self._audit.begin(asked)
        try:
            yield from self._answers()
        finally:
            self._audit.close()

    def _answers(self) -> Iterator[Answer]:
        for site, asked in list(self._asked.items()):
            if asked.message:
                continue  # an open order, which is with the site
            if site in self._nodes:
                self._send(site)
            elif site in self._line.present or self._waits:
                asked.away_since = self._line.now()
            else:
                yield self._give_up(site, _unreachable(site))
        while self._asked:
            self._line.obey_stop()
            for site in list(self._asked):
                answer = self._pull(site)
                if answer is not None:
                    yield answer
            yield from self._look_at_nodes()
            if self._is_over():
                yield from self._close()
            elif self._asked:
                self._say_who_is_awaited()
                self._line.rest(self._next_look())

    def _take_up(self, most_stale: int) -> None:
        """Go on with open orders of earlier rounds; their sites get nothing new."""
        line = self._line
        for site, order in line.open_orders.begin(self._order.round, most_stale).items():
            if site in self._asked:
                sent = line.now() - (line.wall() - order.sent)
                self._asked[site] = _Asked(
                    order.message, order.session, sent, order.num_bytes, made_for=order.round
                )

    def _is_over(self) -> bool:
        """Whether the round closes without those that are outstanding.

        It does not wait for an open order, unless its report counts in no later round.
        """
        if self._waits:
            return False
        last = self._order.round - self._order.plan.rounds.most_stale
        needed = [a for a in self._asked.values() if a.made_for is None or a.made_for <= last]
        return self._line.now() >= self._deadline or not needed

    def _next_look(self) -> float:
        look = self._looked + NODES_SECONDS
        return look if self._waits else min(look, self._deadline)

    def _send(self, site: str) -> None:
        node, asked, line = self._nodes[site], self._asked[site], self._line
        head = None if self._heads is None else self._heads.of(site)
        order = replace(
            self._order,
            ledger_head=head,
            signature=self._line.signature,
            audit_head=self._audit_head,
        )
        content = encode_order(order, site, self._weights)
        stays = self._waits or self._carries
        message = Message(
            content,
            node.number,
            MESSAGE_TYPES[self._order.phase],
            ttl=MOST_DEADLINE_SECONDS if stays else max(self._deadline - line.now(), 1.0),
            group_id=str(self._order.round),
        )
        ids = self._push(message)
        asked.message = ids[0] if ids and ids[0] else ""
        asked.session, asked.away_since = node.session, None
        asked.sent, asked.num_bytes = line.now(), num_bytes(content)

    def _push(self, message: Message) -> list[str]:
        """Push a message; an empty list when that was not possible by the deadline.

        A SuperLink that dies while a message is pushed keeps half of it, and the site waits for
        the rest. The same message again completes it: SuperLink takes it as the one it knows.
        """
        while self._waits or self._line.now() < self._deadline:
            try:
                return list(self._line.grid.push_messages([message]))
            except ObjectPushError:
                self._line.obey_stop()
                self._line.pause(1.0)
        return []

    def _pull(self, site: str) -> Answer | None:
        asked = self._asked[site]
        if not asked.message:
            return None
        # One id a call: however many sites there are, one answer is in memory.
        reply = next(iter(self._line.grid.pull_messages([asked.message])), None)
        if reply is None:
            return None
        if reply.has_error():
            return self._failure(site, reply.error.code)
        try:
            kind = self._order.plan.transport.update
            answer = decode_answer(reply.content, site, self._size, kind)
        except ReportRejectedError as error:
            answer = NoReport(site=site, outcome="failed", code=error.code, stage="receiving")
            self._audit.nothing_came(site, f"rejected {error.code}")
        else:
            self._audit.came(site, reply.content, answer)
        if isinstance(answer, Report):
            if self._heads is not None and answer.ledger_head is not None:
                self._heads.keep(site, answer.ledger_head)
            answer = self._timed(answer, asked)
        if asked.told == "away":
            self._say(site, "back")  # its answer was here before anybody looked who is online
        self._done(site)
        return answer

    def _timed(self, report: Report, asked: _Asked) -> Report:
        now = self._line.now()
        return replace(
            report,
            bytes_down=asked.num_bytes,
            transfer_seconds=max(now - asked.sent - report.seconds, 0.0),
            late_seconds=max(now - self._deadline, 0.0) if self._waits else 0.0,
            made_for=asked.made_for,
        )

    def _failure(self, site: str, code: int) -> Answer | None:
        asked = self._asked[site]
        if code == NODE_UNAVAILABLE:
            return self._lost(site)
        if code == SITE_CRASHED:
            return self._died(site)
        if code in MESSAGE_LOST:
            if self._waits or asked.made_for is not None:
                return self._lost(site)
            late = self._line.now() >= self._deadline - 1.0
            asked.message = ""
            return self._give_up(site, _late(site) if late else _unreachable(site))
        return self._give_up(site, _failed(site))

    def _lost(self, site: str) -> NoReport | None:
        """The order is not with the site any more: it is sent again, unless it is an old one."""
        asked = self._asked[site]
        asked.message = ""
        if asked.made_for is not None:
            return self._give_up(site, _late(site))
        if asked.away_since is None:
            asked.away_since = self._line.now()
        return None

    def _died(self, site: str) -> NoReport | None:
        """The site's process ended on the order; it starts again by itself."""
        asked = self._asked[site]
        asked.num_deaths += 1
        if asked.made_for is not None or asked.num_deaths >= MOST_SENDS:
            asked.message = ""
            return self._give_up(site, _failed(site))
        if site in self._nodes:
            self._send(site)
            return None
        return self._lost(site)

    def _look_at_nodes(self) -> Iterator[Answer]:
        """Send again to sites that came back or restarted; give up those that stay away."""
        if self._line.now() < self._looked + NODES_SECONDS:
            return
        self._looked, self._nodes = self._line.now(), self._line.nodes()
        for site in list(self._asked):
            answer = self._not_there(site) if site not in self._nodes else self._there(site)
            if answer is not None:
                yield answer

    def _not_there(self, site: str) -> NoReport | None:
        asked, line = self._asked[site], self._line
        if not line.durable:
            lost = self._lost(site)
            if lost is not None:
                return lost
        elif asked.away_since is None:
            asked.away_since = line.now()
        gone = asked.away_since is not None and line.now() >= asked.away_since + line.grace_seconds
        return self._give_up(site, _unreachable(site)) if gone and not self._waits else None

    def _there(self, site: str) -> NoReport | None:
        asked, session = self._asked[site], self._nodes[site].session
        was_away, restarted = asked.away_since is not None, session != asked.session
        if was_away and asked.told == "away":
            self._say(site, "back")
        if self._line.durable and asked.message:
            asked.session, asked.away_since = session, None  # the grid delivers it again
            return None
        if not (was_away or restarted or not asked.message):
            return None
        if asked.made_for is not None:
            return self._lost(site)
        if restarted and not was_away and asked.session and not self._waits:
            return self._died(site)  # who waits cannot tell this from a line that was cut
        self._send(site)
        return None

    def _say_who_is_awaited(self) -> None:
        """Tell once of each site that keeps a waiting round from going on."""
        if not self._waits:
            return
        line = self._line
        for site, asked in self._asked.items():
            if asked.away_since is not None:
                known = site in line.present
                if asked.told != "away" and (
                    not known or line.now() >= asked.away_since + line.grace_seconds
                ):
                    self._say(site, "away")
            elif line.now() >= self._deadline and not asked.told:
                self._say(site, "late")

    def _say(self, site: str, state: Literal["away", "late", "back"]) -> None:
        asked, line = self._asked[site], self._line
        since = asked.sent if state == "late" else asked.away_since
        ago = 0.0 if since is None else line.now() - since
        line.emit(
            SiteAwaited(
                round=self._order.round,
                phase=self._order.phase,
                site=site,
                state=state,
                since=line.ago(ago),
            )
        )
        asked.told = "late" if state == "back" else state  # its lateness needs no second word

    def _close(self) -> Iterator[Answer]:
        for site, asked in list(self._asked.items()):
            online = asked.away_since is None
            yield self._give_up(site, _late(site) if online else _unreachable(site))

    def _give_up(self, site: str, answer: NoReport) -> NoReport:
        asked = self._asked[site]
        self._audit.nothing_came(site, answer.code or answer.outcome)
        if self._carries and asked.message and answer.code in ("", "unreachable"):
            self._leave_open(site, asked)
            del self._asked[site]
        else:
            self._done(site)
        if answer.code == "unreachable":
            self._line.present.discard(site)
        return answer

    def _leave_open(self, site: str, asked: _Asked) -> None:
        line = self._line
        made_for = self._order.round if asked.made_for is None else asked.made_for
        line.open_orders.keep(
            OpenOrder(
                site=site,
                round=made_for,
                message=asked.message,
                session=asked.session,
                sent=line.wall() - (line.now() - asked.sent),
                num_bytes=asked.num_bytes,
            )
        )

    def _done(self, site: str) -> None:
        if self._asked.pop(site).made_for is not None:
            self._line.open_orders.answered(site)


def _late(site: str) -> NoReport:
    return NoReport(site=site, outcome="late")


def _unreachable(site: str) -> NoReport:
    return NoReport(site=site, outcome="failed", code="unreachable")


def _failed(site: str) -> NoReport:
    return NoReport(site=site, outcome="failed", code="internal_error")
