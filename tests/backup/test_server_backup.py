"""A coordinator's backup is made while it works, and a run goes on from it to the same model."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tests.faults.kill_cases import matrix_plan
from tests.live.conftest import Federation, running_federation, wait_for
from tests.papers import provisioned

from asterion_server import backup
from asterion_server.backup import back_up_coordinator, restore_coordinator
from asterion_server.coordinator_toml import set_values
from asterion_server.keys import open_provisioned
from asterion_server.launch import launch
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.errors import FileProblemError, UserInputError
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import signed_here


def longer(kind: str) -> Plan:
    plan = matrix_plan(kind)
    values = plan.model_dump(mode="json", exclude_unset=True)
    values["rounds"]["count"] = 9
    values["name"] = f"{kind}-long"
    return validate(Plan, values, "plan")


@pytest.mark.live
def test_a_run_goes_on_from_a_backup_that_was_made_while_it_worked(tmp_path: Path) -> None:
    plan, out, target = longer("prox"), tmp_path / "b.tar", tmp_path / "restored"
    with running_federation(tmp_path, dict.fromkeys(("north", "south", "west"), 9.0),
                            carrier="link") as federation:  # fmt: skip
        calm = launch(federation.made, plan, run="calm-run",
                      signature=signed_here(federation.made.folder, plan, "calm-run"))  # fmt: skip
        assert calm.status == "finished"
        watched = federation.launch(plan)
        watched.wait_for_round(2)
        made = back_up_coordinator(federation.made.folder, out)
        assert made.num_files > 20
        watched.wait_for_round(4)  # the sites are ahead of the backup
        _kill(federation, "center")
        watched._process.kill()
        watched._process.communicate()
        restored = restore_coordinator(out, target)
        assert restored.stopped == ()
        copied = RunFolder(target / "runs" / plan.name)
        assert not copied.has_ended
        federation.start("center", "server", "start", str(target))
        wait_for(lambda: copied.has_ended, 180, "the restored run")
        result = json.loads(copied.result.read_text())
    assert result["status"] == "finished"
    assert [r["round"] for r in result["rounds"]] == list(range(10))
    assert all(len(r["asked"]) == 3 for r in result["rounds"])
    ours = load_file(copied.path / "model.safetensors")
    theirs = load_file(federation.made.runs / "calm-run" / "model.safetensors")
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    for name in ("ca.key", "server.key", "superexec.secret"):
        assert (target / name).stat().st_mode & 0o777 == 0o600


def _kill(federation: Federation, name: str) -> None:
    """Everything of one daemon at once, as a machine that dies."""
    process = federation.processes[name]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    folder = tmp_path / "coordinator"
    provisioned(folder, ["127.0.0.1"], ["north", "south"], port=18999, listen="127.0.0.1")
    return folder


def begun(folder: Path, kind: str) -> RunFolder:
    run = RunFolder(folder / "runs" / kind)
    run.path.mkdir(parents=True)
    run.plan_file.write_text(matrix_plan(kind).canonical())
    run.write_launch(Launch(sites=("north", "south")))
    (run.path / "checkpoints").mkdir()
    for number in (1, 2):
        (run.path / "checkpoints" / f"round-{number:06d}.safetensors").write_bytes(b"%d" % number)
    (run.path / "checkpoints" / "rounds.jsonl").write_text("{}\n")
    (run.path / "asked.jsonl").write_text("{}\n")
    (run.path / "process.log").write_text("x")
    return run


def test_a_private_run_waits_for_a_person_and_others_go_on(
    coordinator: Path, tmp_path: Path, asterion: Callable[..., Any]
) -> None:
    for kind in ("prox", "sitenoise"):
        begun(coordinator, kind)
    ended = begun(coordinator, "record")
    ended.write_problem(UserInputError("its own end"))
    target = tmp_path / "target"
    assert asterion("server", "backup", coordinator, "--out", tmp_path / "b.tar").code == 0
    done = asterion("server", "restore", tmp_path / "b.tar", target)
    assert done.code == 0
    assert "run sitenoise is private" in done.out
    assert "revoke again who was revoked since" in done.out
    assert "enrolled are: north, south" in done.out
    assert "record" not in done.out
    assert "prox" not in done.out
    assert not RunFolder(target / "runs" / "prox").has_ended
    assert "epsilon would leave it out" in str(RunFolder(target / "runs" / "sitenoise").problem())
    assert "its own end" in str(RunFolder(target / "runs" / "record").problem())
    kept = sorted(p.name for p in (target / "runs" / "prox").rglob("*") if p.is_file())
    assert kept == ["asked.jsonl", "launch.json", "plan.json", "round-000001.safetensors",
                    "round-000002.safetensors", "rounds.jsonl"]  # fmt: skip
    assert not list(coordinator.rglob(".backup-*"))
    assert open_provisioned(target).settings.sites == ("north", "south")


def test_what_only_grows_is_copied_after_the_checkpoint_that_needs_it(
    coordinator: Path, tmp_path: Path
) -> None:
    import tarfile

    begun(coordinator, "prox")
    back_up_coordinator(coordinator, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
    place = names.index("runs/prox/checkpoints/round-000002.safetensors")
    assert place < names.index("runs/prox/asked.jsonl")
    assert place < names.index("runs/prox/checkpoints/rounds.jsonl")
    assert names[-1] == "manifest.json"


def test_a_target_in_use_and_a_backup_of_something_else_are_refused(
    coordinator: Path, tmp_path: Path
) -> None:
    back_up_coordinator(coordinator, tmp_path / "b.tar")
    with pytest.raises(UserInputError, match="is not empty"):
        restore_coordinator(tmp_path / "b.tar", coordinator)
    with pytest.raises(UserInputError, match="is there already"):
        back_up_coordinator(coordinator, tmp_path / "b.tar")
    with pytest.raises(FileProblemError, match="is not a coordinator's folder"):
        back_up_coordinator(tmp_path / "none", tmp_path / "c.tar")


def test_a_database_that_a_coordinator_works_with_is_not_emptied(
    coordinator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, url = begun(coordinator, "prox"), f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
    set_values(coordinator / "coordinator.toml", {"database": url})
    back_up_coordinator(coordinator, tmp_path / "b.tar")
    order = StoredOrder(
        key="0" * 64, site="north", run=run.path.name, round=1, message_type="train",
        content=Parcel((Part(1, b"x"),)), submission=1, expires=None,
    )  # fmt: skip
    with closing(LinkStore(url)) as store:
        store.post([order])
        store.open_session("north", "1" * 32, "2" * 32, "0.1.0")
        with pytest.raises(UserInputError, match="works with the database of this backup"):
            restore_coordinator(tmp_path / "b.tar", tmp_path / "target")
        assert not (tmp_path / "target").exists()
        assert store.order(order.key) is not None
        monkeypatch.setattr(backup, "SESSION_SECONDS", 0.0)  # its last word is older than that
        restore_coordinator(tmp_path / "b.tar", tmp_path / "target")
        assert store.order(order.key) is None
