"""How a site on the link stands: status, exit code, health address, its daemon's words."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.link.loopback import Loopback, eventually, free_port, noise

from asterion_client import link_daemon, link_runner
from asterion_client.link_daemon import FINAL, run_on_link
from asterion_client.link_runner import LinkRunner
from asterion_client.settings import ConnectionSettings, SiteSettings, read_site_settings
from asterion_client.site_standing import (
    MEANINGS,
    STALE_SECONDS,
    SiteStatus,
    meaning_of,
    problem_of,
    read_status,
    write_status,
)
from asterion_shared.child_process import Service
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    DiskProblemError,
    FileProblemError,
    PortInUseError,
)
from asterion_shared.link.refusals import REFUSALS
from asterion_shared.settings_files import validate
from asterion_shared.status_pages import serve_pages

NOW = 1_000_000.0
WELL = SiteStatus(
    site="north", connected=True, last_contact=NOW - 2, refused="", working="",
    started=NOW - 500, written=NOW - 1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"working": "train of round 3"}, ""),
        ({"written": NOW - STALE_SECONDS}, ""),
        ({"written": NOW - STALE_SECONDS - 1}, "it does not run"),
        ({"connected": False, "refused": "revoked"}, "the coordinator refuses it (revoked)"),
        ({"connected": False, "last_contact": NOW - 599, "started": NOW - 900}, ""),
        ({"connected": False, "last_contact": NOW - 601, "started": NOW - 900}, "no handshake"),
        ({"connected": False, "last_contact": None}, ""),  # it started 500 s ago
        ({"connected": False, "last_contact": None, "started": NOW - 1300}, "for 22 minutes"),
        ({"connected": True, "last_contact": NOW - 5000}, ""),
    ],
)
def test_when_a_site_is_not_well(changed: dict[str, Any], problem: str) -> None:
    found = replace(WELL, **changed).problem(10.0, NOW)
    assert problem in found
    assert bool(found) == bool(problem)


def test_a_status_comes_back_and_a_spoilt_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="asterion site start"):
        read_status(tmp_path)
    assert "never ran here" in problem_of(tmp_path, 10)
    write_status(tmp_path, WELL)
    assert read_status(tmp_path) == WELL
    for spoilt in (b"", b"[]", b'{"site": "north"}'):
        (tmp_path / "status.json").write_bytes(spoilt)
        with pytest.raises(FileProblemError, match="cannot be read"):
            read_status(tmp_path)


@pytest.fixture
def site_toml(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(
        'name = "north"\ntask = "anomaly"\n[data]\nformat = "npz"\n[connection]\n'
        'address = "localhost:1"\nroot_certificate = "ca.pem"\nprivate_key = "site.key"\n'
        "silent_minutes = 2\n"
    )
    return path


def state_of(site_toml: Path) -> Path:
    return site_toml.parent / read_site_settings(site_toml).state_folder


def status_now(**changed: Any) -> SiteStatus:
    now = time.time()
    times = {"last_contact": now, "started": now - 500, "written": now}
    return replace(WELL, **(times | changed))


def minute(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def test_site_status_and_its_exit_code(asterion, site_toml: Path) -> None:
    ran = asterion("site", "status", site_toml)
    assert (ran.code, ran.said[:12]) == (0, "site north: ")
    assert "the site never ran here; start it: asterion site start" in ran.said
    ran = asterion("site", "status", site_toml, "--exit-code", "--json")
    assert (ran.code, json.loads(ran.out)["site"]) == (32, "north")
    assert "never ran here" in json.loads(ran.out)["problem"]
    state, now = state_of(site_toml), time.time()
    for changed, words, problem in (
        ({}, "site north: connected, waits for orders", ""),
        ({"working": "train of round 3"}, "site north: connected, train of round 3", ""),
        (
            {"connected": False, "last_contact": None, "started": now},
            "site north: not connected; the coordinator's last word: none yet",
            "",
        ),
        (
            {"connected": False, "last_contact": now},
            f"site north: not connected; the coordinator's last word: {minute(now)}",
            "",
        ),
        (
            {"connected": False, "last_contact": now - 130},
            "site north: no handshake with the coordinator for 2 minutes",
            "no handshake with the coordinator for 2 minutes",
        ),
        (
            {"connected": False, "refused": "foreign"},
            f"site north: the coordinator refuses it (foreign); {meaning_of('foreign')}",
            f"the coordinator refuses it (foreign); {meaning_of('foreign')}",
        ),
    ):
        write_status(state, status_now(**changed))
        ran = asterion("site", "status", site_toml)
        assert (ran.code, ran.said) == (0, words + "\n")
        ran = asterion("site", "status", site_toml, "--exit-code")
        assert (ran.code, ran.said) == (32 if problem else 0, words + "\n")
        ran = asterion("site", "status", site_toml, "--exit-code", "--json")
        told = json.loads(ran.out)
        assert (ran.code, told["problem"], told["site"]) == (32 if problem else 0, problem, "north")
        assert told["working"] == changed.get("working", "")


def ask_health(port: int, path: str = "/health") -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
            return error.code, json.loads(body) if path == "/health" else {}


def test_the_health_address(tmp_path: Path) -> None:
    port = free_port()
    connection = {"address": "localhost:1", "root_certificate": "ca.pem", "private_key": "site.key",
                  "silent_minutes": 1}  # fmt: skip
    values = {"name": "north", "task": "anomaly", "data": {"format": "npz"},
              "connection": connection}  # fmt: skip
    settings = validate(SiteSettings, values, "test")
    assert settings.connection is not None
    assert settings.connection.health_address == "127.0.0.1"
    pages = link_daemon._pages(settings, settings.connection, tmp_path)
    with serve_pages("127.0.0.1", port, pages):
        assert ask_health(port)[0] == 503  # it never ran
        write_status(tmp_path, status_now())
        assert ask_health(port) == (200, {"well": True, "problem": "", "warnings": []})
        write_status(tmp_path, status_now(connected=False, last_contact=time.time() - 61))
        code, told = ask_health(port)
        assert (code, told["well"]) == (503, False)
        assert "no handshake" in told["problem"]
        assert ask_health(port, "/other")[0] == 404
        with pytest.raises(PortInUseError), serve_pages("127.0.0.1", port, pages):
            pass
    with serve_pages("127.0.0.1", port, pages):  # the port is free again
        assert ask_health(port)[0] == 503


class Daemon:
    """`run_on_link`'s look at a process that the test plays."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.running, self.fails, self.num_starts = True, False, 1
        connection = ConnectionSettings(
            address="center:8000", root_certificate="ca.pem", private_key="site.key"
        )
        runner = Service("runner", ["none"], state / "runner.log")
        runner.num_starts = 1
        monkeypatch.setattr(runner, "keep_running", self._keep_running)
        self.runner, self.state = runner, state
        self.told = (state / "told").open("w+b")
        self.daemon = link_daemon._Daemon(
            "north", connection, state, runner, self.told.fileno(), self.lines.append
        )

    def _keep_running(self) -> bool:
        if not self.running and not self.fails:
            self.runner.num_starts += 1
            self.running = True
            return False
        return self.running

    def look(self, **changed: Any) -> list[str]:
        """What is said of a status."""
        self.lines.clear()
        now = time.time()
        write_status(self.state, status_now(started=now, **changed))
        self.daemon.look()
        return list(self.lines)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    played = Daemon(tmp_path, monkeypatch)
    yield played
    played.told.close()


def test_what_the_daemon_says(found: Daemon) -> None:
    assert found.look(connected=False) == []
    assert found.look() == ["site north: connected to center:8000, waiting for orders"]
    assert found.look() == []
    assert found.look(connected=False) == ["site north: the connection was lost; connecting again"]
    assert found.look(connected=False) == []
    assert found.look() == ["site north: connected to center:8000, waiting for orders"]
    # A refusal of a site that was connected is said once, and it goes on.
    line = (
        "the coordinator at center:8000 refuses site north (revoked); its certificate is revoked: "
        "ask the operator why, and to enrol this site anew; trying again"
    )
    assert found.look(connected=False, refused="revoked") == [line]
    assert found.look(connected=False, refused="revoked") == []
    found.running = False
    found.lines.clear()
    found.daemon.look()
    assert "its process had ended and was started again" in found.lines[0]


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("foreign", "ask its operator to enrol this site"),
        ("revoked", "its certificate is revoked: ask the operator why"),
        ("other_version", "install the version of asterion that the coordinator has"),
        ("second_process", "another machine runs this site: end one of the two"),
    ],
)
def test_a_site_that_is_refused_from_the_start_ends(found: Daemon, code: str, fix: str) -> None:
    with pytest.raises(ConnectionProblemError, match=f"refuses site north \\({code}\\); {fix}"):
        found.look(connected=False, refused=code)


def test_every_final_refusal_has_its_fix() -> None:
    assert set(FINAL) < set(MEANINGS) < set(REFUSALS)
    assert meaning_of("order_over") == "tell its operator, and name this code"


def test_a_process_that_cannot_start_says_why(found: Daemon) -> None:
    found.running, found.fails = False, True
    told = {"exit_code": 11, "message": "state: another process of this site runs on it"}
    found.told.write(f"{json.dumps(told)}\n".encode())
    found.told.flush()
    with pytest.raises(AsterionError, match="another process of this site") as error:
        found.daemon.look()
    assert error.value.exit_code == 11


def test_two_processes_of_one_folder_and_two_folders_of_one_site(
    link: Loopback, hospital: Path, tmp_path: Path
) -> None:
    settings = read_site_settings(hospital / "site.toml")
    runner = LinkRunner(settings, hospital)
    with pytest.raises(FileProblemError, match="another process of this site runs on it"):
        LinkRunner(settings, hospital)
    runner._lock.close()
    again = LinkRunner(settings, hospital)  # the folder's identity stays
    assert again.session._hello.state_id == runner.session._hello.state_id
    assert again.session._hello.instance_id != runner.session._hello.instance_id
    stop = threading.Event()
    thread = threading.Thread(target=again.serve, args=(stop,))
    thread.start()
    state = hospital / settings.state_folder
    eventually(lambda: (state / "status.json").exists() and read_status(state).connected)
    assert problem_of(state, 10) == ""
    other = link.session()  # the same keys on another machine
    eventually(lambda: other.standing.refused)
    assert other.standing.refused == "second_process"
    stop.set()
    thread.join(10)
    again._lock.close()
    eventually(lambda: not link.store.sessions()[0].is_open)


def test_a_full_disk_does_not_end_a_session(
    link: Loopback,
    hospital: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(state: Path, status: SiteStatus) -> None:
        raise DiskProblemError(state, "No space left on device")

    monkeypatch.setattr(link_runner, "write_status", full)
    runner = LinkRunner(read_site_settings(hospital / "site.toml"), hospital)
    runner.session.start()
    eventually(lambda: runner.session.standing.connected)
    link.restart()
    eventually(lambda: not runner.session.standing.connected)
    eventually(lambda: runner.session.standing.connected, 20)
    assert any("status cannot be written: disk_problem" in line for line in caplog.messages)
    assert "No space left" not in caplog.text
    runner.session.stop()
    runner._lock.close()


def test_an_order_is_answered_again_when_the_disk_has_room(
    link: Loopback, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report cannot be stored at first; nothing but time mends it."""
    monkeypatch.setattr(link_runner, "AGAIN_SECONDS", 0.2)
    runner = LinkRunner(read_site_settings(hospital / "site.toml"), hospital)
    calls = []

    def answer(message: Any, context: Any) -> Any:
        calls.append(message)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        from flwr.app import Message

        return Message(message.content, reply_to=message)

    monkeypatch.setattr(link_runner, "app", answer)
    stop = threading.Event()
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    grid = link.grid()
    key = link.post(grid, "north", vector=noise(100_000))
    reply = eventually(lambda: list(grid.pull_messages([key.hex()])), 20)
    assert len(reply) == 1
    assert len(calls) == 2
    stop.set()
    thread.join(10)
    runner._lock.close()


def test_a_site_that_trains_for_long_still_says_so(
    link: Loopback, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_runner, "STATUS_SECONDS", 0.1)
    runner = LinkRunner(read_site_settings(hospital / "site.toml"), hospital)
    begun, stop = threading.Event(), threading.Event()

    def answer(message: Any, context: Any) -> Any:
        begun.set()
        assert stop.wait(20)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(link_runner, "app", answer)
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    link.post(link.grid(), "north", vector=noise(1_000))
    assert begun.wait(20)
    state = hospital / "state"
    first = read_status(state).written
    later = eventually(lambda: (found := read_status(state)).written > first + 1 and found, 20)
    stop.set()
    thread.join(10)
    assert later.working == "train of round 1"
    runner._lock.close()


@pytest.mark.live
def test_the_daemon_keeps_a_real_site_connected(link: Loopback, hospital: Path) -> None:
    lines: list[str] = []
    stop = threading.Event()
    settings = read_site_settings(hospital / "site.toml")
    connection = settings.connection
    assert connection is not None
    state = hospital / settings.state_folder
    state.mkdir(exist_ok=True)
    given = (settings, hospital / "site.toml", connection, state, lines.append, stop)
    thread = threading.Thread(target=run_on_link, args=given)
    thread.start()
    eventually(lambda: any("connected to" in line for line in lines), 60)
    link.restart()
    eventually(lambda: any("connection was lost" in line for line in lines), 30)
    eventually(lambda: sum("connected to" in line for line in lines) == 2, 30)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
