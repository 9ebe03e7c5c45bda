"""Power cuts over large parts: a chunk that counts has its bytes, whatever came and went before."""

import hashlib
import sys
from pathlib import Path
from unittest import mock

import pytest
from tests.power.judging import broken
from tests.power.power_cut import Keep
from tests.power.recording import record_run, require

from asterion_shared.link import blobs, parcels
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Part

CHUNK_BYTES = 5000
DATA = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(600))
PIECES = [DATA[start : start + CHUNK_BYTES] for start in range(0, len(DATA), CHUNK_BYTES)]
PART = Part(len(DATA), None, b"".join(hashlib.sha256(piece).digest() for piece in PIECES))

BEGIN = f"""
import hashlib, sys
from pathlib import Path
from asterion_shared.link import blobs, parcels
from asterion_shared.link.parcels import Part
for module in (blobs, parcels):
    module.CHUNK_BYTES, module.INLINE_BYTES = {CHUNK_BYTES}, 100
data = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(600))
pieces = [data[start : start + {CHUNK_BYTES}] for start in range(0, len(data), {CHUNK_BYTES})]
part = Part(len(data), None, b"".join(hashlib.sha256(piece).digest() for piece in pieces))
store = blobs.BlobStore(Path(sys.argv[1], "link", "reports", "north"))
def take(*numbers):
    assert store.missing(part)
    for number in numbers:
        store.write(part, number, pieces[number])
    store.sync(part)
    print(len(pieces) - len(store.missing(part)), flush=True)
def forget():
    print(0, flush=True)  # from here on nothing is promised
    store.remove([part])
"""
PROGRAMS = {
    "in two calls": "take(0, 2); take(1, 3)",
    "begun, dropped, begun again": "take(0, 2); forget(); take(1)",
    "begun, dropped, whole": "take(0, 1, 2); forget(); take(0, 1, 2, 3)",
    "begun, then one of our own": "take(0, 2); store.add(data); print(4, flush=True)",
    "whole, dropped, begun again": "take(0, 1, 2, 3); forget(); take(2)",
}


def judge(after: Path, told: list[int]) -> str | None:
    """Whether the chunks that count are right, and as many are there as were said last."""
    store = BlobStore(after / "link" / "reports" / "north")
    missing = store.missing(PART)
    store.close()
    if not missing and not store.holds(PART):
        return "nothing is missing, and it is not whole"
    content = (store.folder / (PART.id if not missing else f"{PART.id}.part")).read_bytes()
    for number in set(range(PART.num_chunks)) - set(missing):
        if content[number * CHUNK_BYTES :][: PART.size_of(number)] != PIECES[number]:
            return f"chunk {number} counts and has other bytes"
    there = PART.num_chunks - len(missing)
    return None if there >= (told or [0])[-1] else f"{there} chunks are there"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_chunk_that_counts_has_its_bytes(place: Path, name: str) -> None:
    require()
    (folder := place / "recorded").mkdir()
    words = [sys.executable, "-c", BEGIN + PROGRAMS[name], str(folder)]
    record = record_run(words, folder, place / "notes")
    keeps: tuple[Keep, ...] = ("synced", "everything", *range(10))
    with (
        mock.patch.object(blobs, "CHUNK_BYTES", CHUNK_BYTES),
        mock.patch.object(parcels, "CHUNK_BYTES", CHUNK_BYTES),
    ):
        wrong = list(broken(record, place / "after", keeps, judge))
    assert wrong == []
