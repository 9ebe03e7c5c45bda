"""A simulated run: the pooled numbers of two scanners are those of all cases, by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asterion_client.local_round import make_workspace
from asterion_shared.parameters import from_bytes, write_vector
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim.array_source import read_arrays, split_arrays
from asterion_sim.simulate import simulate
from asterion_sim.splits import SplitSettings
from asterion_sim.virtual_cohort import VirtualSites

ASKED = {"scanner": ["ge", "siemens"], "sex": ["female", "male"]}
VALUES: dict[str, Any] = {
    "name": "two-scanners", "task": "classification", "seed": 5, "rounds": {"count": 2},
    "data": {"classes": ["well", "ill"], "patch_size": [8, 8], "normalisation": "none"},
    "model": {"name": "logistic"}, "local": {"amount": 30, "learning_rate": 0.02},
    "evaluation": {"subgroups": ASKED},
}  # fmt: skip


def arrays(folder: Path, count: int = 400) -> Path:
    """The Siemens' images are three times as noisy; of a tenth the scanner is another."""
    draws = np.random.default_rng(1)
    labels = draws.integers(0, 2, count)
    scanner = draws.choice(["GE", "Siemens ", "Prototype"], count, p=[0.45, 0.45, 0.1])
    noise = np.where(scanner == "Siemens ", 6.0, 2.0)[:, None, None, None]
    images = noise * draws.normal(size=(count, 1, 8, 8)) + 0.5 * labels[:, None, None, None]
    folder.mkdir()
    for name, array in (("images", images.astype(np.float32)), ("labels", labels),
                        ("scanner", scanner)):  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    return folder


def exact_auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs in the right order, ties as half."""
    gaps = scores[truth][:, None] - scores[~truth][None]
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)


def test_pooled_numbers_of_a_scanner_are_those_of_its_cases(tmp_path: Path) -> None:
    plan = validate(Plan, VALUES, "plan")
    data = read_arrays(arrays(tmp_path / "data"), plan)
    sites = split_arrays(data, SplitSettings(kind="iid"), 3, 0.4, plan)
    result = simulate(plan, VirtualSites(sites, {}), tmp_path / "run", report=False)
    space = make_workspace(plan)
    weights = from_bytes((tmp_path / "run" / "model.safetensors").read_bytes(), space.layout)
    write_vector(space.model, space.layout, weights)
    predict = model_predictor(space.model, plan)
    scores, truth, scanner = [], [], []
    stored = np.load(tmp_path / "data" / "scanner.npy")
    for site in sites.values():
        scores += [float(probability[1]) for probability in predict(site.test)]
        truth += [case.label == 1 for case in site.test]
        scanner += [stored[row] for row in site.test.rows]  # type: ignore[attr-defined]
    names = {"GE": "ge", "Siemens ": "siemens", "Prototype": "other"}
    found = result.final_metrics
    for written, value in names.items():
        chosen = np.array(scanner) == written
        wanted = exact_auroc(np.array(scores)[chosen], np.array(truth)[chosen])
        bound = found[f"auroc_bound_by_scanner/{value}"]
        assert bound is not None
        assert bound < 0.02
        assert found[f"cases_by_scanner/{value}"] == chosen.sum()
        assert found[f"auroc_by_scanner/{value}"] == pytest.approx(wanted, abs=bound + 1e-9)
    easy, hard = found["auroc_by_scanner/ge"] or 0, found["auroc_by_scanner/siemens"] or 0
    assert easy > hard + 0.1
    assert found["cases_by_sex/other"] == len(truth)  # there is no such column
    assert found["auroc_by_sex/other"] == found["auroc"]
    assert found["auroc_by_sex/female"] is None
    assert found["cases_by_sex/female"] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["final_metrics"] == found
