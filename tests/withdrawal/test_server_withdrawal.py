"""A site leaves a run that goes on; a model without it, and a receipt that anybody can check."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file
from tests.live.conftest import plan_of, running_federation, wait_for
from tests.papers import provisioned

from asterion_server import withdrawal
from asterion_server.keys import open_provisioned
from asterion_server.launch import launch
from asterion_server.receipts import Withdrawal, coordinator_key, issue_receipt
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import LinkQueue
from asterion_server.selection import open_orders
from asterion_server.withdrawal import retrain, rounds_with
from asterion_shared.audit_key import public_pem
from asterion_shared.errors import UserInputError
from asterion_shared.plan import Plan
from asterion_shared.result import FinalModel, Result, SiteSummary
from asterion_sim.local_federation import operator_key, signed_here

ROUNDS = {"count": 25, "deadline_seconds": 240.0, "quorum": 2, "late": "wait"}
MANIFESTS = {"old": "1" * 64, "new": "2" * 64}


@pytest.mark.live
def test_a_site_leaves_and_a_model_is_made_without_it(
    tmp_path: Path, asterion: Callable[..., Any]
) -> None:
    plan = plan_of("leaving", 25, rounds=ROUNDS)
    with running_federation(tmp_path, dict.fromkeys(("north", "south", "west"), 9.0),
                            carrier="link") as federation:  # fmt: skip
        made = federation.made
        watched = federation.launch(plan)
        watched.wait_for_round(3)
        done = asterion("server", "withdraw", "leaving", "west", "--folder", made.folder,
                        "--key", operator_key(made.folder))  # fmt: skip
        assert done.code == 0, done.err
        assert watched.end()[0] == 0  # whoever watches sees it go on
        again = RunFolder(made.runs / "leaving.without-west")
        wait_for(lambda: again.has_ended, 180, "the retraining")
        direct = launch(made, plan, run="direct", sites=["north", "south"],
                        signature=signed_here(made.folder, plan, "direct"))  # fmt: skip
    result = json.loads((made.runs / "leaving" / "result.json").read_text())
    assert result["status"] == "finished"
    asked = {r["round"]: r["asked"] for r in result["rounds"]}
    assert asked[3] == ["north", "south", "west"]
    there = ["west" in asked[number] for number in range(1, 26)]
    assert there == sorted(there, reverse=True)  # once out, never in again
    assert not there[-1]
    redone = json.loads(again.result.read_text())
    assert all(r["asked"] == ["north", "south"] for r in redone["rounds"])
    assert direct.status == "finished"
    ours = load_file(again.path / "model.safetensors")
    theirs = load_file(made.runs / "direct" / "model.safetensors")
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    pem = tmp_path / "key.pem"
    pem.write_text(asterion("server", "receipt", "key", "--folder", made.folder).out)
    checked = asterion("server", "receipt", "verify", again.receipt, "--key", pem, "--json")
    told = json.loads(checked.out)
    assert told["model_sha256_after"] == redone["final_model"]["sha256"]
    assert told["model_sha256_before"] == result["final_model"]["sha256"]
    assert (told["withdrawal"]["site"], told["rounds_redone"]) == ("west", 25)
    assert told["sites"] == ["north", "south"]
    with pytest.raises(UserInputError, match="has withdrawn from run"):
        launch(made, plan, run="leaving", sites=["west"])


def result_of(plan: Plan, run: str, model: str, manifest: str) -> Result:
    return Result.model_validate(
        {"run": run, "name": plan.name, "kind": "train", "task": plan.task,
         "plan_sha256": plan.sha256, "status": "finished", "headline": "x",
         "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:01Z",
         "carrier": "link", "rounds_planned": plan.rounds.count,
         "final_model": FinalModel(path="model.safetensors", sha256=model * 64),
         "sites": (SiteSummary(name="north", manifest_sha256=manifest),)}
    )  # fmt: skip


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    folder = tmp_path / "coordinator"
    provisioned(folder, ["127.0.0.1"], ["north", "south"], port=18998, listen="127.0.0.1")
    return folder


def issued(folder: Path, manifest: str, **asked: Any) -> RunFolder:
    plan = plan_of("p", 4)
    old, new = RunFolder(folder / "runs" / "old"), RunFolder(folder / "runs" / "new")
    for run in (old, new):
        run.path.mkdir(parents=True)
        run.plan_file.write_text(plan.canonical())
    before = result_of(plan, "old", "a", MANIFESTS["old"])
    old.result.write_text(before.model_dump_json())
    wanted = Withdrawal(run="old", site="north", withdrawn_at="2026-01-01T00:00:00Z", **asked)
    new.withdrawal_file.write_text(wanted.model_dump_json())
    issue_receipt(new, result_of(plan, "new", "b", manifest))
    return new


def test_a_receipt_is_refused_with_any_change_in_it(
    coordinator: Path, asterion: Callable[..., Any]
) -> None:
    run = issued(coordinator, MANIFESTS["new"], what="site")
    pem = coordinator / "k.pem"
    pem.write_text(asterion("server", "receipt", "key", "--folder", coordinator).out)
    good = run.receipt.read_text()
    words = ("server", "receipt", "verify", run.receipt, "--key", pem)
    assert "the signature holds: site north withdrew from run old" in asterion(*words).out
    values = json.loads(good)
    for name, value in values["receipt"].items():
        other: Any = {"str": "0" * 64, "int": 7}.get(type(value).__name__)
        if name == "withdrawal":
            other = value | {"site": "south"}
        elif name == "issued_at":
            other = "2020-01-01T00:00:00Z"
        elif isinstance(value, list):
            other = [*value, "more"]
        changed = values | {"receipt": values["receipt"] | {name: other}}
        run.receipt.write_text(json.dumps(changed))
        refused = asterion(*words)
        assert (refused.code, "was changed, or is signed with another key" in refused.err) == (
            11, True,
        ), name  # fmt: skip
    run.receipt.write_text(good)
    for text in public_pem(Ed25519PrivateKey.generate()), "no key":
        pem.write_text(text)
        assert asterion(*words).code == 11
    key = coordinator / "audit" / "audit.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(UserInputError, match="others can read"):
        coordinator_key(coordinator)


@pytest.mark.parametrize(("number", "told"), [(4, None), (5, 5), (None, None)])
def test_few_patients_are_not_counted_in_a_receipt(
    coordinator: Path, number: int | None, told: int | None
) -> None:
    run = issued(coordinator, MANIFESTS["new"], what="patients", num_patients=number)
    receipt = json.loads(run.receipt.read_text())["receipt"]
    assert receipt["withdrawal"]["num_patients"] == told
    assert any("Fewer than 5" in note for note in receipt["notes"]) is (number == 4)
    assert receipt["manifest_sha256_before"] == MANIFESTS["old"]
    assert receipt["manifest_sha256_after"] == MANIFESTS["new"]
    assert not any("was the same" in note for note in receipt["notes"])


def test_a_receipt_says_when_the_data_set_is_the_same(coordinator: Path) -> None:
    run = issued(coordinator, MANIFESTS["old"], what="patients")
    notes = json.loads(run.receipt.read_text())["receipt"]["notes"]
    assert any("was the same at the end of both runs" in note for note in notes)


def test_an_unfinished_run_and_one_without_a_withdrawal_give_no_receipt(coordinator: Path) -> None:
    run = issued(coordinator, MANIFESTS["new"], what="site")
    run.receipt.unlink()
    plan = run.read_plan()
    issue_receipt(run, result_of(plan, "new", "b", "").model_copy(update={"status": "stopped"}))
    assert not run.receipt.exists()
    run.withdrawal_file.unlink()
    issue_receipt(run, result_of(plan, "new", "b", ""))
    assert not run.receipt.exists()


def test_what_cannot_be_is_told(coordinator: Path, asterion: Callable[..., Any]) -> None:
    summed = plan_of(
        "summed", 4,
        algorithm={"max_weight": 1, "clip_norm": 1.0},
        rounds={"count": 3, "sites_per_round": 3, "deadline_seconds": 60.0},
        secure_sum={"max_colluders": 0, "max_dropouts": 1},
    )  # fmt: skip
    for name, plan in (("summed", summed), ("plain", plan_of("plain", 4))):
        run = RunFolder(coordinator / "runs" / name)
        run.path.mkdir(parents=True)
        run.plan_file.write_text(plan.canonical())
        run.write_launch(Launch(sites=("north", "south")))
    here = ("--folder", coordinator)
    refused = asterion("server", "withdraw", "summed", "north", *here)
    assert refused.code == 2
    assert "signs no receipt" in refused.err
    assert "--no-retrain" in refused.err
    assert RunFolder(coordinator / "runs" / "summed").read_launch().left == ()
    for words, why in (
        (("absent", "north"), "there is no run 'absent'"),
        (("plain", "east"), "site 'east' is not in run"),
        (("plain", "north", "--what", "patients"), "took part in no finished round"),
        (("plain", "north", "--what", "patients", "--no-retrain"), "asterion site withdraw"),
        (("plain", "north", "--name", "No Name"), "lower-case letters"),
    ):
        done = asterion("server", "withdraw", *words, *here)
        assert done.code == 2, words
        assert why in done.err
    assert rounds_with(RunFolder(coordinator / "runs" / "plain"), "north") == []


def test_a_site_is_taken_out_of_a_run_while_the_coordinator_is_down(
    coordinator: Path, asterion: Callable[..., Any]
) -> None:
    """As after a restore: with the next start the run would go on with it."""
    run = RunFolder(coordinator / "runs" / "plain")
    run.path.mkdir(parents=True)
    run.plan_file.write_text(plan_of("plain", 4).canonical())
    run.write_launch(Launch(sites=("north", "south")))
    done = asterion("server", "withdraw", "plain", "north", "--no-retrain", "--folder", coordinator)
    assert done.code == 0, done.err
    assert (run.read_launch().sites, run.read_launch().left) == (("south",), ("north",))


@pytest.mark.parametrize(("what", "left"), [("patients", ("west",)), ("site", ("west", "north"))])
def test_who_left_before_stays_out_of_the_run_that_is_trained_again(
    coordinator: Path, what: Any, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_provisioned(coordinator)
    old, new = RunFolder(made.runs / "old"), RunFolder(made.runs / "new")
    old.path.mkdir(parents=True)
    old.plan_file.write_text(plan_of("p", 4).canonical())
    old.write_launch(Launch(sites=("east", "north", "south"), left=("west",), flower_run=7))
    monkeypatch.setattr(withdrawal, "rounds_with", lambda *_: [1])
    monkeypatch.setattr(withdrawal, "queue_of", lambda _: nullcontext(LinkQueue(made)))
    retrain(made, "old", "north", what=what, name="new")
    launched = new.read_launch()
    assert launched.left == left
    assert launched.flower_run == 0  # Flower's number of the other run
    assert set(launched.sites).isdisjoint(left)


def test_late_reports_of_a_site_that_left_are_not_carried_over() -> None:
    class Carrying:
        def open_orders(self, round_: int, most_stale: int) -> dict[str, int]:
            return {"north": round_ - 1, "west": round_ - 1}

        def ask(self, order: object, sites: object) -> None:
            raise AssertionError

        def sites(self) -> tuple[str, ...]:
            return ()

    rounds = {"count": 4, "deadline_seconds": 60.0, "late": "carry_over"}
    plan = plan_of("p", 4, rounds=rounds)
    assert open_orders(plan, Carrying(), 3, ("north", "south")) == {"north": 2}  # type: ignore[arg-type]
