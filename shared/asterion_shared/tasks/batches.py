"""The stream of batches that a site trains on in one round."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from asterion_shared.cases import Case, CaseList
from asterion_shared.errors import DataProblemError
from asterion_shared.plan import Plan, TaskName
from asterion_shared.tasks.batch import Batch
from asterion_shared.tasks.patches import (
    augment,
    centre_start,
    random_start,
    start_around_object,
    take,
)

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
Example = tuple[Floats, npt.NDArray[np.generic], npt.NDArray[np.generic]]
"""Inputs, targets and weights of one example, as in :class:`Batch` without its first axis."""


Draws = Callable[[str], np.random.Generator]
"""Gives the generator of a purpose: ``order`` of the examples, or ``patches`` of each. Apart, so
that an engine that needs no patches makes the same order without drawing any."""


def draw_batches(plan: Plan, cases: CaseList, draws: Draws) -> Iterator[Batch]:
    """Batches of training examples, drawn from ``draws`` alone.

    With ``plan.local.unit`` "steps" the stream has no end and every batch is full: the cases come
    in one order after another. With "epochs" it has ``amount`` passes of :func:`epoch_steps`
    batches each; the sizes of a pass differ by at most one, so that no last batch is tiny. An
    order is random, or that of the cases when ``plan.local.shuffle`` is off.

    Segmentation and anomaly learn from random patches (``patches_per_image`` a pass), filled up
    with zeros of weight 0 where the image is smaller. Half of the segmentation patches are drawn
    around a random point of the foreground, if there is one, because most of an image is
    background. Classification takes the middle of an image, or a whole row.

    Args:
        plan: says the task, the patch, the batch and the augmentation.
        cases: the site's training cases. Those without a label are left out in classification,
            the anomalous ones in anomaly.
        draws: the same generators in the same state give the same batches.

    Raises:
        DataProblemError: ``no_data``: no case can be learnt from, or a case to be segmented has
            no mask.
    """
    usable = np.array(require_usable(plan, cases))
    patches = draws("patches")
    for chosen in batch_positions(plan, len(usable), draws):
        yield batch_of(plan, cases, usable[chosen], patches)


def batch_of(
    plan: Plan, cases: CaseList, indexes: Positions, patches: np.random.Generator
) -> Batch:
    """The batch of these cases (int64, at least one), in this order.

    Args:
        plan: as for :func:`draw_batches`.
        cases: as for :func:`draw_batches`.
        indexes: each one of :func:`usable_cases`.
        patches: draws the patches.

    Raises:
        DataProblemError: ``no_data``: a case to be segmented has no mask.
    """
    example = _EXAMPLES[plan.task]
    return _collate([example(plan, cases[index], patches) for index in indexes])


def batch_positions(plan: Plan, num_usable: int, draws: Draws) -> Iterator[Positions]:
    """Which of ``num_usable`` > 0 cases each batch of :func:`draw_batches` takes, as int64."""
    choices = _steps if plan.local.unit == "steps" else _epochs
    return choices(plan, num_usable, _order_of(plan, num_usable, draws))


def require_usable(plan: Plan, cases: CaseList) -> tuple[int, ...]:
    """The indexes of :func:`usable_cases`.

    Raises:
        DataProblemError: ``no_data``: there is none.
    """
    usable = usable_cases(plan, cases)
    if not usable:
        msg = f"none of {len(cases)} training cases can be used for {plan.task}; check the labels"
        raise DataProblemError(msg, code="no_data")
    return usable


def epoch_steps(plan: Plan, num_cases: int) -> int:
    """Optimiser steps in one pass over ``num_cases`` usable cases; 0 when there are none."""
    return math.ceil(num_cases * _patches_per_case(plan) / plan.local.batch_size)


_usable: WeakKeyDictionary[CaseList, dict[TaskName, tuple[int, ...]]] = WeakKeyDictionary()


def usable_cases(plan: Plan, cases: CaseList) -> tuple[int, ...]:
    """Indexes of the cases that the task can learn from; looked up once for each list of cases.

    Classification: those with a label. Anomaly: those that are not labelled anomalous.
    Segmentation: all.
    """
    known = _usable.setdefault(cases, {})
    if plan.task not in known:
        match plan.task:
            case "segmentation":  # reading them all only to look would be slow
                known[plan.task] = tuple(range(len(cases)))
            case "classification":
                known[plan.task] = tuple(np.flatnonzero(cases.labels() >= 0).tolist())
            case "anomaly":
                known[plan.task] = tuple(np.flatnonzero(cases.labels() <= 0).tolist())
    return known[plan.task]


def _patches_per_case(plan: Plan) -> int:
    return 1 if plan.task == "classification" else plan.local.patches_per_image


def _order_of(plan: Plan, num_usable: int, draws: Draws) -> Callable[[], Positions]:
    """Gives the order of one pass after another."""
    repeats = _patches_per_case(plan) if plan.local.unit == "epochs" else 1
    stored = np.arange(num_usable).repeat(repeats)
    if not plan.local.shuffle:
        return lambda: stored
    generator = draws("order")
    return lambda: generator.permutation(stored)


def _epochs(plan: Plan, num_usable: int, order: Callable[[], Positions]) -> Iterator[Positions]:
    steps = epoch_steps(plan, num_usable)
    for _ in range(plan.local.amount):
        wanted = order()
        smallest, larger = divmod(wanted.size, steps)
        end = 0
        for step in range(steps):
            begin, end = end, end + smallest + (step < larger)
            yield wanted[begin:end]


def _steps(plan: Plan, num_usable: int, order: Callable[[], Positions]) -> Iterator[Positions]:
    size = plan.local.batch_size
    waiting = np.empty(0, np.int64)
    while True:
        while waiting.size < size:
            waiting = np.concatenate([waiting, order()])
        chosen, waiting = waiting[:size], waiting[size:]
        yield chosen


def _segmentation_example(plan: Plan, case: Case, generator: np.random.Generator) -> Example:
    size, mask = plan.data.patch_size, case.mask
    if mask is None:
        msg = f"case {case.id} has no mask to learn from; give it one or move it out of training"
        raise DataProblemError(msg, code="no_data")
    start = start_around_object(mask, size, generator) if generator.random() < 0.5 else None
    if start is None:
        start = random_start(mask.shape, size, generator)
    patches: list[npt.NDArray[Any]] = [
        take(case.image, start, size),
        take(mask, start, size, fill=-1),
    ]
    image, target = augment(patches, len(size), plan.local.augment, generator)
    return image, np.maximum(target, 0).astype(np.int64), (target >= 0).astype(np.float32)


def _classification_example(plan: Plan, case: Case, generator: np.random.Generator) -> Example:
    return (
        fit_to_patch(plan, case.image, generator),
        np.asarray(case.label, np.int64),
        np.asarray(1.0, np.float32),
    )


def _anomaly_example(plan: Plan, case: Case, generator: np.random.Generator) -> Example:
    size = plan.data.patch_size
    shape = case.image.shape[1:]
    start = random_start(shape, size, generator)
    image: npt.NDArray[np.float32] = take(case.image, start, size)
    weights = take(np.ones(shape, np.float32), start, size)
    image, weights = augment([image, weights], len(size), plan.local.augment, generator)
    return image, image, weights


def fit_to_patch(plan: Plan, image: Floats, generator: np.random.Generator | None = None) -> Floats:
    """The middle of an image ``(C, *S)`` at the plan's patch size, filled up with zeros.

    A row of a table is returned as it is. With a generator the patch is augmented as the plan
    says.
    """
    if plan.data.kind == "table":
        return image
    size = plan.data.patch_size
    patch = take(image, centre_start(image.shape[1:], size), size)
    if generator is None:
        return patch
    return augment([patch], len(size), plan.local.augment, generator)[0]


_EXAMPLES: dict[TaskName, Callable[[Plan, Case, np.random.Generator], Example]] = {
    "segmentation": _segmentation_example,
    "classification": _classification_example,
    "anomaly": _anomaly_example,
}


def _collate(examples: Sequence[Example]) -> Batch:
    inputs, targets, weights = (
        torch.from_numpy(np.stack(parts)) for parts in zip(*examples, strict=True)
    )
    return Batch(inputs, targets, weights)
