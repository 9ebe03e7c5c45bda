"""The stream of batches of a round."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from asterion_shared.cases import Case, CaseList
from asterion_shared.errors import DataProblemError
from asterion_shared.plan import Plan, TaskName
from asterion_shared.settings_files import validate
from asterion_shared.tasks.batch import Batch
from asterion_shared.tasks.batches import draw_batches, epoch_steps, fit_to_patch, usable_cases

MODELS: dict[TaskName, str] = {
    "segmentation": "unet",
    "classification": "residual",
    "anomaly": "conv_autoencoder",
}


def plan_of(task: TaskName, *, patch: tuple[int, ...] = (4, 4), **local: Any) -> Plan:
    values = {
        "name": "test",
        "task": task,
        "model": {"name": MODELS[task]},
        "data": {"patch_size": patch, "dimensions": len(patch)},
        "local": local,
    }
    return validate(Plan, values, "test")


def numbered(count: int, shape: tuple[int, ...] = (4, 4), **kwargs: Any) -> CaseList:
    """Case i is an image of the number i + 1."""
    others: dict[str, Any] = {"label": 1, "mask": np.ones(shape, np.int16)} | kwargs
    return CaseList.of(
        Case(
            id=f"{i:012x}",
            image=np.full((1, *shape), i + 1, np.float32),
            **others,
        )
        for i in range(count)
    )


def drawn(plan: Plan, cases: CaseList, *, seed: int = 0, most: int = 1000) -> list[Batch]:
    return list(islice(draw_batches(plan, cases, lambda _: np.random.default_rng(seed)), most))


def numbers(batches: list[Batch]) -> list[int]:
    return [int(x) for batch in batches for x in batch.inputs.flatten(1).amax(1)]


@pytest.mark.parametrize("task", MODELS)
def test_an_epoch_holds_every_case_as_often_as_the_plan_says(task: TaskName) -> None:
    plan = plan_of(task, unit="epochs", amount=3, batch_size=4, patches_per_image=2)
    cases = numbered(7, label=0)
    patches = 1 if task == "classification" else 2
    batches = drawn(plan, cases)
    steps = epoch_steps(plan, 7)
    assert len(batches) == 3 * steps
    assert steps == -(-7 * patches // 4)
    for number in range(3):
        epoch = batches[number * steps : (number + 1) * steps]
        assert sorted(numbers(epoch)) == sorted([1, 2, 3, 4, 5, 6, 7] * patches)
        sizes = [len(batch.inputs) for batch in epoch]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 4
    orders = [numbers(batches[n * steps : (n + 1) * steps]) for n in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_steps_have_no_end_and_full_batches_in_fair_turns() -> None:
    plan = plan_of("classification", unit="steps", amount=1, batch_size=5)
    batches = drawn(plan, numbered(3), most=60)
    assert len(batches) == 60
    assert {len(batch.inputs) for batch in batches} == {5}
    order = numbers(batches)
    assert all(sorted(order[i : i + 3]) == [1, 2, 3] for i in range(0, 300, 3))


@pytest.mark.parametrize("task", MODELS)
def test_the_generator_alone_decides(task: TaskName) -> None:
    plan = plan_of(task, batch_size=4, augment=["flip", "rotate90"])
    generator = np.random.default_rng(3)
    cases = CaseList.of(
        Case(
            id=f"{i:012x}",
            image=generator.normal(size=(1, 9, 9)).astype(np.float32),
            label=0,
            mask=(generator.random((9, 9)) > 0.5).astype(np.int16),
        )
        for i in range(5)
    )
    first, again, other = (drawn(plan, cases, seed=s, most=6) for s in (1, 1, 2))
    torch.manual_seed(5)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.weights, b.weights)
    assert not all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("patch", "shape"), [((4, 4), (6, 7)), ((4, 4, 2), (6, 7, 3))])
def test_shapes_and_dtypes(patch: tuple[int, ...], shape: tuple[int, ...]) -> None:
    cases = numbered(4, shape, label=0)
    for task in MODELS:
        (batch,) = drawn(plan_of(task, patch=patch, batch_size=3), cases, most=1)
        assert batch.inputs.shape == (3, 1, *patch)
        assert batch.inputs.dtype == batch.weights.dtype == torch.float32
        if task == "anomaly":
            assert torch.equal(batch.targets, batch.inputs)
        else:
            assert batch.targets.dtype == torch.int64
        expected = {"segmentation": (3, *patch), "classification": (3,), "anomaly": (3, *patch)}
        assert batch.weights.shape == expected[task]


@pytest.mark.parametrize("task", ["segmentation", "anomaly"])
def test_padding_has_value_and_weight_zero(task: TaskName) -> None:
    (batch,) = drawn(
        plan_of(task, patch=(4, 6), batch_size=2), numbered(2, (2, 3), label=0), most=1
    )
    assert batch.weights.sum((1, 2)).tolist() == [6, 6]
    assert torch.equal(batch.inputs[:, 0] > 0, batch.weights > 0)
    assert (batch.targets.squeeze(1)[batch.weights == 0] == 0).all()


def test_unknown_points_of_a_mask_have_weight_zero() -> None:
    mask = np.array([[1, -1], [0, -1]], np.int16)
    case = Case(id="0" * 12, image=np.ones((1, 2, 2), np.float32), mask=mask)
    (batch,) = drawn(
        plan_of("segmentation", patch=(2, 2), batch_size=1), CaseList.of([case]), most=1
    )
    assert batch.weights[0].tolist() == [[1, 0], [1, 0]]
    assert batch.targets[0].tolist() == [[1, 0], [0, 0]]


def test_image_and_mask_stay_together() -> None:
    generator = np.random.default_rng(0)
    mask = (generator.random((12, 10)) > 0.7).astype(np.int16)
    case = Case(id="0" * 12, image=mask[None].astype(np.float32), mask=mask)
    plan = plan_of("segmentation", batch_size=8, augment=["flip", "rotate90"])
    for batch in drawn(plan, CaseList.of([case]), most=20):
        assert torch.equal(batch.inputs[:, 0].long(), batch.targets)


def test_half_of_the_patches_are_drawn_around_the_foreground() -> None:
    # one object point in 40 x 40: a uniform 4 x 4 patch holds it in about 1 of 100 draws
    mask = np.zeros((40, 40), np.int16)
    mask[20, 20] = 1
    case = Case(id="0" * 12, image=np.zeros((1, 40, 40), np.float32), mask=mask)
    batches = drawn(plan_of("segmentation", batch_size=50), CaseList.of([case]), most=20)
    share = np.mean([float(t.max()) for batch in batches for t in batch.targets])
    assert 0.45 < share < 0.56


def test_only_what_the_task_can_learn_from_is_drawn() -> None:
    labels = [0, 1, -1, 0, 1]
    cases = CaseList.of(
        Case(id=f"{i:012x}", image=np.full((1, 4, 4), i + 1, np.float32), label=label)
        for i, label in enumerate(labels)
    )
    classification = plan_of("classification", unit="epochs", amount=1)
    anomaly = plan_of("anomaly", unit="epochs", amount=1)
    assert usable_cases(classification, cases) == (0, 1, 3, 4)
    assert sorted(numbers(drawn(classification, cases))) == [1, 2, 4, 5]
    assert usable_cases(anomaly, cases) == (0, 2, 3)
    assert sorted(numbers(drawn(anomaly, cases))) == [1, 3, 4]


@pytest.mark.parametrize(
    ("task", "cases", "words"),
    [
        ("classification", numbered(3, label=-1), "none of 3"),
        ("anomaly", numbered(3, label=1), "none of 3"),
        ("segmentation", CaseList.of([]), "none of 0"),
        ("segmentation", numbered(2, mask=None), "no mask"),
    ],
)
def test_nothing_to_learn_from(task: TaskName, cases: CaseList, words: str) -> None:
    with pytest.raises(DataProblemError, match=words) as caught:
        drawn(plan_of(task), cases, most=1)
    assert caught.value.code == "no_data"


def test_the_middle_of_an_image_is_classified() -> None:
    image = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    assert fit_to_patch(plan_of("classification"), image).tolist() == image[:, 1:5, 1:5].tolist()
    padded = fit_to_patch(plan_of("classification", patch=(8, 8)), image)
    assert padded[:, 1:7, 1:7].tolist() == image.tolist()
    assert padded.sum() == image.sum()


def test_rows_of_a_table_are_left_as_they_are() -> None:
    values = {
        "name": "test",
        "task": "classification",
        "model": {"name": "logistic"},
        "data": {"kind": "table", "features": ["age", "chol"]},
        "local": {"batch_size": 2},
    }
    plan = validate(Plan, values, "test")
    rows = CaseList.of(
        Case(id=f"{i:012x}", image=np.array([i, 0, 1, 0], np.float32), label=1) for i in range(2)
    )
    (batch,) = drawn(plan, rows, most=1)
    assert sorted(batch.inputs.tolist()) == [[0, 0, 1, 0], [1, 0, 1, 0]]
    assert batch.targets.tolist() == [1, 1]


def test_a_batch_moves_whole() -> None:
    batch = Batch(torch.zeros(1), torch.ones(1), torch.ones(1)).to("cpu")
    assert (batch.inputs.device.type, batch.targets.item()) == ("cpu", 1.0)
