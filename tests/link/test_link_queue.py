"""`asterion server status`, `resume`, and how runs stand, where the link carries the messages."""

import json
import time
from pathlib import Path

import pytest
from tests.flower.conftest import make_plan
from tests.link.loopback import Loopback, eventually

from asterion_server.keys import open_provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import LinkQueue
from asterion_shared.errors import AsterionError, FileProblemError


def launched(link: Loopback, name: str) -> RunFolder:
    folder = RunFolder(link.made.runs / name)
    folder.path.mkdir(parents=True)
    folder.plan_file.write_text(make_plan().canonical())
    folder.write_launch(Launch(sites=("north", "south")))
    return folder


def test_how_sites_stand(link: Loopback, asterion) -> None:
    def told() -> dict:
        ran = asterion("server", "status", "--folder", link.made.folder, "--json")
        assert ran.code == 0
        return json.loads(ran.out)["sites"]

    assert {name: site["state"] for name, site in told().items()} == {
        "north": "registered", "south": "registered", "west": "registered"
    }  # fmt: skip
    north, south = link.site("north"), link.site("south")
    session, gone = north.attend(), south.attend()
    gone.cancel()
    eventually(lambda: told()["south"]["state"] == "away")
    assert told()["north"]["state"] == "configured"
    link.post(link.grid("mammography"), "north", 7)
    assert next(session).WhichOneof("what") == "order"
    eventually(lambda: told()["north"]["state"] == "training")
    assert told()["north"] == {
        "state": "training", "since": None, "run": "mammography", "round": 7, "version": "test"
    }  # fmt: skip
    ran = asterion("server", "status", "--folder", link.made.folder)
    assert ran.code == 0
    assert "site north: training, round 7 of run mammography" in ran.said
    assert "site west: registered, never heard of" in ran.said
    assert "site south: away, since " in ran.said


def test_resume(link: Loopback, asterion) -> None:
    folder = link.made.folder
    ran = asterion("server", "resume", "nothing", "--folder", folder)
    assert ran.code == 2
    assert "no run 'nothing' was launched; known are: none" in ran.said
    run = launched(link, "outcome")
    queue = LinkQueue(open_provisioned(folder))
    # Launched and not ended: the coordinator's daemon begins it without a hand.
    assert queue.standing(run) == "waiting"
    ran = asterion("server", "resume", "outcome", "--folder", folder)
    assert (ran.code, "needs no resuming" in ran.said) == (0, True)
    run.write_problem(AsterionError("its process died 5 times"))
    assert (queue.standing(run), run.has_ended) == ("ended", True)
    ran = asterion("server", "resume", "outcome", "--folder", folder)
    assert (ran.code, "run outcome goes on" in ran.said) == (0, True)
    assert (queue.standing(run), run.has_ended) == ("waiting", False)
    assert run.read_launch().sites == ("north", "south")
    ran = asterion("server", "resume", "UPPER", "--folder", folder)
    assert ran.code == 2


def test_without_a_coordinator_it_is_said(link: Loopback, asterion) -> None:
    launched(link, "outcome")
    link.server.stop()
    for words in (("status",), ("resume", "outcome")):
        began = time.monotonic()
        ran = asterion("server", *words, "--folder", link.made.folder)
        assert ran.code == 32, ran.said
        assert time.monotonic() - began < 10


def test_a_folder_of_no_coordinator(asterion, tmp_path: Path) -> None:
    ran = asterion("server", "status", "--folder", tmp_path)
    assert (ran.code, "asterion server init" in ran.said) == (11, True)


def test_a_launch_of_another_format_is_refused_and_one_without_is_the_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_launch(Launch(sites=("north",)))
    assert json.loads(run.launch_file.read_text())["format"] == 1
    run.launch_file.write_text('{"sites": ["north"], "format": 2, "priority": 1}')
    with pytest.raises(FileProblemError, match="is of format 2, and this version of Asterion"):
        run.read_launch()
    run.launch_file.write_text('{"sites": ["north"]}')  # as 0.1.0 wrote it
    assert run.read_launch() == Launch(sites=("north",))
