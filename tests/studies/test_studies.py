import json
import os
from pathlib import Path

import pytest

from asterion_client.settings import read_site_settings
from asterion_shared.errors import UserInputError
from asterion_shared.metrics import HEADLINE
from asterion_shared.plan import read_plan
from asterion_sim.pooling import pool
from asterion_sim.studies import (
    PLANS,
    STUDIES,
    Bar,
    Measured,
    run_pooled,
    run_studies,
    summary_table,
    value_of,
)
from asterion_sim.synthetic import synthetic_sites

MEASURED = Measured(
    pooled={"auroc": 0.9},
    sites={"a": {"auroc": 0.5}, "b": {"auroc": 0.8}, "c": {"auroc": 0.95}, "d": {"auroc": None}},
)


@pytest.mark.parametrize(
    ("bar", "expected"),
    [
        (Bar("auroc", 0.7), 0.9),
        (Bar("auroc", 0.7, "mean of sites", ("a", "b", "c")), 0.75),  # (0.5 + 0.8 + 0.95) / 3
        (Bar("auroc", 0.7, "worst site", ("b", "c")), 0.8),
    ],
)
def test_the_number_of_a_bar(bar: Bar, expected: float) -> None:
    assert value_of(bar, MEASURED) == pytest.approx(expected)


@pytest.mark.parametrize("bar", [Bar("dice", 0.7), Bar("auroc", 0.7, "worst site")])
def test_a_number_that_was_not_measured_is_no_success(bar: Bar) -> None:
    with pytest.raises(UserInputError, match=f"{bar.metric} was not measured at"):
        value_of(bar, MEASURED)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_study_has_its_plan(study) -> None:  # type: ignore[no-untyped-def]
    plan = read_plan(PLANS / f"{study.name}.toml")
    assert plan.name == study.name
    assert plan.kind == "train"
    metrics = {bar.metric for bar in study.bars}
    assert metrics & {HEADLINE[plan.task], "accuracy"}


def test_the_bars_are_those_that_were_asked_for() -> None:
    bars = [(s.name, b.metric, b.at_least) for s in STUDIES for b in s.bars]
    assert bars == [
        ("hippocampus", "dice", 0.78),
        ("sky_noise", "dice", 0.60),
        ("chest", "auroc", 0.91),
        ("chest", "balanced_accuracy", 0.75),
        ("nuclei", "dice", 0.55),
        ("heart", "auroc", 0.85),
        ("radio", "accuracy", 0.78),
        ("chest_anomaly", "auroc", 0.75),
        ("sky_anomaly", "auroc", 0.70),
        ("sky_anomaly", "auroc", 0.85),
    ]


def test_an_unknown_study_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no study is named 'lung'; .*hippocampus"):
        run_studies(tmp_path, tmp_path / "out", ["heart", "lung"])
    assert not (tmp_path / "out").exists()


def test_pooling_keeps_every_training_case_once_and_no_test_case() -> None:
    plan = read_plan(PLANS / "heart.toml")
    sites = synthetic_sites(plan, 3)
    pooled = pool(sites.values())
    expected = [case.id for data in sites.values() for case in data.train]
    assert [case.id for case in pooled.train] == expected
    assert len(pooled.test) == 0


def test_a_pooled_model_is_measured_at_every_site(tmp_path: Path) -> None:
    plan = read_plan(PLANS / "heart.toml")
    sites = synthetic_sites(plan, 3)
    measured = run_pooled(plan, sites, tmp_path)
    assert sorted(measured.sites) == sorted(sites)
    num_test = sum(len(data.test) for data in sites.values())
    assert measured.pooled["num_cases"] == num_test
    auroc = measured.pooled["auroc"]
    assert auroc is not None
    assert auroc > 0.75


def test_heart_runs_reaches_its_bar_and_is_written(tmp_path: Path) -> None:
    data = os.environ.get("ASTERION_DATA")
    if data is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    assert run_studies(Path(data), tmp_path, ["heart"]) == []
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert set(row) == {
        "study", "metric", "federated", "pooled", "sites", "at_least", "seconds"
    }  # fmt: skip
    assert row["federated"] >= row["at_least"] == 0.85
    assert row["pooled"] > 0.85
    assert sorted(row["sites"]) == ["cleveland", "hungarian", "switzerland", "va"]
    folders = sorted((tmp_path / "heart" / "sites").iterdir())
    assert [read_site_settings(f / "site.toml").name for f in folders] == sorted(row["sites"])
    assert (tmp_path / "heart" / "federated" / "result.json").exists()
    table = summary_table([row])
    assert [column.header for column in table.columns][:4] == [
        "study", "metric", "pooled", "federated"
    ]  # fmt: skip
