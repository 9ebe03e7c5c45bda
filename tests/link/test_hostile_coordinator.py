"""A site beside a coordinator that is hostile or broken: it goes on, and gives only its report.

The coordinator here holds the right certificate and says what a test has it say, as bytes.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError
from tests.link.loopback import Loopback, eventually, noise, order_content, report_content
from tests.link.messages import mutated

from asterion_client import link_session
from asterion_client.coordinator_words import MOST_ORDERS, LinkOrder, beat_seconds
from asterion_client.link_runner import LinkRunner
from asterion_client.link_session import LinkSession
from asterion_client.settings import read_site_settings
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.channel import MESSAGE_OPTIONS
from asterion_shared.link.identity import read_identity
from asterion_shared.link.parcels import Parcel, to_wire
from asterion_shared.link.records import pack

Words = Callable[[bytes], Iterable[bytes]]
STREAMS = {"Attend": "unary_stream", "Download": "unary_stream", "Upload": "stream_unary"}


class Hostile:
    """A coordinator that says to an attending site what is put into ``notices``."""

    def __init__(self, link: Loopback) -> None:
        link.server.stop()  # its port and its certificate are taken over
        self.blobs = BlobStore(link.scratch / "hostile")
        self.notices: Queue[bytes] = Queue()
        self.chunks: Words = self.right_chunks
        self.needed: Callable[[wire.Report], wire.Needed] = lambda report: wire.Needed()
        self.uploaded: list[wire.Chunk] = []
        self.submitted: list[wire.Report] = []
        self.contents: dict[bytes, Parcel] = {}
        made = link.made
        identity = read_identity(made.root_certificate, made.certificate, made.private_key)
        keys = [(identity.private_key, identity.certificate)]
        credentials = grpc.ssl_server_credentials(keys, identity.root, require_client_auth=True)
        handlers = {
            name: getattr(grpc, f"{STREAMS.get(name, 'unary_unary')}_rpc_method_handler")(work)
            for name, work in (
                ("Attend", self._attend), ("Download", lambda data, _: self.chunks(data)),
                ("Offer", self._offer), ("Upload", self._upload), ("Submit", self._submit),
            )
        }  # fmt: skip
        self._server = grpc.server(ThreadPoolExecutor(16), options=MESSAGE_OPTIONS)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("asterion.link.v1.Link", handlers),)
        )
        assert self._server.add_secure_port(f"127.0.0.1:{made.settings.port}", credentials)
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait(10)

    def order(self, number: int, values: int = 0) -> wire.Order:
        """A right order, whose weights are chunks when there are values enough."""
        vector = noise(values, number) if values else None
        parcel = pack(order_content("north", number, vector), self.blobs.add)
        key = number.to_bytes(32, "big")
        self.contents[key] = parcel
        return wire.Order(
            key=key, run="run", round=number, message_type="train", content=to_wire(parcel)
        )

    def say(self, *notices: wire.Notice | bytes) -> None:
        for notice in notices:
            data = notice if isinstance(notice, bytes) else notice.SerializeToString()
            self.notices.put(data)

    def right_chunks(self, data: bytes) -> Iterable[bytes]:
        for chunk in self.asked_for(data):
            yield chunk.SerializeToString()

    def asked_for(self, data: bytes) -> Iterator[wire.Chunk]:
        wanted = wire.Wanted.FromString(data)
        part = self.contents[wanted.key].parts[wanted.part]
        for number in wanted.chunks:
            read = self.blobs.read(part, number)
            yield wire.Chunk(key=wanted.key, part=wanted.part, number=number, data=read)

    def _attend(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        del data
        welcome = wire.Welcome(site="north", seconds_between_beats=5.0)
        yield wire.Notice(welcome=welcome).SerializeToString()
        while context.is_active():
            with suppress(Empty):
                yield self.notices.get(timeout=0.05)

    def _offer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        return self.needed(wire.Report.FromString(data)).SerializeToString()

    def _upload(self, chunks: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self.uploaded.extend(map(wire.Chunk.FromString, chunks))
        return wire.Received(num_chunks=len(self.uploaded)).SerializeToString()

    def _submit(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.submitted.append(wire.Report.FromString(data))
        return wire.Receipt().SerializeToString()


@pytest.fixture
def hostile(link: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(link_session, "RETRY_SECONDS", (0.02,))
    made = Hostile(link)
    yield made
    made.close()


class Answering:
    """A real session, and a thread that answers its orders with 600 kB."""

    def __init__(self, link: Loopback) -> None:
        self.blobs = BlobStore(link.scratch / "site")
        self.session = link.session("north", self.blobs)
        self.taken: list[LinkOrder] = []
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while not self.session._stopping.is_set():
            order = self.session.next_order(0.1)
            if order is not None:
                self.taken.append(order)
                report = pack(report_content(noise(150_000)), self.blobs.add)
                self.session.send(order, report)


def is_answered(hostile: Hostile, number: int) -> None:
    """A right order, said again until its report comes: the site is as it was."""
    order, said = hostile.order(number, 600_000), 0.0

    def answered() -> bool:
        nonlocal said
        if time.monotonic() - said > 2.0:  # a session that ends may take a word with it
            said = time.monotonic()
            hostile.say(wire.Notice(order=order))
        return any(report.key == order.key for report in hostile.submitted)

    eventually(answered, 30)


@pytest.fixture
def site(hostile: Hostile, link: Loopback) -> Answering:
    del hostile
    return Answering(link)


def wrong_orders(hostile: Hostile) -> dict[str, wire.Order]:
    found = {name: hostile.order(1, 100_000) for name in ("key", "type", "size", "hashes", "parts")}
    found["key"].key = b"k" * 31
    found["type"].message_type = "\x1b[2Jtrain"
    found["size"].content.parts[1].size = 2**63
    found["hashes"].content.parts[1].chunks += b"x" * 32
    found["parts"].content.parts.extend([found["parts"].content.parts[0]] * 20)
    return found


def test_orders_that_are_none(
    hostile: Hostile, site: Answering, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = wrong_orders(hostile)
    hostile.say(*(wire.Notice(order=order) for order in wrong.values()))
    hostile.say(wire.Notice(), wire.Notice(withdrawn=wire.Withdrawn(key=b"?")))
    is_answered(hostile, 2)
    assert [order.order.round for order in site.taken] == [2]
    said = [line for line in caplog.messages if line.startswith("an order cannot be read")]
    assert len(said) == len(wrong)
    assert "\x1b" not in "".join(caplog.messages)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 0.0, 1e-9, 1e300])
def test_a_beat_that_is_none(seconds: float) -> None:
    """It would end each session at once, or have a dead one never noticed."""
    assert beat_seconds(wire.Welcome(seconds_between_beats=seconds)) is None
    assert beat_seconds(wire.Welcome(seconds_between_beats=5.0)) == 5.0


def test_a_wrong_beat_does_not_end_a_session(hostile: Hostile, site: Answering) -> None:
    hostile.say(wire.Notice(welcome=wire.Welcome(seconds_between_beats=-1.0)))
    is_answered(hostile, 1)
    time.sleep(1.5)  # the watch looks each second
    is_answered(hostile, 2)
    assert sum(told.connected for told in site.session.told) == 1


def test_a_flood_of_orders(hostile: Hostile, link: Loopback) -> None:
    """Nobody takes them: the site keeps some, and forgets those that are withdrawn."""
    session = link.session()
    orders = [hostile.order(number) for number in range(1, MOST_ORDERS + 100)]
    hostile.say(*(wire.Notice(order=order) for order in orders))
    eventually(lambda: hostile.notices.empty() and len(session._orders) == MOST_ORDERS)
    gone = wire.Withdrawn(key=orders[0].key)
    hostile.say(wire.Notice(withdrawn=gone), wire.Notice(order=orders[-1]))
    eventually(lambda: orders[-1].key in session._orders)
    assert len(session._orders) == MOST_ORDERS


def packed_garbage(chunk: wire.Chunk) -> None:
    chunk.packed, chunk.data = True, b"\4" + b"\xff" * 40


def other_bytes(chunk: wire.Chunk) -> None:
    chunk.data = bytes(len(chunk.data))


def too_short(chunk: wire.Chunk) -> None:
    chunk.data = chunk.data[:-1]


def too_far(chunk: wire.Chunk) -> None:
    chunk.number = 2**32 - 1


@pytest.mark.parametrize("spoil", [packed_garbage, other_bytes, too_short, too_far])
def test_chunks_that_are_none(
    hostile: Hostile, site: Answering, spoil: Callable[[wire.Chunk], None]
) -> None:
    downloads = 0

    def chunks(data: bytes) -> Iterator[bytes]:
        nonlocal downloads
        downloads += 1
        for chunk in hostile.asked_for(data):
            if downloads < 4:
                spoil(chunk)
            yield chunk.SerializeToString()

    hostile.chunks = chunks
    is_answered(hostile, 1)
    assert downloads >= 4
    right = hostile.contents[(1).to_bytes(32, "big")].parts[1]
    assert bytes(site.blobs.view(right)) == bytes(hostile.blobs.view(right))


def test_downloads_that_bring_nothing_are_not_asked_for_without_a_pause(
    hostile: Hostile, site: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_session, "RETRY_SECONDS", (0.5,))
    downloads: list[float] = []

    def chunks(data: bytes) -> Iterable[bytes]:
        downloads.append(time.monotonic())
        return hostile.right_chunks(data) if len(downloads) > 2 else iter(())

    hostile.chunks = chunks
    is_answered(hostile, 1)
    assert len(downloads) == 3
    assert min(np.diff(downloads)) > 0.4
    assert site.taken


def asked(*wanted: tuple[int, list[int]]) -> wire.Needed:
    return wire.Needed(parts=[wire.NeededPart(part=p, chunks=numbers) for p, numbers in wanted])


@pytest.mark.parametrize(
    "needed", [asked((99, [0])), asked((1, [1])), asked((1, [2**32 - 1])), asked((0, [0])),
               asked((1, [0] * 1000)), asked((1, [0]), (1, [0]))],
)  # fmt: skip
def test_no_more_leaves_than_the_report(
    hostile: Hostile, site: Answering, needed: wire.Needed
) -> None:
    """It asks for parts and chunks that the report does not have, or for one again and again."""
    offers: list[wire.Report] = []

    def answer(report: wire.Report) -> wire.Needed:
        offers.append(report)
        assert not hostile.uploaded
        return needed if len(offers) < 4 else asked((1, [0]))

    hostile.needed = answer
    is_answered(hostile, 1)
    assert [(chunk.part, chunk.number) for chunk in hostile.uploaded] == [(1, 0)]
    assert hostile.uploaded[0].data == bytes(noise(150_000).data)
    assert len(site.taken) == 1


def test_mutated_words(hostile: Hostile, site: Answering) -> None:
    """Notices, chunks and wishes with wrong bits and fields; the session stays what it was."""
    rng, process = np.random.default_rng(5), psutil.Process()
    is_answered(hostile, 1000)
    before, kinds = process.memory_info().rss, wire.Notice
    known = [
        wire.Notice(order=hostile.order(1, 100_000)).SerializeToString(),
        wire.Notice(welcome=wire.Welcome(seconds_between_beats=5)).SerializeToString(),
        wire.Notice(withdrawn=wire.Withdrawn(key=b"k" * 32)).SerializeToString(),
    ]  # fmt: skip

    def chunks(data: bytes) -> Iterator[bytes]:
        for chunk in hostile.asked_for(data):
            whole = chunk.SerializeToString()
            yield mutated(rng, whole, [whole], wire.Chunk) if rng.random() < 0.5 else whole

    def needed(report: wire.Report) -> wire.Needed:
        if rng.random() < 0.3:
            return asked((int(rng.integers(4)), [int(n) for n in rng.integers(3, size=3)]))
        return asked((1, [0]))

    hostile.chunks, hostile.needed = chunks, needed
    for number in range(1, 301):
        notice = mutated(rng, known[int(rng.integers(3))], known, kinds)
        hostile.say(notice)
        with suppress(DecodeError):
            key = kinds.FromString(notice).order.key
            hostile.say(wire.Notice(withdrawn=wire.Withdrawn(key=key)))
        if number % 60 == 0:
            for key in list(site.session._orders):  # no chunk of a mutated order will ever come
                hostile.say(wire.Notice(withdrawn=wire.Withdrawn(key=key)))
            is_answered(hostile, 1000 + number)
    assert not site.session.broken.is_set()
    assert process.memory_info().rss - before < 100e6


def test_a_broken_session_ends_the_process(
    link: Loopback,
    hospital: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else the site would look healthy and never answer. The daemon starts it again."""

    def broken(self: LinkSession, order: LinkOrder) -> bool:
        raise KeyError(order.key, "a secret")

    monkeypatch.setattr(LinkSession, "_fetched", broken)
    runner = LinkRunner(read_site_settings(hospital / "site.toml"), hospital)
    thread = threading.Thread(target=runner.serve, args=(threading.Event(),))
    thread.start()
    link.post(link.grid(), "north", vector=noise(100_000))
    thread.join(20)
    assert not thread.is_alive()
    assert "internal_error (KeyError at test_hostile_coordinator.py" in caplog.text
    assert "a secret" not in caplog.text
    runner._lock.close()
