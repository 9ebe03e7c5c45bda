"""The durable queue, on SQLite and on a real PostgreSQL server: the same behaviour."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql
from tests.link.postgres import is_installed, postgres

from asterion_server import link_store
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_shared.errors import DiskProblemError
from asterion_shared.link.parcels import CHUNK_BYTES, Parcel, Part
from asterion_shared.link.refusals import LinkRefusedError

BIG = Part(CHUNK_BYTES, None, bytes(range(32)))
SMALL = Part(3, b"abc")


def key(number: int) -> str:
    return f"{number:064x}"


def order(number: int, site: str = "north", **other) -> StoredOrder:
    fields = {"key": key(number), "site": site, "run": "run", "round": 1, "message_type": "train",
              "content": Parcel((SMALL, BIG), True), "submission": 2**62,
              "expires": None}  # fmt: skip
    return StoredOrder(**(fields | other))


def opened_at_once(url: str) -> list[Exception]:
    """Six threads open one queue in the same moment; what went wrong."""
    gate, failed = threading.Barrier(6), list[Exception]()

    def begin() -> None:
        gate.wait()
        try:
            LinkStore(url).close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def report(text: bytes = b"report") -> Parcel:
    return Parcel((Part(len(text), text), BIG))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'queue.sqlite'}"
    if not is_installed():
        pytest.skip("no PostgreSQL server is installed")
    found: str = request.getfixturevalue("server")
    engine = sql.create_engine(found)
    with engine.begin() as db:
        db.exec_driver_sql("DROP SCHEMA public CASCADE")
        db.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return found


@pytest.fixture
def store(url: str) -> Iterator[LinkStore]:
    opened = LinkStore(url)
    yield opened
    opened.close()


def test_orders_come_back_as_they_were(store: LinkStore, url: str) -> None:
    posted = [order(2, round=2), order(1, expires=time.time() + 60), order(3, "south", run="b")]
    store.post(posted)
    for found in (store, LinkStore(url)):
        assert found.order(key(2)) == posted[0]
        assert found.order(key(9)) is None
        assert found.open_orders("north") == [posted[1], posted[0]]  # the oldest round first
        assert found.open_orders("south") == [posted[2]]
        assert found.open_orders("west") == []
        assert found.is_open(key(1))
        assert not found.is_open(key(9))
        assert found.order_parts("run") == [BIG, BIG]
        if found is not store:
            found.close()


def test_posting_again_opens_again_what_is_not_answered(store: LinkStore) -> None:
    store.post([order(1), order(2)])
    store.count_attempt(key(1))
    store.end([key(1)])
    assert not store.is_open(key(1))
    store.store_report(key(2), report())
    store.post([order(1, submission=7, expires=time.time() + 9), order(2, submission=7)])
    found = store.order(key(1))
    assert found is not None
    assert (found.state, found.submission, found.attempt) == ("open", 7, 1)
    assert found.is_wanted
    answered = store.order(key(2))
    assert answered is not None
    assert (answered.state, answered.submission) == ("answered", 7)
    store.post([])
    store.end([])
    assert [o.key for o in store.open_orders("north")] == [key(1)]


def test_an_order_past_its_time_is_not_open(store: LinkStore) -> None:
    store.post([order(1, expires=time.time() - 0.01)])
    assert store.open_orders("north") == []
    assert not store.is_open(key(1))
    assert store.orders_at_work() == {}
    with pytest.raises(LinkRefusedError, match="order_over"):
        store.store_report(key(1), report())
    assert store.report(key(1)) is None


def test_one_report_a_key(store: LinkStore) -> None:
    store.post([order(1)])
    assert store.report(key(1)) is None
    assert store.store_report(key(1), report()) is False
    assert store.store_report(key(1), report()) is True
    assert store.store_report(key(1), report(b"other")) is True
    assert store.report(key(1)) == report()
    assert store.report_parts("north") == [BIG]
    assert store.report_parts("south") == []
    store.end([key(1)])  # an answered order stays answered
    found = store.order(key(1))
    assert found is not None
    assert found.state == "answered"
    with pytest.raises(LinkRefusedError, match="unknown_order"):
        store.store_report(key(2), report())
    store.post([order(3)])
    store.end([key(3)])
    with pytest.raises(LinkRefusedError, match="order_over"):
        store.store_report(key(3), report())


def test_many_threads_store_one_report(store: LinkStore) -> None:
    for number in range(5):
        store.post([order(number)])
        known: list[tuple[int, bool]] = []
        gate = threading.Barrier(8)

        def submit(thread: int, number: int = number, known=known, gate=gate) -> None:
            gate.wait()
            known.append((thread, store.store_report(key(number), report(bytes([thread])))))

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(known) == 8
        (winner,) = [thread for thread, was_known in known if not was_known]
        assert store.report(key(number)) == report(bytes([winner]))


def test_many_threads_count_every_attempt(store: LinkStore) -> None:
    store.post([order(1)])
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(store.count_attempt(key(1)) for _ in range(5)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 31))


def test_reclaim_removes_old_rounds_and_keeps_what_is_wanted(store: LinkStore) -> None:
    store.post([order(n, round=n) for n in range(1, 5)])
    store.post([order(10, run="other", round=1), order(11, "south", round=1)])
    for number in (1, 2, 3, 10):
        store.store_report(key(number), report())
    store.reclaim("run", 3, keep=[key(2)])
    there = {n for n in (1, 2, 3, 4, 10, 11) if store.order(key(n)) is not None}
    assert there == {2, 3, 4, 10}
    assert {n for n in there if store.report(key(n)) is not None} == {2, 3, 10}
    store.reclaim("run", 2**31 - 1)
    assert {n for n in there if store.order(key(n)) is not None} == {10}
    assert store.report_parts("north") == [BIG]
    store.reclaim("run", 2**31 - 1)


def test_all_orders_of_a_post_or_none(store: LinkStore) -> None:
    with pytest.raises(DiskProblemError):
        store.post([order(1), order(2, site=None)])
    assert store.order(key(1)) is None


def test_sessions(store: LinkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(link_store.time, "time", lambda: clock[0])
    store.open_session("north", "state-a", "one", "0.1")
    (session,) = store.sessions()
    assert (session.site, session.instance_id, session.is_open) == ("north", "one", True)
    assert (session.opened, session.last_contact) == (1000.0, 1000.0)
    clock[0] += 10
    store.open_session("north", "state-a", "two", "0.1")  # the same folder takes over
    store.close_session("north", "one")  # the one before ends late, and changes nothing
    assert store.sessions()[0].is_open
    clock[0] += 29.9
    with pytest.raises(LinkRefusedError, match="second_process"):
        store.open_session("north", "state-b", "three", "0.1")
    assert store.sessions()[0].instance_id == "two"
    store.touch_sessions(["north"])
    clock[0] += 29.9
    with pytest.raises(LinkRefusedError, match="second_process"):
        store.open_session("north", "state-b", "three", "0.1")
    clock[0] += 0.2
    store.open_session("north", "state-b", "three", "0.1")  # 30 s without a word
    store.close_session("north", "three")
    store.open_session("north", "state-a", "four", "0.1")  # who is gone is in nobody's way
    store.open_session("south", "state-c", "five", "0.1")
    assert [(s.site, s.is_open) for s in store.sessions()] == [("north", True), ("south", True)]
    store.close_all_sessions()
    assert [s.is_open for s in store.sessions()] == [False, False]
    store.open_session("north", "state-b", "six", "0.1")


def test_first_sessions_of_two_folders_at_once(store: LinkStore) -> None:
    gate, said = threading.Barrier(4), []

    def begin(number: int) -> None:
        gate.wait()
        try:
            store.open_session("north", f"state-{number}", f"{number}", "0.1")
            said.append("open")
        except LinkRefusedError as error:
            said.append(error.code)

    threads = [threading.Thread(target=begin, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["open", *["second_process"] * 3]


def test_orders_at_work(store: LinkStore) -> None:
    store.post([order(1), order(2, "south", round=4)])
    assert store.orders_at_work() == {}  # posted, not sent
    store.count_attempt(key(1))
    store.count_attempt(key(2))
    assert store.orders_at_work() == {"north": ("run", 1), "south": ("run", 4)}
    store.store_report(key(1), report())
    assert store.orders_at_work() == {"south": ("run", 4)}


def test_several_open_a_new_queue_at_once(url: str) -> None:
    assert opened_at_once(url) == []
    engine = sql.create_engine(url)
    with engine.begin() as db:
        assert db.exec_driver_sql("SELECT version FROM link_version").all() == [(1,)]
    engine.dispose()


KILLED = """
import os, signal, sys
from tests.link.test_link_store import key, order, report
from asterion_server.link_store import LinkStore
store = LinkStore(sys.argv[1])
store.post([order(1), order(2)])
store.store_report(key(1), report())
with store._begin() as db:
    db.exec_driver_sql("UPDATE link_order SET state = 'over'")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_was_committed_and_no_lock(url: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, url], cwd=root, check=False)
    assert done.returncode == -9
    store = LinkStore(url)
    assert store.report(key(1)) == report()
    began = time.monotonic()
    assert store.store_report(key(2), report(b"2")) is False
    assert time.monotonic() - began < 10
    store.close()


def test_a_database_that_cannot_be_used_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(DiskProblemError, match="no-folder"):
        LinkStore(f"sqlite:///{tmp_path}/no-folder/queue.sqlite")
    with pytest.raises(DiskProblemError) as told:
        LinkStore("postgresql+psycopg://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value)


def test_sqlite_brings_every_change_to_the_disk(tmp_path: Path) -> None:
    store = LinkStore(f"sqlite:///{tmp_path / 'q.sqlite'}")
    with store._begin() as db:
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert db.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    store.close()
