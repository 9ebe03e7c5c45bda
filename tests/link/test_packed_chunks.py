"""``transport.lossless`` from the plan to the wire: chunks are packed, and a bomb is refused."""

import struct
import tracemalloc
import zlib
from pathlib import Path
from unittest import mock

import pytest
from tests.link.loopback import Loopback, noise, refusal_of, report_content
from tests.power.coordinator_play import carry_on, folder_of_run, plan_of, small_chunks

from asterion_server import link_reports, link_server
from asterion_shared.chunk_codec import pack, unpack
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import CHUNK_BYTES, to_wire
from asterion_shared.link.refusals import status_text
from asterion_shared.vector_records import vector_of


@pytest.mark.parametrize("lossless", [False, True])
def test_the_plan_says_whether_chunks_are_packed(tmp_path: Path, *, lossless: bool) -> None:
    plan = plan_of(transport={"lossless": lossless})
    run = folder_of_run(tmp_path)
    run.path.mkdir(parents=True)
    run.plan_file.write_text(plan.canonical())
    sent: list[tuple[int, int]] = []

    def packed(chunk: bytes) -> bytes | None:
        found = pack(chunk)
        sent.append((len(chunk), len(chunk if found is None else found)))
        return found

    with (
        small_chunks(),
        mock.patch.object(link_server, "pack", packed),
        mock.patch.object(link_reports, "unpack", wraps=unpack) as unpacked,
    ):
        carry_on(tmp_path, lambda *_: None)
    if not lossless:
        assert sent == []
        assert unpacked.call_count == 0
        return
    before, after = (sum(sizes) for sizes in zip(*sent, strict=True))
    assert before > 2 * 3 * 8000  # two sites, weights of three rounds
    assert after < 0.95 * before
    assert unpacked.call_count >= 4  # an update of each site and round


def test_a_bomb_is_refused_and_its_report_still_comes(link: Loopback) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    plane = packer.compress(bytes(500 * 2**20)) + packer.flush()
    bomb = struct.pack("<BI", 1, len(plane)) + plane
    assert len(bomb) < CHUNK_BYTES
    site, grid, update = link.site(), link.grid(), noise(700_000)
    key = link.post(grid, "north", vector=noise(700_000, 1), lossless=True)
    site.attend()
    parcel = site.pack(report_content(update), lossless=True)
    report = wire.Report(key=key, content=to_wire(parcel))
    assert len(site.stub.Offer(report).parts[0].chunks) == 3
    thrown = wire.Chunk(key=key, part=1, number=0, packed=True, data=bomb)
    tracemalloc.start()
    details, _ = refusal_of(lambda: site.stub.Upload(iter([thrown])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert details == status_text("wrong_chunk")
    assert peak < 8 * 2**20
    chunks = []
    for number in range(3):
        raw = site.blobs.read(parcel.parts[1], number)
        packed = pack(raw)
        assert packed is not None
        assert len(packed) < 0.95 * len(raw)
        chunks.append(wire.Chunk(key=key, part=1, number=number, packed=True, data=packed))
    assert site.stub.Upload(iter(chunks)).num_chunks == 3
    assert site.stub.Submit(report).known is False
    (reply,) = grid.pull_messages([key.hex()])
    assert (vector_of(reply.content["update"], "update", None) == update).all()
