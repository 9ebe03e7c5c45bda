"""The command as a person uses it: exit codes, messages, never a traceback for a mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from asterion_client.settings import read_site_settings
from asterion_shared.errors import AsterionError
from asterion_shared.result import read_result

ROOT = Path(__file__).parents[2]
PLAN = """
name = "small"
task = "segmentation"
[data]
classes = ["sky", "source"]
patch_size = [16, 16]
[model]
name = "unet"
widths = [4, 8]
[local]
amount = 2
[rounds]
count = 2
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def make_site(parent: Path, name: str, task: str = "segmentation") -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).normal(size=(6, 16, 16)).astype(np.float32)
    masks = (images > 0.5).astype(np.uint8)
    np.savez(folder / "a.npz", images=images, masks=masks)
    (folder / "site.toml").write_text(f'name = "{name}"\ntask = "{task}"\n[data]\nformat = "npz"\n')
    return folder


def test_help_and_version(asterion) -> None:
    ran = asterion("--help")
    assert ran.code == 0
    for command in ("plan", "site", "server", "simulate", "studies", "demo"):
        assert command in ran.out
    assert asterion("--version").out.startswith("asterion ")


@pytest.mark.parametrize("task", ["segmentation", "classification", "anomaly"])
def test_a_new_plan_is_right_as_it_is_and_runs(asterion, tmp_path: Path, task: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(asterion("plan", "new", task).out)
    assert "sha256" in asterion("plan", "check", path).out
    short = path.read_text().replace("amount = 50", "amount = 2").replace("count = 5", "count = 1")
    path.write_text(short.replace("amount = 20", "amount = 2"))
    out = tmp_path / "run"
    ran = asterion("simulate", path, "--num-sites", 2, "--out", out)
    assert ran.code == 0, ran.err
    assert read_result(out / "result.json").status == "finished"
    assert "<html" in (out / "report.html").read_text()


def test_a_wrong_plan_names_every_problem(asterion, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.replace("count = 2", "count = 0\nnope = 1"))
    ran = asterion("plan", "check", path)
    assert ran.code == 10
    assert "rounds.count: got 0; must be >= 1" in ran.err
    assert "rounds.nope: unknown key" in ran.err
    as_json = asterion("plan", "check", path, "--json")
    assert as_json.code == 10
    assert {p["where"] for p in json.loads(as_json.out)["problems"]} == {
        "rounds.count",
        "rounds.nope",
    }


def test_schema_is_json_and_an_unknown_task_is_named(asterion) -> None:
    assert json.loads(asterion("plan", "schema").out)["title"] == "Plan"
    ran = asterion("plan", "new", "painting")
    assert ran.code == 2
    assert "'painting'" in ran.err


@pytest.mark.parametrize("command", ["plan check", "site check", "simulate"])
def test_a_missing_file_is_named(asterion, command: str, tmp_path: Path) -> None:
    extra = ["--out", tmp_path / "run"] if command == "simulate" else []
    ran = asterion(*command.split(), tmp_path / "absent.toml", *extra)
    assert ran.code == 11
    assert "absent.toml" in ran.err


def test_json_lines_end_with_the_result(asterion, plan: Path, tmp_path: Path) -> None:
    make_site(tmp_path / "sites", "one")
    ran = asterion(
        "simulate", plan, "--sites", tmp_path / "sites", "--out", tmp_path / "o", "--json"
    )
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[-1]["result"]["status"] == "finished"


def test_a_folder_without_sites_and_two_sites_of_one_name_are_refused(
    asterion, plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["simulate", plan, "--out", tmp_path / "o", "--sites"]
    assert asterion(*words, tmp_path / "empty").code == 2
    make_site(tmp_path / "twice", "one")
    (make_site(tmp_path / "twice", "two") / "site.toml").write_text(
        (tmp_path / "twice/one/site.toml").read_text()
    )
    ran = asterion(*words, tmp_path / "twice")
    assert ran.code == 13
    assert "'one'" in ran.err


def test_sites_that_cannot_serve_the_plan_are_in_the_title(
    asterion, plan: Path, tmp_path: Path
) -> None:
    make_site(tmp_path / "sites", "good")
    make_site(tmp_path / "sites", "other-task", task="anomaly")
    (make_site(tmp_path / "sites", "empty") / "a.npz").unlink()
    bad = make_site(tmp_path / "sites", "outside")
    images = np.zeros((4, 16, 16), np.float32)
    np.savez(bad / "a.npz", images=images, masks=np.full(images.shape, 7, np.uint8))
    ran = asterion("simulate", plan, "--sites", tmp_path / "sites", "--out", tmp_path / "o")
    assert ran.code == 0, ran.err
    result = read_result(tmp_path / "o/result.json")
    assert result.rounds[0].missing == {
        "empty": "no_data",
        "other-task": "wrong_task",
        "outside": "label_outside_classes",
    }
    assert "empty missing" in result.headline


def test_too_few_sites_end_with_their_own_code_and_keep_what_is_done(
    asterion, plan: Path, tmp_path: Path
) -> None:
    plan.write_text(PLAN + "quorum = 2\n")
    make_site(tmp_path / "sites", "one")
    ran = asterion("simulate", plan, "--sites", tmp_path / "sites", "--out", tmp_path / "o")
    assert ran.code == 20
    assert "1 of 1 sites answered, 2 are needed" in ran.err
    make_site(tmp_path / "sites", "two")
    again = asterion("simulate", plan, "--sites", tmp_path / "sites", "--out", tmp_path / "o")
    assert again.code == 0, again.err


def test_a_full_disk_keeps_the_finished_rounds(
    asterion, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    make_site(tmp_path / "sites", "one")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    words = ["simulate", plan, "--sites", tmp_path / "sites", "--out", tmp_path / "o"]
    monkeypatch.setattr(os, "fsync", full)
    ran = asterion(*words)
    assert ran.code == 40
    assert "No space left" in ran.err
    monkeypatch.setattr(os, "fsync", real)
    assert list((tmp_path / "o/checkpoints").glob("round-*.safetensors"))
    assert asterion(*words).code == 0


def test_site_check_lists_problems_and_ends_with_a_code(asterion, tmp_path: Path) -> None:
    good = make_site(tmp_path, "good")
    ran = asterion("site", "check", good / "site.toml")
    assert ran.code == 0
    assert "only warnings" in ran.out
    bad = make_site(tmp_path, "bad")
    (bad / "a.npz").write_bytes(b"not an npz")
    ran = asterion("site", "check", bad / "site.toml", "--json")
    assert ran.code == 12
    assert any(p["fatal"] for p in json.loads(ran.out)["problems"])


@pytest.mark.parametrize("example", sorted((ROOT / "deploy/examples").glob("*.toml")))
def test_the_example_settings_are_right(example: Path) -> None:
    assert read_site_settings(example).connection is not None


def test_every_error_has_its_own_exit_code_and_stands_in_the_tree() -> None:
    from asterion_shared import errors

    def below(kind: type[AsterionError]) -> list[type[AsterionError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in below(sub))]

    kinds = [k for k in below(AsterionError) if k.__module__ == errors.__name__]
    codes = [k.exit_code for k in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
