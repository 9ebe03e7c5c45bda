"""The coordinator's end of the link as a Flower grid: push orders, pull reports.

A message's id is its order's key, so pushing the same order again, also after a crash, finds the
report that is there already, and nobody trains twice. A report is handed over as a view of its
file, not as bytes in memory.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from asterion_server.flower_server_compat import NodeInfo, Run, ensure_task_identity
from asterion_server.link_paths import blobs_of_orders, blobs_of_reports
from asterion_server.link_reclaim import reclaim_run
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.link_wake import Bell, address_of
from asterion_shared.link.blobs import BlobStore, Buffer
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.link.records import order_key, pack, unpack
from asterion_shared.link.steps import reached
from asterion_shared.round_settings import MOST_DEADLINE_SECONDS

LOG = logging.getLogger("asterion.run")


class LinkGrid(Grid):
    """Posts orders to the link's queue and takes reports out of it.

    Args:
        store: the queue.
        folder: the coordinator's.
        run: name of the run.
        most_stale: rounds whose reports are still wanted when a later one is asked.
    """

    def __init__(self, store: LinkStore, folder: Path, run: str, *, most_stale: int = 0) -> None:
        ensure_task_identity()
        self._store, self._folder, self._name = store, folder, run
        self._most_stale = most_stale
        self._orders = BlobStore(blobs_of_orders(folder, run))
        self._submission = time.time_ns()
        self._pushed: dict[str, Message] = {}
        self._last: tuple[Any, Part] | None = None
        self._reclaimed = 0
        self._bell, self._link = Bell(), address_of(folder)
        self._run = Run.create_empty(1)
        self._bell.ring(self._link)  # so that it knows whom to wake

    def close(self) -> None:
        """Remove what the run left in the queue; call it when the run is over for good."""
        reclaim_run(self._store, self._folder, self._name)
        self._bell.close()

    @property
    def durable(self) -> bool:
        """That orders and reports outlive every process, and the same order gets the same bytes."""
        return True

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message; part of the interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def wait(self, seconds: float) -> None:
        """Return when a report has come, at the latest after so long."""
        self._bell.wait(seconds)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the sites that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The sites that are connected; ``last_activated_at`` names the site's process."""
        return [
            NodeInfo(
                node_id=node_number(session.site),
                name=session.site,
                last_activated_at=session.instance_id,
            )
            for session in self._store.sessions()
            if session.is_open
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Post orders; durable when it returns. Reports to orders of earlier rounds go.

        Raises:
            DiskProblemError: the queue or the parts cannot be stored.
            ValueError: a message is not an order of ours.
        """
        given = list(messages)
        orders = [self._order_of(message) for message in given]
        reached("C2")
        self._store.post(orders)
        reached("C3")
        self._pushed |= {order.key: message for order, message in zip(orders, given, strict=True)}
        self._bell.ring(self._link)
        self._reclaim(max((order.round for order in orders), default=0))
        return [order.key for order in orders]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the reports that are there, each once."""
        found: list[Message] = []
        for key in message_ids:
            parcel = self._store.report(key)
            order = None if parcel is None else self._pushed.pop(key, None) or self._posted(key)
            if parcel is None or order is None:
                continue
            site = str(_field(order, "site"))
            content = self._read(site, parcel)
            found.append(Message(content, reply_to=order))
            reached("C4")
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull their replies; part of the interface."""
        waiting = list(self.push_messages(messages))
        until = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (until is None or time.monotonic() < until):
            replies += self.pull_messages(waiting)
            waiting = [key for key in waiting if key in self._pushed]
            if waiting:
                self.wait(1.0)
        return replies

    def _read(self, site: str, parcel: Parcel) -> RecordDict:
        """A report's records; none where it has none, and then it is rejected like any bad one."""
        try:
            return unpack(parcel, BlobStore(blobs_of_reports(self._folder, site)).view)
        except ValueError as error:
            LOG.warning("the report of site %s cannot be read: %s", site, error)
            return RecordDict()

    def _posted(self, key: str) -> Message | None:
        """The message of an order that an earlier process of the run pushed."""
        order = self._store.order(key)
        if order is None:
            return None
        content = unpack(order.content, self._orders.view)
        number = node_number(order.site)
        return Message(content, number, order.message_type, group_id=str(order.round))

    def _order_of(self, message: Message) -> StoredOrder:
        site = str(_field(message, "site"))
        content = message.content
        plan = json.loads(str(_field(message, "plan")))
        lossless = bool(plan.get("transport", {}).get("lossless", False))
        parcel = pack(content, self._stored, lossless=lossless)
        ttl = message.metadata.ttl
        return StoredOrder(
            key=order_key(site, content, parcel).hex(),
            site=site,
            run=self._name,
            round=int(_field(message, "round")),
            message_type=message.metadata.message_type,
            content=parcel,
            submission=self._submission,
            expires=None if ttl >= MOST_DEADLINE_SECONDS else time.time() + ttl,
        )

    def _stored(self, data: Buffer) -> Part:
        """Store a part; the weights, which every site's order has, are hashed once."""
        if self._last is not None and self._last[0] is data:
            return self._last[1]
        part = self._orders.add(data)
        if part.inline is None:
            self._last = (data, part)
        return part

    def _reclaim(self, round_: int) -> None:
        """The checkpoint of the round before is stored, so what it came from may go."""
        if round_ <= self._reclaimed:
            return
        self._reclaimed = round_
        self._store.reclaim(self._name, round_ - self._most_stale, keep=self._pushed)
        self._last = None
        self._orders.keep_only(self._store.order_parts(self._name))
        self._bell.ring(self._link)  # the link removes reports' parts, which are its own
        reached("C7")


def node_number(site: str) -> int:
    """A site's number, as Flower wants one."""
    return int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big") >> 1


def _field(message: Message, name: str) -> Any:
    record = message.content.get("order")
    if not isinstance(record, ConfigRecord) or name not in record:
        msg = f"the message has no {name!r}: the link carries Asterion's orders alone"
        raise ValueError(msg)
    return record[name]
