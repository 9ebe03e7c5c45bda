import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from asterion_shared.errors import SettingsError, UserInputError
from asterion_shared.plan import Plan
from asterion_sim import sweep
from asterion_sim.plan_values import combinations, parse_value, split_values
from asterion_sim.sweep import run_sweep, sweep_runs
from asterion_sim.virtual_cohort import VirtualSites

VARY = ["algorithm.name=fedprox", "algorithm.mu=0,0.5", "local.learning_rate=0.01,0.1"]


def test_every_combination_runs_once_and_is_skipped_later(
    plan: Plan, sites: VirtualSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    done = run_sweep(plan, sites, tmp_path, VARY, say=said.append)
    assert [(r.plan.algorithm.mu, r.plan.local.learning_rate) for r, _ in done] == [
        (0, 0.01), (0, 0.1), (0.5, 0.01), (0.5, 0.1)
    ]  # fmt: skip
    folder = "algorithm.name=fedprox_algorithm.mu=0.5_local.learning_rate=0.1"
    assert (tmp_path / folder / "report.html").exists()
    written = (tmp_path / "sweep.json").read_bytes()
    values = json.loads(written)
    assert values["num_runs"] == len(values["runs"]) == 4
    last = values["runs"][-1]
    assert last["folder"] == folder
    assert last["values"] == {
        "algorithm.name": "fedprox", "algorithm.mu": 0.5, "local.learning_rate": 0.1
    }  # fmt: skip
    assert last["final_metrics"]["auroc"] == done[-1][1].final_metrics["auroc"]

    # what is missing is run, what is finished is not
    (tmp_path / folder / "result.json").unlink()
    asked: list[Path] = []
    real = sweep.simulate

    def counted(plan: Plan, sites: VirtualSites, out: Path, **options: object):  # type: ignore[no-untyped-def]
        asked.append(out)
        return real(plan, sites, out, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "simulate", counted)
    console = Console(width=150, record=True, file=io.StringIO())
    said.clear()
    run_sweep(plan, sites, tmp_path, VARY, say=said.append, console=console)
    assert asked == [tmp_path / folder]
    assert [line.endswith("is finished already") for line in said] == [True, True, True, False]
    again = json.loads((tmp_path / "sweep.json").read_bytes())
    assert [run["final_metrics"] for run in again["runs"]] == [
        run["final_metrics"] for run in values["runs"]
    ]
    text = console.export_text()
    assert "small: 4 runs" in text
    assert "mean of sites" in text


def test_every_problem_of_every_combination_is_named_before_anything_runs(
    plan: Plan, sites: VirtualSites, tmp_path: Path
) -> None:
    vary = ["algorithm.mu=0,-1,0.1", "local.learning_rate=0.1,-2,fast", "rounds.cuont=3"]
    with pytest.raises(SettingsError) as error:
        run_sweep(plan, sites, tmp_path / "out", vary)
    said = [str(problem) for problem in error.value.problems]
    assert len(said) == len(set(said))
    for part in ("algorithm.mu: got -1; must be >= 0", "local.learning_rate: got -2; must be > 0",
                 "local.learning_rate: got 'fast'", "rounds.cuont: unknown key",
                 "mu is 0.1 and name is 'fedavg'"):  # fmt: skip
        assert any(part in line for line in said), part
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([], "nothing is varied"),
        (["algorithm.mu"], "'algorithm.mu' is not PATH=VALUE"),
        (["local.amount=1", "local.amount=2"], "local.amount is varied twice"),
        (["local.learning_rate=0.1,0.10"], "are the same plan; list it once"),
        (["data.classes=['a', 'b']"], "data.classes: cannot be varied"),
    ],
)
def test_what_cannot_be_varied(vary: list[str], message: str, plan: Plan) -> None:
    with pytest.raises((UserInputError, SettingsError), match=message):
        sweep_runs(plan, vary)


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(
    plan: Plan, sites: VirtualSites, tmp_path: Path
) -> None:
    vary = ["local.optimiser=sgd", "local.momentum=0.99", "local.weight_decay=1",
            "local.amount=200", "local.learning_rate=10,0.01"]  # fmt: skip
    done = run_sweep(plan, sites, tmp_path, vary)
    assert [result.status for _, result in done] == ["quorum_lost", "finished"]
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["quorum_lost", "finished"]


def test_values_are_read_as_toml() -> None:
    assert [parse_value(text) for text in ("1e-3", "true", "[8, 16]", "adam", '"a,b"')] == [
        1e-3, True, [8, 16], "adam", "a,b"
    ]  # fmt: skip
    assert split_values("[8, 16],[16, 32]") == ["[8, 16]", "[16, 32]"]
    assert combinations(["a.b=1,2", "c=x"]) == [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]


def test_long_names_of_folders_are_cut(plan: Plan) -> None:
    widths = ", ".join(["16"] * 60)
    (run,) = sweep_runs(plan, [f"model.widths=[{widths}]"])
    assert len(run.folder) < 140
