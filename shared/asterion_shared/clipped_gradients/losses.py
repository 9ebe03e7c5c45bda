"""The loss of each example of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from asterion_shared.plan import Plan
from asterion_shared.tasks import task_module
from asterion_shared.tasks.batch import Batch

LossOf = Callable[[Tensor, Batch], Tensor]
"""Outputs of a network and their batch to the loss of each example, (B,)."""


def example_losses(plan: Plan) -> LossOf:
    """A plan's loss, example by example: the task's own loss of a batch of that example alone.

    For segmentation this is not the batch's loss cut in pieces. There Dice is formed over the
    whole batch, so that every example's gradient depends on its neighbours, and clipping one would
    not bound what that patient changes. Here each example has a Dice of its own.

    Returns:
        A function of outputs and batch to losses (B,), each >= 0. An example whose weights are all
        0 has loss 0 and gradient 0.
    """
    task = task_module(plan.task)

    def loss_of_one(outputs: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        alone = Batch(inputs.unsqueeze(0), targets.unsqueeze(0), weights.unsqueeze(0))
        return task.loss(outputs.unsqueeze(0), alone, plan)

    def loss_of(outputs: Tensor, batch: Batch) -> Tensor:
        each: Tensor = torch.func.vmap(loss_of_one)(
            outputs, batch.inputs, batch.targets, batch.weights
        )
        return each

    return loss_of
