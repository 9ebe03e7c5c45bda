"""Which statistics a plan has, what is refused, and the flat metrics."""

import json
from typing import Any

import numpy as np
import pytest

from asterion_shared.metrics import (
    HEADLINE,
    KINDS,
    Statistic,
    check_statistics,
    distance_name,
    expected_statistics,
    merge,
    summarise,
)
from asterion_shared.metrics.confusion import calibration, confusion
from asterion_shared.metrics.moments import moments
from asterion_shared.metrics.scores import probability_edges, score_histograms
from asterion_shared.plan import Plan, TaskName
from asterion_shared.settings_files import validate

MODELS: dict[TaskName, str] = {
    "segmentation": "unet",
    "classification": "residual",
    "anomaly": "conv_autoencoder",
}


def plan_of(task: TaskName, **data: Any) -> Plan:
    values = {"name": "test", "task": task, "model": {"name": MODELS[task]}, "data": data}
    return validate(Plan, values, "test")


def _zeros(plan: Plan) -> dict[str, Statistic]:
    expected = expected_statistics(plan)
    return {name: Statistic(kind, np.zeros(size)) for name, (kind, size) in expected.items()}


THREE = ("background", "anterior", "posterior")


def test_names_of_each_task() -> None:
    def own(plan: Plan) -> set[str]:
        return {n for n in expected_statistics(plan) if not n.startswith("baseline/")}

    assert own(plan_of("segmentation")) == {"dice", "iou", "hd95_mm"}
    assert own(plan_of("segmentation", classes=THREE)) == {
        f"{name}{part}"
        for name in ("dice", "iou", "hd95_mm")
        for part in ("", "/anterior", "/posterior")
    }
    assert own(plan_of("classification")) == {"confusion", "calibration", "score"}
    assert own(plan_of("classification", classes=THREE)) == {
        "confusion",
        "calibration",
        *(f"score/{name}" for name in THREE),
    }
    assert own(plan_of("anomaly")) == {"score", "pixel_score"}


@pytest.mark.parametrize("task", MODELS)
def test_baseline_has_the_same_names(task: TaskName) -> None:
    expected = expected_statistics(plan_of(task))
    own = {name: fact for name, fact in expected.items() if not name.startswith("baseline/")}
    assert expected == own | {f"baseline/{name}": fact for name, fact in own.items()}
    assert {kind for kind, _ in own.values()} <= KINDS.keys()


def test_distance_is_named_after_its_unit() -> None:
    assert distance_name(plan_of("segmentation")) == "hd95_mm"
    assert distance_name(plan_of("segmentation", pixel_scale_arcsec=0.4)) == "hd95_arcsec"
    assert distance_name(plan_of("segmentation", normalisation="asinh")) == "hd95_arcsec"
    medical = plan_of("segmentation", normalisation="zscale", spacing_mm=(1.0, 1.0))
    assert distance_name(medical) == "hd95_mm"


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("data", [{}, {"classes": THREE}])
def test_nothing_measured_is_undefined(task: TaskName, data: dict[str, Any]) -> None:
    if task == "anomaly" and data:
        data = {"classes": ("normal", "pneumonia")}
    plan = plan_of(task, **data)
    check_statistics(_zeros(plan), plan, num_cases=0)
    summary = summarise(_zeros(plan), plan)
    assert summary.pop("num_cases") == 0.0
    assert set(summary.values()) == {None}
    assert summarise({}, plan) == {HEADLINE[task]: None, "num_cases": 0.0}


def test_segmentation_summary_by_hand() -> None:
    plan = plan_of("segmentation", classes=THREE)
    statistics = {
        "dice": moments("unit_moments", [0.5, 0.9]),
        "dice/anterior": moments("unit_moments", [0.4, 0.8]),
        "hd95_mm": moments("distance_moments", [3.0, float("nan")]),
        "baseline/dice": moments("unit_moments", [0.0, 0.0]),
    }
    check_statistics(statistics, plan, num_cases=2)
    got = summarise(statistics, plan)
    assert got["dice"] == pytest.approx(0.7)
    assert got["dice/anterior"] == pytest.approx(0.6)
    assert got["dice_low/anterior"] == pytest.approx(0.6 - 1.959964 * 0.2)
    assert got["hd95_mm"] == 3.0
    assert got["baseline/dice"] == 0.0
    assert got["num_cases"] == 2.0
    assert json.loads(json.dumps(got)) == got


def _classified(plan: Plan, probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Statistic]:
    called = probabilities.argmax(1)
    edges = probability_edges(plan.evaluation)
    classes = plan.data.classes
    scores = {
        f"score/{name}": score_histograms(probabilities[:, k], truth == k, edges)
        for k, name in enumerate(classes)
    }
    return {
        "confusion": confusion(truth, called, len(classes)),
        "calibration": calibration(probabilities.max(1), called == truth),
    } | scores


def test_several_classes_are_averaged_where_defined() -> None:
    plan = plan_of("classification", classes=THREE)
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    statistics = _classified(plan, probabilities, np.array([0, 1, 1, 0]))
    check_statistics(statistics, plan, num_cases=4)
    got = summarise(statistics, plan)
    assert got["auroc/background"] == pytest.approx(3 / 4)  # 0.7 and 0.2 against 0.1 and 0.6
    assert got["auroc/anterior"] == pytest.approx(3 / 4)  # 0.8 and 0.3 against 0.2 and 0.7
    assert got["auroc/posterior"] is None
    assert got["auroc"] == pytest.approx(3 / 4)
    assert got["accuracy"] == 0.5
    assert got["balanced_accuracy"] == 0.5
    assert got["num_cases"] == 4.0


def test_pixels_stand_beside_images_and_are_no_cases() -> None:
    plan = plan_of("anomaly")
    edges = probability_edges(plan.evaluation)
    statistics = {
        "score": score_histograms([0.1, 0.9], [False, True], edges),
        "pixel_score": score_histograms([0.1] * 50 + [0.9] * 50, [1] * 50 + [0] * 50, edges),
    }
    check_statistics(statistics, plan, num_cases=2)
    got = summarise(statistics, plan)
    assert (got["auroc"], got["pixel_auroc"], got["num_cases"]) == (1.0, 0.0, 2.0)


def test_metrics_of_merged_statistics_are_the_pooled_ones() -> None:
    plan = plan_of("classification", classes=THREE)
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet((1.0, 1.0, 1.0), 60)
    truth = generator.integers(0, 3, 60)
    parts = [slice(0, 5), slice(5, 41), slice(41, 60)]
    merged = merge(_classified(plan, probabilities[part], truth[part]) for part in parts)
    pooled = summarise(_classified(plan, probabilities, truth), plan)
    assert summarise(merged, plan) == pytest.approx(pooled)


def _spoilt(name: str, **changes: Any) -> dict[str, Statistic]:
    plan = plan_of("segmentation")
    sound = Statistic("unit_moments", moments("unit_moments", [0.5, 0.5]).values.copy())
    if "index" in changes:
        sound.values[changes["index"]] = changes["value"]
    assert expected_statistics(plan)["dice"] == ("unit_moments", sound.values.size)
    values = sound.values[: changes.get("length")]
    return {name: Statistic(changes.get("kind", "unit_moments"), values)}


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (_spoilt("secret"), "unknown"),
        (_spoilt("baseline/baseline/dice"), "unknown"),
        (_spoilt("dice", kind="scores"), "kind"),
        (_spoilt("dice", length=-1), "shape"),
        (_spoilt("dice", index=0, value=np.nan), "not finite"),
        (_spoilt("dice", index=0, value=np.inf), "not finite"),
        (_spoilt("dice", index=2, value=-1.0), "negative"),
        (_spoilt("dice", index=0, value=9.0), "a sum of"),
        ({"dice": moments("unit_moments", [0.5] * 9)}, "9 cases"),
        ({"baseline/dice": moments("unit_moments", [0.5] * 9)}, "9 cases"),
    ],
)
def test_check_refuses(statistics: dict[str, Statistic], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_statistics(statistics, plan_of("segmentation"), num_cases=2)


def test_headline_of_every_task() -> None:
    assert HEADLINE.keys() == MODELS.keys()
