"""The loss of each example of a batch."""

from collections.abc import Callable

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

    def loss_of(outputs: Tensor, batch: Batch) -> Tensor:
        # A task's loss takes several sites side by side: here each has a batch of one example.
        apart = (t.unsqueeze(1) for t in (batch.inputs, batch.targets, batch.weights))
        return task.loss(outputs.unsqueeze(1), Batch(*apart), plan)

    return loss_of
