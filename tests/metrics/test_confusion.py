"""Accuracy, balanced accuracy and calibration error: by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from asterion_shared.metrics import Statistic
from asterion_shared.metrics.confusion import (
    accuracy,
    balanced_accuracy,
    calibration,
    calibration_error,
    calibration_problem,
    confusion,
    confusion_problem,
)

CALLS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50)


def test_confusion_by_hand() -> None:
    got = confusion([0, 0, 0, 1], [0, 1, 0, 1], 2)
    assert got.values.tolist() == [2, 1, 0, 1]
    assert accuracy(got) == 0.75
    assert balanced_accuracy(got) == pytest.approx((2 / 3 + 1) / 2)
    assert confusion_problem(got) is None


@given(CALLS)
def test_against_scikit_learn(calls: list[tuple[int, int]]) -> None:
    truth, called = [t for t, _ in calls], [c for _, c in calls]
    got = confusion(truth, called, 4)
    assert accuracy(got) == pytest.approx(accuracy_score(truth, called))
    present = sorted(set(truth))
    oracle = None
    if len(present) > 1:
        oracle = recall_score(truth, called, labels=present, average="macro", zero_division=0)
    assert balanced_accuracy(got) == (None if oracle is None else pytest.approx(oracle))


def test_undefined_without_cases_and_with_one_class() -> None:
    nothing = confusion([], [], 2)
    assert accuracy(nothing) is None
    assert balanced_accuracy(nothing) is None
    assert balanced_accuracy(confusion([1, 1], [1, 1], 2)) is None
    assert calibration_error(calibration([], [])) is None


def test_calibration_by_hand() -> None:
    # 0.90 and 0.92 share a bin: |1.82 - 1| = 0.82; 0.5 and 0.52 another: |1.02 - 2| = 0.98
    got = calibration([0.90, 0.92, 0.50, 0.52], [True, False, True, True])
    assert calibration_error(got) == pytest.approx((0.82 + 0.98) / 4)
    assert calibration_problem(got) is None


def test_full_confidence_is_in_the_last_bin() -> None:
    got = calibration([1.0], [True])
    assert got.values[-3:].tolist() == [1, 1, 1]
    assert calibration_error(got) == 0.0


@pytest.mark.parametrize("row", [[1, 2, 0], [1, 0.5, 2], [0.5, 0.1, 0], [2, 1, 0.5]])
def test_calibration_that_contradicts_itself(row: list[float]) -> None:
    values = np.zeros(45)
    values[:3] = row
    assert calibration_problem(Statistic("calibration", values)) is not None


def test_confusion_of_parts_of_cases() -> None:
    assert confusion_problem(Statistic("confusion", np.array([0.5, 0, 0, 1]))) is not None
