"""Plans of the catalogue's networks, and batches for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from asterion_shared.plan import MODELS, Plan
from asterion_shared.settings_files import validate
from asterion_shared.tasks.batch import Batch

TASK_OF = {model: task for task, models in MODELS.items() for model in models}


def plan_of(model: str, dimensions: int = 2) -> Plan:
    patch = (16, 16) if dimensions == 2 else (8, 8, 8)
    data: dict[str, Any] = {"patch_size": patch, "dimensions": dimensions, "channels": ["g", "r"]}
    if model in ("logistic", "mlp"):
        data = {"kind": "table", "features": ["age", "weight", "height"]}
    if TASK_OF[model] != "anomaly":
        data["classes"] = ["a", "b", "c"]
    values = {
        "name": "test",
        "task": TASK_OF[model],
        "model": {"name": model, "widths": (4, 8)},
        "data": data,
    }
    return validate(Plan, values, "test")


def batch_of(plan: Plan, size: int, num_columns: int = 6) -> Batch:
    """Random examples; in images some points are unknown."""
    generator = torch.Generator().manual_seed(0)
    if plan.data.kind == "table":
        inputs = torch.randn(size, num_columns, generator=generator)
    else:
        inputs = torch.randn(size, 2, *plan.data.patch_size, generator=generator)
    space = () if plan.task == "classification" else tuple(plan.data.patch_size)
    weights = torch.ones(size, *space)
    if space:
        weights = (torch.rand(size, *space, generator=generator) > 0.3).float()
    if plan.task == "anomaly":
        return Batch(inputs, inputs, weights)
    return Batch(inputs, torch.randint(0, 3, (size, *space), generator=generator), weights)


@pytest.fixture(name="plan_of")
def _plan_of() -> Callable[..., Plan]:
    return plan_of


@pytest.fixture(name="batch_of")
def _batch_of() -> Callable[..., Batch]:
    return batch_of
