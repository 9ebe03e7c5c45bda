"""The ServerApp's run of a folder, and how a launch follows it: without processes."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.flower.conftest import FakeSites, make_plan, make_report
from tests.papers import provisioned

from asterion_server import launch as launching
from asterion_server.app import conduct
from asterion_server.flower_server_compat import FlowerRun
from asterion_server.in_process_grid import InProcessGrid
from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import FlowerQueue
from asterion_shared.errors import (
    AsterionError,
    PlanMismatchError,
    QuorumLostError,
    RunStoppedError,
    UserInputError,
)
from asterion_shared.events import Event, RoundFinished, RunFinished, RunStarted, read_events
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan


def prepared(path: Path, plan: Plan, **launch: object) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.plan_file.write_text(plan.canonical())
    folder.write_launch(Launch(sites=("north", "south", "west"), **launch))  # type: ignore[arg-type]
    return folder


def test_a_run_of_a_folder_writes_all_that_people_look_for(
    plan: Plan, sites: FakeSites, tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "r1", plan)
    result = conduct(sites.grid(), folder)
    assert (result.status, result.carrier, result.run) == ("finished", "flower", "r1")
    kinds = [type(event) for event in read_events(folder.events)]
    assert kinds == [RunStarted, *[RoundFinished] * 4, RunFinished]
    assert folder.report.exists()
    assert folder.problem() is None
    assert folder.process_file.read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert not folder.process_is_gone()


def test_a_lost_quorum_is_a_problem_with_its_exit_code(sites: FakeSites, tmp_path: Path) -> None:
    plan = make_plan(rounds={"count": 2, "quorum": 3, "deadline_seconds": 1})
    folder = prepared(tmp_path / "r1", plan, wait_seconds=0.0)
    grid = sites.grid()
    grid.sites[10].online = False
    with pytest.raises(QuorumLostError):
        conduct(grid, folder)
    problem = folder.problem()
    assert problem is not None
    assert problem.exit_code == QuorumLostError.exit_code
    assert "2 of 3 sites answered" in str(problem)
    assert folder.report.exists()


def test_a_stopped_run_goes_on_later(plan: Plan, sites: FakeSites, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r1", plan)

    def answer(site: str, order: Order) -> Report:
        if order.round == 2 and order.phase == "train":
            folder.stop_file.touch()
        return make_report(order, site)

    sites.answer = answer
    with pytest.raises(RunStoppedError):
        conduct(_never_in_one_look(sites.grid()), folder)
    assert folder.problem().exit_code == 50  # type: ignore[union-attr]
    folder.stop_file.unlink()
    sites.answer = lambda site, order: make_report(order, site)
    assert conduct(sites.grid(), folder).status == "finished"


def _never_in_one_look(grid: InProcessGrid) -> InProcessGrid:
    """Answers are ready only at the second look, so that a stop file is seen between them."""
    pull, looks = grid.pull_messages, {"n": 0}

    def later(ids: list[str]) -> list[object]:
        looks["n"] += 1
        return [] if looks["n"] % 2 else list(pull(ids))

    grid.pull_messages = later  # type: ignore[method-assign,assignment]
    return grid


def test_a_fault_of_our_own_is_logged_and_told_without_a_traceback(
    plan: Plan, sites: FakeSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(tmp_path / "r1", plan)
    monkeypatch.setattr("asterion_server.app.run_rounds", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        conduct(sites.grid(), folder)
    assert "ZeroDivisionError" in str(folder.problem())
    assert "Traceback" in folder.log.read_text()


def test_a_process_that_is_gone_is_noticed(plan: Plan, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r1", plan)
    assert not folder.process_is_gone()
    child = subprocess.Popen([sys.executable, "-c", ""])
    folder.process_file.write_text(f"{socket.gethostname()} {child.pid}")
    deadline = time.monotonic() + 20
    while not folder.process_is_gone():  # first a zombie, which is as dead
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.wait()
    assert folder.process_is_gone()
    folder.process_file.write_text(f"another-machine {child.pid}")
    assert not folder.process_is_gone()


@dataclass
class FakeControl:
    """Stands for the SuperLink: a submitted run is conducted in a thread."""

    runs_folder: Path
    sites: FakeSites
    status: dict[int, FlowerRun] = field(default_factory=dict)
    crash: bool = False

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        number = len(self.status) + 1
        self.status[number] = FlowerRun(number, "running", "", config["run"])
        threading.Thread(target=self._conduct, args=(number, config["run"])).start()
        return number

    def _conduct(self, number: int, name: str) -> None:
        try:
            if not self.crash:
                conduct(self.sites.grid(), RunFolder(self.runs_folder / name))
        except AsterionError:
            pass
        finally:
            self.status[number] = FlowerRun(number, "finished", "", name)

    def run(self, number: int) -> FlowerRun | None:
        return self.status.get(number)

    def runs(self) -> list[FlowerRun]:
        return list(self.status.values())

    def stop(self, number: int) -> bool:
        return True


@pytest.fixture
def control(
    tmp_path: Path, sites: FakeSites, monkeypatch: pytest.MonkeyPatch
) -> tuple[Provisioned, FakeControl]:
    from contextlib import nullcontext

    made = provisioned(tmp_path, ["h"], sites.names)
    fake = FakeControl(made.runs, sites)
    queue = FlowerQueue(fake)  # type: ignore[arg-type]
    monkeypatch.setattr(launching, "queue_of", lambda made: nullcontext(queue))
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launching, "ALIVE_SECONDS", 0.05)
    return made, fake


def test_a_launch_tells_every_event_and_a_second_one_tells_them_again(
    plan: Plan, control: tuple[Provisioned, FakeControl]
) -> None:
    made, fake = control
    first: list[Event] = []
    result = launching.launch(made, plan, run="r1", emit=first.append)
    assert result.status == "finished"
    assert isinstance(first[0], RunStarted)
    assert isinstance(first[-1], RunFinished)
    again: list[Event] = []
    assert launching.launch(made, plan, run="r1", emit=again.append) == result
    assert again == first
    assert len(fake.status) == 1, "a finished run is not submitted again"
    states = launching.run_states(made, FlowerQueue(fake))  # type: ignore[arg-type]
    assert [(s.name, s.status) for s in states] == [("r1", "finished")]


def test_a_launch_that_lost_its_quorum_raises_and_the_next_one_goes_on(
    sites: FakeSites, control: tuple[Provisioned, FakeControl]
) -> None:
    made, _ = control
    plan = make_plan(rounds={"count": 3, "quorum": 3})
    honest = sites.answer

    def answer(site: str, order: Order) -> Report:
        if site == "west" and order.round == 2:
            return make_report(order, update=np.full(3, np.nan, np.float32))
        return honest(site, order)

    sites.answer = answer
    with pytest.raises(AsterionError, match="round 2: 2 of 3") as caught:
        launching.launch(made, plan, run="r1")
    assert caught.value.exit_code == QuorumLostError.exit_code
    sites.answer = honest
    sites.asked.clear()
    events: list[Event] = []
    assert launching.launch(made, plan, run="r1", emit=events.append).status == "finished"
    assert min(round_ for _, _, round_ in sites.asked) == 2, "round 1 is not asked again"
    assert isinstance(events[0], RunStarted)


def test_a_run_whose_process_died_ends_the_launch(
    plan: Plan, control: tuple[Provisioned, FakeControl]
) -> None:
    made, fake = control
    fake.crash = True
    with pytest.raises(AsterionError, match="launch it again to go on"):
        launching.launch(made, plan, run="r1")
    fake.crash = False
    assert launching.launch(made, plan, run="r1").status == "finished"


def test_mistakes_are_told_before_anything_is_submitted(
    plan: Plan, control: tuple[Provisioned, FakeControl]
) -> None:
    made, fake = control
    with pytest.raises(UserInputError, match="nowhere are not enrolled"):
        launching.launch(made, plan, run="r1", sites=["nowhere"])
    launching.launch(made, plan, run="r1", sites=["north"])
    with pytest.raises(PlanMismatchError, match="another plan"):
        launching.launch(made, make_plan(seed=9), run="r1")
    with pytest.raises(UserInputError, match="no run 'r2' goes on"):
        launching.stop(made, "r2")
    assert len(fake.status) == 1
