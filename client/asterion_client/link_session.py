"""A site's session on the link: it dials, holds the session open, and moves orders and reports.

Three threads: one attends (orders come, with no polling), one fetches the orders' chunks, one sends
reports. The work itself is done by whoever takes orders from :meth:`LinkSession.next_order`. All of
them go on by themselves after a cut; what is already on the other side is not sent again.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from queue import Empty, Queue
from typing import Any, TypeVar

import grpc

from asterion_client.coordinator_words import (
    MOST_ORDERS,
    LinkOrder,
    beat_seconds,
    read_order,
    wanted_chunks,
)
from asterion_client.egress import describe
from asterion_client.link_transfers import RateCap, Watchdog, seconds_until_open
from asterion_client.order_chunks import ByteQuota, ChunkFetch
from asterion_client.settings import ConnectionSettings
from asterion_shared import __version__
from asterion_shared.chunk_codec import pack
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.channel import WIRE_FORMAT, open_channel
from asterion_shared.link.identity import Identity
from asterion_shared.link.parcels import Parcel, Part, to_wire
from asterion_shared.link.records import stored_parts
from asterion_shared.link.refusals import VERSION_KEY, code_of
from asterion_shared.link.steps import reached

LOG = logging.getLogger("asterion.site")
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses before dialling again; the last one repeats."""

REFUSED_SECONDS = 15.0
"""Pause after the coordinator said no to this site."""

SILENT_BEATS = 4
"""A session that missed so many beats is dead, whatever TCP believes."""

SILENT_SECONDS = 30.0
"""The same in seconds, before the coordinator said how long a beat is."""

OVER = ("order_over", "unknown_order")
GIVEN_UP = ("malformed", "too_large", "foreign")
"""Refusals of a report after which sending it again would be refused again."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Standing:
    """How the session stands.

    Attributes:
        connected: whether it is open now.
        last_contact: UTC in seconds since 1970 of the last word; None: never since the start.
        refused: code of the last refusal of this site; empty: none since the last session.
        coordinator_version: as a coordinator of another version states it; else empty.
    """

    connected: bool
    last_contact: float | None
    refused: str
    coordinator_version: str = ""


class LinkSession:
    """The session and its threads; they end with :meth:`stop`.

    Whatever the coordinator says, the threads go on. Should one end by a mistake of ours
    nevertheless, ``broken`` is set, for a site that looks healthy and never answers is the worst.

    Args:
        settings: the connection.
        identity: what the site proves itself with.
        blobs: where chunks are kept.
        state_id: 16 random bytes of the site's state folder.
        told: is called when the standing changed; from any thread.
        quota: what may be fetched; an order that would pass it is handed out with ``refused`` set.
        stamp: changes when somebody withdraws; a report that was formed before that and is not
            sent yet does not leave, and its order is handed out again. From any thread.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        identity: Identity,
        blobs: BlobStore,
        state_id: bytes,
        told: Callable[[Standing], None],
        quota: ByteQuota,
        stamp: Callable[[], str] = str,
    ) -> None:
        self._settings, self._identity, self._blobs = settings, identity, blobs
        self._told, self._stamp = told, stamp
        self._hello = wire.Hello(
            format=WIRE_FORMAT, version=__version__, state_id=state_id,
            instance_id=secrets.token_bytes(16),
        )  # fmt: skip
        self._quota, self._cap = quota, RateCap(settings.most_bytes_per_second)
        self._chunk_fetch = ChunkFetch(blobs, quota, self._cap, self._wait_for_hours)
        self.broken = threading.Event()
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._orders: dict[bytes, LinkOrder] = {}
        self._lock = threading.Lock()
        self._to_fetch: Queue[LinkOrder] = Queue()
        self._to_do: Queue[LinkOrder] = Queue()
        self._to_send: Queue[tuple[LinkOrder, Parcel]] = Queue()
        self.standing = Standing(connected=False, last_contact=None, refused="")
        self._stub: service.LinkStub | None = None
        self._call: Any = None
        self._threads = [
            threading.Thread(target=self._work, args=(work,), daemon=True, name=work.__name__)
            for work in (self._attend, self._fetch, self._send)
        ]

    def start(self) -> None:
        """Dial, and go on dialling."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the session; orders in work are left as they are."""
        self._stopping.set()
        self._up.set()
        if self._call is not None:
            self._call.cancel()

    def next_order(self, seconds: float) -> LinkOrder | None:
        """The next order whose chunks are all here, or that is ``refused``; None: none in time."""
        try:
            return self._to_do.get(timeout=seconds)
        except Empty:
            return None

    def send(self, order: LinkOrder, report: Parcel, stamp: str = "") -> None:
        """Have a report sent; its parts are stored already.

        Args:
            order: that it answers.
            report: its records.
            stamp: of before it was formed.
        """
        order.report, order.stamp = report, stamp
        self._to_send.put((order, report))

    def again(self, order: LinkOrder, seconds: float) -> None:
        """Hand an order out once more after a pause; its chunks are looked for anew."""
        timer = threading.Timer(seconds, self._to_fetch.put, (order,))
        timer.daemon = True
        timer.start()

    def parts_in_use(self) -> list[Part]:
        """The stored parts of orders that are not answered yet, and of their reports."""
        with self._lock:
            orders = list(self._orders.values())
        reports = [order.report for order in orders if order.report is not None]
        return stored_parts([*(order.content for order in orders), *reports])

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # its kind and place are logged, not its text
            LOG.critical("the session is broken: %s", describe(error, "internal_error"))
            self.broken.set()

    def _attend(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began, refused, version = time.monotonic(), "", ""
            # Chunks have a connection of their own: on a slow line the beats of the session would
            # wait behind them until it looks dead.
            with self._channel() as session, self._channel() as chunks:
                self._stub = service.LinkStub(chunks)  # type: ignore[no-untyped-call]
                try:
                    self._listen(service.LinkStub(session))  # type: ignore[no-untyped-call]
                except grpc.RpcError as error:
                    refused, version = _code(error), _version(error)
                    if refused and not self._stopping.is_set():
                        LOG.warning("the coordinator refused this site (%s)", refused)
                    elif self._up.is_set():
                        LOG.info("the session ended: %s", _words(error))
                self._up.clear()
                self._tell(connected=False, refused=refused, version=version)
                failures = 0 if time.monotonic() - began > 10 else failures + 1
                pause = retry_seconds(failures)
                self._stopping.wait(REFUSED_SECONDS if refused else pause)

    def _channel(self) -> grpc.Channel:
        return open_channel(self._settings.address, self._identity, proxy=self._settings.proxy)

    def _listen(self, stub: service.LinkStub) -> None:
        self._call = call = stub.Attend(self._hello, wait_for_ready=False)
        silent = Watchdog(call.cancel, SILENT_SECONDS)
        try:
            for notice in call:
                silent.heard()
                match notice.WhichOneof("what"):
                    case "welcome":
                        beat = beat_seconds(notice.welcome)
                        silent.seconds = SILENT_BEATS * beat if beat else SILENT_SECONDS
                        self._up.set()
                    case "order":
                        self._take(notice.order)
                    case "withdrawn":
                        self._withdraw(notice.withdrawn.key)
                self._tell(connected=True)
                if self._stopping.is_set():
                    return
        finally:
            silent.stop()
            call.cancel()

    def _tell(self, *, connected: bool, refused: str = "", version: str = "") -> None:
        before = self.standing
        contact = time.time() if connected else before.last_contact
        self.standing = Standing(connected, contact, "" if connected else refused, version)
        if (before.connected, before.refused) != (connected, self.standing.refused):
            self._told(self.standing)

    def _take(self, order: wire.Order) -> None:
        with self._lock:
            if order.key in self._orders:
                return  # it is in work; this delivery is one too many
            try:
                taken = read_order(order)
            except ValueError as error:
                LOG.warning("an order cannot be read: %s", describe(error, "plan_invalid"))
                return
            if len(self._orders) >= MOST_ORDERS:
                LOG.warning("an order is not taken: %d are in work", MOST_ORDERS)
                return
            self._orders[order.key] = taken
        reached("S1")
        self._to_fetch.put(taken)

    def _withdraw(self, key: bytes) -> None:
        with self._lock:
            order = self._orders.pop(key, None)
        if order is not None:
            order.over.set()

    def _fetch(self) -> None:
        while not self._stopping.is_set():
            try:
                order = self._to_fetch.get(timeout=1.0)
            except Empty:
                continue
            done = self._until_done(order, lambda o=order: self._fetched(o))  # type: ignore[misc]
            if done:
                reached("S2")
                self._to_do.put(order)

    def _fetched(self, order: LinkOrder) -> bool:
        assert self._stub is not None  # noqa: S101  # a session was up
        with self._lock:
            orders = list(self._orders.values())
        # What came after it must not use up this one's room.
        upto = orders.index(order) + 1 if order in orders else len(orders)
        in_work = stored_parts(o.content for o in orders[:upto])
        self._chunk_fetch.fetch(self._stub, order, in_work)
        return True

    def _send(self) -> None:
        while not self._stopping.is_set():
            try:
                order, report = self._to_send.get(timeout=1.0)
            except Empty:
                continue
            done = self._until_done(order, lambda o=order, r=report: self._sent(o, r))  # type: ignore[misc]
            if not done and self._is_stale(order) and not order.over.is_set():
                LOG.info("a report is formed anew: somebody has withdrawn")
                order.report = None
                self.again(order, 0.0)
                continue
            if done:
                reached("S7")
            with self._lock:
                self._orders.pop(order.key, None)

    def _sent(self, order: LinkOrder, parcel: Parcel) -> bool:
        assert self._stub is not None  # noqa: S101  # a session was up
        report = wire.Report(key=order.key, content=to_wire(parcel))
        if self._is_stale(order):
            return False
        if parcel.stored:
            needed = self._stub.Offer(report)
            reached("S6")
            if wanted := wanted_chunks(needed, parcel):
                self._stub.Upload(self._chunks(order, parcel, wanted))
        if self._is_stale(order):
            return False
        self._quota.days.moved(sum(len(part.inline or b"") for part in parcel.parts))
        self._stub.Submit(report)
        return True

    def _is_stale(self, order: LinkOrder) -> bool:
        return self._stamp() != order.stamp

    def _chunks(
        self, order: LinkOrder, parcel: Parcel, wanted: list[tuple[int, int]]
    ) -> Iterator[wire.Chunk]:
        for part, number in wanted:
            self._wait_for_hours(order)
            if order.over.is_set() or self._stopping.is_set() or self._is_stale(order):
                return
            data = self._blobs.read(parcel.parts[part], number)
            packed = pack(data) if parcel.lossless else None
            sent = data if packed is None else packed
            yield wire.Chunk(
                key=order.key, part=part, number=number, packed=packed is not None, data=sent
            )
            self._quota.days.moved(len(sent))
            self._cap.moved(len(sent))

    def _wait_for_hours(self, order: LinkOrder) -> None:
        while not (self._stopping.is_set() or order.over.is_set()):
            wait = seconds_until_open(self._settings.hours, datetime.now())  # local
            if wait <= 0:
                return
            self._stopping.wait(min(wait, 30.0))

    def _until_done(self, order: LinkOrder, work: Callable[[], bool]) -> bool:
        """Try over cuts and restarts until it is done; False when nobody wants it any more."""
        failures = 0
        while not (self._stopping.is_set() or order.over.is_set()):
            self._wait_for_hours(order)
            self._up.wait(1.0)
            if not self._up.is_set():
                continue
            try:
                return work()
            except grpc.RpcError as error:
                code = _code(error)
                if code in OVER:
                    self._withdraw(order.key)
                    return False
                if code in GIVEN_UP:
                    LOG.warning("order %s: given up (%s)", order.key.hex()[:12], code)
                    self._withdraw(order.key)
                    return False
            except (DiskProblemError, ValueError, OSError) as error:
                LOG.warning("order %s: %s", order.key.hex()[:12], type(error).__name__)
            failures += 1
            self._stopping.wait(retry_seconds(failures))
        return False


def retry_seconds(failures: int) -> float:
    """Pause after so many failures in a row; after 0, when a session that held was cut."""
    return RETRY_SECONDS[min(max(failures, 1), len(RETRY_SECONDS)) - 1]


def _code(error: grpc.RpcError) -> str:
    details = error.details() if isinstance(error, grpc.Call) else None
    return code_of(details)


def _version(error: grpc.RpcError) -> str:
    """The other side's version, when it says so; fit for a line, whatever it sent."""
    pairs: Any = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    said = [value for key, value in pairs or () if key == VERSION_KEY]
    return ascii(str(said[0])[:40])[1:-1][:40] if said else ""


def _words(error: grpc.RpcError) -> str:
    """The status of a failed call; its details are the other side's words."""
    return error.code().name.lower() if isinstance(error, grpc.Call) else type(error).__name__
