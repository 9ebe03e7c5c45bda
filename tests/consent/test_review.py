"""What a person reads before a plan may run, and the commands with which they decide."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Ran
from tests.consent.conftest import PLAN, PRIVATE, Clinic

from asterion_client.approvals import keep_waiting
from asterion_client.closed_network import BY_INTERPRETER, BY_KERNEL
from asterion_client.dry_run import dry_run
from asterion_client.plan_review import differences
from asterion_shared.errors import AsterionError, DataProblemError, EngineFailedError
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.settings_files import validate

PERSON = 'approval = "auto"', 'approval = "person"'


@pytest.fixture
def plan_file(clinic: Clinic, tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(clinic.plan))
    clinic.toml.write_text(clinic.toml.read_text().replace(*PERSON))
    return path


def test_a_review_says_what_is_read_and_what_leaves(
    clinic: Clinic, plan_file: Path, asterion: Callable[..., Ran]
) -> None:
    ran = asterion("site", "review", clinic.toml, plan_file)
    assert ran.code == 0, ran.said
    for words in (
        "trains a classification model: network logistic, classes well, ill",
        f"plan {clinic.plan.sha256}",
        "3 rounds, in each 20 steps of 8 examples at a time; at least 2 sites make a round",
        "to train: 44 examples of 44 patients or fields",
        "held out: 16 examples of 16",
        "each round: the change of the network's weights, 10 numbers",
        "no image, no row of a table, no file name, no header",
        "none: updates leave the sites in clear; no epsilon is claimed",
        "with the network closed by",
    ):
        assert words in ran.out, words
    assert not (clinic.folder / "state" / "runs").exists()


def test_a_plan_that_trains_nothing_is_reviewed(
    clinic: Clinic, plan_file: Path, asterion: Callable[..., Ran]
) -> None:
    init = {"file": "model.safetensors", "sha256": "0" * 64}
    plan = validate(Plan, PLAN | {"kind": "evaluate", "init": init}, "plan")
    plan_file.write_text(plan_to_toml(plan))
    ran = asterion("site", "review", clinic.toml, plan_file, "--no-dry-run")
    assert ran.code == 0, ran.said
    assert "scores a given classification model, without training" in ran.out
    assert "how many examples and steps, how many seconds it took" in ran.out


def test_approving_asks_and_a_later_review_shows_what_changed(
    clinic: Clinic, plan_file: Path, asterion: Callable[..., Ran]
) -> None:
    command = ("site", "approve", clinic.toml, plan_file, "--no-dry-run")
    assert asterion(*command, typed="n\n").code == 1
    assert "none is approved" in asterion("site", "plans", clinic.toml).out
    assert asterion(*command, typed="y\n").code == 0
    assert "approved: run r, until" in asterion("site", "plans", clinic.toml).out
    more = validate(Plan, PLAN | {"seed": 7, "local": {"amount": 40}}, "plan")
    plan_file.write_text(plan_to_toml(more))
    out = asterion("site", "review", clinic.toml, plan_file, "--no-dry-run").out
    assert "  local.amount: 20 -> 40\n  seed: 1 -> 7\n" in f"{out}\n"
    assert asterion("site", "refuse", clinic.toml, "r").code == 0
    assert asterion("site", "refuse", clinic.toml, "r").code == 2


def test_a_plan_that_waits_is_reviewed_by_the_name_of_its_run(
    clinic: Clinic, plan_file: Path, asterion: Callable[..., Ran]
) -> None:
    keep_waiting(clinic.folder / "state", clinic.order("winter"))
    listed = json.loads(asterion("site", "plans", clinic.toml, "--json").out)
    assert [one["run"] for one in listed["waiting"]] == ["winter"]
    sign = ("site", "approve", clinic.toml, "winter", "--no-dry-run", "--reviewed")
    other = asterion(*sign, "0" * 64)
    assert (other.code, "not approved: this is another plan" in other.err) == (22, True)
    assert json.loads(asterion("site", "plans", clinic.toml, "--json").out)["approved"] == []
    assert "approved: run winter" in asterion(*sign, clinic.plan.sha256).out
    gone = asterion("site", "review", clinic.toml, "summer")
    assert gone.code == 2
    assert "no plan of that run waits here" in gone.err


def test_what_consent_is_against_cannot_be_approved(
    clinic: Clinic, plan_file: Path, asterion: Callable[..., Ran]
) -> None:
    clinic.toml.write_text(clinic.toml.read_text().replace('["none", "site", ', "["))
    ran = asterion("site", "approve", clinic.toml, plan_file, "--no-dry-run")
    assert ran.code == 22
    assert "the plan's noise is 'none'" in ran.out
    assert "(noise_not_allowed)" in ran.out
    assert "none is approved" in asterion("site", "plans", clinic.toml).out


def test_a_pause_is_a_command(clinic: Clinic, asterion: Callable[..., Ran]) -> None:
    paused = clinic.folder / "state" / "consent" / "paused"
    assert asterion("site", "pause", clinic.toml).code == 0
    assert paused.exists()
    assert asterion("site", "continue", clinic.toml).code == 0
    assert not paused.exists()


def test_a_dry_run_that_does_not_end_is_told(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asterion_client.dry_run.MOST_SECONDS", 0.01)
    with pytest.raises(EngineFailedError, match="did not end within"):
        dry_run(clinic.toml, clinic.plan.canonical())


def test_a_dry_run_ends_in_what_the_plan_would_end_in(clinic: Clinic) -> None:
    tried = dry_run(clinic.toml, validate(Plan, PLAN | PRIVATE, "plan").canonical())
    assert (tried.num_examples, tried.num_test) == (44, 16)
    assert tried.network in (BY_KERNEL, BY_INTERPRETER)
    assert 4 * tried.num_weights < tried.bytes_up < 20_000
    (clinic.folder / "patients.csv").write_text("age,pressure,label,patient\n")
    with pytest.raises(AsterionError) as caught:
        dry_run(clinic.toml, clinic.plan.canonical())
    assert caught.value.exit_code == DataProblemError.exit_code


@pytest.mark.parametrize("kernel", [True, False])
def test_the_network_is_closed(kernel: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import asterion_client.closed_network as d, socket, types\n"
            f"if not {kernel}: d.ctypes = types.SimpleNamespace(\n"
            "    CDLL=lambda *a, **k: types.SimpleNamespace(unshare=lambda f: -1))\n"
            "print(d.close_network())\n"
            f"try: socket.create_connection(('127.0.0.1', {port}), 1)\n"
            "except OSError: print('closed')\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    how, then = ran.stdout.splitlines()
    assert how in ((BY_KERNEL, BY_INTERPRETER) if kernel else (BY_INTERPRETER,))
    assert then == "closed"


def test_equal_plans_have_no_difference(clinic: Clinic) -> None:
    assert list(differences(clinic.plan, clinic.plan)) == []
    private = validate(Plan, PLAN | PRIVATE, "plan")
    lines = list(differences(clinic.plan, private))
    assert "privacy.noise: not set -> site" in lines
