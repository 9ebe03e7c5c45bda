"""Releases whose networks do what a test can foretell."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from asterion_client.predict.folder import Predicted, Task, predict_members
from asterion_client.predict.inputs import choose_settings, find_members
from asterion_shared.parameters import layout_of, named_parts, read_vector
from asterion_shared.plan import Plan
from asterion_shared.release.facts import FACTS, MODEL, PLAN, ReleaseFacts
from asterion_shared.release.opening import ReleasedModel
from asterion_shared.release.sealing import seal
from asterion_shared.settings_files import validate
from asterion_shared.tensor_files import write_tensors

CUBE = {"dimensions": 3, "classes": ["background", "bright"], "patch_size": [4, 4, 4],
        "normalisation": "none"}  # fmt: skip
PLANE: dict[str, Any] = CUBE | {"dimensions": 2, "patch_size": [8, 8]}


class Bright(nn.Module):
    """Says with certainty that a point of 1 is the object; twice as bright, twice the logit."""

    def __init__(self, steepness: float = 20.0) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, inputs: Tensor) -> Tensor:
        logit = self.steepness * (inputs[:, :1] - 0.5)
        return torch.cat([torch.zeros_like(logit), logit], 1)


class Mean(nn.Module):
    """A classifier by the mean brightness of the image, with dropout before it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        logit = self.drop(inputs).flatten(1).mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(logit), logit], 1)


class Half(nn.Module):
    """An autoencoder that rebuilds half the brightness."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / 2


def plan_of(task: str, data: dict[str, Any], **changes: Any) -> Plan:
    names = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}
    values: dict[str, Any] = {
        "name": "seen", "task": task, "data": data, "model": {"name": names[task]}
    }  # fmt: skip
    return validate(Plan, values | changes, "plan")


def facts_of(plan: Plan) -> dict[str, Any]:
    return {
        "name": "seen", "version": 3, "task": plan.task, "run": "seen", "rounds": 3, "sites": 3,
        "plan_sha256": plan.sha256, "created": "2026-11-22T12:00:00Z",
        "onnx": {"why_not": "not tried in this test"},
    }  # fmt: skip


def released(
    folder: Path,
    plan: Plan,
    network: nn.Module,
    temperature: float = 1.0,
    thresholds: dict[str, float] | None = None,
) -> ReleasedModel:
    files = {PLAN: plan.sha256, MODEL: hashlib.sha256(b"").hexdigest()}
    facts = validate(ReleaseFacts, facts_of(plan) | {"files": files}, "facts")
    folder.mkdir(exist_ok=True)
    (folder / FACTS).write_text(facts.model_dump_json())
    return ReleasedModel(
        folder=folder,
        facts=facts,
        plan=plan,
        network=network.eval(),
        temperature=temperature,
        thresholds=thresholds or {},
    )


def store_release(folder: Path, network: nn.Module, plan: Plan, key: Ed25519PrivateKey) -> Path:
    """A release as a coordinator makes it, without its papers."""
    layout = layout_of(network, plan.parameters)
    write_tensors(folder / MODEL, named_parts(read_vector(network, layout), layout))
    (folder / PLAN).write_text(plan.canonical())
    (folder / "calibration.json").write_text('{"temperature": 1.5, "thresholds": {}}')
    seal(folder, facts_of(plan), key)
    return folder


def predict(model: ReleasedModel, folder: Path, out: Path, **changes: Any) -> Predicted:
    settings = changes.pop("settings", None) or choose_settings(folder, model.plan, None, None)
    task = Task(
        released=model,
        members=find_members(folder, settings, model.plan),
        settings=settings,
        out=out,
        **changes,
    )
    return predict_members(task, lambda _: None)


def box(shape: tuple[int, ...]) -> np.ndarray:
    """Bright in a box that looks different from every side."""
    image = np.zeros(shape, np.float32)
    image[tuple(slice(1 + axis, 3 + axis) for axis in range(len(shape)))] = 1
    image[(0,) * len(shape)] = 1
    return image
