"""``asterion site fine-tune``: when it helps, and when not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_client.fine_tune import local_plan
from asterion_shared.parameters import layout_of, named_parts
from asterion_shared.plan import Plan
from asterion_shared.release.facts import MODEL, PLAN
from asterion_shared.release.sealing import seal
from asterion_shared.settings_files import validate
from asterion_shared.tasks import initial_model
from asterion_shared.tensor_files import write_tensors

PATIENTS = 300
VALUES: dict[str, Any] = {
    "name": "pressure",
    "task": "classification",
    "data": {"kind": "table", "features": ["age", "pressure"], "classes": ["well", "ill"],
             "scale": {"age": [50.0, 10.0], "pressure": [130.0, 20.0]}},
    "model": {"name": "logistic"},
    "local": {"amount": 40, "batch_size": 32, "learning_rate": 0.5},
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "privacy": {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
                "sampling_rate": 0.2, "epsilon_limit": 20.0},
}  # fmt: skip
SITE = """
name = "clinic"
task = "classification"
[data]
format = "table"
group_column = "patient"
test_fraction = 0.5
"""


def released(folder: Path, weights: list[float]) -> Path:
    """A logistic model with given weights of age and pressure, and no bias."""
    plan = validate(Plan, VALUES, "plan")
    layout = layout_of(initial_model(plan), plan.parameters)
    width = (layout.size - 2) // 2
    vector = np.zeros(layout.size, np.float32)
    # the row of the class "ill"; beside each number stands whether it is missing
    vector[width : 2 * width : 2] = weights
    write_tensors(folder / MODEL, named_parts(vector, layout))
    (folder / PLAN).write_text(plan.canonical())
    facts = {"name": "pressure", "version": 1, "task": plan.task, "run": "r", "rounds": 1,
             "sites": 2, "plan_sha256": plan.sha256, "created": "2026-11-22T12:00:00Z",
             "onnx": {"why_not": "not tried in this test"}}  # fmt: skip
    seal(folder, facts, Ed25519PrivateKey.generate())
    return folder


def site(folder: Path, slope: float) -> Path:
    """Patients whose illness depends on the pressure as ``slope`` says."""
    stream = np.random.default_rng(7)
    age, pressure = stream.normal(50, 10, PATIENTS), stream.normal(130, 20, PATIENTS)
    ill = stream.random(PATIENTS) < 1 / (1 + np.exp(-slope * (pressure - 130) / 20))
    rows = [f"{a:.3f},{p:.3f},{'ill' if sick else 'well'},p{i}"
            for i, (a, p, sick) in enumerate(zip(age, pressure, ill, strict=True))]  # fmt: skip
    folder.mkdir()
    (folder / "site.toml").write_text(SITE)
    (folder / "table.csv").write_text("age,pressure,label,patient\n" + "\n".join(rows) + "\n")
    return folder / "site.toml"


@pytest.mark.parametrize(
    ("weights", "slope", "verdict"),
    [
        ([0.0, -1.0], 4.0, "helps"),  # the other way round than here
        ([0.0, 1.0], 4.0, "shows no difference"),  # perfect already
        ([3.0, 0.0], 0.0, "shows no difference"),  # nothing to be learnt
    ],
)
def test_it_says_whether_it_helps(
    weights: list[float],
    slope: float,
    verdict: str,
    tmp_path: Path,
    asterion: Callable[..., Any],
) -> None:
    release, out = released(tmp_path / "release", weights), tmp_path / "tuned"
    toml = site(tmp_path / "site", slope)
    done = asterion("site", "fine-tune", release, toml, "--out", out, "--rounds", 10,
                    "--learning-rate", 0.1)  # fmt: skip
    assert done.code == 0, done.err
    assert f"fine-tuning {verdict} at site clinic: 400 steps" in done.out
    told = json.loads((out / "fine-tuning.json").read_text())
    assert told["verdict"] == verdict
    gain = told["tuned"]["value"] - told["released"]["value"]
    assert told["gain"]["value"] == pytest.approx(gain)
    assert told["gain"]["low"] <= gain <= told["gain"]["high"]
    assert (told["gain"]["low"] > 0) == (verdict == "helps")
    assert 120 < told["num_test"] == told["num_drawn"] < 180
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    assert sum(array.size for array in tensors.values()) >= 6
    assert not (tmp_path / "site" / "state").exists()  # no ledger, no run: nothing was shared


def test_a_mistake_is_named(tmp_path: Path, asterion: Callable[..., Any]) -> None:
    release, toml = released(tmp_path / "release", [0.0, 1.0]), site(tmp_path / "site", 1.0)
    done = asterion("site", "fine-tune", release, toml, "--learning-rate", 0)
    assert done.code == 2
    assert "--learning-rate is 0" in done.err
    toml.write_text(SITE.replace("0.5", "0.0"))
    done = asterion("site", "fine-tune", release, toml)
    assert "holds out no case" in done.err
    assert "Traceback" not in done.err
    (release / MODEL).write_bytes(b"")
    assert "models/model.safetensors" in asterion("site", "fine-tune", release, toml).err


def test_a_training_of_ones_own_has_no_noise_and_no_pull_to_others() -> None:
    plan = local_plan(validate(Plan, VALUES, "plan"), 0.25)
    assert (plan.privacy, plan.secure_sum, plan.algorithm.name) == (None, None, "fedavg")
    assert plan.local.learning_rate == 0.25
    assert plan.local.amount == 40
