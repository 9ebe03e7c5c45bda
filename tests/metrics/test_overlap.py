"""Dice, IoU and the Hausdorff distance against slow twins and MONAI."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from scipy.spatial.distance import cdist

from asterion_shared.metrics.overlap import Flags, hausdorff95, overlaps

SHAPES = st.sampled_from([(7,), (5, 6), (4, 5, 3)])
PAIRS = SHAPES.flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)
SPACING = (0.7, 1.9, 3.1)


def _slow_surface(mask: Flags) -> np.ndarray:
    """Points with a neighbour outside the mask, one point and one neighbour at a time."""
    points = []
    for point in zip(*np.nonzero(mask), strict=True):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = list(point)
                other[axis] += step
                inside = 0 <= other[axis] < mask.shape[axis] and mask[tuple(other)]
                if not inside and point not in points:
                    points.append(point)
    return np.array(points, float)


def _slow_hausdorff95(truth: Flags, called: Flags, spacing: tuple[float, ...]) -> float:
    first, second = _slow_surface(truth) * spacing, _slow_surface(called) * spacing
    distances = cdist(first, second)
    there, back = distances.min(axis=1), distances.min(axis=0)
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))


def test_overlaps_by_hand() -> None:
    truth = np.array([0, 1, 1, 2, 0], np.int16)
    called = np.array([0, 1, 0, 0, 3])
    dice, iou = overlaps(truth, called, 5)
    # class 1: 2*1/(2+1), 1/2; class 2: missed; class 3: invented; class 4: nowhere, in both
    assert dice.tolist() == pytest.approx([2 / 3, 0, 0, 1])
    assert iou.tolist() == pytest.approx([1 / 2, 0, 0, 1])


def test_unknown_points_do_not_count() -> None:
    truth = np.array([1, 1, -1, -1], np.int16)
    dice, iou = overlaps(truth, np.array([1, 1, 1, 0]), 2)
    assert (dice.tolist(), iou.tolist()) == ([1.0], [1.0])


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        overlaps(np.zeros((2, 3), np.int16), np.zeros((3, 2), np.int16), 2)


@given(PAIRS)
def test_iou_follows_from_dice(pair: tuple[Flags, Flags]) -> None:
    dice, iou = overlaps(pair[0].astype(np.int16), pair[1].astype(np.int16), 2)
    assert iou[0] == pytest.approx(dice[0] / (2 - dice[0]))
    assert 0 <= iou[0] <= dice[0] <= 1


def test_distance_by_hand() -> None:
    # two points 3 rows and 4 columns apart, a row 2 mm and a column 1 mm: sqrt(36 + 16)
    truth, called = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    truth[1, 1] = called[4, 5] = True
    assert hausdorff95(truth, called, (2.0, 1.0)) == pytest.approx(math.sqrt(52))
    assert hausdorff95(truth, truth, (2.0, 1.0)) == 0.0


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_distance_against_every_pair_of_points(pair: tuple[Flags, Flags]) -> None:
    truth, called = pair
    spacing = SPACING[: truth.ndim]
    got = hausdorff95(truth, called, spacing)
    if not truth.any() or not called.any():
        assert math.isnan(got)
        return
    assert got == pytest.approx(_slow_hausdorff95(truth, called, spacing))


# MONAI 1.6 calls its own function with an argument that it has deprecated
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_distance_against_monai() -> None:
    grid = np.indices((20, 24, 16))
    truth = ((grid - np.array([9, 11, 8]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 36
    called = ((grid - np.array([11, 10, 7]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 25
    spacing = (1.5, 1.0, 3.0)
    second, first = (torch.from_numpy(mask[None, None]).float() for mask in (called, truth))
    oracle = compute_hausdorff_distance(
        second, first, include_background=True, percentile=95, spacing=spacing
    )
    assert hausdorff95(truth, called, spacing) == pytest.approx(float(oracle), rel=1e-5)


def test_distance_of_an_empty_mask_is_undefined() -> None:
    some, none = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    for truth, called in ((some, none), (none, some), (none, none)):
        assert math.isnan(hausdorff95(truth, called, (1.0, 1.0)))
