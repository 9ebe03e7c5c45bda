"""Sessions, a site's own rate cap and hours, and what a hostile one gets of memory and log."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
from tests.link.loopback import Loopback, Site, eventually, linked, noise

from asterion_client import link_session
from asterion_server import link_server
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import CHUNK_BYTES


def test_a_call_that_is_cut_while_its_session_opens_leaves_none_open(link: Loopback) -> None:
    for _ in range(30):
        site = link.site()
        call = site.stub.Attend(site.hello())
        time.sleep(0.003)
        call.cancel()
        site.channel.close()
    eventually(lambda: not any(session.is_open for session in link.store.sessions()))
    other = link.site()
    assert other.attend()  # another state folder is not kept out


def test_a_quiet_session_hears_beats_though_other_runs_ring(
    link: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "BEAT_SECONDS", 0.5)
    grid, session = link.grid(), link.site("south").attend()
    stop = threading.Event()

    def busy() -> None:
        round_ = 0
        while not stop.wait(0.05):
            round_ += 1
            link.post(grid, "north", round_)

    thread = threading.Thread(target=busy)
    thread.start()
    began = time.monotonic()
    assert next(session).WhichOneof("what") == "beat"
    assert time.monotonic() - began < 1.5
    stop.set()
    thread.join()


def test_bytes_are_capped(link: Loopback) -> None:
    grid, session = link.grid(), link.session(most_bytes_per_second=4_000_000)
    link.post(grid, "north", vector=noise(5 * 2**18))
    began = time.monotonic()
    assert eventually(lambda: session.next_order(0.2))
    assert 5 * CHUNK_BYTES / 4e6 <= time.monotonic() - began < 8


def test_nothing_moves_outside_of_the_hours(
    link: Loopback, counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = [0.3]
    monkeypatch.setattr(link_session, "seconds_until_open", lambda hours, now: wait[0])
    grid, session = link.grid(), link.session(hours=["22:00-06:00"])
    link.post(grid, "north", vector=noise(700_000))
    assert eventually(lambda: session.standing.connected)  # the session itself is small
    assert session.next_order(0.7) is None
    assert counted["down"] == []
    wait[0] = 0.0
    assert eventually(lambda: session.next_order(0.2))


def test_a_hostile_flood_costs_bounded_memory_and_descriptors(tmp_path: Path) -> None:
    """A server process of its own is flooded; its memory may grow by a fixed amount."""
    with linked(tmp_path) as link:
        link.server.stop()
        words = [sys.executable, "-m", "asterion_server.link_server", "--folder"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [*words, str(link.made.folder)], stdout=log, stderr=log, env=dict(os.environ)
            )
        try:
            eventually(lambda: b"ready" in (tmp_path / "log").read_bytes(), 60)
            watched = psutil.Process(process.pid)
            site, grid = link.site(), link.grid()
            key = link.post(grid, "north", vector=noise(2**18))
            site.attend()
            before = watched.memory_info().rss
            flood(site, key, 5)
            files, most = watched.num_fds(), 0
            for _ in range(8):
                flood(site, key, 10)  # 120 MB
                most = max(most, watched.memory_info().rss - before)
            assert most < 600e6, f"{most / 1e6:.0f} MB"  # what gRPC reads ahead of 13 calls
            assert watched.num_fds() <= files + 20
            assert (tmp_path / "log").stat().st_size < 200_000
            other = link.site("south")
            other.attend()  # and others are served
        finally:
            process.terminate()
            process.wait(20)
            link.server = _Stopped()


class _Stopped:
    def stop(self) -> None:
        """Nothing: the server was another process."""


def flood(site: Site, key: bytes, count: int) -> None:
    for number in range(count):
        data = os.urandom(CHUNK_BYTES)
        parcel = wire.Parcel(
            parts=[wire.Part(size=0)]
            + [wire.Part(size=CHUNK_BYTES, chunks=os.urandom(32)) for _ in range(15)]
        )
        wire_report = wire.Report(key=key, content=parcel)
        calls = [site.stub.Offer.future(wire_report) for _ in range(4)]
        calls += [site.stub.Submit.future(wire_report) for _ in range(4)]
        chunk = wire.Chunk(key=key, part=1 + number % 15, number=0, data=data)
        calls += [site.stub.Upload.future(iter([chunk] * 3)) for _ in range(4)]
        calls += [site.stub.Submit.future(wire.Report(key=os.urandom(32), content=parcel))]
        for call in calls:
            with_error = call.exception(20)
            assert with_error is None or isinstance(with_error, grpc.RpcError)


def test_the_log_names_the_session(link: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asterion.link")
    site = link.site()
    session = site.attend(version="0.1.0")
    session.cancel()
    eventually(lambda: "site north: session closed" in caplog.messages)
    assert "site north: session open (version 0.1.0)" in caplog.messages
