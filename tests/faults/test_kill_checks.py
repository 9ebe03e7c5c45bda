"""What the kill matrix reads off the coordinator's queue."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from tests.faults.kill_checks import payloads
from tests.faults.kill_harness import WITNESS_TABLE

from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import INLINE_BYTES, to_wire
from asterion_shared.link.records import pack


@pytest.mark.parametrize("num_statistics", [10, INLINE_BYTES])
def test_the_update_alone_is_a_release(tmp_path: Path, num_statistics: int) -> None:
    update = np.arange(INLINE_BYTES, dtype=np.float32)
    content = RecordDict({
        "statistics": MetricRecord({"score": [1.0] * num_statistics}),
        "update": ArrayRecord([update]),
    })  # fmt: skip
    parcel = pack(content, BlobStore(tmp_path / "blobs").add)
    row = ("key", "north", "run", 3, "train", to_wire(parcel).SerializeToString())
    with closing(sqlite3.connect(tmp_path / "queue.sqlite")) as queue:
        queue.execute(WITNESS_TABLE)
        queue.execute("INSERT INTO witness VALUES (?, ?, ?, ?, ?, ?)", row)
        queue.commit()
    stored = hashlib.sha256(content["update"]["0"].data).hexdigest()
    assert payloads(tmp_path / "queue.sqlite", "run") == {("north", 3): [stored]}
