"""The trivial predictors."""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from asterion_shared.cases import Case, CaseList
from asterion_shared.metrics import summarise
from asterion_shared.plan import Plan, TaskName
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module
from asterion_shared.tasks.baselines import baseline_predictor

MODELS: dict[TaskName, str] = {
    "segmentation": "unet",
    "classification": "residual",
    "anomaly": "conv_autoencoder",
}


def plan_of(task: TaskName, *, code_size: int = 3, **data: Any) -> Plan:
    values = {
        "name": "test",
        "task": task,
        "model": {"name": MODELS[task], "code_size": code_size},
        "data": {"patch_size": (6, 6)} | data,
    }
    return validate(Plan, values, "test")


def case_of(image: np.ndarray, number: int = 0, **kwargs: Any) -> Case:
    return Case(id=f"{number:012x}", image=image.astype(np.float32), **kwargs)


def test_background_on_the_native_grid() -> None:
    plan = plan_of("segmentation", classes=("background", "a", "b"))
    case = case_of(np.ones((1, 4, 5)), native_shape=(8, 10))
    (got,) = baseline_predictor(plan, CaseList.of([]))([case])
    assert got.shape == (3, 8, 10)
    assert (got[0] == 1).all()
    assert (got[1:] == 0).all()


def test_background_dice_by_hand() -> None:
    plan = plan_of("segmentation")
    masks = [np.zeros((4, 4), np.int16), np.eye(4, dtype=np.int16)]
    cases = [case_of(np.ones((1, 4, 4)), n, mask=mask) for n, mask in enumerate(masks)]
    predict = baseline_predictor(plan, CaseList.of([]))
    got = summarise(task_module("segmentation").scores(predict, cases, plan), plan)
    assert got["dice"] == got["iou"] == 0.5  # both empty is 1, an object missed is 0
    assert got["hd95_mm"] is None


@pytest.mark.parametrize(
    ("labels", "winner"), [([0, 2, 2, -1, -1, -1], 2), ([1, 0], 0), ([], 0), ([-1], 0)]
)
def test_majority_of_the_known_labels(labels: list[int], winner: int) -> None:
    plan = plan_of("classification", classes=("a", "b", "c"))
    train = CaseList.of(case_of(np.ones((1, 6, 6)), n, label=k) for n, k in enumerate(labels))
    got = list(baseline_predictor(plan, train)([case_of(np.ones((1, 6, 6)))] * 2))
    assert [p.tolist() for p in got] == [[float(k == winner) for k in range(3)]] * 2


@pytest.mark.parametrize("count", [20, 100])  # fewer and more images than the 72 numbers of one
def test_components_against_scikit_learn(count: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(count + 5, 2, 6, 6)).astype(np.float32)
    plan = plan_of("anomaly", channels=("g", "r"))
    train = CaseList.of(case_of(image, n, label=0) for n, image in enumerate(images[:count]))
    got = list(baseline_predictor(plan, train)(case_of(image) for image in images[count:]))
    rows = images.reshape(len(images), -1).astype(np.float64)
    oracle = PCA(3, svd_solver="full").fit(rows[:count])
    rebuilt = oracle.inverse_transform(oracle.transform(rows[count:])).reshape(5, 2, 6, 6)
    assert np.allclose(got, np.square(images[count:] - rebuilt).mean(1), atol=1e-4)


def test_anomalous_cases_teach_nothing() -> None:
    generator = np.random.default_rng(1)
    normal = [case_of(generator.normal(size=(1, 6, 6)), n, label=0) for n in range(10)]
    strange = [case_of(generator.normal(9, 1, size=(1, 6, 6)), n, label=1) for n in range(10)]
    plan = plan_of("anomaly")
    (alone,) = baseline_predictor(plan, CaseList.of(normal))(strange[:1])
    (mixed,) = baseline_predictor(plan, CaseList.of(normal + strange))(strange[:1])
    assert np.array_equal(alone, mixed)


def test_larger_and_smaller_images_are_tiled() -> None:
    generator = np.random.default_rng(2)
    plan = plan_of("anomaly")
    train = CaseList.of(case_of(generator.normal(size=(1, 17, 12)), n, label=0) for n in range(6))
    predict = baseline_predictor(plan, train)
    for shape in ((17, 12), (6, 6), (4, 9)):
        image = generator.normal(size=(1, *shape))
        (got,) = predict([case_of(image)])
        assert got.shape == shape
        assert np.isfinite(got).all()


@pytest.mark.parametrize("images", [[], [np.zeros((1, 6, 6))] * 3, [np.full((1, 6, 6), 2.0)]])
def test_no_or_constant_normals(images: list[np.ndarray]) -> None:
    train = CaseList.of(case_of(image, n, label=0) for n, image in enumerate(images))
    probe = np.full((1, 6, 6), 3.0)
    (got,) = baseline_predictor(plan_of("anomaly"), train)([case_of(probe)])
    mean = images[0].mean() if images else 0.0
    assert np.allclose(got, (3.0 - mean) ** 2)


def test_fitted_once_for_each_plan_and_list() -> None:
    reads = 0

    def read() -> Case:
        nonlocal reads
        reads += 1
        return case_of(np.random.default_rng(reads).normal(size=(1, 6, 6)), label=0)

    train = CaseList([read] * 4, memory_bytes=0)
    first = baseline_predictor(plan_of("anomaly"), train)
    after_fit = reads
    assert baseline_predictor(plan_of("anomaly"), train) is first
    assert reads == after_fit
    assert baseline_predictor(plan_of("anomaly", code_size=2), train) is not first
