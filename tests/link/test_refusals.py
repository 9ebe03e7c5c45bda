"""Every refusal of the link: its code, its gRPC status, a line in the log, nothing stored."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from tests.link.loopback import Loopback, Site, eventually, noise, refusal_of, report_content
from tests.papers import papers_of, provisioned

from asterion_server import link_calls, link_reports, link_store
from asterion_server.link_calls import MOST_READ_BYTES
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.channel import MOST_MESSAGE_BYTES
from asterion_shared.link.identity import Identity, read_identity
from asterion_shared.link.parcels import CHUNK_BYTES, Parcel, to_wire
from asterion_shared.link.refusals import REFUSALS, status_text

SEEN: set[str] = set()
BIG = noise(700_000)  # 2.8 MB: three chunks


@pytest.fixture
def refused(caplog: pytest.LogCaptureFixture):
    """Asserts that a call is refused with a code and that the log says so."""
    caplog.set_level(logging.INFO, "asterion.link")

    def check(code: str, work, site: str = "north") -> None:
        caplog.clear()
        details, status = refusal_of(work)
        assert (details, status) == (status_text(code), REFUSALS[code])
        line = f"site {site}: refused ({code}): "
        eventually(lambda: any(line in message for message in caplog.messages))
        SEEN.add(code)

    return check


def report(key: bytes, parcel: Parcel) -> wire.Report:
    return wire.Report(key=key, content=to_wire(parcel))


def chunks_of(site: Site, key: bytes, parcel: Parcel, number: int = 1) -> Iterator[wire.Chunk]:
    part = parcel.parts[number]
    for chunk in range(part.num_chunks):
        data = site.blobs.read(part, chunk)
        yield wire.Chunk(key=key, part=number, number=chunk, data=data)


def raw(site: Site, method: str, data: bytes):
    return site.channel.unary_unary(f"/asterion.link.v1.Link/{method}")(data)


def test_malformed(link: Loopback, refused) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north", vector=BIG)
    session = site.attend()
    for method in ("Offer", "Submit"):
        refused("malformed", lambda m=method: raw(site, m, b"\xff\xff\xff"))
    refused("malformed", lambda: site.stub.Submit(wire.Report(key=b"short")))
    parcel = site.pack(report_content())
    refused("malformed", lambda: site.stub.Submit(wire.Report(key=key)))
    bad = to_wire(parcel)
    bad.parts[0].size += 1
    refused("malformed", lambda: site.stub.Offer(wire.Report(key=key, content=bad)))
    refused("malformed", lambda: list(site.stub.Download(wire.Wanted(key=key, part=99))))
    refused("malformed", lambda: list(site.stub.Download(wire.Wanted(key=key, part=1, chunks=[3]))))
    refused(
        "malformed",
        lambda: list(site.stub.Download(wire.Wanted(key=key, part=1, chunks=[0, 0, 0, 0]))),
    )
    refused("malformed", lambda: next(link.site().stub.Attend(wire.Hello(format=1))))
    stream = site.channel.stream_unary("/asterion.link.v1.Link/Upload")
    refused("malformed", lambda: stream(iter([b"\xff\xff"])))
    big = site.pack(report_content(BIG))
    site.stub.Offer(report(key, big))
    far = wire.Chunk(key=key, part=1, number=3, data=b"x")
    refused("malformed", lambda: site.stub.Upload(iter([far])))
    assert link.store.report(key.hex()) is None
    session.cancel()


def test_too_large(link: Loopback, refused) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    site.attend()
    size = 2**27 + 2**20
    hashes = b"\0" * 32 * (size // CHUNK_BYTES)
    huge = wire.Parcel(parts=[wire.Part(size=size, chunks=hashes)])
    refused("too_large", lambda: site.stub.Offer(wire.Report(key=key, content=huge)))
    refused("too_large", lambda: site.stub.Submit(wire.Report(key=key, content=huge)))
    claimed = wire.Parcel(parts=[wire.Part(size=2**63)] * 16)
    refused("too_large", lambda: site.stub.Offer(wire.Report(key=key, content=claimed)))
    with unlimited(link) as channel:
        site.channel = channel
        over = bytes(MOST_MESSAGE_BYTES + 1)
        refused("too_large", lambda: raw(site, "Submit", over))
        stream = channel.stream_unary("/asterion.link.v1.Link/Upload")
        refused("too_large", lambda: stream(iter([over])))
        # gRPC itself refuses what would take too much memory.
        details, status = refusal_of(lambda: raw(site, "Submit", bytes(MOST_READ_BYTES + 1)))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "Received message larger" in details


@contextmanager
def unlimited(link: Loopback) -> Iterator[grpc.Channel]:
    """A channel that sends messages of any size."""
    own = link.identity("north")
    credentials = grpc.ssl_channel_credentials(own.root, own.private_key, own.certificate)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(link.address, credentials, options) as channel:
        yield channel


def test_wrong_chunk_and_chunks_missing_and_not_offered(link: Loopback, refused) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    parcel = site.pack(report_content(BIG))
    part = parcel.parts[1]
    refused("not_offered", lambda: site.stub.Offer(report(key, parcel)))  # no session
    refused("not_offered", lambda: site.stub.Upload(chunks_of(site, key, parcel)))
    site.attend()
    refused("not_offered", lambda: site.stub.Upload(chunks_of(site, key, parcel)))
    refused("chunks_missing", lambda: site.stub.Submit(report(key, parcel)))
    needed = site.stub.Offer(report(key, parcel))
    assert [(n.part, list(n.chunks)) for n in needed.parts] == [(1, [0, 1, 2])]
    first = site.blobs.read(part, 0)
    flipped = bytes([first[0] ^ 1]) + first[1:]
    for data, packed in ((flipped, False), (first[:-1], False), (b"", False), (flipped, True)):
        chunk = wire.Chunk(key=key, part=1, number=0, data=data, packed=packed)
        refused("wrong_chunk", lambda c=chunk: site.stub.Upload(iter([c])))
    swapped = wire.Chunk(key=key, part=1, number=1, data=first)
    refused("wrong_chunk", lambda: site.stub.Upload(iter([swapped])))
    absent = wire.Chunk(key=key, part=9, number=0, data=first)
    refused("not_offered", lambda: site.stub.Upload(iter([absent])))
    refused("chunks_missing", lambda: site.stub.Submit(report(key, parcel)))
    assert site.stub.Upload(chunks_of(site, key, parcel)).num_chunks == 3
    assert site.stub.Submit(report(key, parcel)).known is False


def test_unknown_foreign_and_late_orders(link: Loopback, refused) -> None:
    site, other, grid = link.site(), link.site("south"), link.grid()
    key = link.post(grid, "north", vector=BIG)
    parcel = site.pack(report_content())
    site.attend()
    other.attend()
    refused("unknown_order", lambda: site.stub.Submit(report(bytes(32), parcel)))
    refused("unknown_order", lambda: list(site.stub.Download(wire.Wanted(key=bytes(32)))))
    for work in (
        lambda: other.stub.Submit(report(key, parcel)),
        lambda: other.stub.Offer(report(key, parcel)),
        lambda: list(other.stub.Download(wire.Wanted(key=key, part=1, chunks=[0]))),
    ):
        refused("unknown_order", work, "south")
    short = link.post(grid, "north", 2, ttl_seconds=0.2)
    time.sleep(0.25)
    refused("order_over", lambda: site.stub.Submit(report(short, parcel)))
    link.store.end([key.hex()])
    refused("order_over", lambda: site.stub.Submit(report(key, parcel)))
    refused("order_over", lambda: site.stub.Offer(report(key, parcel)))
    refused(
        "order_over", lambda: list(site.stub.Download(wire.Wanted(key=key, part=1, chunks=[0])))
    )
    assert link.store.report(key.hex()) is None
    third = link.post(grid, "north", 3, vector=BIG)
    for path in (link.made.folder / "link" / "orders" / "run").iterdir():
        path.unlink()
    refused(
        "order_over", lambda: list(site.stub.Download(wire.Wanted(key=third, part=1, chunks=[0])))
    )


def test_foreign_certificates(link: Loopback, refused, tmp_path: Path) -> None:
    # Another coordinator's authority: TLS itself fails, no call begins.
    elsewhere = provisioned(tmp_path / "other", ["localhost"], ["north"])
    papers = papers_of(elsewhere, "north")
    stranger = read_identity(
        papers_of(link.made, "north") / "ca.pem", papers / "site.pem", papers / "site.key"
    )
    hello = link.site().hello()
    channel = link.channel(stranger)
    _, status = refusal_of(lambda: next(service.LinkStub(channel).Attend(hello)))
    assert status is grpc.StatusCode.UNAVAILABLE
    # Nor does a site trust a coordinator of another authority.
    misled = read_identity(papers / "ca.pem", papers / "site.pem", papers / "site.key")
    _, status = refusal_of(lambda: next(service.LinkStub(link.channel(misled)).Attend(hello)))
    assert status is grpc.StatusCode.UNAVAILABLE
    # Signed by our authority, and not, or no longer, enrolled; or with another key.
    south = link.identity("south")
    stub = service.LinkStub(link.channel(south))
    enrolled = link.made.public_key("south")
    kept = enrolled.read_bytes()
    enrolled.unlink()
    refused("foreign", lambda: next(stub.Attend(hello)), "unknown")
    enrolled.write_bytes(link.made.public_key("west").read_bytes())
    refused("foreign", lambda: stub.Submit(wire.Report()), "unknown")
    enrolled.write_bytes(kept)
    assert next(stub.Attend(hello)).welcome.site == "south"
    # The coordinator's own certificate is of the authority and is no site's.
    made = link.made
    own = Identity(
        made.root_certificate.read_bytes(), made.certificate.read_bytes(),
        made.private_key.read_bytes(),
    )  # fmt: skip
    stub = service.LinkStub(link.channel(own))
    with pytest.raises(grpc.RpcError):
        next(stub.Attend(hello))


def revoke(link: Loopback, site: str) -> None:
    certificate = x509.load_pem_x509_certificate(
        (papers_of(link.made, site) / "site.pem").read_bytes()
    )
    with link.made.revoked.open("a") as file:
        file.write(f"{certificate.serial_number:x}\n")


def test_a_revocation_counts_at_once_while_connected(link: Loopback, refused) -> None:
    site, other, grid = link.site(), link.site("south"), link.grid()
    key = link.post(grid, "north", vector=noise(16 * 2**18))  # 16 chunks
    session, theirs = site.attend(), other.attend()
    assert next(session).WhichOneof("what") == "order"
    download = site.stub.Download(wire.Wanted(key=key, part=1, chunks=range(16)))
    assert next(download).number == 0
    revoke(link, "north")
    began = time.monotonic()
    refused("revoked", lambda: next(n for n in session if n.WhichOneof("what") == "x"), "unknown")
    assert time.monotonic() - began < 2.0
    refused("revoked", lambda: site.stub.Submit(wire.Report(key=key)), "unknown")
    refused("revoked", lambda: site.attend(), "unknown")

    def slowly() -> None:
        for _ in download:
            time.sleep(0.2)

    refused("revoked", slowly, "unknown")  # a transfer that had begun ends, too
    assert link.post(grid, "south")
    assert next(n for n in theirs if n.WhichOneof("what") == "order")  # nobody else does


def test_a_revocation_counts_while_the_bell_rings_all_the_time(link: Loopback) -> None:
    grid, session = link.grid(), link.site().attend()
    revoke(link, "north")
    began = time.monotonic()
    until = began + 5.0
    while session.is_active() and time.monotonic() < until:
        link.post(grid, "south", 1)  # rings every session
        time.sleep(0.05)
    assert time.monotonic() - began < 2.0
    assert session.details() == status_text("revoked")


def test_second_process_and_takeover(
    link: Loopback, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, copy = link.site(), link.site()
    first = site.attend()
    refused("second_process", lambda: copy.attend())
    # A restarted process of the same folder takes over at once; the earlier session ends.
    second = site.attend()
    assert list(first) == [] or eventually(lambda: not first.is_active())
    second.cancel()
    eventually(lambda: not link.store.sessions()[0].is_open)
    assert copy.attend()
    monkeypatch.setattr(link_store, "SESSION_SECONDS", 0.0)
    assert site.attend()  # after the silence, whoever comes


def test_other_version(link: Loopback, refused) -> None:
    site = link.site()
    refused("other_version", lambda: next(site.stub.Attend(site.hello(format=2))))
    refused("other_version", lambda: next(site.stub.Attend(wire.Hello())))
    assert link.store.sessions() == []


def test_quota_of_calls(link: Loopback, refused) -> None:
    site, other = link.site(), link.site("south")
    calls, grid = [], link.grid()
    site.attend()
    key = link.post(grid, "north", vector=noise(32 * 2**18))
    wanted = wire.Wanted(key=key, part=1, chunks=range(32))
    for _ in range(link_calls.MOST_CALLS):
        calls.append(site.stub.Download(wanted))
        next(calls[-1])  # the others are not read: flow control holds them
    refused("quota", lambda: list(site.stub.Download(wanted)))
    assert other.attend()  # one site's flood is not another's
    assert site.attend()  # and keeps its own next session not out
    calls.pop().cancel()
    eventually(lambda: _served(site, wanted))
    for call in calls:
        call.cancel()


def _served(site: Site, wanted: wire.Wanted) -> bool:
    try:
        return len(list(site.stub.Download(wanted))) == len(wanted.chunks)
    except grpc.RpcError:
        return False


def test_quota_of_arriving_reports(
    link: Loopback, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = link.site()
    grids = [link.grid(f"run-{n}") for n in range(3)]
    keys = [link.post(grid, "north") for grid in grids]
    site.attend()
    parcels = [site.pack(report_content(noise(700_000, seed))) for seed in range(3)]
    offers = [report(key, parcel) for key, parcel in zip(keys, parcels, strict=True)]
    for key, offer, parcel in zip(keys[:2], offers[:2], parcels[:2], strict=True):
        site.stub.Offer(offer)
        site.stub.Upload(iter(list(chunks_of(site, key, parcel))[:2]))
    refused("quota", lambda: site.stub.Offer(offers[2]))
    folder = link.made.folder / "link" / "reports" / "north"

    def on_disk() -> int:
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())

    most = sum(parcel.num_bytes for parcel in parcels[:2]) + 2**16
    assert on_disk() <= most
    # Another content for the same order replaces the first, with what had come of it.
    for seed in range(3, 9):
        again = site.pack(report_content(noise(700_000, seed)))
        site.stub.Offer(report(keys[0], again))
        site.stub.Upload(chunks_of(site, keys[0], again))
        assert on_disk() <= most
    # One that is submitted makes room, and so does one of which nothing comes any more.
    site.stub.Submit(report(keys[0], again))
    site.stub.Offer(offers[2])
    monkeypatch.setattr(link_reports, "IDLE_SECONDS", 0.0)
    fourth = link.post(link.grid("run-3"), "north")
    assert site.stub.Offer(report(fourth, parcels[0])).parts
    assert site.stub.Submit(report(keys[0], again)).known


def test_disk_problem(link: Loopback, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north", vector=BIG)
    site.attend()
    parcel = site.pack(report_content(BIG + 1))
    site.stub.Offer(report(key, parcel))
    real = link_reports.BlobStore.write
    calls = []

    def full(*given: object) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise link_reports.DiskProblemError(Path("disk"), "No space left on device")
        real(*given)

    monkeypatch.setattr(link_reports.BlobStore, "write", full)
    refused("disk_problem", lambda: site.stub.Upload(chunks_of(site, key, parcel)))
    needed = site.stub.Offer(report(key, parcel))
    assert [list(part.chunks) for part in needed.parts] == [[1, 2]]  # what had come is kept
    assert site.stub.Upload(c for c in chunks_of(site, key, parcel) if c.number).num_chunks == 2
    assert site.stub.Submit(report(key, parcel)).known is False


def test_a_flood_of_mistakes_ends_the_session_and_not_the_log(
    link: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    site, grid = link.site(), link.grid()
    session, other = site.attend(), link.site("south")
    theirs = other.attend()
    for _ in range(300):
        refusal_of(lambda: site.stub.Submit(wire.Report(key=b"?")))
    lines = [line for line in caplog.messages if "site north: refused (malformed)" in line]
    assert link_calls.MOST_LINES - 5 <= len(lines) <= link_calls.MOST_LINES + 30
    assert eventually(lambda: not session.is_active())
    link.post(grid, "south")
    assert next(n for n in theirs if n.WhichOneof("what") == "order")


def test_words_of_a_site_stay_one_line_of_the_log(
    link: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asterion.link")
    link.site().attend(version="1\nsite south: session open \x1b[31m" + "x" * 1000)
    (line,) = [line for line in caplog.messages if "session open" in line]
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 100


def test_every_code_has_its_test() -> None:
    assert set(REFUSALS) == SEEN


def test_arrays_in_a_report_do_not_alias_the_order(link: Loopback) -> None:
    """What an order holds is no way to have a report stored without sending it."""
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north", vector=BIG)
    site.attend()
    needed = site.stub.Offer(report(key, site.pack(report_content(np.array(BIG)))))
    assert [list(part.chunks) for part in needed.parts] == [[0, 1, 2]]
