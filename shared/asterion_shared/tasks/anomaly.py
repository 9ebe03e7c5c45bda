"""Anomaly: learn what is normal, and measure how badly the rest is reconstructed."""

from collections.abc import Iterable
from itertools import tee
from typing import Any

import numpy as np
from torch import Tensor, nn

from asterion_shared.cases import Case, Image, Mask, Predict
from asterion_shared.metrics import Statistic, merge
from asterion_shared.metrics.scores import anomaly_edges, score_histograms
from asterion_shared.metrics.statistic import Values
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch

__all__ = ["DEFAULTS", "Batch", "build_model", "loss", "scores"]

DEFAULTS: dict[str, Any] = {
    "task": "anomaly",
    "data": {"classes": ["normal", "anomalous"], "patch_size": [32, 32]},
    "model": {"name": "conv_autoencoder", "widths": [16, 32], "code_size": 10},
    "local": {"amount": 50, "batch_size": 32},
}


def build_model(plan: Plan) -> nn.Module:
    """The plan's network: float32 (B, C, *S) to its reconstruction, same shape.

    Raises:
        PlanMismatchError: the patch does not suit the network.
    """
    return build_network(plan)


def loss(outputs: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Mean squared error over the channels of the points of weight 1.

    Args:
        outputs: (B, C, *S); or of several sites side by side, (A, B, C, *S).
        batch: targets (B, C, *S), weights (B, *S); with the same first axis.
        plan: its spatial axes are counted.

    Returns:
        A scalar >= 0; of several sites (A,).
    """
    spatial = plan.data.dimensions
    error = (outputs - batch.targets).square().mean(-1 - spatial)
    over = tuple(range(-1 - spatial, 0))
    return (error * batch.weights).sum(over) / batch.weights.sum(over).clamp(min=1.0)


def scores(predict: Predict, cases: Iterable[Case], plan: Plan) -> dict[str, Statistic]:
    """Histograms of the scores of normal and of anomalous cases (``plan.data.classes[1]``).

    ``score`` is of the cases with a label, each by the mean of its error map. ``pixel_score`` is
    of the known points of the cases with a mask; it is missing where there is none.

    Raises:
        ValueError: an error map has another shape than the mask.
    """
    edges = anomaly_edges(plan.evaluation)
    asked, kept = tee(cases)
    means: list[float] = []
    labels: list[int] = []
    points: list[dict[str, Statistic]] = []
    for errors, case in zip(predict(asked), kept, strict=True):
        if case.label >= 0:
            means.append(float(errors.mean(dtype=np.float64)))
            labels.append(case.label)
        if case.mask is not None:
            points.append({"pixel_score": _point_scores(errors, case.mask, edges)})
    whole = score_histograms(np.array(means), np.array(labels) > 0, edges)
    return {"score": whole} | merge(points)


def _point_scores(errors: Image, mask: Mask, edges: Values) -> Statistic:
    if errors.shape != mask.shape:
        msg = f"the error map has shape {errors.shape} and the mask {mask.shape}; make them one"
        raise ValueError(msg)
    known = mask >= 0
    return score_histograms(errors[known], mask[known] > 0, edges)
