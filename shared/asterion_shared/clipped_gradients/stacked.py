"""Per-example gradients of any network, formed whole: slow, general, and obviously right."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from asterion_shared.clipped_gradients.losses import LossOf
from asterion_shared.tasks.batch import Batch

# Shapes: B examples, b a few of them, *P the shape of a parameter.

_LARGEST_STACK_BYTES = 256 * 2**20


def looped(
    model: nn.Module, loss_of: LossOf, batch: Batch, parameters: Mapping[str, nn.Parameter]
) -> Iterator[list[Tensor]]:
    """One example after another, by autograd: each time the gradients of all, (1, *P)."""
    tensors = list(parameters.values())
    for n in range(len(batch.inputs)):
        one = examples(batch, slice(n, n + 1))
        loss = loss_of(model(one.inputs), one).sum()
        found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        yield [gradient.unsqueeze(0) for gradient in found]


def vmapped(
    model: nn.Module, loss_of: LossOf, batch: Batch, parameters: Mapping[str, nn.Parameter]
) -> Iterator[list[Tensor]]:
    """A few examples at a time, by ``torch.func``: each time the gradients of all, (b, *P)."""
    weights = {name: parameter.detach() for name, parameter in parameters.items()}

    def loss_of_one(
        weights: dict[str, Tensor], inputs: Tensor, targets: Tensor, known: Tensor
    ) -> Tensor:
        one = Batch(inputs.unsqueeze(0), targets.unsqueeze(0), known.unsqueeze(0))
        return loss_of(torch.func.functional_call(model, weights, (one.inputs,)), one).sum()

    each = torch.func.vmap(
        torch.func.grad(loss_of_one), in_dims=(None, 0, 0, 0), randomness="different"
    )
    size = sum(w.numel() * w.element_size() for w in weights.values())
    step = max(1, _LARGEST_STACK_BYTES // size)
    for start in range(0, len(batch.inputs), step):
        few = examples(batch, slice(start, start + step))
        found = each(weights, few.inputs, few.targets, few.weights)
        yield [found[name] for name in weights]


def examples(batch: Batch, which: slice) -> Batch:
    """Some examples of a batch."""
    return Batch(batch.inputs[which], batch.targets[which], batch.weights[which])
