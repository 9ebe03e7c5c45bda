"""The losses: by hand, against MONAI, and deaf to points of weight zero."""

import math

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss

from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.tasks import anomaly, classification, segmentation
from asterion_shared.tasks.batch import Batch

PLAN = validate(Plan, {"name": "test"} | segmentation.DEFAULTS, "test")


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_segmentation_loss_against_monai(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, *shape, generator=generator)
    targets = torch.randint(0, 4, (3, *shape), generator=generator)
    oracle = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(
        logits, targets.unsqueeze(1)
    )
    batch = Batch(logits, targets, torch.ones(targets.shape))
    data = PLAN.data.model_copy(update={"dimensions": len(shape)})
    plan = PLAN.model_copy(update={"data": data})
    assert segmentation.loss(logits, batch, plan).item() == pytest.approx(oracle.item(), rel=1e-5)


@pytest.mark.parametrize("task", [segmentation, classification, anomaly])
def test_several_sites_side_by_side_lose_what_each_alone_does(task: object) -> None:
    generator = torch.Generator().manual_seed(0)
    points = () if task is classification else (4, 6)
    outputs = torch.randn(3, 5, 2, *points, generator=generator)
    weights = (torch.rand(3, 5, *points, generator=generator) > 0.3).float()
    if task is anomaly:
        targets = torch.randn(3, 5, 2, *points, generator=generator)
    else:
        targets = torch.randint(0, 2, (3, 5, *points), generator=generator)
    together = task.loss(outputs, Batch(outputs, targets, weights), PLAN)  # type: ignore[attr-defined]
    alone = [
        task.loss(o, Batch(o, t, w), PLAN)  # type: ignore[attr-defined]
        for o, t, w in zip(outputs, targets, weights, strict=True)
    ]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-6)


def test_segmentation_loss_of_a_perfect_empty_patch_is_zero() -> None:
    logits = torch.tensor([40.0, -40.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    batch = Batch(logits, torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4))
    assert segmentation.loss(logits, batch, PLAN).item() == pytest.approx(0.0, abs=1e-6)


def test_classification_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]])
    batch = Batch(logits, torch.tensor([1, 0, 1]), torch.tensor([1.0, 1.0, 0.0]))
    expected = (-math.log(0.75) - math.log(0.5)) / 2
    assert classification.loss(logits, batch, PLAN).item() == pytest.approx(expected)


def test_anomaly_loss_by_hand() -> None:
    targets = torch.zeros(1, 2, 1, 2)
    outputs = torch.tensor([[[[1.0, 50.0]], [[3.0, 50.0]]]])
    batch = Batch(targets, targets, torch.tensor([[[1.0, 0.0]]]))
    assert anomaly.loss(outputs, batch, PLAN).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("task", [segmentation, anomaly])
def test_points_of_weight_zero_change_nothing(task: object) -> None:
    generator = np.random.default_rng(0)
    outputs = torch.from_numpy(generator.normal(size=(2, 2, 5, 5)).astype(np.float32))
    weights = torch.from_numpy((generator.random((2, 5, 5)) > 0.4).astype(np.float32))
    if task is segmentation:
        targets = torch.from_numpy(generator.integers(0, 2, (2, 5, 5)))
    else:
        targets = torch.from_numpy(generator.normal(size=(2, 2, 5, 5)).astype(np.float32))
    spoilt = torch.where(weights.unsqueeze(1) > 0, outputs, torch.full_like(outputs, 7.0))
    first, second = (
        task.loss(o.requires_grad_(), Batch(o, targets, weights), PLAN)  # type: ignore[attr-defined]
        for o in (outputs, spoilt)
    )
    assert first.item() == pytest.approx(second.item(), rel=1e-6)
    first.backward()
    assert outputs.grad is not None
    assert (outputs.grad.abs().sum(1)[weights == 0] == 0).all()


@pytest.mark.parametrize("task", [segmentation, classification, anomaly])
def test_nothing_known_costs_nothing(task: object) -> None:
    outputs = torch.randn(2, 2) if task is classification else torch.randn(2, 2, 4, 4)
    shape = (2,) if task is classification else (2, 4, 4)
    targets = outputs if task is anomaly else torch.zeros(shape, dtype=torch.int64)
    value = task.loss(outputs, Batch(outputs, targets, torch.zeros(shape)), PLAN)  # type: ignore[attr-defined]
    assert value.item() == pytest.approx(0.0)
