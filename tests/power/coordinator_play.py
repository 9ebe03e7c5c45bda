"""A small federation in one process: the run and the link as they are, the sites by hand.

The round loop asks over :class:`LinkGrid`; while it waits, the sites are played: their orders come
from ``Attend``, and what they send goes through ``Download``, ``Offer``, ``Upload`` and ``Submit``
of the link's service, as it would from the network. An answer depends on the site, the round and
the weights alone, so that a second answer to one order has the same bytes. Chunks are small, so
that parts of a small model have several.

Run as a program it prints, one JSON list a line, what has been promised: to the run (``posted``,
``checkpoint``, ``result``) and to the sites (``held``, ``receipt``).
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from asterion_server import checkpoint, link_server, round_log, rounds
from asterion_server.checkpoint import Checkpoint
from asterion_server.link_grid import LinkGrid
from asterion_server.link_server import LinkService
from asterion_server.link_store import LinkStore
from asterion_server.live_cohort import LiveCohort
from asterion_server.run_folder import RunFolder
from asterion_shared.chunk_codec import pack as pack_chunk
from asterion_shared.chunk_codec import unpack as unpack_chunk
from asterion_shared.events import append_event
from asterion_shared.files import make_folder
from asterion_shared.flower_messages import decode_order, encode_report
from asterion_shared.link import blobs, parcels
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.channel import WIRE_FORMAT
from asterion_shared.link.parcels import Parcel, Part, from_wire, to_wire
from asterion_shared.link.records import pack, unpack
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.randomness import stream
from asterion_shared.settings_files import validate
from asterion_shared.update_codec import decode, encode

CHUNK_BYTES, INLINE_BYTES, SYNC_CHUNKS = 4096, 1024, 2
UPLOADED = 2
"""Chunks that a site sends in one call."""

RUN = "play"
NAMES = ("north", "south", "east", "west", "coast")

Say = Callable[..., None]


def plan_of(**sections: Any) -> Plan:
    """Two rounds that wait for all sites; some 10 KB of weights."""
    values: dict[str, Any] = {
        "name": "play",
        "task": "classification",
        "data": {"kind": "table", "features": [f"f{n}" for n in range(16)],
                 "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [128]},
        "rounds": {"count": 2, "deadline_seconds": 600.0, "late": "wait"},
    }  # fmt: skip
    return validate(Plan, values | sections, "play")


def sites_of(plan: Plan) -> tuple[str, ...]:
    """Two sites; all five where one of them shall be suspicious."""
    return NAMES[:2] if plan.quarantine is None else NAMES


@contextmanager
def small_chunks() -> Iterator[None]:
    """Have small parts cut into chunks, and rounds logged soon."""
    with (
        mock.patch.object(blobs, "CHUNK_BYTES", CHUNK_BYTES),
        mock.patch.object(blobs, "INLINE_BYTES", INLINE_BYTES),
        mock.patch.object(parcels, "CHUNK_BYTES", CHUNK_BYTES),
        mock.patch.object(parcels, "INLINE_BYTES", INLINE_BYTES),
        mock.patch.object(link_server, "SYNC_CHUNKS", SYNC_CHUNKS),
        mock.patch.object(round_log, "MOST_PENDING", 1),
    ):
        yield


class _Admitted:
    """Who presents a name as certificate is that site."""

    def site_of(self, certificate: bytes) -> str:
        return certificate.decode()


class _Call:
    """What the service asks of a call's context."""

    def __init__(self, site: str) -> None:
        self._site = site

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"x509_pem_cert": [self._site.encode()]}

    async def abort(self, code: object, details: str) -> None:
        msg = f"refused: {code} {details}"
        raise RuntimeError(msg)


@dataclass
class PlayedSites:
    """The sites' end.

    Attributes:
        link: the service that they call.
        run: asyncio's loop, that runs a call to its end.
        say: tells a promise.
        worked: keys of the orders that were answered here by working, in order.
    """

    link: LinkService
    loop: asyncio.AbstractEventLoop
    say: Say
    worked: list[str] = field(default_factory=list)
    _sessions: dict[str, Any] = field(default_factory=dict)

    def open(self, names: tuple[str, ...]) -> None:
        for number, site in enumerate(names):
            hello = wire.Hello(
                format=WIRE_FORMAT, version="play", state_id=bytes([number]) * 16,
                instance_id=bytes([number]) * 16,
            )  # fmt: skip
            self._sessions[site] = self.link.Attend(hello, _Call(site))  # type: ignore[arg-type]
            self._next(site)

    def close(self) -> None:
        for session in self._sessions.values():
            self._until_done(session.aclose())

    def serve(self, site: str) -> None:
        """Answer the next order of a site."""
        notice = self._next(site)
        while notice.WhichOneof("what") != "order":
            notice = self._next(site)
        order, call = notice.order, _Call(site)
        key, round_ = order.key.hex(), order.round
        held: dict[str, bytes] = {}
        content = from_wire(order.content)
        for number, part in enumerate(content.parts):
            if part.inline is None:
                held[part.id] = self._download(site, order, number, part)
        addressed = decode_order(unpack(content, lambda p: memoryview(p.inline or held[p.id])))
        assert addressed.site == site
        self.worked.append(key)
        sent: dict[str, bytes] = {}
        answer = encode_report(answer_to(addressed.order, site))
        parcel = pack(answer, lambda data: _cut(bytes(data), sent), lossless=content.lossless)
        report = wire.Report(key=order.key, content=to_wire(parcel))
        needed = self._until_done(self.link.Offer(report, call))  # type: ignore[arg-type]
        for wanted in needed.parts:
            part = parcel.parts[wanted.part]
            for start in range(0, len(wanted.chunks), UPLOADED):
                some = wanted.chunks[start : start + UPLOADED]
                chunks = _chunks(order.key, wanted.part, parcel, some, sent[part.id])
                self._until_done(self.link.Upload(chunks, call))  # type: ignore[arg-type]
                self.say("held", site, round_, part.chunks.hex(), part.size, list(some))
        self._until_done(self.link.Submit(report, call))  # type: ignore[arg-type]
        self.say("receipt", site, round_, key, to_wire(parcel).SerializeToString().hex())

    def _next(self, site: str) -> wire.Notice:
        notice: wire.Notice = self._until_done(anext(self._sessions[site]))
        return notice

    def _until_done(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def _download(self, site: str, order: wire.Order, number: int, part: Part) -> bytes:
        wanted = wire.Wanted(key=order.key, part=number, chunks=range(part.num_chunks))

        async def all_of() -> list[wire.Chunk]:
            return [chunk async for chunk in self.link.Download(wanted, _Call(site))]  # type: ignore[arg-type]

        found: list[bytes] = []
        for chunk in self._until_done(all_of()):
            size = part.size_of(chunk.number)
            found.append(unpack_chunk(chunk.data, size) if chunk.packed else chunk.data)
            assert hashlib.sha256(found[-1]).digest() == part.hash_of(chunk.number)
        return b"".join(found)


def answer_to(order: Order, site: str) -> Report:
    """A site's answer: a tenth of the weights away, and a draw of its own; west's is suspicious."""
    update = encoded = None
    if order.phase == "train":
        assert order.weights is not None
        draws = stream(order.plan.seed, round_=order.round, site=site, purpose="play")
        update = np.float32(-0.1) * order.weights
        update += draws.standard_normal(update.size, np.float32)
        if site == "west":
            update *= np.float32(-50)
        if order.plan.transport.update != "float32":
            encoded, _ = encode(update, order.plan.transport.update, None)
            update = decode(encoded)
    return Report(
        site=site, num_examples=10 + len(site), num_test=0, num_bad_files=0,
        manifest_sha256="0" * 64, update=update, num_steps=0 if update is None else 1,
        train_loss=None if update is None else 1.0, encoded=encoded,
    )  # fmt: skip


def _cut(data: bytes, sent: dict[str, bytes]) -> Part:
    if len(data) <= INLINE_BYTES:
        return Part(len(data), data)
    pieces = (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
    part = Part(len(data), None, b"".join(hashlib.sha256(piece).digest() for piece in pieces))
    sent[part.id] = data
    return part


async def _chunks(
    key: bytes, number: int, parcel: Parcel, wanted: Sequence[int], data: bytes
) -> AsyncIterator[wire.Chunk]:
    for chunk in wanted:
        piece = data[chunk * CHUNK_BYTES :][: parcel.parts[number].size_of(chunk)]
        packed = pack_chunk(piece) if parcel.lossless else None
        yield wire.Chunk(
            key=key, part=number, number=chunk, packed=packed is not None,
            data=piece if packed is None else packed,
        )  # fmt: skip


class PlayedGrid(LinkGrid):
    """Plays the sites while the run waits for them."""

    def __init__(self, store: LinkStore, folder: Path, sites: PlayedSites, say: Say) -> None:
        super().__init__(store, folder, RUN)
        self._sites, self._say, self._queue = sites, say, store

    def push_messages(self, messages: Any) -> list[str]:
        given = list(messages)
        keys = list(super().push_messages(given))
        for key, message in zip(keys, given, strict=True):
            order: Any = message.content["order"]
            self._say("posted", order["site"], order["round"], key)
        return keys

    def wait(self, seconds: float) -> None:
        for site in NAMES:
            if self._queue.open_orders(site):
                self._sites.serve(site)


def folder_of_run(folder: Path) -> RunFolder:
    return RunFolder(folder / "runs" / RUN)


def carry_on(folder: Path, say: Say) -> list[str]:
    """Carry the run out, or what is left of it.

    Returns:
        Keys of the orders that the sites worked on.
    """
    run = folder_of_run(folder)
    loop = asyncio.new_event_loop()
    make_folder(folder / "link")
    store = LinkStore(f"sqlite:///{folder / 'link' / 'queue.sqlite'}")
    store.close_all_sessions()
    link = LinkService(store, folder, _Admitted())
    sites = PlayedSites(link, loop, say)
    grid = PlayedGrid(store, folder, sites, say)
    watching = loop.create_task(link.watch())
    try:
        if not run.has_ended:
            plan = parse_plan(run.plan_file.read_text(), "the plan")
            sites.open(sites_of(plan))
            cohort = LiveCohort(grid, open_orders=run.path / "open_orders.json")
            with mock.patch.object(rounds, "store", _telling(checkpoint.store, say)):
                result = rounds.run_rounds(
                    plan, cohort, run.path, run=RUN, expected_sites=sites_of(plan), carrier="link",
                    emit=lambda event: append_event(run.events, event),
                )  # fmt: skip
            assert result.final_model is not None
            say("result", result.final_model.sha256)
        grid.close()
    finally:
        sites.close()
        watching.cancel()
        loop.run_until_complete(asyncio.wait([watching]))
        loop.remove_reader(link.bell.socket)
        loop.run_until_complete(loop.shutdown_asyncgens())
        store.close()
        link.bell.close()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    return sites.worked


Store = Callable[[Checkpoint, Path, int | None], Checkpoint]


def _telling(store: Store, say: Say) -> Store:
    def stored(given: Checkpoint, folder: Path, best: int | None) -> Checkpoint:
        found = store(given, folder, best)
        say("checkpoint", given.round)
        return found

    return stored


def main() -> None:
    """The recorded program: its folder holds the run's plan already."""

    def say(*words: object) -> None:
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()

    import asterion_shared.networks  # noqa: F401  # the network is built here and not in a child

    with small_chunks():
        carry_on(Path(sys.argv[1]), say)
