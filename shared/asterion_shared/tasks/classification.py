"""Classification: a class for an image, a volume, or a row of a table."""

from collections.abc import Iterable
from itertools import tee
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.cases import Case, Predict
from asterion_shared.metrics import Statistic
from asterion_shared.metrics.confusion import calibration, confusion
from asterion_shared.metrics.scores import probability_edges, score_histograms
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch

__all__ = ["DEFAULTS", "Batch", "build_model", "loss", "scores"]

# Shapes: B batch, K classes, N cases.

DEFAULTS: dict[str, Any] = {
    "task": "classification",
    "data": {"classes": ["normal", "disease"], "patch_size": [64, 64]},
    "model": {"name": "residual", "widths": [16, 32, 64]},
    "local": {"amount": 20, "batch_size": 32},
}


def build_model(plan: Plan) -> nn.Module:
    """The plan's network: float32 (B, C, *S), or (B, columns) for a table, to logits (B, K).

    Raises:
        PlanMismatchError: the patch does not suit the network.
    """
    return build_network(plan)


def loss(outputs: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Cross-entropy, without class weights.

    Args:
        outputs: logits (B, K); or of several sites side by side, (A, B, K).
        batch: targets int64 (B,), weights (B,); with the same first axis.
        plan: unused; the sisters of this function need it.

    Returns:
        A scalar >= 0, the mean over the examples of weight 1; of several sites (A,).
    """
    each = functional.cross_entropy(
        outputs.flatten(0, -2), batch.targets.flatten(), reduction="none"
    ).view_as(batch.weights)
    return (each * batch.weights).sum(-1) / batch.weights.sum(-1).clamp(min=1.0)


def scores(predict: Predict, cases: Iterable[Case], plan: Plan) -> dict[str, Statistic]:
    """The confusion matrix, bins of confidence, and histograms of the class probabilities.

    With two classes there is one histogram, ``score``, of the second class; with more one for
    each against the rest (``score/NAME``). Cases without a label are left out.
    """
    classes = plan.data.classes
    asked, kept = tee(cases)
    pairs = [
        (probability, case.label)
        for probability, case in zip(predict(asked), kept, strict=True)
        if case.label >= 0
    ]
    probabilities = np.array([p for p, _ in pairs], np.float64).reshape(-1, len(classes))
    truth = np.array([label for _, label in pairs], np.int64)
    called = probabilities.argmax(axis=1)
    statistics = {
        "confusion": confusion(truth, called, len(classes)),
        "calibration": calibration(probabilities.max(axis=1), called == truth),
    }
    edges = probability_edges(plan.evaluation)
    if len(classes) == 2:
        statistics["score"] = score_histograms(probabilities[:, 1], truth == 1, edges)
        return statistics
    for number, name in enumerate(classes):
        histograms = score_histograms(probabilities[:, number], truth == number, edges)
        statistics[f"score/{name}"] = histograms
    return statistics
