"""Canaries among the records of a site, and what the weights' movement says about them.

A canary lights up one input of the network and has the class that the network thinks least
likely: gradients of two canaries are nearly orthogonal and, for a canary that is not learnt yet,
far longer than the clip.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asterion_client.local_round import Workspace, work
from asterion_shared.algorithms import algorithm_of
from asterion_shared.blocks import length
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.clipped_gradients import clipped_gradient_sum
from asterion_shared.messages import Order
from asterion_shared.plan import Plan
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.table_columns import table_width
from asterion_shared.tasks.batches import batch_of

Floats = npt.NDArray[np.float64]

LOUD = 60.0
"""Length of a canary's input over the clip norm, or over 1 where that is shorter: far above 1, so
that the bias has little of its gradient, which is longer than the clip."""

MOST_CANARIES = 1024
"""In one run; they are compared with each other, which takes their number to the third power."""

MOST_NUMBERS = 2**25
"""In the gradients of all canaries together: 256 MiB."""

RECORDS_OF_A_PATIENT = 4
"""A patient's canary is in so many records, all the same: a step that took more than one of them
would show it several times as loud."""

SITE = "canary"


@dataclass(frozen=True, slots=True)
class Probes:
    """Directions of length 1, along each of which only one canary's gradient has a part.

    The rows of the pseudo-inverse of the gradients at the initial weights: along a canary's own
    gradient the others would be seen too, as far as they share the later layers.

    Attributes:
        gradients: float64 ``(m, size)``, of length 1.
        mix: float64 ``(m, m)``; ``mix @ gradients`` are the directions.
    """

    gradients: Floats
    mix: Floats

    def parts(self, movement: Floats) -> Floats:
        """How far a movement ``(size,)`` goes along each direction, float64 ``(m,)``."""
        return np.asarray(self.mix @ (self.gradients @ movement))


def input_shape(plan: Plan) -> tuple[int, ...]:
    """The shape of one record as the network takes it."""
    if plan.data.kind == "table":
        return (table_width(plan.data),)
    return (len(plan.data.channels), *plan.data.patch_size)


def loudness(privacy: PrivacySettings) -> float:
    """Length of a canary's input."""
    return LOUD * max(1.0, privacy.clip_norm)


def num_canaries(plan: Plan, size: int) -> int:
    """How many canaries one run has: at most one an input; ``size`` is the network's."""
    return min(math.prod(input_shape(plan)), MOST_CANARIES, max(1, MOST_NUMBERS // size))


def draw_canaries(workspace: Workspace, privacy: PrivacySettings) -> list[Case]:
    """:func:`num_canaries` of them, spread evenly over the inputs; each a patient of its own."""
    plan = workspace.plan
    shape = input_shape(plan)
    inputs, number = math.prod(shape), num_canaries(plan, workspace.layout.size)
    images = np.zeros((number, inputs), np.float32)
    images[np.arange(number), np.arange(number) * inputs // number] = loudness(privacy)
    images = images.reshape(number, *shape)
    workspace.model.eval()
    with torch.no_grad():
        least_likely = workspace.model(torch.from_numpy(images)).argmin(dim=1).tolist()
    return [
        Case(id=f"{n:012x}", image=image, label=label, group=f"{n:012x}", group_named=True)
        for n, (image, label) in enumerate(zip(images, least_likely, strict=True))
    ]


def planted(case: Case, included: bool, privacy: PrivacySettings) -> list[Case]:
    """The records of one protected unit: the canary, or records that contribute nothing.

    Those have a gradient that is not finite, which counts as zero. Their number stays.
    """
    one = case if included else replace(case, image=np.full_like(case.image, np.nan))
    return [one] * (RECORDS_OF_A_PATIENT if privacy.protects == "patient" else 1)


def probes(workspace: Workspace, privacy: PrivacySettings, canaries: Sequence[Case]) -> Probes:
    """The directions of these canaries at the initial weights."""
    plan, step, cases = workspace.plan, workspace.private_step, CaseList.of(canaries)
    assert step is not None  # noqa: S101  # the plan protects records or patients
    parameters = dict(workspace.model.named_parameters())
    rows = np.empty((len(canaries), workspace.layout.size))
    for number in range(len(canaries)):
        # Without augmentation no patch is drawn in classification.
        batch = batch_of(plan, cases, np.array([number]), np.random.default_rng(0))
        found = clipped_gradient_sum(
            workspace.model, step.loss_of, batch, privacy.clip_norm, step.method, parameters
        ).gradients
        parts = [found[tensor.name].flatten() for tensor in workspace.layout.shared]
        row = torch.cat(parts).double().numpy()
        rows[number] = row / length(row)
    inverse = np.linalg.pinv(rows @ rows.T, rcond=1e-6, hermitian=True)
    # The squared length of direction i is (P G P)_ii, and P G P = P for a pseudo-inverse P of G.
    return Probes(rows, np.asarray(inverse / np.sqrt(inverse.diagonal())[:, None]))


def movement(workspace: Workspace, records: Sequence[Case]) -> Floats:
    """The sum of a site's updates over the plan's rounds, float64 ``(size,)``."""
    plan, weights = workspace.plan, workspace.initial_weights
    data = SiteData(site=SITE, train=CaseList.of(records), test=CaseList(()))
    central_step = algorithm_of(plan.algorithm).central_step
    moved = np.zeros(weights.size)
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(1, plan.rounds.count + 1):
            order = Order(
                run="audit",
                plan=plan,
                round=round_,
                phase="train",
                weights=weights,
                layout_sha256=workspace.layout.sha256,
                evaluate=False,
            )
            update = work(order, data, workspace, Path(folder)).update
            assert update is not None  # noqa: S101  # it was an order to train
            moved += update
            weights = central_step(weights, update)
    return moved
