"""Segmentation: a class for every pixel or voxel."""

import math
from collections.abc import Iterable
from itertools import tee
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.cases import Case, Predict
from asterion_shared.metrics import Statistic, distance_name
from asterion_shared.metrics.moments import moments
from asterion_shared.metrics.overlap import hausdorff95, overlaps
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch

__all__ = ["DEFAULTS", "Batch", "build_model", "loss", "scores"]

# Shapes: B batch, K classes with the background first, S the spatial axes.

DEFAULTS: dict[str, Any] = {
    "task": "segmentation",
    "data": {"classes": ["background", "object"], "patch_size": [64, 64]},
    "model": {"name": "unet", "widths": [12, 24, 48]},
    "local": {"amount": 20, "batch_size": 8, "augment": ["flip"]},
}


def build_model(plan: Plan) -> nn.Module:
    """The plan's network: float32 (B, C, *S) to logits (B, K, *S).

    Raises:
        PlanMismatchError: the patch does not suit the network.
    """
    return build_network(plan)


def loss(outputs: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Cross-entropy plus ``local.dice_weight`` times soft Dice over the foreground classes.

    Dice is formed over the whole batch, so that a patch without an object does not count as a
    miss. Points of weight 0 count in neither. Source: Milletari et al. 2016; Isensee et al. 2021.

    Args:
        outputs: logits (B, K, *S); or of several sites side by side, (A, B, K, *S).
        batch: targets int64 (B, *S), weights (B, *S); with the same first axis.
        plan: its ``local.dice_weight``; its spatial axes are counted.

    Returns:
        A scalar >= 0; of several sites (A,). A class that is absent and not predicted has Dice 1.
    """
    weights, smooth, spatial = batch.weights, 1e-5, plan.data.dimensions
    logits, targets = outputs.flatten(0, -2 - spatial), batch.targets.flatten(0, -1 - spatial)
    points = functional.cross_entropy(logits, targets, reduction="none").view_as(weights)
    over = tuple(range(-1 - spatial, 0))
    entropy = (points * weights).sum(over) / weights.sum(over).clamp(min=1.0)
    if plan.local.dice_weight == 0:
        return entropy
    classes = -1 - spatial
    num_classes = outputs.shape[classes]
    numbers = torch.arange(num_classes, device=outputs.device).view(-1, *[1] * spatial)
    truth = batch.targets.unsqueeze(classes) == numbers
    mask = weights.unsqueeze(classes)
    probability, truth = outputs.softmax(classes) * mask, truth * mask
    over = (-2 - spatial, *range(-spatial, 0))
    both = (probability * truth).sum(over)[..., 1:]
    sizes = (probability + truth).sum(over)[..., 1:]
    dice = ((2.0 * both + smooth) / (sizes + smooth)).mean(-1)
    return entropy + plan.local.dice_weight * (1.0 - dice)


def scores(predict: Predict, cases: Iterable[Case], plan: Plan) -> dict[str, Statistic]:
    """Dice, IoU and 95 % Hausdorff distance per case, on the native grid.

    Each is summed up for every foreground class (``dice/NAME``, when there are several) and for
    their mean over the classes of a case where it is defined (``dice``). A case without a mask
    is counted as undefined; so is a distance where the file does not give its pixel size.

    Raises:
        ValueError: a prediction has another shape than the mask.
    """
    names = ["dice", "iou", distance_name(plan)]
    asked, kept = tee(cases)
    pairs = zip(predict(asked), kept, strict=True)
    rows = [_case_scores(probability, case, plan) for probability, case in pairs]
    table = np.array(rows).reshape(len(rows), len(names), len(plan.data.classes) - 1)
    statistics: dict[str, Statistic] = {}
    for index, name in enumerate(names):
        kind = "distance_moments" if index == 2 else "unit_moments"
        parts = table[:, index]
        statistics[name] = moments(kind, [_mean_of_known(part) for part in parts])
        if len(plan.data.classes) > 2:
            for number, label in enumerate(plan.data.classes[1:]):
                statistics[f"{name}/{label}"] = moments(kind, parts[:, number])
    return statistics


def _case_scores(
    probability: npt.NDArray[np.float32], case: Case, plan: Plan
) -> npt.NDArray[np.float64]:
    """Dice, IoU and distance by foreground class, (3, K - 1); NaN where undefined."""
    num_classes = len(plan.data.classes)
    truth = case.mask if case.native_mask is None else case.native_mask
    if truth is None:
        return np.full((3, num_classes - 1), np.nan)
    # torch takes the largest along the first axis several times faster than numpy
    called = torch.from_numpy(probability).argmax(0).numpy()
    dice, iou = overlaps(truth, called, num_classes)
    known = truth >= 0
    # In another unit than the metric's name says, a distance would be a wrong number.
    measurable = distance_name(plan).endswith(f"_{case.spacing_unit}")
    distances = [
        hausdorff95(truth == label, (called == label) & known, case.native_spacing)
        if measurable
        else math.nan
        for label in range(1, num_classes)
    ]
    return np.stack([dice, iou, np.array(distances)])


def _mean_of_known(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
