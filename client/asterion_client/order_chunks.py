"""How the chunks of an order come to a site: no more of them than its consent lets in.

Chunks are fetched before anybody can read what the order asks, so that a coordinator could have a
site store anything. What they take is therefore held against ``consent.bytes_a_day`` first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from asterion_client.coordinator_words import LinkOrder
from asterion_client.day_book import DayBook
from asterion_client.link_transfers import RateCap
from asterion_shared.chunk_codec import unpack
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Part

SYNC_CHUNKS = 32
"""Chunks that arrive between two syncs."""

WANTED_CHUNKS = 64
"""Chunks asked for in one call: what a cut makes the coordinator read in vain."""


@dataclass(frozen=True, slots=True)
class ByteQuota:
    """What a site may move in a day (UTC), and what it moved.

    Attributes:
        days: where moved bytes are noted.
        bytes_a_day: of ``[consent]``; None: the site has none, and agrees to nothing.
    """

    days: DayBook
    bytes_a_day: int | None

    def refuses(self, num_bytes: int, stored_bytes: int) -> str:
        """Why no chunk may be fetched now: a code of ``REASON_CODES``, or empty.

        Args:
            num_bytes: that would be moved.
            stored_bytes: that all orders in work would take on the disk. Chunks that are alike
                move once and are stored as often as an order names them.
        """
        if self.bytes_a_day is None:
            return "no_consent"
        moved = self.days.today().num_bytes
        passes = moved + num_bytes > self.bytes_a_day or stored_bytes > self.bytes_a_day
        return "bytes_spent" if passes else ""


@dataclass(frozen=True, slots=True)
class ChunkFetch:
    """Fetches what an order lacks.

    Attributes:
        blobs: where chunks are kept.
        quota: what may come.
        cap: how fast.
        wait: is called with the order after each chunk; returns when the next may come.
    """

    blobs: BlobStore
    quota: ByteQuota
    cap: RateCap
    wait: Callable[[LinkOrder], None]

    def fetch(self, stub: service.LinkStub, order: LinkOrder, in_work: list[Part]) -> None:
        """Fetch all chunks that are missing, or set ``order.refused`` and fetch no more.

        Args:
            stub: of the coordinator.
            order: whose chunks they are.
            in_work: stored parts of all orders in work, this one's too; some may be there twice.

        Raises:
            grpc.RpcError: the call failed.
            ValueError: a chunk is not what was announced, or none came.
            DiskProblemError: the disk is full or not writable.
        """
        order.refused = ""
        if not order.noted:
            order.noted = True
            self.quota.days.moved(sum(len(part.inline or b"") for part in order.content.parts))
        stored_bytes = sum({part.id: part.size for part in in_work}.values())
        if order.content.stored and (code := self.quota.refuses(0, stored_bytes)):
            order.refused = code
            return
        before: list[tuple[int, list[int]]] = []
        while missing := self._missing(order):
            num_bytes = sum(
                order.content.parts[part].size_of(number)
                for part, numbers in missing
                for number in numbers
            )
            if code := self.quota.refuses(num_bytes, stored_bytes):
                order.refused = code
                return
            if missing == before:
                msg = "none of the chunks came that were asked for"
                raise ValueError(msg)  # they are asked for again after a pause
            before, (part, numbers) = missing, missing[0]
            self._download(stub, order, part, numbers[:WANTED_CHUNKS])

    def _missing(self, order: LinkOrder) -> list[tuple[int, list[int]]]:
        """Numbers of parts that are not whole, with those of their missing chunks."""
        found = (
            (number, self.blobs.missing(part))
            for number, part in enumerate(order.content.parts)
            if part.inline is None
        )
        return [(number, missing) for number, missing in found if missing]

    def _download(
        self, stub: service.LinkStub, order: LinkOrder, number: int, missing: list[int]
    ) -> None:
        part = order.content.parts[number]
        call = stub.Download(wire.Wanted(key=order.key, part=number, chunks=missing))
        try:
            for count, chunk in enumerate(call, 1):
                self.quota.days.moved(len(chunk.data))
                size = part.size_of(chunk.number)
                data = unpack(chunk.data, size) if chunk.packed else chunk.data
                self.blobs.write(part, chunk.number, data)
                if count % SYNC_CHUNKS == 0:
                    self.blobs.sync(part)
                self.cap.moved(len(chunk.data))
                self.wait(order)
                if count == len(missing):
                    return  # whatever else it would say was not asked for
        finally:
            call.cancel()
            self.blobs.sync(part)
