"""How a run under the link ends, and what must be gone then."""

from pathlib import Path

import pytest
from tests.faults.kill_cases import matrix_plan
from tests.papers import provisioned

from asterion_server import coordinator
from asterion_server.coordinator import MOST_DEATHS, LinkCoordinator
from asterion_server.keys import Provisioned
from asterion_server.link_paths import blobs_of_orders, database_url
from asterion_server.link_reclaim import reclaim_run, runs_with_orders
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.errors import AsterionError
from asterion_shared.events import RunFinished, RunStarted, append_event, told_the_end
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.result import Result, Status, write_result
from asterion_shared.settings_files import validate

DATA = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    folder = tmp_path_factory.mktemp("ended") / "center"
    return provisioned(folder, ["127.0.0.1"], ["north", "south"], carrier="link")


@pytest.fixture
def made(shared_folder: Provisioned) -> Provisioned:
    for path in sorted(shared_folder.runs.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return shared_folder


def result_of(status: Status) -> Result:
    values = {
        "run": "a", "name": "a", "kind": "train", "task": "classification", "carrier": "link",
        "plan_sha256": "0" * 64, "status": status, "rounds_planned": 3,
        "started": "2030-01-01T00:00:00Z", "finished": "2030-01-01T00:00:01Z",
    }  # fmt: skip
    return validate(Result, values, "result")


def launched(made: Provisioned, run: str) -> RunFolder:
    folder = RunFolder(made.runs / run)
    folder.path.mkdir(parents=True)
    folder.plan_file.write_text(matrix_plan("prox").canonical())
    folder.write_launch(Launch(sites=("north",)))
    return folder


def post(store: LinkStore, made: Provisioned, run: str, site: str = "north") -> StoredOrder:
    part = BlobStore(blobs_of_orders(made.folder, run)).add(DATA)
    key = f"{run}{site}".encode().hex().ljust(64, "0")
    order = StoredOrder(
        key=key, site=site, run=run, round=1, message_type="train",
        content=Parcel((Part(1, b"x"), part)), submission=1, expires=None,
    )  # fmt: skip
    store.post([order])
    return order


def test_the_end_is_told_by_the_last_whole_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert not told_the_end(path)
    started = RunStarted(
        run="a", plan="a", task="classification", sites=tuple("abcdefgh") * 9000, rounds=3
    )
    append_event(path, started)
    assert path.stat().st_size > 2**15
    assert not told_the_end(path)
    append_event(path, RunFinished(result=result_of("finished")))
    assert told_the_end(path)
    with path.open("ab") as file:
        file.write(b'{"event":"run_st')
    assert told_the_end(path)
    append_event(path, started)
    assert not told_the_end(path)


def test_a_run_with_a_result_that_nobody_was_told_has_not_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = write_result(result_of("finished"), folder.result)
    assert not folder.has_ended
    append_event(folder.events, RunFinished(result=written))
    assert folder.has_ended
    write_result(result_of("stopped"), folder.result)
    assert not folder.has_ended


def test_a_run_that_is_reclaimed_leaves_the_others(made: Provisioned) -> None:
    store = LinkStore(database_url(made))
    gone, stays = post(store, made, "a"), post(store, made, "b")
    assert runs_with_orders(made.folder) == ["a", "b"]
    reclaim_run(store, made.folder, "a")
    reclaim_run(store, made.folder, "a")  # whoever was killed in the middle does it again
    assert runs_with_orders(made.folder) == ["b"]
    assert store.order(gone.key) is None
    assert store.order(stays.key) == stays
    reclaim_run(store, made.folder, "b")
    store.close()


class DyingService:
    """Stands for a process that ends as soon as it is started."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self.log, self.num_starts, self.pid = name, log, 0, None

    def start(self) -> None:
        self.num_starts += 1

    def bound_log(self) -> None:
        """Nothing writes to it."""

    def keep_running(self) -> bool:
        self.start()
        self.pid = 1 if self.pid is None else None  # it lives for one look
        return False


@pytest.fixture
def daemon(made: Provisioned, monkeypatch: pytest.MonkeyPatch) -> LinkCoordinator:
    monkeypatch.setattr(coordinator, "Service", DyingService)
    return LinkCoordinator(made)


def look(daemon: LinkCoordinator, folder: RunFolder, times: int) -> list[str]:
    said: list[str] = []
    for _ in range(times):
        carried = daemon._runs.get(folder.path.name)
        if carried is None:
            break
        daemon._look_after(carried, said.append)
        vars(carried.service)["pid"] = None
    return said


def test_a_run_whose_process_dies_each_time_is_given_up_and_leaves_nothing(
    made: Provisioned, daemon: LinkCoordinator
) -> None:
    folder = launched(made, "doomed")
    store = LinkStore(database_url(made))
    order = post(store, made, "doomed")
    daemon._begin(folder, lambda words: None)
    said = look(daemon, folder, 20)
    assert len(said) == MOST_DEATHS
    assert "died 5 times without finishing a round" in said[-1]
    problem = folder.problem()
    assert isinstance(problem, AsterionError)
    assert "asterion server resume doomed" in str(problem)
    assert store.order(order.key) is None  # its site would go on with it
    assert runs_with_orders(made.folder) == []
    assert daemon._is_over(folder)
    folder.write_launch(folder.read_launch())  # resume
    assert daemon._is_over(folder)  # its last problem is still there
    folder.forget_ending()
    assert not daemon._is_over(folder)
    store.close()


def test_deaths_are_counted_anew_after_each_round(
    made: Provisioned, daemon: LinkCoordinator
) -> None:
    folder = launched(made, "mortal")
    daemon._begin(folder, lambda words: None)
    checkpoints = folder.path / "checkpoints"
    checkpoints.mkdir()
    for number in range(4):
        (checkpoints / f"round-{number:06d}.safetensors").touch()
        assert len(look(daemon, folder, MOST_DEATHS - 1)) == MOST_DEATHS - 1
    assert not folder.problem_file.exists()


def test_what_a_run_left_that_died_at_its_end_goes_when_the_daemon_starts(
    made: Provisioned, daemon: LinkCoordinator
) -> None:
    store = LinkStore(database_url(made))
    ended, open_ = launched(made, "ended"), launched(made, "open")
    written = write_result(result_of("finished"), ended.result)
    append_event(ended.events, RunFinished(result=written))
    post(store, made, "ended")
    order = post(store, made, "open")
    daemon._reclaim_ended()
    assert runs_with_orders(made.folder) == ["open"]
    assert store.order(order.key) == order
    assert not daemon._is_over(open_)
    reclaim_run(store, made.folder, "open")
    store.close()
