"""The three tasks have the same five names, and each learns."""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch

from asterion_shared.cases import Case, CaseList
from asterion_shared.metrics import (
    HEADLINE,
    check_statistics,
    expected_statistics,
    merge,
    summarise,
)
from asterion_shared.plan import MODELS, Plan, TaskName
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module
from asterion_shared.tasks.baselines import baseline_predictor
from asterion_shared.tasks.batches import draw_batches
from asterion_shared.tasks.prediction import model_predictor

TASKS: tuple[TaskName, ...] = get_args(TaskName)
NAMES = {"DEFAULTS", "Batch", "build_model", "loss", "scores"}


def small_plan(task: TaskName, **local: Any) -> Plan:
    values = {"name": "test"} | dict(task_module(task).DEFAULTS)
    values["data"] = values["data"] | {"patch_size": [16, 16]}
    values["local"] = {"batch_size": 16, "learning_rate": 0.01} | local
    values["model"] = values["model"] | {"widths": [8, 16]}
    return validate(Plan, values, "test")


def discs(count: int, seed: int, *, label: int | None = None) -> list[Case]:
    """A slope and noise, with a bright disc (class 1, mask 1) or without one (class 0)."""
    generator = np.random.default_rng(seed)
    grid = np.indices((20, 24))
    cases = []
    for number in range(count):
        kind = number % 2 if label is None else label
        slope = np.tensordot(generator.normal(0, 0.1, 2), grid - 11, 1)
        image = (slope + generator.normal(0, 0.3, (1, 20, 24))).astype(np.float32)
        centre = generator.uniform((6, 6), (14, 18)).reshape(2, 1, 1)
        disc = (((grid - centre) ** 2).sum(0) < 25) & (kind == 1)
        image[0, disc] += 2
        cases.append(Case(id=f"{number:012x}", image=image, label=kind, mask=disc.astype(np.int16)))
    return cases


TRAIN: dict[TaskName, Callable[[], list[Case]]] = {
    "segmentation": lambda: discs(24, 1),
    "classification": lambda: discs(40, 2),
    "anomaly": lambda: discs(24, 3, label=0),
}


@pytest.mark.parametrize("task", TASKS)
def test_five_names_and_no_other(task: TaskName) -> None:
    module = task_module(task)
    assert set(module.__all__) == NAMES  # type: ignore[attr-defined]
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__  # type: ignore[attr-defined]
    }
    assert own == {"build_model", "loss", "scores"}
    assert is_dataclass(module.Batch)
    assert [field.name for field in fields(module.Batch)] == ["inputs", "targets", "weights"]


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_a_plan(task: TaskName) -> None:
    module = task_module(task)
    plan = validate(Plan, {"name": "mine"} | dict(module.DEFAULTS), "defaults")
    assert plan.task == task
    assert plan.model.name == MODELS[task][0]
    assert isinstance(module.build_model(plan), torch.nn.Module)


@pytest.mark.parametrize("task", TASKS)
def test_trains_and_beats_its_baseline(task: TaskName) -> None:
    plan, module = small_plan(task), task_module(task)
    torch.manual_seed(0)
    model = module.build_model(plan)
    train, test = CaseList.of(TRAIN[task]()), CaseList.of(discs(30, 9))
    optimiser = torch.optim.Adam(model.parameters(), plan.local.learning_rate)
    losses = []
    for _, batch in zip(range(60), draw_batches(plan, train, lambda _: np.random.default_rng(0))):  # noqa: B905
        optimiser.zero_grad()
        loss = module.loss(model(batch.inputs), batch, plan)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    statistics = module.scores(model_predictor(model, plan), test, plan)
    trivial = module.scores(baseline_predictor(plan, train), test, plan)
    both = statistics | {f"baseline/{name}": part for name, part in trivial.items()}
    check_statistics(both, plan, num_cases=30)
    got = summarise(both, plan)
    name = HEADLINE[task]
    reached, without = got[name] or 0.0, got[f"baseline/{name}"] or 0.0
    assert reached > {"segmentation": 0.65, "classification": 0.9, "anomaly": 0.75}[task]
    if task != "anomaly":
        assert reached > without + 0.1
    assert both.keys() == expected_statistics(plan).keys()


@pytest.mark.parametrize("task", TASKS)
def test_scores_add_over_any_partition(task: TaskName) -> None:
    plan, module = small_plan(task), task_module(task)
    torch.manual_seed(1)
    predict = model_predictor(module.build_model(plan), plan)
    cases = discs(9, 4)

    def scored(some: Iterable[Case]) -> dict[str, Any]:
        return module.scores(predict, some, plan)

    whole = scored(cases)
    for parts in ([cases[:1], cases[1:]], [cases[::3], cases[1::3], cases[2::3]]):
        merged = merge(scored(part) for part in parts)
        assert merged.keys() == whole.keys()
        for name, statistic in whole.items():
            assert np.allclose(merged[name].values, statistic.values, rtol=1e-6), name
    merged = merge([whole, scored([])])
    assert all(np.array_equal(merged[n].values, s.values) for n, s in whole.items())


@pytest.mark.parametrize("task", TASKS)
def test_scores_take_a_stream_and_keep_the_order(task: TaskName) -> None:
    plan, module = small_plan(task), task_module(task)
    cases = discs(6, 5)
    seen: list[str] = []

    def stream() -> Iterable[Case]:
        for case in cases:
            seen.append(case.id)
            yield case

    predict = baseline_predictor(plan, CaseList.of(cases))
    once = module.scores(predict, stream(), plan)
    again = module.scores(predict, CaseList.of(cases), plan)
    assert seen == [case.id for case in cases]
    assert all(np.array_equal(once[name].values, again[name].values) for name in again)


def test_a_predictor_that_loses_a_case_is_found() -> None:
    plan = small_plan("classification")
    with pytest.raises(ValueError, match="zip"):
        task_module("classification").scores(
            lambda cases: iter([np.array([1.0, 0.0], np.float32) for _ in list(cases)[1:]]),
            discs(3, 1),
            plan,
        )
