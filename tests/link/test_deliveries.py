"""Orders and reports over a real link: once, whole, quickly, over cuts, proxies and restarts."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.link.flaky import flaky
from tests.link.loopback import (
    Loopback,
    Site,
    eventually,
    free_port,
    noise,
    order_content,
    refusal_of,
    report_content,
)

from asterion_client import link_session
from asterion_client.coordinator_words import LinkOrder
from asterion_client.link_session import LinkSession
from asterion_server import link_server
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import to_wire
from asterion_shared.link.records import pack, unpack
from asterion_shared.link.refusals import status_text
from asterion_shared.vector_records import vector_of

ROOT = Path(__file__).parents[2]


def blobs_of(session: LinkSession) -> BlobStore:
    return session._blobs


def answer(session: LinkSession, vector: np.ndarray, *, lossless: bool = False) -> LinkOrder:
    order = eventually(lambda: session.next_order(0.2), 40)
    report = pack(report_content(vector), blobs_of(session).add, lossless=lossless)
    session.send(order, report)
    return order


def pulled(grid, key: bytes, seconds: float = 40.0):
    (reply,) = eventually(lambda: list(grid.pull_messages([key.hex()])), seconds)
    return reply


def update_in(reply) -> np.ndarray:
    return vector_of(reply.content["update"], "update", None)


def test_there_and_back(link: Loopback) -> None:
    grid, session = link.grid(), link.session()
    weights, update = noise(700_000), noise(700_000, 1)
    key = link.post(grid, "north", vector=weights)
    order = answer(session, update)
    assert order.key == key
    assert (order.order.run, order.order.round, order.order.attempt) == ("run", 1, 1)
    content = unpack(order.content, blobs_of(session).view)
    np.testing.assert_array_equal(vector_of(content["weights"], "weights", None), weights)
    assert content["order"] == order_content("north", 1)["order"]
    reply = pulled(grid, key)
    np.testing.assert_array_equal(update_in(reply), update)
    assert reply.content["numbers"] == report_content()["numbers"]
    assert list(grid.pull_messages([key.hex()])) != []  # it is there until it is reclaimed
    assert link.store.order(key.hex()).state == "answered"


def test_an_order_starts_within_milliseconds_of_being_posted(link: Loopback) -> None:
    grid, session = link.grid(), link.session()
    eventually(lambda: session.standing.connected)
    took = []
    for round_ in range(1, 12):
        began = time.monotonic()
        link.post(grid, "north", round_)
        order = session.next_order(5.0)
        took.append(time.monotonic() - began)
        assert order is not None
        session.send(order, pack(report_content(), blobs_of(session).add))
        pulled(grid, order.key)
    assert sorted(took)[len(took) // 2] < 0.1, took
    assert max(took) < 0.5, took


def test_the_same_report_twice_and_another_under_the_same_key(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    site.attend()
    first, other = site.pack(report_content(value=1.0)), site.pack(report_content(value=2.0))
    assert site.stub.Submit(wire.Report(key=key, content=to_wire(first))).known is False
    stored = link.store.report(key.hex())
    assert stored == first
    for parcel in (first, other):
        assert site.stub.Submit(wire.Report(key=key, content=to_wire(parcel))).known is True
        assert link.store.report(key.hex()) == first
    large = site.pack(report_content(noise(700_000)))
    offer = wire.Report(key=key, content=to_wire(large))
    assert list(site.stub.Offer(offer).parts) == []  # nothing is wanted of it
    assert site.stub.Submit(offer).known is True
    assert pulled(grid, key).content["numbers"]["loss"] == 1.0


def test_concurrent_submissions_store_one(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    site.attend()
    for round_ in range(1, 4):
        key = link.post(grid, "north", round_)
        reports = [
            wire.Report(key=key, content=to_wire(site.pack(report_content(value=float(n)))))
            for n in range(5)
        ]
        known: list[tuple[int, bool]] = []

        def submit(number: int, reports=reports, known=known) -> None:
            known.append((number, site.stub.Submit(reports[number]).known))

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [number for number, was_known in known if not was_known]
        assert pulled(grid, key).content["numbers"]["loss"] == float(winner)


def chunks_of(site: Site, key: bytes, parcel, numbers, cut=None) -> Iterator[wire.Chunk]:
    for number in numbers:
        yield wire.Chunk(
            key=key, part=1, number=number, data=site.blobs.read(parcel.parts[1], number)
        )
    if cut is not None:
        cut.wait(20)


def test_an_upload_cut_in_the_middle_goes_on_where_it_was(link: Loopback, counted) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    site.attend()
    parcel = site.pack(report_content(noise(10 * 2**18)))
    report = wire.Report(key=key, content=to_wire(parcel))
    assert list(site.stub.Offer(report).parts[0].chunks) == list(range(10))
    cut = threading.Event()
    upload = site.stub.Upload.future(chunks_of(site, key, parcel, range(4), cut))
    eventually(lambda: len(counted["up"]) == 4)
    upload.cancel()
    cut.set()
    # Also after the link was started again: what arrived before the cut was synced at its end.
    folder = link.made.folder / "link" / "reports" / "north"
    eventually(lambda: sum(next(folder.glob("*.have")).read_bytes()) == 4)
    link.restart()
    site = link.site()
    site.attend()
    site.pack(report_content(noise(10 * 2**18)))
    assert list(site.stub.Offer(report).parts[0].chunks) == list(range(4, 10))
    site.stub.Upload(chunks_of(site, key, parcel, range(4, 10)))
    assert site.stub.Submit(report).known is False
    assert len(set(counted["up"])) == len(counted["up"]) == 10
    np.testing.assert_array_equal(update_in(pulled(grid, key)), noise(10 * 2**18))


def test_a_whole_report_that_was_not_handed_over_outlives_the_link(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    site.attend()
    parcel = site.pack(report_content(noise(700_000)))
    report = wire.Report(key=key, content=to_wire(parcel))
    site.stub.Offer(report)
    site.stub.Upload(chunks_of(site, key, parcel, range(3)))
    link.restart()
    time.sleep(0.3)  # it has tidied by now
    site = link.site()
    site.attend()
    assert list(site.stub.Offer(report).parts) == []
    assert site.stub.Submit(report).known is False


def test_a_flaky_line_delivers_both_ways_and_sends_nothing_twice(
    link: Loopback, counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection is reset after 3 MB; 8 MB go each way."""
    monkeypatch.setattr(link_session, "RETRY_SECONDS", (0.05,))
    grid, num_values = link.grid(), 8 * 2**18
    with flaky(link.made.settings.port, 3_000_000) as line:
        session = link.session(address=line.address)
        weights, update = noise(num_values), noise(num_values, 1)
        key = link.post(grid, "north", vector=weights)
        order = answer(session, update)
        reply = pulled(grid, key, 60)
        assert line.num_cuts >= 4
    np.testing.assert_array_equal(update_in(reply), update)
    content = unpack(order.content, blobs_of(session).view)
    np.testing.assert_array_equal(vector_of(content["weights"], "weights", None), weights)
    # No chunk that came is asked for again: each is taken once.
    assert len(set(counted["up"])) == len(counted["up"]) == 8
    # What a cut leaves in the pipe is read in vain: at most what flow control lets out.
    assert len(set(counted["down"])) == 8
    assert len(counted["down"]) <= 8 + 4 * line.num_cuts


def test_a_download_goes_on_where_it_was_after_a_restart_of_the_site(
    link: Loopback, counted, tmp_path: Path
) -> None:
    grid, weights = link.grid(), noise(40 * 2**18)
    key = link.post(grid, "north", vector=weights)
    part = link.store.order(key.hex()).content.parts[1]
    blobs = BlobStore(tmp_path / "kept")
    site = link.site()
    site.attend()
    wanted = wire.Wanted(key=key, part=1, chunks=range(40))
    for count, chunk in enumerate(site.stub.Download(wanted), 1):
        blobs.write(part, chunk.number, chunk.data)
        if count == 32:
            blobs.sync(part)
            break
    site.channel.close()
    before = len(counted["down"])
    session = link.session(blobs=BlobStore(tmp_path / "kept"))
    order = eventually(lambda: session.next_order(0.2))
    assert sorted(number for _, number in counted["down"][before:]) == list(range(32, 40))
    content = unpack(order.content, blobs_of(session).view)
    np.testing.assert_array_equal(vector_of(content["weights"], "weights", None), weights)


def test_what_the_site_holds_of_the_last_order_is_not_sent_again(link: Loopback, counted) -> None:
    grid, session = link.grid(), link.session()
    weights = noise(6 * 2**18)
    link.post(grid, "north", 1, weights)
    pulled(grid, answer(session, weights[:10]).key)
    changed = weights.copy()
    changed[-1] += 1.0
    counted["down"].clear()
    link.post(grid, "north", 2, changed)
    order = answer(session, weights[:10])
    assert [number for _, number in counted["down"]] == [5]
    content = unpack(order.content, blobs_of(session).view)
    np.testing.assert_array_equal(vector_of(content["weights"], "weights", None), changed)


def test_packing_on_the_way_changes_nothing_but_the_bytes(link: Loopback) -> None:
    grid = link.grid()
    smooth = np.linspace(-1, 1, 8 * 2**18, dtype=np.float32)
    moved = {}
    for lossless in (False, True):
        with flaky(link.made.settings.port, None) as line:
            session = link.session(address=line.address)
            key = link.post(grid, "north", 1 + lossless, smooth + lossless, lossless=lossless)
            order = answer(session, smooth, lossless=lossless)
            reply = pulled(grid, key)
            moved[lossless] = line.num_bytes
            session.stop()
        assert order.content.lossless is lossless
        np.testing.assert_array_equal(update_in(reply), smooth)
        content = unpack(order.content, blobs_of(session).view)
        vector = vector_of(content["weights"], "weights", None)
        np.testing.assert_array_equal(vector, smooth + lossless)
        eventually(lambda: not link.store.sessions()[0].is_open)
    assert moved[False] > 16 * 2**20
    assert moved[True] < 0.8 * moved[False]


def test_through_an_http_connect_proxy(link: Loopback, tmp_path: Path) -> None:
    port = free_port()
    words = [sys.executable, "-m", "tests.network.connect_proxy", "127.0.0.1", str(port)]
    process = subprocess.Popen([*words, str(tmp_path / "control")], cwd=ROOT)
    try:
        eventually((tmp_path / "control").exists)
        grid, session = link.grid(), link.session(proxy=f"http://127.0.0.1:{port}")
        update = noise(700_000)
        key = link.post(grid, "north", vector=noise(700_000, 3))
        answer(session, update)
        np.testing.assert_array_equal(update_in(pulled(grid, key)), update)
    finally:
        process.kill()
        process.wait()
    # And it was the way: without the proxy the session is gone.
    eventually(lambda: not session.standing.connected)


def test_an_order_that_is_late_is_withdrawn_and_its_report_refused(
    link: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    grid, session = link.grid(), link.session()
    key = link.post(grid, "north", ttl_seconds=1.0)
    order = eventually(lambda: session.next_order(0.2))
    assert 0 < order.order.seconds_left <= 1.0
    assert order.over.wait(5.0)  # the link said so
    site = link.site()
    parcel = site.pack(report_content())
    details, _ = refusal_of(lambda: site.stub.Submit(wire.Report(key=key, content=to_wire(parcel))))
    assert details == status_text("order_over")
    # Posted again it is asked again, by the same session.
    link.post(grid, "north")
    again = eventually(lambda: session.next_order(0.2))
    assert again.key == key
    assert 3599.0 < again.order.seconds_left <= 3600.0
    session.send(again, pack(report_content(), blobs_of(session).add))
    pulled(grid, key)


def test_open_orders_come_again_with_each_session_until_answered(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    for attempt in range(1, 4):
        session = site.attend()
        order = next(session).order
        assert (order.key, order.attempt) == (key, attempt)
        session.cancel()
    link.restart()
    site = link.site()
    session = site.attend()
    assert next(session).order.attempt == 4
    site.stub.Submit(wire.Report(key=key, content=to_wire(site.pack(report_content()))))
    assert next(session).withdrawn.key == key
    session.cancel()
    session = site.attend()
    link.post(grid, "north", 2)
    assert next(session).order.round == 2


def test_an_order_that_could_not_be_answered_is_handed_out_again(link: Loopback) -> None:
    grid, session = link.grid(), link.session()
    key = link.post(grid, "north", vector=noise(700_000))
    order = eventually(lambda: session.next_order(0.2))
    blobs_of(session).keep_only([])  # as if the disk had lost it
    session.again(order, 0.1)
    again = eventually(lambda: session.next_order(0.2))
    assert again.key == key
    assert unpack(again.content, blobs_of(session).view)


def test_reports_of_one_run_survive_the_reclaiming_of_another(
    link: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "BEAT_SECONDS", 0.3)
    link.restart()
    site, first, second = link.site(), link.grid("first"), link.grid("second")
    site.attend()
    keys = [link.post(grid, "north") for grid in (first, second)]
    for key, seed in zip(keys, (1, 2), strict=True):
        parcel = site.pack(report_content(noise(700_000, seed)))
        report = wire.Report(key=key, content=to_wire(parcel))
        site.stub.Offer(report)
        site.stub.Upload(chunks_of(site, key, parcel, range(3)))
        site.stub.Submit(report)
    first.close()
    link._grids.remove(first)
    folder = link.made.folder / "link" / "reports" / "north"
    eventually(lambda: len(list(folder.iterdir())) == 2, 15)
    np.testing.assert_array_equal(update_in(pulled(second, keys[1])), noise(700_000, 2))


def test_what_came_for_orders_that_ended_is_removed(
    link: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "BEAT_SECONDS", 0.3)
    link.restart()
    site, grid = link.site(), link.grid()
    site.attend()
    key = link.post(grid, "north")
    parcel = site.pack(report_content(noise(700_000)))
    site.stub.Offer(wire.Report(key=key, content=to_wire(parcel)))
    site.stub.Upload(chunks_of(site, key, parcel, range(2)))
    folder = link.made.folder / "link" / "reports" / "north"
    assert any(folder.iterdir())
    link.store.end([key.hex()])
    link.post(grid, "south", 2)  # rings
    eventually(lambda: not any(folder.iterdir()), 15)


def test_a_report_that_holds_no_records_is_rejected_and_the_run_goes_on(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    nonsense = wire.Parcel(parts=[wire.Part(size=3, inline=b"\xff\xff\xff")])
    site.stub.Submit(wire.Report(key=key, content=nonsense))
    assert len(pulled(grid, key).content) == 0
