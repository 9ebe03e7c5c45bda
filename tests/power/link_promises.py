"""What the coordinator promised its sites and itself, and whether a folder after a cut holds it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.power.coordinator_play import CHUNK_BYTES, RUN, folder_of_run

from asterion_server.checkpoint import load_latest
from asterion_server.link_paths import blobs_of_orders, blobs_of_reports
from asterion_server.link_store import LinkStore
from asterion_shared.errors import AsterionError
from asterion_shared.events import read_events
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel, Part, from_wire
from asterion_shared.plan import parse_plan


@dataclass(slots=True)
class Told:
    """Promises that the played coordinator has printed.

    Attributes:
        posted: site and round by the order's key.
        receipts: site, round and report by the order's key.
        held: site, round, part and numbers of chunks.
        checkpoint: the last one's round; -1: none.
        result: SHA-256 of the model's file; empty: there is none yet.
    """

    posted: dict[str, tuple[str, int]] = field(default_factory=dict)
    receipts: dict[str, tuple[str, int, Parcel]] = field(default_factory=dict)
    held: list[tuple[str, int, Part, list[int]]] = field(default_factory=list)
    checkpoint: int = -1
    result: str = ""


def told_of(said: str) -> Told:
    """What a program's output promises."""
    told = Told()
    for line in said.splitlines():
        match json.loads(line):
            case ["posted", site, round_, key]:
                told.posted[key] = site, round_
            case ["held", site, round_, chunks, size, numbers]:
                part = Part(size, None, bytes.fromhex(chunks))
                told.held.append((site, round_, part, numbers))
            case ["receipt", site, round_, key, content]:
                parcel = from_wire(wire.Parcel.FromString(bytes.fromhex(content)))
                told.receipts[key] = site, round_, parcel
            case ["checkpoint", number]:
                told.checkpoint = number
            case ["result", digest]:
                told.result = digest
    return told


def broken_promises(folder: Path, told: Told, parts: Mapping[str, Part]) -> Iterator[str]:
    """What a coordinator's folder lacks of what was told.

    Orders and reports of rounds that a checkpoint covers may be gone.

    Args:
        folder: the coordinator's, as it stands after a cut.
        told: up to the cut.
        parts: all large parts that were ever sent, by their names.
    """
    run = folder_of_run(folder)
    try:
        plan = parse_plan(run.plan_file.read_text(), "the plan")
        found = load_latest(run.path / "checkpoints", RUN, plan)
        read_events(run.events)
    except (AsterionError, OSError) as error:
        yield f"{type(error).__name__}: {error}"
        return
    done = -1 if found is None else found.round
    if done < told.checkpoint:
        yield f"the checkpoint of round {told.checkpoint} is gone, there is {done}"
    yield from _blobs(folder, parts)
    if run.has_ended:
        model = (run.path / "model.safetensors").read_bytes()
        if told.result not in ("", hashlib.sha256(model).hexdigest()):
            yield "the model is another one"
        return
    if told.result:
        yield "the result is gone"
    if told.posted:
        yield from _queue(folder, told, done)
    for site, round_, part, numbers in told.held:
        if round_ <= done:
            continue
        kept = BlobStore(blobs_of_reports(folder, site))
        lost = set(kept.missing(part)) & set(numbers)
        kept.close()
        if lost:
            yield f"chunks {lost} of round {round_} that {site} knows as held are gone"


def _queue(folder: Path, told: Told, done: int) -> Iterator[str]:
    store = LinkStore(f"sqlite:///{folder / 'link' / 'queue.sqlite'}")
    try:
        for key, (site, round_) in told.posted.items():
            order = store.order(key)
            if round_ <= done:
                continue
            if order is None:
                yield f"the order of round {round_} to {site} is gone"
            elif not all(map(BlobStore(blobs_of_orders(folder, RUN)).holds, order.content.stored)):
                yield f"bytes of the order of round {round_} to {site} are gone"
        for key, (site, round_, parcel) in told.receipts.items():
            if round_ <= done:
                continue
            kept = BlobStore(blobs_of_reports(folder, site))
            if store.report(key) != parcel:
                yield f"the report of {site} of round {round_} is gone, or another"
            elif not all(map(kept.holds, parcel.stored)):
                yield f"bytes of the report of {site} of round {round_} are gone"
    finally:
        store.close()


def _blobs(folder: Path, parts: Mapping[str, Part]) -> Iterator[str]:
    """Parts that are not what their name says, or count chunks that they do not have."""
    for place in (blobs_of_orders(folder, RUN), *blobs_of_reports(folder, "").glob("*")):
        if not place.is_dir():
            continue
        store = BlobStore(place)
        for part in parts.values():
            missing = store.missing(part)
            if store.holds(part):
                path, absent = place / part.id, set[int]()
            else:
                path, absent = place / f"{part.id}.part", set(missing)
                if not missing:
                    yield f"{part.id} in {place.name} lacks nothing and is not whole"
            content = path.read_bytes()
            for number in set(range(part.num_chunks)) - absent:
                chunk = content[number * CHUNK_BYTES :][: part.size_of(number)]
                if hashlib.sha256(chunk).digest() != part.hash_of(number):
                    yield f"chunk {number} of {path.name} in {place.name} has other bytes"
        store.close()
