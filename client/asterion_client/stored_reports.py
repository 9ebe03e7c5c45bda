"""A site's reports on disk, before anything is charged or sent: the same order, the same bytes.

A report is stored when training has ended. Whatever dies afterwards, the same order (its SHA-256,
global weights included) gets the stored report, so nothing is trained twice, and what leaves of a
private run is one release however often it is sent.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from google.protobuf.message import DecodeError

from asterion_client.settings import SiteSettings
from asterion_shared.errors import ReportRejectedError
from asterion_shared.files import write_atomically
from asterion_shared.flower_messages import decode_answer, encode_report
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel, Part, from_wire, to_wire
from asterion_shared.link.records import pack, unpack
from asterion_shared.messages import Order, Report, order_sha256
from asterion_shared.vector_records import codes_of

KEPT_ROUNDS = 2
"""Rounds of a run whose reports stay: the last one, and the one before it."""

SUFFIX = ".report"


@cache
def site_blobs(state: Path) -> BlobStore:
    """The site's large parts: weights that came, updates that go. One a process and folder.

    Args:
        state: the site's state folder, absolute.
    """
    return BlobStore(state / "link" / "blobs")


class StoredReport:
    """The place of the report to one order.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        order: to train or to evaluate.
    """

    def __init__(self, settings: SiteSettings, folder: Path, order: Order) -> None:
        state = (folder / settings.state_folder).resolve()
        self._site, self._blobs, self._order = settings.name, site_blobs(state), order
        name = f"{order.round:06d}-{order.phase}-{order_sha256(order)[:32]}{SUFFIX}"
        self._path = state / "runs" / order.run / "reports" / name

    def find(self) -> Report | None:
        """The report to this very order, or None.

        A file that a broken disk has spoilt counts as none: then the site trains again.
        """
        path, order = self._path, self._order
        if not path.exists():
            return None
        size = None if order.weights is None else order.weights.size
        try:
            parcel = from_wire(wire.Parcel.FromString(path.read_bytes()))
            content = unpack(parcel, self._blobs.view)
            found = decode_answer(content, self._site, size, order.plan.transport.update)
            if not isinstance(found, Report):
                return None
            kind = order.plan.transport.update
            if kind == "float32" or found.update is None:
                return found
            return replace(found, encoded=codes_of(content["update"], size, kind))
        except (OSError, ValueError, DecodeError, ReportRejectedError):
            return None

    def store(self, report: Report) -> None:
        """Keep a report; durable when it returns. Those of older rounds go.

        Whoever asks for the closing evaluation has the last round's model in a checkpoint, so then
        no training is asked for again.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        parcel = pack(encode_report(report), self._blobs.add)
        write_atomically(self._path, to_wire(parcel).SerializeToString())
        kept = 1 if self._order.phase == "evaluate" else KEPT_ROUNDS
        for path in self._path.parent.glob(f"*{SUFFIX}"):
            if int(path.name.split("-")[0]) <= self._order.round - kept:
                path.unlink()


def stored_parts(state: Path) -> list[Part]:
    """The large parts of all stored reports of a site."""
    parts: list[Part] = []
    for path in state.glob(f"runs/*/reports/*{SUFFIX}"):
        try:
            parcel: Parcel = from_wire(wire.Parcel.FromString(path.read_bytes()))
        except (OSError, ValueError, DecodeError):
            continue  # removed just now, or spoilt: then nothing needs its parts
        parts += parcel.stored
    return parts
