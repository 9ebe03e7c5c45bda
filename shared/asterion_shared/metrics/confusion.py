"""Classification metrics from counts: the confusion matrix, and bins of confidence.

``confusion`` is the matrix row by row, true class by row, called class by column.
``calibration`` is ``[cases, sum of confidence, correct]`` for each of 15 equal bins.
"""

import numpy as np
import numpy.typing as npt

from asterion_shared.metrics.statistic import Statistic

NUM_CONFIDENCE_BINS = 15


def confusion(truth: npt.ArrayLike, called: npt.ArrayLike, num_classes: int) -> Statistic:
    """Count true against called classes.

    Args:
        truth: class numbers in [0, num_classes), any shape.
        called: the same for the prediction.
        num_classes: K; the vector has K * K counts.
    """
    pairs = np.asarray(truth, np.int64).ravel() * num_classes + np.asarray(called, np.int64).ravel()
    counts = np.bincount(pairs, minlength=num_classes**2)
    return Statistic("confusion", counts.astype(np.float64))


def accuracy(statistic: Statistic) -> float | None:
    """Share of correct calls; None without a case."""
    matrix = _matrix(statistic)
    return float(np.trace(matrix) / matrix.sum()) if matrix.sum() else None


def balanced_accuracy(statistic: Statistic) -> float | None:
    """Mean over the classes of the share of each class that was called right.

    Classes without a case are left out; None when fewer than two are left, because naming one
    class would then be called perfect.
    """
    matrix = _matrix(statistic)
    sizes = matrix.sum(axis=1)
    present = sizes > 0
    if present.sum() < 2:
        return None
    return float(np.mean(np.diag(matrix)[present] / sizes[present]))


def calibration(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> Statistic:
    """Sum up how sure the calls were and how many were right.

    Args:
        confidence: probability of the called class, in [0, 1], shape ``(N,)``.
        correct: bool, shape ``(N,)``.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = np.minimum((sure * NUM_CONFIDENCE_BINS).astype(np.int64), NUM_CONFIDENCE_BINS - 1)
    columns = [np.ones_like(sure), sure, right]
    sums = [np.bincount(index, column, NUM_CONFIDENCE_BINS) for column in columns]
    table = np.stack(sums, axis=1).astype(np.float64)
    return Statistic("calibration", table.ravel())


def calibration_error(statistic: Statistic) -> float | None:
    """Mean gap between confidence and accuracy over the bins, weighted by cases; in [0, 1].

    None without a case. Source: expected calibration error, Naeini et al. 2015.
    """
    cases, sure, right = statistic.values.reshape(-1, 3).T
    return float(np.abs(sure - right).sum() / cases.sum()) if cases.sum() else None


def confusion_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    return "counts that are not whole numbers" if (statistic.values % 1).any() else None


def calibration_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    cases, sure, right = statistic.values.reshape(-1, 3).T
    if (cases % 1).any() or (right % 1).any():
        return "counts that are not whole numbers"
    if (sure > cases * (1 + 1e-9)).any() or (right > cases).any():
        return "more confidence or correct calls than cases"
    return None


def _matrix(statistic: Statistic) -> npt.NDArray[np.float64]:
    size = round(statistic.values.size**0.5)
    return statistic.values.reshape(size, size)
