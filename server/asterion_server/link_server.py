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
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import grpc
import grpc.aio

from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.link_calls import (
    LOG,
    MOST_CALLS,
    SERVER_OPTIONS,
    Context,
    Gate,
    Unreadable,
    handler_of,
)
from asterion_server.link_orders import chunk_of, notice_of, order_for, wanted_part
from asterion_server.link_paths import blobs_of_orders, blobs_of_reports, database_url
from asterion_server.link_reports import SiteReports, read_report
from asterion_server.link_store import LinkStore
from asterion_server.link_wake import Bell, address_of
from asterion_shared import __version__
from asterion_shared.child_process import watch_parent
from asterion_shared.chunk_codec import pack
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.channel import WIRE_FORMAT
from asterion_shared.link.identity import Authority, FolderAuthority, read_identity
from asterion_shared.link.parcels import Part
from asterion_shared.link.refusals import LinkRefusedError
from asterion_shared.link.steps import reached

READY = "the link is ready"
BEAT_SECONDS = 5.0
"""A session hears something at least so often."""

LOOK_SECONDS = 0.9
"""The longest that a session does not notice a revocation, or an order, whose ring was lost."""

TRANSFER_LOOK_SECONDS = 0.5
"""The longest that chunks go on after a revocation; transfers hear no ring."""

MOST_NEW_SITES = 64
"""Sites that may be enrolled while the link runs without making its calls scarce."""

SYNC_CHUNKS = 32
"""Chunks that arrive between two syncs: what a power cut may cost of an upload."""

MOST_MISTAKES = 100
"""Malformed messages of a session before it is ended."""

MISTAKES = ("malformed", "wrong_chunk", "too_large")
"""What no honest site sends."""


@dataclass(eq=False)
class _Session:
    """A site that is connected, or was until ``ended``."""

    site: str
    instance_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    mistakes: int = 0


class LinkService(service.LinkServicer):
    """Answers sites. Every call is admitted by its certificate, and touches that site's alone.

    Args:
        store: the queue.
        folder: the coordinator's.
        authority: who is admitted.
    """

    def __init__(self, store: LinkStore, folder: Path, authority: Authority) -> None:
        self._store, self._folder = store, folder
        self._sessions: dict[str, _Session] = {}
        self._gate = Gate(authority, self._count_mistake)
        self._reports: dict[str, SiteReports] = {}
        self._lock = Lock()
        self._runs: set[bytes] = set()
        self._to_tidy = True
        self.bell = Bell(address_of(folder))

    async def watch(self) -> None:
        """Wake sessions when orders were posted, note who is connected, tidy; until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.bell.socket, self._rung)
        while True:
            try:
                if self._sessions:
                    await asyncio.to_thread(self._store.touch_sessions, list(self._sessions))
                if self._to_tidy:
                    self._to_tidy = False
                    await asyncio.to_thread(self._tidy)
            except DiskProblemError as error:
                LOG.error("%s", error)
            await asyncio.sleep(BEAT_SECONDS)

    def _rung(self) -> None:
        self._runs |= self.bell.heard()
        self._to_tidy = True
        for session in self._sessions.values():
            session.wake.set()

    def _ring_runs(self) -> None:
        self._runs = {run for run in self._runs if self.bell.ring(run)}

    def _tidy(self) -> None:
        for folder in blobs_of_reports(self._folder, "").glob("*"):
            self._reports_of(folder.name).tidy()

    async def Attend(
        self, request: wire.Hello | Unreadable, context: Context
    ) -> AsyncIterator[wire.Notice]:
        """A site's session; see the ``.proto``."""
        async with self._gate.call(request, context, is_session=True) as site:
            assert not isinstance(request, Unreadable)  # noqa: S101  # the gate refused it
            session = _Session(site, request.instance_id.hex())
            try:
                await self._gate.guarded(context, site, lambda: self._open(session, request))
                words = f"session open (version {_word(request.version)})"
                self._gate.log(logging.INFO, site, words)
                reached("L1")
                welcome = wire.Welcome(site=site, seconds_between_beats=BEAT_SECONDS)
                yield wire.Notice(welcome=welcome)
                async for notice in self._notices(session, context):
                    yield notice
            finally:
                await asyncio.shield(asyncio.to_thread(self._close, session))

    async def Download(
        self, request: wire.Wanted | Unreadable, context: Context
    ) -> AsyncIterator[wire.Chunk]:
        """Chunks of an open order of the site."""
        async with self._gate.call(request, context) as site:
            assert not isinstance(request, Unreadable)  # noqa: S101  # the gate refused it
            looked = time.monotonic()
            order = await self._gate.guarded(
                context, site, lambda: order_for(self._store, site, request.key)
            )
            part = await self._gate.guarded(context, site, lambda: wanted_part(order, request))
            folder = blobs_of_orders(self._folder, order.run)
            for number in request.chunks:
                looked = await self._look(context, looked)
                read = await self._gate.guarded(
                    context, site, lambda n=number: chunk_of(folder, part, n)  # type: ignore[misc]
                )  # fmt: skip
                packed = pack(read) if order.content.lossless else None
                yield wire.Chunk(
                    key=request.key, part=request.part, number=number, packed=packed is not None,
                    data=read if packed is None else packed,
                )  # fmt: skip

    async def Offer(self, request: wire.Report | Unreadable, context: Context) -> wire.Needed:
        """Which chunks of a report are missing here."""
        async with self._gate.call(request, context) as site:
            assert not isinstance(request, Unreadable)  # noqa: S101  # the gate refused it
            return await self._gate.guarded(context, site, lambda: self._offered(site, request))

    async def Upload(
        self, request_iterator: AsyncIterator[wire.Chunk | Unreadable], context: Context
    ) -> wire.Received:
        """Chunks of a report that was offered."""
        async with self._gate.call(request_iterator, context) as site:
            number, touched, looked = 0, dict[str, Part](), time.monotonic()
            reports = await self._gate.guarded(context, site, lambda: self._reports_of(site))
            try:
                async for chunk in request_iterator:
                    looked = await self._look(context, looked)
                    await self._gate.readable(context, site, chunk)
                    part = await self._gate.guarded(
                        context, site, lambda c=chunk: self._taken(site, c)  # type: ignore[misc]
                    )  # fmt: skip
                    touched[part.id] = part
                    number += 1
                    if number == 1 or number % SYNC_CHUNKS == 0:
                        await self._gate.guarded(context, site, lambda: reports.sync(touched))
                        touched.clear()
                        reached("L3")
                await self._gate.guarded(context, site, lambda: reports.sync(touched))
                touched.clear()
            finally:
                # What arrived before a cut is kept, too.
                await asyncio.shield(asyncio.to_thread(reports.sync_after_cut, touched))
            reached("L4")
            return wire.Received(num_chunks=number)

    async def Submit(self, request: wire.Report | Unreadable, context: Context) -> wire.Receipt:
        """A report whose chunks are all here."""
        async with self._gate.call(request, context) as site:
            assert not isinstance(request, Unreadable)  # noqa: S101  # the gate refused it
            known = await self._gate.guarded(context, site, lambda: self._submitted(site, request))
            self._ring_runs()
            return wire.Receipt(known=known)

    async def _look(self, context: Context, looked: float) -> float:
        """Admit a long call anew from time to time: a revocation ends it. When that was last."""
        if time.monotonic() - looked < TRANSFER_LOOK_SECONDS:
            return looked
        await self._gate.admitted(context)
        return time.monotonic()

    def _count_mistake(self, site: str, code: str) -> None:
        session = self._sessions.get(site)
        if session is not None and code in MISTAKES:
            session.mistakes += 1
            if session.mistakes >= MOST_MISTAKES:
                session.ended = True
                session.wake.set()

    def _open(self, session: _Session, hello: wire.Hello) -> None:
        if hello.format != WIRE_FORMAT:
            why = (
                f"it is Asterion {_word(hello.version)} and speaks format {hello.format}, this "
                f"link is {__version__} and speaks {WIRE_FORMAT}"
            )
            raise LinkRefusedError(code="other_version", why=why)
        if not (len(hello.state_id) == len(hello.instance_id) == 16):
            raise LinkRefusedError(code="malformed", why="a hello without identities")
        with self._lock:
            if session.ended:
                return  # its call was cut before it began
            state, version = hello.state_id.hex(), _word(hello.version)
            self._store.open_session(session.site, state, session.instance_id, version)
            before = self._sessions.get(session.site)
            self._sessions[session.site] = session
        if before is not None:
            before.ended = True

    def _close(self, session: _Session) -> None:
        with self._lock:
            session.ended = True
            if self._sessions.get(session.site) is session:
                del self._sessions[session.site]
                self._store.close_session(session.site, session.instance_id)
                self._gate.log(logging.INFO, session.site, "session closed")

    async def _notices(self, session: _Session, context: Context) -> AsyncIterator[wire.Notice]:
        site, sent = session.site, dict[str, tuple[int, float | None]]()
        told = time.monotonic()
        while not session.ended:
            session.wake.clear()
            await self._gate.admitted(context)  # a revoked site's session ends here
            orders = await self._gate.guarded(context, site, lambda: self._store.open_orders(site))
            for order in orders:
                posted = order.submission, order.expires
                if sent.get(order.key) != posted:
                    sent[order.key], told = posted, time.monotonic()
                    yield await self._gate.guarded(
                        context, site, lambda o=order: notice_of(self._store, o)  # type: ignore[misc]
                    )  # fmt: skip
                    reached("L2")
            for key in sent.keys() - {order.key for order in orders}:
                del sent[key]
                yield wire.Notice(withdrawn=wire.Withdrawn(key=bytes.fromhex(key)))
            if time.monotonic() - told >= BEAT_SECONDS:
                told = time.monotonic()
                yield wire.Notice(beat=wire.Beat())
            with suppress(TimeoutError):
                await asyncio.wait_for(session.wake.wait(), LOOK_SECONDS)

    def _offered(self, site: str, report: wire.Report) -> wire.Needed:
        order = order_for(self._store, site, report.key)
        parcel = read_report(order, report)
        if site not in self._sessions:
            raise LinkRefusedError(code="not_offered", why="no session is open")
        if order.state == "answered":
            return wire.Needed()
        return self._reports_of(site).offer(order, parcel)

    def _taken(self, site: str, chunk: wire.Chunk) -> Part:
        if site not in self._sessions:
            raise LinkRefusedError(code="not_offered", why="no session is open")
        return self._reports_of(site).take(chunk)

    def _submitted(self, site: str, report: wire.Report) -> bool:
        order = order_for(self._store, site, report.key)
        parcel = read_report(order, report)
        if order.state == "answered":
            return True
        known = self._reports_of(site).submit(order, parcel)
        reached("L5")
        return known

    def _reports_of(self, site: str) -> SiteReports:
        # One a site: what is held here is never told to another site.
        with self._lock:
            if site not in self._reports:
                folder = blobs_of_reports(self._folder, site)
                self._reports[site] = SiteReports(self._store, folder, site)
            return self._reports[site]


def _word(version: str) -> str:
    """A version as a site states it, fit for a line of the log."""
    return ascii(version[:40])[1:-1][:40]


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
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=16 + 2 * MOST_CALLS * (len(made.settings.sites) + MOST_NEW_SITES),
    )
    server.add_generic_rpc_handlers((handler_of(link),))
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
