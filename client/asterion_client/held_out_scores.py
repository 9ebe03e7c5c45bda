"""What each held-out case says of a model: the quantities that a resampled metric is made of.

For a site that judges a model by itself, and for simulations; none of it ever leaves a site.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee
from typing import Literal

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Case, Predict, SiteData
from asterion_shared.plan import Plan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Resampled = Literal["groups", "blocks"]
"""What a bootstrap draws: whole patients or fields; or, where a site holds out one single field,
blocks of that field of the size of the plan's patch."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out cases of a site as a bootstrap sees them: units, and who belongs together.

    A unit is a case; or, where blocks are drawn, one block of a case.

    Attributes:
        site: the site's name.
        resampled: what is drawn.
        unit_groups: which group each unit belongs to, 0 to ``num_groups - 1``, shape (U,).
        unit_cases: which case each unit is of, rising, shape (U,).
        labels: class of each unit, shape (U,); -1 in segmentation.
        case_ids: hashed ids of the cases, in order.
    """

    site: str
    resampled: Resampled
    unit_groups: Ints
    unit_cases: Ints
    labels: Ints
    case_ids: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Patients, fields or blocks that can be drawn; 0 without a case."""
        return int(self.unit_groups.max(initial=-1)) + 1

    @property
    def sha256(self) -> str:
        """Hash of cases, groups and labels: scores of another set must not be mixed in."""
        digest = hashlib.sha256(" ".join(self.case_ids).encode())
        for array in (self.unit_groups, self.unit_cases, self.labels):
            digest.update(array.tobytes() + b"|")
        return digest.hexdigest()


def held_out_of(data: SiteData, plan: Plan) -> HeldOut:
    """The units of a site's test cases.

    Cases that no metric can be formed of are left out: without a mask in segmentation, without a
    label otherwise. A case whose group nobody knows is a group of its own.

    Args:
        data: the site's cases; those of the test are read.
        plan: says the task and the size of a block.
    """
    cases = [case for case in data.test if _usable(case, plan)]
    names = [case.group or f"case {case.id}" for case in cases]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = np.array([numbers[name] for name in names], np.int64)
    whole = np.arange(len(cases), dtype=np.int64)
    ids = tuple(case.id for case in cases)
    if plan.task != "segmentation" or len(numbers) != 1:
        labels = np.array([_label(case, plan) for case in cases], np.int64)
        return HeldOut(data.site, "groups", groups, whole, labels, ids)
    counts = [int(_blocks(_truth(case).shape, plan).max()) + 1 for case in cases]
    unit_cases = np.repeat(whole, counts)
    unit_groups = np.arange(len(unit_cases), dtype=np.int64)
    labels = np.full(len(unit_cases), -1, np.int64)
    return HeldOut(data.site, "blocks", unit_groups, unit_cases, labels, ids)


def score_units(predict: Predict, data: SiteData, test: HeldOut, plan: Plan) -> Floats:
    """What a model does on each unit of a test set.

    Args:
        predict: the model.
        data: the site whose test cases ``test`` was made of.
        test: the units.
        plan: says the task.

    Returns:
        float64, one row a unit. Segmentation: (U, K - 1, 2), for each foreground class the points
        where truth and prediction agree, and the sum of both their sizes. Classification: the
        class probabilities, (U, K). Anomaly: the mean error, (U, 1).
    """
    asked, kept = tee(case for case in data.test if _usable(case, plan))
    pairs = zip(predict(asked), kept, strict=True)
    match plan.task:
        case "segmentation":
            rows = [_overlap_counts(found, case, test, plan) for found, case in pairs]
            empty = np.zeros((0, len(plan.data.classes) - 1, 2))
            return np.concatenate([empty, *rows])
        case "classification":
            found = [probability.astype(np.float64) for probability, _ in pairs]
            return np.array(found).reshape(-1, len(plan.data.classes))
        case "anomaly":
            means = [errors.mean(dtype=np.float64) for errors, _ in pairs]
            return np.array(means, np.float64).reshape(-1, 1)


def unit_names(test: HeldOut, plan: Plan) -> str:
    """What is drawn, in the plural, as a person says it."""
    if test.resampled == "blocks":
        return "blocks of one field"
    return "fields" if plan.data.normalisation in ("asinh", "zscale") else "patients or images"


def _usable(case: Case, plan: Plan) -> bool:
    if plan.task == "segmentation":
        return case.mask is not None
    return case.label >= 0


def _label(case: Case, plan: Plan) -> int:
    return -1 if plan.task == "segmentation" else case.label


def _truth(case: Case) -> npt.NDArray[np.int16]:
    """Class numbers on the native grid, where metrics are computed."""
    truth = case.mask if case.native_mask is None else case.native_mask
    if truth is None:
        msg = f"case {case.id} has no mask"
        raise ValueError(msg)
    return truth


def _overlap_counts(
    probability: npt.NDArray[np.float32], case: Case, test: HeldOut, plan: Plan
) -> Floats:
    """Agreeing points and sizes by unit of one case and foreground class, (units, K - 1, 2)."""
    num_classes, truth = len(plan.data.classes), _truth(case)
    called = probability.argmax(axis=0)
    blocks = np.zeros(truth.shape, np.int64)
    if test.resampled == "blocks":
        blocks = _blocks(truth.shape, plan)
    num_blocks = int(blocks.max()) + 1
    known = truth >= 0
    pairs = (blocks[known] * num_classes + truth[known]) * num_classes + called[known]
    counted = np.bincount(pairs, minlength=num_blocks * num_classes**2)
    matrix = counted.reshape(num_blocks, num_classes, num_classes)
    both = np.diagonal(matrix, axis1=1, axis2=2)
    sizes = matrix.sum(axis=1) + matrix.sum(axis=2)
    return np.stack([both, sizes], axis=-1)[:, 1:].astype(np.float64)


def _blocks(shape: tuple[int, ...], plan: Plan) -> Ints:
    """Number of the block that each point lies in, same shape; blocks at the far edges are cut."""
    number = np.zeros(shape, np.int64)
    for axis, (length, size) in enumerate(_sizes(shape, plan)):
        along = np.arange(length, dtype=np.int64) // size
        place = [1] * len(shape)
        place[axis] = length
        number = number * (int(along[-1]) + 1) + along.reshape(place)
    return number


def _sizes(shape: tuple[int, ...], plan: Plan) -> Iterator[tuple[int, int]]:
    return zip(shape, plan.data.patch_size, strict=True)
