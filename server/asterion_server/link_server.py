"""The link's process at the coordinator: ``python -m asterion_server.link_server --folder DIR``.

One port, mutual TLS; sites dial it and hold a session open, on which orders come as soon as the
run's process has posted them. It keeps nothing that matters in memory: the queue is the database's,
the bytes are the blob stores', and whoever is killed goes on from there.
"""

import argparse
import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.link_paths import blobs_of_orders, blobs_of_reports, database_url
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.link_wake import Bell, address_of
from asterion_shared import __version__
from asterion_shared.child_process import watch_parent
from asterion_shared.chunk_codec import pack, unpack
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.blobs import BlobStore, read_chunk
from asterion_shared.link.channel import MESSAGE_OPTIONS, WIRE_FORMAT
from asterion_shared.link.identity import Authority, FolderAuthority, read_identity
from asterion_shared.link.parcels import Parcel, Part, from_wire, to_wire
from asterion_shared.link.refusals import REFUSALS, LinkRefusedError, status_text
from asterion_shared.link.steps import reached

LOG = logging.getLogger("asterion.link")
READY = "the link is ready"
BEAT_SECONDS = 5.0
"""A session hears something at least so often."""

LOOK_SECONDS = 1.0
"""The longest that a revocation, or an order whose ring was lost, goes unnoticed."""

SYNC_CHUNKS = 32
"""Chunks that arrive between two syncs: what a power cut may cost of an upload."""

REPORT_SPARE_BYTES = 2**27
"""What a report may have beyond the bytes of its order: its statistics."""

MOST_MISTAKES = 100
"""Malformed messages of a session before it is ended."""

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(eq=False)
class _Session:
    """A site that is connected."""

    site: str
    instance_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    mistakes: int = 0
    offers: dict[str, Parcel] = field(default_factory=dict)


class LinkService(service.LinkServicer):
    """Answers sites. Every call is admitted by its certificate, and touches that site's alone.

    Args:
        store: the queue.
        folder: the coordinator's.
        authority: who is admitted.
    """

    def __init__(self, store: LinkStore, folder: Path, authority: Authority) -> None:
        self._store, self._folder, self._authority = store, folder, authority
        self._reports: dict[str, BlobStore] = {}
        self._sessions: dict[str, _Session] = {}
        self._runs: set[bytes] = set()
        self.bell = Bell(address_of(folder))

    async def watch(self) -> None:
        """Wake sessions when orders were posted, and note who is connected; until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.bell.socket, self._rung)
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if self._sessions:
                await asyncio.to_thread(self._store.touch_sessions, list(self._sessions))

    def _rung(self) -> None:
        self._runs |= self.bell.heard()
        for session in self._sessions.values():
            session.wake.set()

    def _ring_runs(self) -> None:
        self._runs = {run for run in self._runs if self.bell.ring(run)}

    async def Attend(self, request: wire.Hello, context: Context) -> AsyncIterator[wire.Notice]:
        """A site's session; see the ``.proto``."""
        site = await self._admitted(context)
        session = await self._guarded(context, site, lambda: self._open(site, request))
        LOG.info("site %s: session open (version %s)", site, request.version[:40])
        reached("L1")
        try:
            welcome = wire.Welcome(site=site, seconds_between_beats=BEAT_SECONDS)
            yield wire.Notice(welcome=welcome)
            async for notice in self._notices(session, context):
                yield notice
        finally:
            await asyncio.shield(asyncio.to_thread(self._close, session))

    async def Download(self, request: wire.Wanted, context: Context) -> AsyncIterator[wire.Chunk]:
        """Chunks of an open order of the site."""
        site = await self._admitted(context)
        order, part = await self._guarded(context, site, lambda: self._part_of(site, request))
        for number in request.chunks:
            read = await self._guarded(context, site, lambda n=number: self._chunk(order, part, n))  # type: ignore[misc]
            packed = pack(read) if order.content.lossless else None
            yield wire.Chunk(
                key=request.key, part=request.part, number=number, packed=packed is not None,
                data=read if packed is None else packed,
            )  # fmt: skip

    async def Offer(self, request: wire.Report, context: Context) -> wire.Needed:
        """Which chunks of a report are missing here."""
        site = await self._admitted(context)
        return await self._guarded(context, site, lambda: self._offered(site, request))

    async def Upload(
        self, request_iterator: AsyncIterator[wire.Chunk], context: Context
    ) -> wire.Received:
        """Chunks of a report that was offered."""
        site = await self._admitted(context)
        number, touched = 0, dict[str, Part]()
        try:
            async for chunk in request_iterator:
                part = await self._guarded(context, site, lambda c=chunk: self._taken(site, c))  # type: ignore[misc]
                touched[part.id] = part
                number += 1
                if number == 1 or number % SYNC_CHUNKS == 0:
                    await self._guarded(context, site, lambda: self._synced(site, touched))
                    reached("L3")
        finally:
            # What arrived before a cut is kept, too.
            await asyncio.shield(asyncio.to_thread(self._synced, site, touched))
        reached("L4")
        return wire.Received(num_chunks=number)

    async def Submit(self, request: wire.Report, context: Context) -> wire.Receipt:
        """A report whose chunks are all here."""
        site = await self._admitted(context)
        known = await self._guarded(context, site, lambda: self._submitted(site, request))
        self._ring_runs()
        return wire.Receipt(known=known)

    async def _admitted(self, context: Context) -> str:
        certificates = list(context.auth_context().get("x509_pem_cert", []))
        if len(certificates) != 1:
            await self._refuse(
                context, "unknown", LinkRefusedError(code="foreign", why="no certificate")
            )
        try:
            return await asyncio.to_thread(self._authority.site_of, certificates[0])
        except LinkRefusedError as error:
            await self._refuse(context, "unknown", error)
            raise

    async def _guarded(self, context: Context, site: str, work: Callable[[], Answer]) -> Answer:
        """Do blocking work in a thread; a refusal ends the call with its code and a log line."""
        try:
            return await asyncio.to_thread(work)
        except LinkRefusedError as error:
            await self._refuse(context, site, error)
            raise
        except DiskProblemError as error:
            LOG.error("site %s: %s", site, error)  # noqa: TRY400  # the text says it all
            await context.abort(REFUSALS["disk_problem"], status_text("disk_problem"))
            raise

    async def _refuse(self, context: Context, site: str, error: LinkRefusedError) -> None:
        LOG.warning("site %s: refused (%s): %s", site, error.code, error.why)
        session = self._sessions.get(site)
        if session is not None and error.code in ("malformed", "wrong_chunk", "too_large"):
            session.mistakes += 1
            if session.mistakes >= MOST_MISTAKES:
                session.ended = True
                session.wake.set()
        await context.abort(REFUSALS[error.code], status_text(error.code))

    def _open(self, site: str, hello: wire.Hello) -> _Session:
        if hello.format != WIRE_FORMAT:
            why = f"it speaks format {hello.format}, this link {WIRE_FORMAT}"
            raise LinkRefusedError(code="other_version", why=why)
        if not (len(hello.state_id) == len(hello.instance_id) == 16):
            raise LinkRefusedError(code="malformed", why="a hello without identities")
        instance = hello.instance_id.hex()
        self._store.open_session(site, hello.state_id.hex(), instance, hello.version[:40])
        before = self._sessions.get(site)
        self._sessions[site] = _Session(site, instance)
        if before is not None:
            before.ended = True
        return self._sessions[site]

    def _close(self, session: _Session) -> None:
        if self._sessions.get(session.site) is session:
            del self._sessions[session.site]
            self._store.close_session(session.site, session.instance_id)
            LOG.info("site %s: session closed", session.site)

    async def _notices(self, session: _Session, context: Context) -> AsyncIterator[wire.Notice]:
        sent: set[str] = set()
        quiet = 0.0
        while not session.ended:
            session.wake.clear()
            orders = await self._guarded(
                context, session.site, lambda: self._store.open_orders(session.site)
            )
            for order in orders:
                if order.key not in sent:
                    sent.add(order.key)
                    quiet = 0.0
                    yield await asyncio.to_thread(self._order_notice, order)
                    reached("L2")
            for key in sent - {order.key for order in orders}:
                sent.discard(key)
                yield wire.Notice(withdrawn=wire.Withdrawn(key=bytes.fromhex(key)))
            if quiet >= BEAT_SECONDS:
                quiet = 0.0
                yield wire.Notice(beat=wire.Beat())
            try:
                await asyncio.wait_for(session.wake.wait(), LOOK_SECONDS)
            except TimeoutError:
                quiet += LOOK_SECONDS
                await self._admitted(context)  # a revoked site's session ends here

    def _order_notice(self, order: StoredOrder) -> wire.Notice:
        left = -1.0 if order.expires is None else max(order.expires - time.time(), 0.0)
        return wire.Notice(
            order=wire.Order(
                key=bytes.fromhex(order.key),
                run=order.run,
                round=order.round,
                message_type=order.message_type,
                submission=order.submission,
                attempt=self._store.count_attempt(order.key),
                seconds_left=left,
                content=to_wire(order.content),
            )
        )

    def _part_of(self, site: str, wanted: wire.Wanted) -> tuple[StoredOrder, Part]:
        order = self._open_order(site, wanted.key)
        if not 0 <= wanted.part < len(order.content.parts):
            raise LinkRefusedError(code="malformed", why=f"an order has no part {wanted.part}")
        part = order.content.parts[wanted.part]
        if any(number >= part.num_chunks for number in wanted.chunks):
            raise LinkRefusedError(code="malformed", why=f"part {wanted.part} has no such chunk")
        return order, part

    def _chunk(self, order: StoredOrder, part: Part, number: int) -> bytes:
        try:
            return read_chunk(blobs_of_orders(self._folder, order.run), part, number)
        except FileNotFoundError:
            raise LinkRefusedError(code="order_over", why="its bytes are gone") from None

    def _open_order(self, site: str, key: bytes) -> StoredOrder:
        if len(key) != 32:
            raise LinkRefusedError(code="malformed", why=f"a key of {len(key)} bytes")
        order = self._store.order(key.hex())
        if order is None:
            raise LinkRefusedError(code="unknown_order", why=f"no order {key.hex()[:12]}")
        if order.site != site:
            raise LinkRefusedError(
                code="foreign", why=f"order {order.key[:12]} is for another site"
            )
        if not (order.state == "answered" or self._store.is_open(order.key)):
            raise LinkRefusedError(code="order_over", why=f"order {order.key[:12]} is over")
        return order

    def _report_of(self, site: str, report: wire.Report) -> tuple[StoredOrder, Parcel]:
        order = self._open_order(site, report.key)
        most = order.content.num_bytes + REPORT_SPARE_BYTES
        claimed = sum(part.size for part in report.content.parts)
        if claimed > most:
            raise LinkRefusedError(
                code="too_large", why=f"a report of {claimed} bytes, allowed are {most}"
            )
        try:
            return order, from_wire(report.content)
        except ValueError as error:
            raise LinkRefusedError(code="malformed", why=str(error)) from None

    def _offered(self, site: str, report: wire.Report) -> wire.Needed:
        order, parcel = self._report_of(site, report)
        session = self._sessions.get(site)
        if session is None:
            raise LinkRefusedError(code="not_offered", why="no session is open")
        if order.state == "answered":
            return wire.Needed()
        session.offers[order.key] = parcel
        store = self._blobs(site)
        needed = wire.Needed()
        for number, part in enumerate(parcel.parts):
            if part.inline is None and (missing := store.missing(part)):
                needed.parts.add(part=number, chunks=missing)
        return needed

    def _taken(self, site: str, chunk: wire.Chunk) -> Part:
        session = self._sessions.get(site)
        parcel = None if session is None else session.offers.get(chunk.key.hex())
        if parcel is None or not 0 <= chunk.part < len(parcel.parts):
            raise LinkRefusedError(
                code="not_offered", why="a chunk of a report that was not announced"
            )
        part = parcel.parts[chunk.part]
        if chunk.number >= part.num_chunks:
            raise LinkRefusedError(code="malformed", why=f"a part has no chunk {chunk.number}")
        try:
            size = part.size_of(chunk.number)
            data = unpack(chunk.data, size) if chunk.packed else chunk.data
            self._blobs(site).write(part, chunk.number, data)
        except ValueError as error:
            raise LinkRefusedError(code="wrong_chunk", why=str(error)) from None
        return part

    def _synced(self, site: str, parts: dict[str, Part]) -> None:
        for part in parts.values():
            self._blobs(site).sync(part)

    def _submitted(self, site: str, report: wire.Report) -> bool:
        order, parcel = self._report_of(site, report)
        if order.state == "answered":
            return True
        known = self._store.store_report(order.key, parcel, self._blobs(site).holds)
        reached("L5")
        session = self._sessions.get(site)
        if session is not None:
            session.offers.pop(order.key, None)
        return known

    def _blobs(self, site: str) -> BlobStore:
        # One a site: what is held here is never told to another site.
        if site not in self._reports:
            self._reports[site] = BlobStore(blobs_of_reports(self._folder, site))
        return self._reports[site]


async def serve(made: Provisioned, stop: Awaitable[object]) -> None:
    """Serve until ``stop`` is done.

    Raises:
        FileProblemError: a certificate or key is missing or wrong.
        DiskProblemError: the folder or the database is not writable.
    """
    identity = read_identity(made.root_certificate, made.certificate, made.private_key)
    credentials = grpc.ssl_server_credentials(
        [(identity.private_key, identity.certificate)], identity.root, require_client_auth=True
    )
    store = LinkStore(database_url(made))
    store.close_all_sessions()
    authority = FolderAuthority(made.folder / "enrolled", made.folder / "revoked")
    link = LinkService(store, made.folder, authority)
    server = grpc.aio.server(
        options=MESSAGE_OPTIONS,
        maximum_concurrent_rpcs=16 + 8 * len(made.settings.sites),
    )
    service.add_LinkServicer_to_server(link, server)  # type: ignore[no-untyped-call]
    server.add_secure_port(f"{made.settings.listen}:{made.settings.port}", credentials)
    await server.start()
    LOG.info(READY)
    watching = asyncio.create_task(link.watch())
    try:
        await stop
    finally:
        watching.cancel()
        await server.stop(grace=2.0)
        store.close()
        link.bell.close()


async def _until_signal(made: Provisioned) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await serve(made, asked.wait())


def main() -> None:
    """Run from the coordinator's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    given = parser.parse_args()
    watch_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    LOG.setLevel(logging.INFO)
    LOG.info("link of version %s", __version__)
    asyncio.run(_until_signal(open_provisioned(given.folder)))


if __name__ == "__main__":
    main()
