"""Mutated messages against the link: `python -m tests.link.fuzz_wire --count 1000000`.

Valid messages of each kind are mutated (bits, cuts, splices, fields) and given to what reads them:
the methods of the link's service with its queue and its files, and the readers of records, packed
chunks, parcels and orders. What comes out must be an answer or a refusal of the protocol, and an
answer must be right: chunks have the announced hash, stored reports are those that were sent, what
was read is read again alike after it is written anew. Anything else ends the program with code 1.
"""

import argparse
import asyncio
import hashlib
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf.message import Message as ProtoMessage
from tests.link.messages import SITE, hello, mutated, order_content, report_content, small_content

from asterion_server.link_calls import Unreadable, handler_of
from asterion_server.link_paths import blobs_of_orders, blobs_of_reports
from asterion_server.link_server import LinkService
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_shared.chunk_codec import pack as pack_chunk
from asterion_shared.chunk_codec import unpack as unpack_chunk
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.channel import WIRE_FORMAT
from asterion_shared.link.parcels import Parcel, Part, from_wire, to_wire
from asterion_shared.link.records import order_key, pack, unpack
from asterion_shared.link.refusals import code_of

GUEST = "south"
CORPUS = Path(__file__).with_name("wire_corpus.txt")
KINDS: dict[str, type[ProtoMessage] | None] = {
    "Attend": wire.Hello, "Download": wire.Wanted, "Offer": wire.Report, "Upload": wire.Chunk,
    "Submit": wire.Report, "records": wire.Records, "packed": None, "parcel": wire.Parcel,
}  # fmt: skip
SHARES = {"Attend": 1, "Download": 8, "Offer": 8, "Upload": 8, "Submit": 8, "records": 30,
          "packed": 20, "parcel": 17}  # fmt: skip
"""Of a hundred messages."""

MOST_GROWTH_BYTES = 200e6
MOST_DISK_BYTES = 300e6


class WrongError(Exception):
    """An answer that is not right."""


class RefusedError(Exception):
    """What a call of the service was ended with."""


@dataclass(frozen=True)
class Message:
    """Bytes for one reader."""

    target: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.target} {self.data.hex()}"


class Context:
    """Of a call by a site, as gRPC gives it."""

    def __init__(self, site: str) -> None:
        self._site = site

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._site.encode()]}

    async def abort(
        self, status: grpc.StatusCode, details: str, trailing_metadata: object = ()
    ) -> None:
        raise RefusedError(details)


class Target:
    """A service over a queue and files of its own, with one open order and one report offered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LinkStore(f"sqlite:///{folder / 'queue.sqlite'}")
        authority = SimpleNamespace(site_of=lambda certificate: certificate.decode())
        self.service = LinkService(self.store, folder, authority)
        methods = handler_of(self.service)._method_handlers
        self.readers = {
            name.rsplit("/", 1)[1]: m.request_deserializer for name, m in methods.items()
        }
        blobs = BlobStore(blobs_of_orders(folder, "run"))
        self.order = self._posted(blobs)
        self.report = pack(report_content(), blobs.add)
        self.blobs = blobs
        self.loop = asyncio.new_event_loop()
        self._session = self.service.Attend(hello(), Context(SITE))
        self.loop.run_until_complete(anext(self._session))

    def close(self) -> None:
        self.loop.run_until_complete(self._session.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.service.bell.close()
        self.store.close()

    def _posted(self, blobs: BlobStore) -> StoredOrder:
        content = order_content()
        parcel = pack(content, blobs.add, lossless=True)
        order = StoredOrder(
            key=order_key(SITE, content, parcel).hex(), site=SITE, run="run", round=1,
            message_type="train", content=parcel, submission=1, expires=None,
        )  # fmt: skip
        self.store.post([order])
        return order

    def seeds(self) -> list[Message]:
        """Valid messages, of each kind some."""
        key, report = bytes.fromhex(self.order.key), to_wire(self.report)
        part = self.report.parts[1]
        chunk = {"key": key, "part": 1, "number": 0}
        data, zeros = self.blobs.read(part, 0), bytes(self.report.parts[2].size)
        messages = {
            "Attend": [hello(), wire.Hello(format=WIRE_FORMAT + 1)],
            "Download": [
                wire.Wanted(key=key, part=1, chunks=[0]), wire.Wanted(key=key, part=0),
                wire.Wanted(key=key, part=2, chunks=[0, 1]),
            ],
            "Offer": [wire.Report(key=key, content=report)],
            "Submit": [
                wire.Report(key=key, content=report),
                wire.Report(key=key, content=to_wire(pack(small_content(), self.blobs.add))),
            ],
            "Upload": [
                wire.Chunk(data=data, **chunk),
                wire.Chunk(data=pack_chunk(zeros), packed=True, key=key, part=2, number=0),
            ],
            "records": [wire.Records.FromString(bytes(self.blobs.view(p.parts[0])))
                        for p in (self.report, self.order.content)],
            "parcel": [report, to_wire(self.order.content)],
        }  # fmt: skip
        found = [Message(t, m.SerializeToString()) for t, ms in messages.items() for m in ms]
        smooth = np.linspace(0, 1, 500, dtype="<f4").tobytes()
        return [
            *found,
            *(Message("packed", p) for p in (pack_chunk(zeros), pack_chunk(smooth)) if p),
        ]

    def give(self, message: Message) -> str:
        """What becomes of a message: ``accepted``, or the code of its refusal.

        Raises:
            WrongError: it was accepted, and should not be, or not so.
        """
        work = getattr(self, f"_{message.target.lower()}")
        if message.target not in self.readers:
            return str(work(message.data))
        try:
            self.loop.run_until_complete(work(self.readers[message.target](message.data)))
        except RefusedError as error:
            code = code_of(str(error))
            _check(bool(code), f"a refusal without a code: {error}")
            return code
        return "accepted"

    async def _attend(self, request: wire.Hello | Unreadable) -> None:
        call = self.service.Attend(request, Context(GUEST))
        try:
            first = await anext(call)
        finally:
            await call.aclose()
        assert not isinstance(request, Unreadable)
        fits = request.format == WIRE_FORMAT
        fits = fits and len(request.state_id) == len(request.instance_id) == 16
        _check(fits and first.welcome.site == GUEST, "a session that should not open")

    async def _download(self, request: wire.Wanted | Unreadable) -> None:
        chunks = [chunk async for chunk in self.service.Download(request, Context(SITE))]
        assert not isinstance(request, Unreadable)
        _check([c.number for c in chunks] == list(request.chunks), "not the chunks asked for")
        part = self.order.content.parts[request.part]
        for chunk in chunks:
            size = part.size_of(chunk.number)
            data = unpack_chunk(chunk.data, size) if chunk.packed else chunk.data
            right = hashlib.sha256(data).digest() == part.hash_of(chunk.number)
            _check(right and request.key.hex() == self.order.key, "not the order's bytes")

    async def _offer(self, request: wire.Report | Unreadable) -> None:
        needed = await self.service.Offer(request, Context(SITE))
        assert not isinstance(request, Unreadable)
        parcel = from_wire(request.content)
        for part in needed.parts:
            most = parcel.parts[part.part].num_chunks
            _check(all(number < most for number in part.chunks), "a chunk that there is not")

    async def _upload(self, request: wire.Chunk | Unreadable) -> None:
        report = wire.Report(key=bytes.fromhex(self.order.key), content=to_wire(self.report))
        await self.service.Offer(report, Context(SITE))

        async def one() -> Any:
            yield request

        received = await self.service.Upload(one(), Context(SITE))
        assert not isinstance(request, Unreadable)
        part = self.report.parts[request.part]
        size = part.size_of(request.number)
        data = unpack_chunk(request.data, size) if request.packed else request.data
        right = hashlib.sha256(data).digest() == part.hash_of(request.number)
        _check(right and received.num_chunks == 1, "a chunk that was not announced")
        _check(request.key.hex() == self.order.key, "a chunk of another order")

    async def _submit(self, request: wire.Report | Unreadable) -> None:
        receipt = await self.service.Submit(request, Context(SITE))
        assert not isinstance(request, Unreadable)
        stored = self.store.report(self.order.key)
        _check(not receipt.known, "known before it came")
        _check(stored == from_wire(request.content), "another report than was sent")
        assert stored is not None
        files = BlobStore(blobs_of_reports(self.folder, SITE))
        for part in stored.stored:
            for number in range(part.num_chunks):
                digest = hashlib.sha256(files.read(part, number)).digest()
                _check(digest == part.hash_of(number), "bytes that were not announced")
        self.store.reclaim("run", 2)
        self.store.post([self.order])

    def _records(self, data: bytes) -> str:
        first = _inside(data)
        parcel = Parcel((first, *(_inside(bytes(8)) for _ in range(3))))

        def view(part: Part) -> memoryview:
            return memoryview(part.inline or b"")

        try:
            content = unpack(parcel, view)
        except ValueError:
            return "malformed"
        again = pack(content, lambda found: _inside(bytes(found)))
        third = pack(unpack(again, view), lambda found: _inside(bytes(found)))
        _check(again == third, "records that are read otherwise when written anew")
        _check(again.parts[0].size <= 20 * len(data) + 1000, "records that grow")
        return "accepted"

    def _packed(self, data: bytes) -> str:
        refused = 0
        for size in (0, 2000, 70_000):
            try:
                _check(len(unpack_chunk(data, size)) == size, "not as many bytes as were asked")
            except ValueError:
                refused += 1
        return "malformed" if refused == 3 else "accepted"

    def _parcel(self, data: bytes) -> str:
        try:
            given = wire.Parcel.FromString(data)
        except Exception as error:
            if type(error).__name__ != "DecodeError":
                raise
            return "malformed"
        try:
            parcel = from_wire(given, most_bytes=2**30)
        except ValueError:
            return "malformed"
        _check(from_wire(to_wire(parcel)) == parcel, "a parcel that changes")
        _check(parcel.num_bytes <= 2**30 and len(parcel.parts) <= 16, "a parcel too large")
        for part in parcel.parts:
            sizes = sum(part.size_of(number) for number in range(part.num_chunks))
            _check(part.inline is not None or sizes == part.size, "chunks that are not the part")
        return "accepted"


def _inside(data: bytes) -> Part:
    return Part(len(data), data)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise WrongError(what)


@contextmanager
def target() -> Iterator[Target]:
    """A target in a folder that goes at the end."""
    with tempfile.TemporaryDirectory() as folder:
        found = Target(Path(folder))
        try:
            yield found
        finally:
            found.close()


def fuzz(
    found: Target, count: int, seed: int, tell: Callable[[Message, str], None]
) -> Counter[tuple[str, str]]:
    """Give a target mutated messages.

    Returns:
        How many of each reader and outcome there were.

    Raises:
        WrongError, and anything that is no refusal: with the message as a note.
    """
    rng = np.random.default_rng(seed)
    seeds: dict[str, list[bytes]] = {}
    for message in found.seeds():
        seeds.setdefault(message.target, []).append(message.data)
    names = list(SHARES)
    drawn = rng.choice(len(names), count, p=np.array(list(SHARES.values())) / 100)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in drawn:
        name = names[number]
        known = seeds[name]
        data = known[int(rng.integers(len(known)))]
        message = Message(name, mutated(rng, data, known, KINDS[name]))
        try:
            outcome = found.give(message)
        except Exception as error:
            error.add_note(str(message)[:4000])
            raise
        outcomes[name, outcome] += 1
        tell(message, outcome)
    return outcomes


def write_corpus(found: Target, seed: int) -> None:
    """The corpus: the valid messages, and a few small mutated ones of each reader and outcome."""
    lines = [
        f"{m.target} {found.give(m)} {m.data.hex()}" for m in found.seeds() if len(m.data) < 4000
    ]
    kept: Counter[tuple[str, str]] = Counter()

    def keep(message: Message, outcome: str) -> None:
        if kept[message.target, outcome] < 4 and len(message.data) < 1000:
            kept[message.target, outcome] += 1
            lines.append(f"{message.target} {outcome} {message.data.hex()}")

    fuzz(found, 20_000, seed, keep)
    CORPUS.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-corpus", action="store_true")
    given = parser.parse_args()
    logging.getLogger("asterion.link").setLevel(logging.CRITICAL)
    process, began = psutil.Process(), time.monotonic()
    with target() as found:
        if given.write_corpus:
            write_corpus(found, given.seed)
            return
        fuzz(found, 2_000, given.seed + 1, lambda *_: None)
        before = process.memory_info().rss
        outcomes = fuzz(found, given.count, given.seed, lambda *_: None)
        grown = process.memory_info().rss - before
        disk = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
    for (name, outcome), number in sorted(outcomes.items()):
        sys.stdout.write(f"{name:9} {outcome:15} {number:9}\n")
    sys.stdout.write(
        f"{given.count} messages of seed {given.seed} in {time.monotonic() - began:.0f} s; memory "
        f"grew by {grown / 1e6:.0f} MB; {disk / 1e6:.0f} MB on disk\n"
    )
    if grown > MOST_GROWTH_BYTES or disk > MOST_DISK_BYTES:
        sys.exit("too much memory or disk")


if __name__ == "__main__":
    main()
