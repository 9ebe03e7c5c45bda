"""A real link on the loopback interface, in this process: server, queue, certificates, sites.

`linked(tmp_path)` gives a `Loopback`: orders are posted through a real `LinkGrid`, sites are raw
stubs or `LinkSession`s with the certificates that enrolling them made.
"""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from tests.papers import papers_of, provisioned

from asterion_client.day_book import DayBook
from asterion_client.link_session import LinkSession, Standing
from asterion_client.order_chunks import ByteQuota
from asterion_client.settings import ConnectionSettings
from asterion_server.keys import Provisioned
from asterion_server.link_grid import LinkGrid, node_number
from asterion_server.link_paths import database_url
from asterion_server.link_server import serve
from asterion_server.link_store import LinkStore
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.channel import WIRE_FORMAT, open_channel
from asterion_shared.link.identity import Identity, read_identity
from asterion_shared.link.parcels import Parcel
from asterion_shared.link.records import pack
from asterion_shared.vector_records import vector_record

SITES = ("north", "south", "west")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], object], seconds: float = 10.0) -> Any:
    """Wait until something holds; its value."""
    until = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < until, "it did not come to hold in time"
        time.sleep(0.01)


def noise(num_values: int, seed: int = 0) -> np.ndarray:
    """Float32 values that no packing makes smaller; shape `(num_values,)`."""
    return np.random.default_rng(seed).standard_normal(num_values).astype(np.float32)


def order_content(
    site: str,
    round_: int,
    vector: np.ndarray | None = None,
    *,
    lossless: bool = False,
    run: str = "run",
) -> RecordDict:
    plan = json.dumps({"transport": {"lossless": lossless}})
    fields = {"run": run, "site": site, "round": round_, "plan": plan, "phase": "train"}
    content = RecordDict({"order": ConfigRecord(fields)})
    if vector is not None:
        content["weights"] = vector_record(vector)
    return content


def report_content(vector: np.ndarray | None = None, value: float = 1.0) -> RecordDict:
    content = RecordDict({"numbers": MetricRecord({"loss": value})})
    if vector is not None:
        content["update"] = vector_record(vector)
    return content


class Server:
    """`link_server.serve` on a thread with an event loop of its own."""

    def __init__(self, made: Provisioned) -> None:
        self.made = made
        self._stop: Callable[[], object] | None = None
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        address = ("127.0.0.1", made.settings.port)
        eventually(lambda: self._failed or _answers(address))
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed.append(error)

    async def _serve(self) -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(asked.set)
        await serve(self.made, asked.wait())

    def stop(self) -> None:
        if self._stop is not None and self._thread.is_alive():
            self._stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 0.2).close()
    except OSError:
        return False
    return True


@dataclass
class Site:
    """A site as raw stubs: what a hostile one has."""

    name: str
    stub: service.LinkStub
    channel: grpc.Channel
    blobs: BlobStore
    state_id: bytes = field(default_factory=lambda: os.urandom(16))
    calls: list[Any] = field(default_factory=list)

    def hello(self, **other: Any) -> wire.Hello:
        fields = {"format": WIRE_FORMAT, "version": "test", "state_id": self.state_id,
                  "instance_id": os.urandom(16)}  # fmt: skip
        return wire.Hello(**(fields | other))

    def attend(self, **other: Any) -> Any:
        """An open session: its call, the welcome read."""
        call = self.stub.Attend(self.hello(**other))
        self.calls.append(call)  # one that is collected is cancelled
        assert next(call).WhichOneof("what") == "welcome"
        return call

    def pack(self, content: RecordDict, *, lossless: bool = False) -> Parcel:
        return pack(content, self.blobs.add, lossless=lossless)


class Loopback:
    """The coordinator's folder, its queue, and the link that serves it."""

    def __init__(self, made: Provisioned, scratch: Path) -> None:
        self.made, self.scratch = made, scratch
        self.store = LinkStore(database_url(made))
        self.server = Server(made)
        self._channels: list[grpc.Channel] = []
        self._sessions: list[LinkSession] = []
        self._grids: list[LinkGrid] = []

    @property
    def address(self) -> str:
        return f"localhost:{self.made.settings.port}"

    def restart(self) -> None:
        self.server.stop()
        self.server = Server(self.made)

    def grid(self, run: str = "run", **given: Any) -> LinkGrid:
        self._grids.append(LinkGrid(self.store, self.made.folder, run, **given))
        return self._grids[-1]

    def post(
        self,
        grid: LinkGrid,
        site: str,
        round_: int = 1,
        vector: np.ndarray | None = None,
        *,
        ttl_seconds: float = 3600.0,
        lossless: bool = False,
    ) -> bytes:
        """Post an order of a round; its key."""
        content = order_content(site, round_, vector, lossless=lossless, run=grid._name)
        message = Message(
            content, node_number(site), "train", ttl=ttl_seconds, group_id=str(round_)
        )
        (key,) = grid.push_messages([message])
        return bytes.fromhex(key)

    def identity(self, site: str) -> Identity:
        papers = papers_of(self.made, site)
        return read_identity(papers / "ca.pem", papers / "site.pem", papers / "site.key")

    def channel(self, identity: Identity, *, proxy: str | None = None) -> grpc.Channel:
        self._channels.append(open_channel(self.address, identity, proxy=proxy))
        return self._channels[-1]

    def site(self, name: str = "north") -> Site:
        channel = self.channel(self.identity(name))
        blobs = BlobStore(self.scratch / f"{name}-{len(self._channels)}")
        return Site(name, service.LinkStub(channel), channel, blobs)

    def session(
        self,
        name: str = "north",
        blobs: BlobStore | None = None,
        *,
        address: str = "",
        bytes_a_day: int | None = 10**12,
        **given: Any,
    ) -> LinkSession:
        """A started session of a real site; `told` keeps its standings, `days` what it moved."""
        settings = ConnectionSettings(
            address=address or self.address, root_certificate="ca.pem", private_key="site.key",
            **given,
        )  # fmt: skip
        told: list[Standing] = []
        folder = self.scratch / f"session-{name}-{len(self._sessions)}"
        store = BlobStore(folder) if blobs is None else blobs
        days = DayBook(self.scratch / f"days-{name}-{len(self._sessions)}")
        session = LinkSession(
            settings, self.identity(name), store, os.urandom(16), told.append,
            ByteQuota(days, bytes_a_day),
        )  # fmt: skip
        session.days = days
        session.told = told
        self._sessions.append(session)
        session.start()
        return session

    def close(self) -> None:
        for session in self._sessions:
            session.stop()
        for channel in self._channels:
            channel.close()
        self.server.stop()
        for grid in self._grids:
            grid.close()
        self.store.close()


@contextmanager
def linked(folder: Path, sites: Sequence[str] = SITES) -> Iterator[Loopback]:
    made = provisioned(
        folder / "center", ["localhost"], list(sites), port=free_port(), listen="127.0.0.1"
    )
    loopback = Loopback(made, folder / "sites")
    try:
        yield loopback
    finally:
        loopback.close()


def refusal_of(work: Callable[[], object]) -> tuple[str, grpc.StatusCode]:
    """The text and the status that a call is refused with."""
    try:
        work()
    except grpc.RpcError as error:
        return str(error.details()), error.code()
    msg = "the call was not refused"
    raise AssertionError(msg)
