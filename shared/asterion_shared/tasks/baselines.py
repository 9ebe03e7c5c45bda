"""Trivial predictors, beside which every result stands."""

from collections.abc import Callable, Iterable, Iterator
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from scipy import linalg

from asterion_shared.cases import Case, CaseList, Predict
from asterion_shared.plan import Plan, TaskName
from asterion_shared.tasks.batches import usable_cases
from asterion_shared.tasks.patches import grid_starts, put, take

Floats = npt.NDArray[np.float32]

_MOST_TILES = 2000  # enough for a code of a few hundred; the fit stays under a few seconds

_known: WeakKeyDictionary[CaseList, dict[str, Predict]] = WeakKeyDictionary()


def baseline_predictor(plan: Plan, train: CaseList) -> Predict:
    """The trivial predictor of a task; fitted once for each plan and list of cases.

    Segmentation: all background. Classification: certain of the most common class of ``train``
    (the first such; class 0 when there is none). Anomaly: the squared error of a principal
    component reconstruction with ``plan.model.code_size`` components, fitted on the normal cases
    of ``train``, tile by tile (the mean image is 0 when there is none).

    Args:
        plan: says the task, the classes, the patch and the code size.
        train: the site's own training cases; nothing of them leaves with the predictor's scores.
    """
    known = _known.setdefault(train, {})
    if plan.sha256 not in known:
        known[plan.sha256] = _BASELINES[plan.task](plan, train)
    return known[plan.sha256]


def _background(plan: Plan, train: CaseList) -> Predict:
    def predict(cases: Iterable[Case]) -> Iterator[Floats]:
        for case in cases:
            shape = case.native_shape or case.image.shape[1:]
            values = np.zeros((len(plan.data.classes), *shape), np.float32)
            values[0] = 1.0
            yield values

    return predict


def _majority(plan: Plan, train: CaseList) -> Predict:
    num_classes = len(plan.data.classes)
    labels = [train[index].label for index in usable_cases(plan, train)]
    counts = np.bincount(np.array(labels, np.int64), minlength=num_classes)
    values = np.zeros(num_classes, np.float32)
    values[counts.argmax()] = 1.0
    return lambda cases: (values.copy() for _ in cases)


def _principal_components(plan: Plan, train: CaseList) -> Predict:
    size = plan.data.patch_size
    mean, axes = _fit(_normal_tiles(plan, train), plan.model.code_size)

    def predict(cases: Iterable[Case]) -> Iterator[Floats]:
        for case in cases:
            starts = grid_starts(case.image.shape[1:], size)
            tiles = np.stack([take(case.image, start, size) for start in starts])
            centred = tiles.reshape(len(tiles), -1) - mean
            left = (centred - (centred @ axes) @ axes.T).reshape(tiles.shape)
            values = np.empty(case.image.shape[1:], np.float32)
            for start, errors in zip(starts, np.square(left).mean(axis=1), strict=True):
                put(values, start, errors)
            yield values

    return predict


def _normal_tiles(plan: Plan, train: CaseList) -> Floats:
    """Tiles of the normal training cases, flattened, (T, C * patch); thinned out evenly."""
    size, usable = plan.data.patch_size, usable_cases(plan, train)
    if len(usable) > _MOST_TILES:
        usable = tuple(usable[i] for i in _spread(len(usable)))
    tiles = [
        take(train[index].image, start, size).ravel()
        for index in usable
        for start in grid_starts(train[index].image.shape[1:], size)
    ]
    width = len(plan.data.channels) * int(np.prod(size))
    chosen = [tiles[i] for i in _spread(len(tiles))] if len(tiles) > _MOST_TILES else tiles
    return np.array(chosen, np.float32).reshape(-1, width)


def _spread(length: int) -> list[int]:
    return [int(i) for i in np.linspace(0, length - 1, _MOST_TILES)]


def _fit(tiles: Floats, num_components: int) -> tuple[Floats, Floats]:
    """Mean (D,) and orthonormal principal axes (D, at most num_components) of tiles (T, D).

    The smaller of the two Gram matrices is decomposed; both give the same axes.
    """
    num_tiles, width = tiles.shape
    mean: Floats = tiles.mean(axis=0) if num_tiles else np.zeros(width, np.float32)
    centred = tiles - mean
    most = min(num_tiles, width)
    wanted = min(num_components, max(num_tiles - 1, 0), width)
    if wanted == 0:
        return mean, np.zeros((width, 0), np.float32)
    gram = centred.T @ centred if width <= num_tiles else centred @ centred.T
    values, vectors = linalg.eigh(gram, subset_by_index=(most - wanted, most - 1))
    axes = vectors if width <= num_tiles else centred.T @ vectors
    solid = values > 1e-6 * max(float(values.max()), 1e-30)  # constant tiles have no direction
    axes = axes[:, solid]
    return mean, (axes / np.linalg.norm(axes, axis=0)).astype(np.float32)


_BASELINES: dict[TaskName, Callable[[Plan, CaseList], Predict]] = {
    "segmentation": _background,
    "classification": _majority,
    "anomaly": _principal_components,
}
