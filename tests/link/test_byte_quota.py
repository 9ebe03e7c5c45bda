"""``consent.bytes_a_day`` on the link: an order that would pass it is not fetched, and says so."""

import itertools
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.link.flaky import flaky
from tests.link.loopback import Loopback, eventually, noise, report_content
from tests.link.test_hostile_coordinator import Hostile, other_bytes

from asterion_client import app as site_app
from asterion_client import link_session
from asterion_client.coordinator_words import LinkOrder
from asterion_client.link_runner import LinkRunner
from asterion_client.link_session import LinkSession
from asterion_client.settings import read_site_settings
from asterion_shared.flower_messages import decode_answer
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import CHUNK_BYTES, HASH_BYTES, Parcel
from asterion_shared.messages import NoReport

VALUES = CHUNK_BYTES // 4
"""Float32 values of a chunk."""


@pytest.fixture
def hostile(link: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(link_session, "RETRY_SECONDS", (0.02,))
    made = Hostile(link)
    yield made
    made.close()


def taken(session: LinkSession) -> LinkOrder:
    order: LinkOrder = eventually(lambda: session.next_order(0.1), 30)
    return order


def inline_bytes(parcel: Parcel) -> int:
    return sum(len(part.inline or b"") for part in parcel.parts)


def moved(session: LinkSession) -> int:
    return int(session.days.today().num_bytes)


def test_an_order_that_would_pass_the_quota_is_not_fetched(link: Loopback, counted) -> None:
    session, grid = link.session(bytes_a_day=3 * CHUNK_BYTES), link.grid()
    link.post(grid, "north", vector=noise(3 * VALUES))
    order = taken(session)
    assert order.refused == "bytes_spent"
    assert counted["down"] == []
    assert moved(session) == inline_bytes(order.content)


def test_an_order_that_alone_is_too_large_takes_no_disk(link: Loopback, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    session = link.session(blobs=blobs, bytes_a_day=2 * CHUNK_BYTES)
    link.post(link.grid(), "north", vector=noise(3 * VALUES))
    assert taken(session).refused == "bytes_spent"
    assert list(blobs.folder.iterdir()) == []


def test_only_missing_chunks_count(link: Loopback, counted) -> None:
    """The second order has two chunks of the first one, and would not fit without them."""
    session, grid = link.session(bytes_a_day=5 * CHUNK_BYTES), link.grid()
    first, second = noise(3 * VALUES), noise(3 * VALUES)
    second[:VALUES] += 1
    link.post(grid, "north", 1, first)
    one = taken(session)
    session._withdraw(one.key)
    link.post(grid, "north", 2, second)
    other = taken(session)
    assert [one.refused, other.refused] == ["", ""]
    assert len(counted["down"]) == 4
    assert moved(session) == 4 * CHUNK_BYTES + sum(inline_bytes(o.content) for o in (one, other))


def test_a_resumed_download_counts_each_chunk_once(
    link: Loopback, counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_session, "RETRY_SECONDS", (0.05,))
    with flaky(link.made.settings.port, 3_000_000) as line:
        session = link.session(address=line.address, bytes_a_day=8 * CHUNK_BYTES + 5_000)
        link.post(link.grid(), "north", vector=noise(8 * VALUES))
        order = taken(session)
        assert line.num_cuts >= 2
    assert order.refused == ""
    assert moved(session) == 8 * CHUNK_BYTES + inline_bytes(order.content)


def test_what_a_report_takes_counts(link: Loopback, counted) -> None:
    session, grid = link.session(), link.grid()
    key = link.post(grid, "north", vector=noise(VALUES))
    order = taken(session)
    before = moved(session)
    site = link.site()
    site.blobs = BlobStore(session._blobs.folder)
    report = site.pack(report_content(noise(2 * VALUES)))
    session.send(order, report)
    eventually(lambda: list(grid.pull_messages([key.hex()])), 20)
    assert len(counted["up"]) == 2
    assert moved(session) - before == 2 * CHUNK_BYTES + inline_bytes(report)


def test_a_site_without_consent_fetches_nothing(link: Loopback, counted) -> None:
    """What came inside of its order is read, and refused by consent itself."""
    session, grid = link.session(bytes_a_day=None), link.grid()
    link.post(grid, "north", 1, noise(VALUES))
    link.post(grid, "north", 2, noise(10))
    found = {order.order.round: order.refused for order in (taken(session), taken(session))}
    assert found == {1: "no_consent", 2: ""}
    assert counted["down"] == []


def repeated(parcel: wire.Parcel, times: int) -> None:
    """Name the first chunk of a part again and again."""
    part = parcel.parts[1]
    part.chunks = part.chunks[:HASH_BYTES] * times
    part.size = CHUNK_BYTES * times


def test_a_chunk_that_is_named_many_times_is_stored_no_more_than_the_quota(
    link: Loopback, hostile: Hostile, tmp_path: Path
) -> None:
    """It moves once; each copy would take disk."""
    blobs = BlobStore(tmp_path / "site")
    session = link.session("north", blobs, bytes_a_day=5 * CHUNK_BYTES)
    hostile.say(wire.Notice(order=hostile.order(1, VALUES)))
    assert taken(session).refused == ""
    again = [hostile.order(1, VALUES), hostile.order(1, VALUES)]
    for number, order in enumerate(again, 2):
        order.key = number.to_bytes(32, "big")
        repeated(order.content, number)
        hostile.say(wire.Notice(order=order))
    assert [taken(session).refused, taken(session).refused] == ["", "bytes_spent"]
    assert blobs.num_bytes() < 4 * CHUNK_BYTES


def wrong(hostile: Hostile, data: bytes) -> Iterator[bytes]:
    for chunk in hostile.asked_for(data):
        other_bytes(chunk)
        yield chunk.SerializeToString()


def endless(hostile: Hostile, data: bytes) -> Iterator[bytes]:
    chunk = next(hostile.asked_for(data))
    for _ in itertools.count():
        yield chunk.SerializeToString()


def test_chunks_that_help_nobody_end_with_the_quota(link: Loopback, hostile: Hostile) -> None:
    hostile.chunks = lambda data: wrong(hostile, data)
    session = link.session(bytes_a_day=8 * CHUNK_BYTES)
    hostile.say(wire.Notice(order=hostile.order(1, 3 * VALUES)))
    assert taken(session).refused == "bytes_spent"
    assert 5 * CHUNK_BYTES < moved(session) <= 8 * CHUNK_BYTES


def test_no_more_is_heard_than_was_asked_for(link: Loopback, hostile: Hostile) -> None:
    """Of a stream that has no end, 3, 2 and 1 chunks are read."""
    hostile.chunks = lambda data: endless(hostile, data)
    session = link.session(bytes_a_day=8 * CHUNK_BYTES)
    hostile.say(wire.Notice(order=hostile.order(1, 3 * VALUES)))
    order = taken(session)
    assert order.refused == ""
    assert moved(session) == 6 * CHUNK_BYTES + inline_bytes(order.content)


@contextmanager
def running(folder: Path, consent: str, patch: pytest.MonkeyPatch) -> Iterator[LinkRunner]:
    toml = folder / "site.toml"
    toml.write_text(toml.read_text().split("[consent]")[0] + consent)
    patch.setenv(site_app.SITE_VARIABLE, str(toml))
    runner, stop = LinkRunner(read_site_settings(toml), folder), threading.Event()
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    try:
        yield runner
    finally:
        stop.set()
        thread.join(20)
        runner._lock.close()


@pytest.mark.parametrize(
    ("consent", "code"),
    [("[consent]\nbytes_a_day = 1_000_000\n", "bytes_spent"), ("", "no_consent")],
)
def test_the_refusal_is_an_answer_and_on_record(
    link: Loopback,
    hospital: Path,
    counted,
    consent: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = link.grid()
    with running(hospital, consent, monkeypatch), caplog.at_level(logging.WARNING):
        key = link.post(grid, "north", 4, noise(2 * VALUES))
        (reply,) = eventually(lambda: list(grid.pull_messages([key.hex()])), 20)
    assert counted["down"] == []
    said = decode_answer(reply.content, "north", 2 * VALUES)
    assert isinstance(said, NoReport)
    assert (said.outcome, said.code, said.stage) == ("refused", code, "receiving")
    state = hospital / "state"
    (left,) = map(json.loads, next((state / "egress").glob("*.jsonl")).read_text().split("\n")[:1])
    assert (left["run"], left["round"], left["what"]) == ("run", 4, "refusal")
    assert left["records"]["refusal"]["code"] == code
    lines = next((state / "audit").glob("audit-*.jsonl")).read_text().splitlines()
    last = json.loads(lines[-1])["record"]
    assert (last["kind"], last["run"], last["round"]) == ("refusal", "run", 4)
    assert last["facts"]["code"] == code
    assert f"refused unread: {code}" in caplog.text


def test_a_round_that_fits_is_asked_of_the_app(
    link: Loopback, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order within the quota is fetched and read; here it is no order at all."""
    grid = link.grid()
    consent = "[consent]\nbytes_a_day = 100_000_000\n"
    with running(hospital, consent, monkeypatch) as runner:
        key = link.post(grid, "north", 4, noise(2 * VALUES))
        (reply,) = eventually(lambda: list(grid.pull_messages([key.hex()])), 20)
        assert np.isclose(runner.session._quota.days.today().num_bytes, 2 * CHUNK_BYTES, atol=5_000)
    said = decode_answer(reply.content, "north", 2 * VALUES)
    assert isinstance(said, NoReport)
    assert said.code == "plan_invalid"
