"""Scores of each task by hand: which cases count, on which grid, in which class."""

from typing import Any

import numpy as np
import pytest

from asterion_shared.cases import Case, Predict
from asterion_shared.metrics import summarise
from asterion_shared.plan import Plan, TaskName
from asterion_shared.settings_files import validate
from asterion_shared.tasks import anomaly, classification, segmentation

MODELS: dict[TaskName, str] = {
    "segmentation": "unet",
    "classification": "residual",
    "anomaly": "conv_autoencoder",
}


def plan_of(task: TaskName, **data: Any) -> Plan:
    values = {"name": "test", "task": task, "model": {"name": MODELS[task]}, "data": data}
    return validate(Plan, values, "test")


def answers(*predictions: Any) -> Predict:
    """A predictor that gives these, one a case."""
    rows = [np.asarray(p, np.float32) for p in predictions]
    return lambda cases: (row for row, _ in zip(rows, cases, strict=True))


def case_of(**kwargs: Any) -> Case:
    return Case(**({"id": "0" * 12, "image": np.zeros((1, 2, 3), np.float32)} | kwargs))


def one_hot(labels: list[list[int]], num_classes: int) -> np.ndarray:
    return np.moveaxis(np.eye(num_classes)[np.array(labels)], -1, 0)


def test_segmentation_on_the_native_grid_with_its_spacing() -> None:
    plan = plan_of("segmentation", classes=("background", "a", "b"))
    native = np.array([[1, 0, 0, 0], [0, 0, 0, 2]], np.int16)
    called = one_hot([[0, 0, 1, 0], [0, 0, 0, 2]], 3)

    def metrics(unit: str) -> dict[str, float | None]:
        case = case_of(
            mask=np.zeros((2, 3), np.int16),
            native_mask=native,
            native_spacing=(5.0, 2.0),
            spacing_unit=unit,
        )
        return summarise(segmentation.scores(answers(called), [case], plan), plan)

    got = metrics("mm")
    assert (got["dice/a"], got["dice/b"], got["dice"]) == (0.0, 1.0, 0.5)
    assert (got["hd95_mm/a"], got["hd95_mm/b"], got["hd95_mm"]) == (4.0, 0.0, 2.0)
    # A distance in another unit, or in none, would be a wrong number under this name.
    for unit in ("", "arcsec"):
        assert metrics(unit)["hd95_mm"] is None
        assert metrics(unit)["dice"] == 0.5


def test_segmentation_distance_is_meant_over_the_defined_classes() -> None:
    plan = plan_of("segmentation", classes=("background", "a", "b"))
    mask = np.array([[1, 0, 0], [0, 0, 0]], np.int16)
    case = case_of(mask=mask, native_spacing=(1.0, 1.0), spacing_unit="mm")
    got = segmentation.scores(answers(one_hot([[1, 0, 0], [0, 0, 2]], 3)), [case], plan)
    summary = summarise(got, plan)
    assert (summary["hd95_mm"], summary["hd95_mm/b"]) == (0.0, None)
    assert got["hd95_mm/b"].values[3] == 1  # counted as undefined
    assert summary["dice"] == 0.5


def test_segmentation_without_a_mask_is_undefined_and_counted() -> None:
    plan = plan_of("segmentation")
    got = segmentation.scores(answers(np.zeros((2, 2, 3))), [case_of()], plan)
    summary = summarise(got, plan)
    assert summary["dice"] is None
    assert summary["num_cases"] == 1.0


def test_segmentation_of_another_shape_is_refused() -> None:
    case = case_of(mask=np.zeros((2, 3), np.int16))
    with pytest.raises(ValueError, match="shape"):
        segmentation.scores(answers(np.zeros((2, 3, 2))), [case], plan_of("segmentation"))


def test_classification_by_hand() -> None:
    plan = plan_of("classification")
    cases = [case_of(label=k) for k in (1, 0, -1, 1)]
    predict = answers([0.2, 0.8], [0.6, 0.4], [0.0, 1.0], [0.7, 0.3])
    got = summarise(classification.scores(predict, cases, plan), plan)
    assert got["num_cases"] == 3.0  # the case without a label is left out
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert got["auroc"] == pytest.approx(1 / 2)
    # confidences 0.8 right, 0.6 right, 0.7 wrong, each in a bin of its own
    assert got["calibration_error"] == pytest.approx((0.2 + 0.4 + 0.7) / 3)


def test_anomaly_by_hand() -> None:
    plan = plan_of("anomaly")
    mask = np.array([[0, 0, 0], [0, 0, 1]], np.int16)
    cases = [case_of(label=0), case_of(label=1, mask=mask), case_of(label=-1), case_of(label=1)]
    maps = [
        np.full((2, 3), 0.1),
        np.where(mask, 3.0, 0.2),
        np.full((2, 3), 9.0),
        np.full((2, 3), 0.01),
    ]
    statistics = anomaly.scores(answers(*maps), cases, plan)
    got = summarise(statistics, plan)
    assert got["num_cases"] == 3.0
    assert got["auroc"] == 0.5  # of the two anomalous cases one scores above the normal one
    assert got["pixel_auroc"] == 1.0
    assert statistics["pixel_score"].values.sum() == 6


def test_anomaly_leaves_unknown_points_out() -> None:
    plan = plan_of("anomaly")
    mask = np.array([[0, -1, 0], [-1, 0, 1]], np.int16)
    errors = np.where(mask < 0, 9.0, np.where(mask > 0, 3.0, 0.2))
    statistics = anomaly.scores(answers(errors), [case_of(label=1, mask=mask)], plan)
    assert statistics["pixel_score"].values.sum() == 4
    assert summarise(statistics, plan)["pixel_auroc"] == 1.0


def test_anomaly_of_another_shape_is_refused() -> None:
    case = case_of(mask=np.zeros((3, 2), np.int16))
    with pytest.raises(ValueError, match="shape"):
        anomaly.scores(answers(np.ones((2, 3))), [case], plan_of("anomaly"))


def test_anomaly_without_masks_has_no_pixel_score() -> None:
    plan = plan_of("anomaly")
    got = anomaly.scores(answers(np.ones((2, 3))), [case_of(label=0)], plan)
    assert got.keys() == {"score"}


def test_scores_outside_the_anomaly_range_are_ranked_all_the_same() -> None:
    plan = plan_of("anomaly")
    cases = [case_of(label=0), case_of(label=1)]
    maps = [np.zeros((2, 3)), np.full((2, 3), 1e6)]
    got = summarise(anomaly.scores(answers(*maps), cases, plan), plan)
    assert (got["auroc"], got["auroc_bound"]) == (1.0, 0.0)
