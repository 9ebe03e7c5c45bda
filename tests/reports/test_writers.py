"""A run's numbers in TensorBoard's files and in a real MLflow tracking server."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asterion_shared.errors import ConnectionProblemError, UserInputError
from asterion_shared.events import Event, RoundFinished, RunFinished, RunStarted, append_event
from asterion_shared.plan import Plan
from asterion_shared.report_command_line import app
from asterion_shared.reports.run_numbers import Begun, numbers_of, told_by_run
from asterion_shared.result import Result, RoundResult, SiteOutcome, write_result

Make = Callable[..., Result]


@pytest.fixture
def result(make_result: Make) -> Result:
    return make_result(carrier="link")


@pytest.fixture
def events(result: Result) -> list[Event]:
    started = RunStarted(run=result.run, plan=result.name, task=result.task,
                         sites=tuple(s.name for s in result.sites), rounds=2)  # fmt: skip
    rounds = [RoundFinished(round_result=r) for r in result.rounds]
    return [started, *rounds, RunFinished(result=result)]


@pytest.fixture
def run_folder(result: Result, plan: Plan, tmp_path: Path) -> Path:
    write_result(result, tmp_path / "outcome" / "result.json")
    (tmp_path / "outcome" / "plan.json").write_text(plan.canonical())
    return tmp_path / "outcome"


def run(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    if found.exception is not None:
        raise found.exception
    return found.stdout


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_a_round_gives_its_known_numbers_by_name(result: Result) -> None:
    found = numbers_of(result.rounds[2], "segmentation")
    assert found["pooled/dice"] == pytest.approx(0.6)
    assert found["site/south/dice"] == pytest.approx(0.61)
    assert found["site/east/train_loss"] == 0.5
    assert (found["answered"], found["missing"], found["bytes_up"]) == (2, 1, 6000)
    assert "pooled/hd95_mm" not in found
    assert not [name for name in found if "north" in name]
    assert "train_loss" not in numbers_of(result.rounds[0], "segmentation")


def test_of_many_sites_the_quantiles_are_written() -> None:
    names = [f"s{i:02d}" for i in range(41)]
    outcomes = {n: SiteOutcome(outcome="answered", num_examples=1, train_loss=i / 10)
                for i, n in enumerate(names)}  # fmt: skip
    round_ = RoundResult(round=1, asked=tuple(names), outcomes=outcomes,
                         sites={n: {"dice": i / 40} for i, n in enumerate(names)})  # fmt: skip
    found = numbers_of(round_, "segmentation")
    assert found["sites/median/dice"] == 0.5
    assert found["sites/tenth/dice"] == pytest.approx(0.1)
    assert found["sites/ninetieth/train_loss"] == pytest.approx(3.6)
    assert not [name for name in found if name.startswith("site/")]


def test_tensorboard_reads_every_round(run_folder: Path, result: Result, tmp_path: Path) -> None:
    told = run("export", run_folder, "--tensorboard", tmp_path / "tb")
    assert "3 rounds" in told
    found = scalars(tmp_path / "tb" / "outcome")
    assert found["pooled/dice"] == [(0, 0.2), (1, 0.4), (2, 0.6)]
    assert found["site/north/dice"] == [(0, 0.21), (1, 0.41)]
    assert found["train_loss"] == [(1, 1.0), (2, 0.5)]
    assert found["final/dice"] == [(2, 0.6)]
    some = result.model_copy(update={"rounds": (result.rounds[0], result.rounds[2])})
    write_result(some, tmp_path / "some" / "result.json")
    run("export", tmp_path / "some", "--tensorboard", tmp_path / "tb")
    assert scalars(tmp_path / "tb" / "some")["pooled/dice"] == [(0, 0.2), (2, 0.6)]
    with pytest.raises(UserInputError, match="holds an export already"):
        run("export", run_folder, "--tensorboard", tmp_path / "tb")


def test_a_run_that_goes_on_is_followed_to_its_end(events: list[Event], tmp_path: Path) -> None:
    folder, left = tmp_path / "live", list(events)
    append_event(folder / "events.jsonl", left.pop(0))
    looks = 0

    def later(seconds: float) -> None:
        nonlocal looks
        looks += 1
        append_event(folder / "events.jsonl", left.pop(0))

    told = list(told_by_run(folder, follow=True, sleep=later))
    assert isinstance(told[0], Begun)
    assert [one.round for one in told if isinstance(one, RoundResult)] == [0, 1, 2]
    assert isinstance(told[-1], Result)
    assert looks == 4
    assert len(told) == 5


def test_an_interrupted_run_tells_a_round_again_only_where_it_was_measured_anew(
    events: list[Event], result: Result, tmp_path: Path
) -> None:
    other = result.rounds[1].model_copy(update={"pooled": {"dice": 0.45}})
    again = [events[0], events[1], RoundFinished(round_result=other), *events[3:]]
    stopped = RunFinished(result=result.model_copy(update={"status": "stopped"}))
    for event in [*events[:3], stopped, *again]:
        append_event(tmp_path / "events.jsonl", event)
    told = list(told_by_run(tmp_path, follow=False))
    assert [one.round for one in told if isinstance(one, RoundResult)] == [0, 1, 1, 2]
    assert [one.status for one in told if isinstance(one, Result)] == ["stopped", "finished"]


def test_a_followed_run_that_ends_early_ends_the_export(
    events: list[Event], tmp_path: Path
) -> None:
    append_event(tmp_path / "events.jsonl", events[0])
    (tmp_path / "problem.json").write_text("{}")
    with pytest.raises(UserInputError, match="ended early; asterion server status says why"):
        list(told_by_run(tmp_path, follow=True))


def test_what_cannot_be_exported_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"neither result\.json nor events\.jsonl"):
        run("export", tmp_path, "--tensorboard", tmp_path / "tb")
    with pytest.raises(UserInputError, match=r"name a run's folder"):
        run("export", tmp_path / "nowhere", "--tensorboard", tmp_path / "tb", "--follow")
    assert not (tmp_path / "tb").exists()
    with pytest.raises(UserInputError, match="--tensorboard DIR or --mlflow URI"):
        run("export", run_folder)
    with pytest.raises(ConnectionProblemError, match="did not take the run"):
        run("export", run_folder, "--mlflow", "http://127.0.0.1:9")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A tracking server as people run it: its own process, SQLite, HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.sqlite",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for what is not asked for here
    }
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path,
                                   start_new_session=True)  # fmt: skip
    try:
        _await(f"{address}/health", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()


def _await(address: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1500):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310  # ours
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(address)


@pytest.mark.live
def test_a_real_mlflow_server_has_the_run_once(
    server: str, run_folder: Path, events: list[Event], plan: Plan, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    assert "3 rounds" in run("export", run_folder, "--mlflow", server)
    assert "0 rounds" in run("export", run_folder, "--mlflow", server)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(plan.name)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "outcome"
    assert found.data.params["rounds.count"] == "2"
    assert found.data.params["plan_sha256"] == plan.sha256
    assert found.data.tags["asterion.status"] == "finished"

    def history(number: str, name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in client.get_metric_history(number, name)]

    number = found.info.run_id
    assert history(number, "pooled/dice") == [(r, pytest.approx(0.2 + 0.2 * r)) for r in range(3)]
    assert history(number, "final/dice") == [(2, pytest.approx(0.6))]
    assert not client.list_artifacts(number)

    # A second run is followed while it is written; it was begun anew under the same name.
    live = tmp_path / "second" / "outcome"
    (live).mkdir(parents=True)
    (live / "plan.json").write_text(plan.canonical())
    append_event(live / "events.jsonl", events[0])
    first = events[1]
    assert isinstance(first, RoundFinished)
    slower = first.round_result.model_copy(update={"seconds": 9.5})

    def write() -> None:
        for event in (RoundFinished(round_result=slower), *events[2:]):
            time.sleep(0.3)
            append_event(live / "events.jsonl", event)

    writer = threading.Thread(target=write)
    writer.start()
    told = run("export", live, "--mlflow", server, "--follow")
    writer.join()
    assert "3 rounds" in told
    both = client.search_runs([experiment.experiment_id])
    assert len(both) == 2
    (other,) = (one.info.run_id for one in both if one.info.run_id != number)
    assert history(other, "seconds")[0] == (0, 9.5)
