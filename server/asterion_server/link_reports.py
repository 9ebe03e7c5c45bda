"""The reports of one site at the coordinator: announced, arriving, stored.

The link's process alone writes here. What a site may have on disk is bounded: its stored reports,
and at most :data:`MOST_OFFERS` reports on their way, each no larger than its order allows.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from asterion_server.link_store import LinkStore, StoredOrder
from asterion_shared.chunk_codec import unpack
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel, Part, from_wire
from asterion_shared.link.refusals import LinkRefusedError

LOG = logging.getLogger("asterion.link")
REPORT_SPARE_BYTES = 2**27
"""What a report may have beyond the bytes of its order: its statistics."""

MOST_OFFERS = 2
"""Reports of one site on their way at a time; an honest site sends one after the other."""

IDLE_SECONDS = 30.0
"""A report of which nothing came for so long makes room for another one."""


@dataclass(slots=True)
class _Offer:
    """An announced report; ``heard`` is when something of it came last, on a steady clock."""

    content: Parcel
    heard: float


class SiteReports:
    """Takes one site's reports. Any thread may use it.

    Args:
        store: the queue.
        folder: where the large parts lie.
        site: whose they are.

    Raises:
        DiskProblemError: the folder is not writable.
    """

    def __init__(self, store: LinkStore, folder: Path, site: str) -> None:
        self._store, self._site = store, site
        self._blobs = BlobStore(folder)
        self._offers: dict[str, _Offer] = {}
        self._lock = Lock()
        self._has_offered = False

    def offer(self, order: StoredOrder, content: Parcel) -> wire.Needed:
        """Take note of a report to an open order; which of its chunks are missing.

        What belongs to no stored and no announced report is removed.

        Raises:
            LinkRefusedError: ``quota``: too many reports are on their way.
            DiskProblemError: the disk is full or not writable.
        """
        with self._lock:
            self._make_room(order.key)
            self._offers[order.key] = _Offer(content, time.monotonic())
            self._has_offered = True
            self._keep_needed()
            needed = wire.Needed()
            for number, part in enumerate(content.parts):
                if part.inline is None and (missing := self._blobs.missing(part)):
                    needed.parts.add(part=number, chunks=missing)
            return needed

    def take(self, chunk: wire.Chunk) -> Part:
        """Take a chunk of an announced report; the part that it belongs to.

        Raises:
            LinkRefusedError: ``not_offered``, ``malformed`` or ``wrong_chunk``.
            DiskProblemError: the disk is full or not writable.
        """
        with self._lock:
            offer = self._offers.get(chunk.key.hex())
            if offer is None or chunk.part >= len(offer.content.parts):
                why = "a chunk of a report that was not announced"
                raise LinkRefusedError(code="not_offered", why=why)
            offer.heard = time.monotonic()
            part = offer.content.parts[chunk.part]
        if chunk.number >= part.num_chunks:
            raise LinkRefusedError(code="malformed", why=f"a part has no chunk {chunk.number}")
        try:
            size = part.size_of(chunk.number)
            data = unpack(chunk.data, size) if chunk.packed else chunk.data
            # The offer may have made room meanwhile; then nothing of it may be written any more.
            with self._lock:
                if self._offers.get(chunk.key.hex()) is not offer:
                    why = "its report was announced anew"
                    raise LinkRefusedError(code="not_offered", why=why)
                self._blobs.write(part, chunk.number, data)
        except ValueError as error:
            raise LinkRefusedError(code="wrong_chunk", why=str(error)) from None
        return part

    def sync(self, parts: dict[str, Part]) -> None:
        """Make durable what came of these parts.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        for part in parts.values():
            self._blobs.sync(part)

    def sync_after_cut(self, parts: dict[str, Part]) -> None:
        """The same, where nobody is left to be refused: a problem of the disk is logged."""
        try:
            self.sync(parts)
        except DiskProblemError as error:
            LOG.error("site %s: %s", self._site, error)  # noqa: TRY400  # the text says it all

    def submit(self, order: StoredOrder, content: Parcel) -> bool:
        """Store a report whose chunks are all here; True when the order has one already.

        Raises:
            LinkRefusedError: ``chunks_missing``, ``unknown_order`` or ``order_over``.
            DiskProblemError: the queue cannot be written.
        """
        with self._lock:  # so that no part goes between the look and the row
            if not all(self._blobs.holds(part) for part in content.stored):
                why = f"report to {order.key[:12]} is not whole"
                raise LinkRefusedError(code="chunks_missing", why=why)
            known = self._store.store_report(order.key, content)
            self._offers.pop(order.key, None)
            return known

    def tidy(self) -> None:
        """Remove what is needed no more.

        A site with open orders that has announced nothing since the link started may be about to
        announce what it had begun to send; then nothing goes.

        Raises:
            DiskProblemError: the queue cannot be read.
        """
        with self._lock:
            if self._has_offered or not self._store.open_orders(self._site):
                self._drop_closed()
                self._keep_needed()

    def _make_room(self, key: str) -> None:
        self._drop_closed()
        others = [known for known in self._offers if known != key]
        while len(others) >= MOST_OFFERS:
            oldest = min(others, key=lambda known: self._offers[known].heard)
            if time.monotonic() - self._offers[oldest].heard < IDLE_SECONDS:
                why = f"more than {MOST_OFFERS} reports are on their way"
                raise LinkRefusedError(code="quota", why=why)
            del self._offers[oldest]
            others.remove(oldest)

    def _drop_closed(self) -> None:
        for key in [key for key in self._offers if not self._store.is_open(key)]:
            del self._offers[key]

    def _keep_needed(self) -> None:
        needed = self._store.report_parts(self._site)
        for offer in self._offers.values():
            needed += offer.content.stored
        self._blobs.keep_only(needed)


def read_report(order: StoredOrder, report: wire.Report) -> Parcel:
    """What a site announces or hands over as its report to an order.

    Raises:
        LinkRefusedError: ``too_large``: more bytes than the order allows; ``malformed``.
    """
    most = order.content.num_bytes + REPORT_SPARE_BYTES
    claimed = sum(part.size for part in report.content.parts)
    if claimed > most:
        why = f"a report of {claimed} bytes, allowed are {most}"
        raise LinkRefusedError(code="too_large", why=why)
    try:
        return from_wire(report.content)
    except ValueError as error:
        raise LinkRefusedError(code="malformed", why=str(error)) from None
