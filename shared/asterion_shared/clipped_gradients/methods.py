"""The sum of per-example clipped gradients, the inner step of private training.

Source: Abadi et al. 2016, algorithm 1, before its noise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from asterion_shared.clipped_gradients.convolution import Kernel
from asterion_shared.clipped_gradients.losses import LossOf
from asterion_shared.clipped_gradients.recording import record
from asterion_shared.clipped_gradients.stacked import looped, vmapped
from asterion_shared.clipped_gradients.tape import row_norms
from asterion_shared.errors import PlanMismatchError
from asterion_shared.tasks.batch import Batch

# Shapes: B examples, *P the shape of a parameter.


@dataclass(frozen=True, slots=True)
class Method:
    """How per-example gradients are found. All ways give the same numbers up to rounding.

    Attributes:
        name: ``book_keeping``: one forward and one backward pass of the batch, and a rule for
            each kind of operation. ``vmap``: ``torch.func``, for networks with an operation that
            has no rule. ``loop``: one example after another.
        kernels: of book-keeping, how the gradients of convolution weights are formed, by their
            names; ``grouped`` for those not named.
    """

    name: Literal["book_keeping", "vmap", "loop"] = "book_keeping"
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


class ClippedSum(NamedTuple):
    """What the examples of a batch add up to, each no longer than the clip norm.

    Attributes:
        gradients: by the name of a parameter, the sum of the clipped gradients, (*P).
        norms: of each example's whole gradient before clipping, (B,).
    """

    gradients: dict[str, Tensor]
    norms: Tensor


def clipped_gradient_sum(
    model: nn.Module,
    loss_of: LossOf,
    batch: Batch,
    clip_norm: float,
    method: Method | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> ClippedSum:
    """The sum over the examples of ``min(1, clip_norm / ||g||) g``, g the example's own gradient.

    The norm is over all the parameters together (flat clipping). An example whose gradient is not
    finite is left out of the sum, which keeps the sum's sensitivity; its norm says so. The sum is
    neither divided by B nor noised.

    Args:
        model: whose outputs for an example depend on that example alone. It is used in the mode
            (``train`` or ``eval``) that it is in.
        loss_of: the loss of each example, as :func:`example_losses` gives it.
        batch: B examples; B may be 0, as Poisson sampling makes it.
        clip_norm: C > 0; infinite for no clipping.
        method: as :func:`choose_method` gives it; book-keeping when it is None.
        parameters: those to differentiate by, by name; the model's trainable ones when it is None.

    Raises:
        NoRuleError: the method is book-keeping and an operation has no rule.
        PlanMismatchError: a layer mixes the examples of a batch.
        ValueError: ``clip_norm`` is not positive.
    """
    if not clip_norm > 0:
        msg = f"clip_norm is {clip_norm}; it must be above 0"
        raise ValueError(msg)
    refuse_mixing_layers(model)
    chosen = trainable(model) if parameters is None else dict(parameters)
    if len(batch.inputs) == 0:
        zeros = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
        return ClippedSum(zeros, batch.inputs.new_zeros(0))
    method = method or Method()
    match method.name:
        case "book_keeping":
            tape = record(
                lambda: model(batch.inputs),
                lambda outputs: loss_of(outputs, batch),
                chosen,
                len(batch.inputs),
                method.kernels,
            )
            norms = tape.norms()
            sums = tape.sums(_clip_factors(norms, clip_norm))
            return ClippedSum(dict(zip(chosen, sums, strict=True)), norms)
        case "vmap":
            return _sum_of_stacks(vmapped(model, loss_of, batch, chosen), chosen, clip_norm)
        case "loop":
            return _sum_of_stacks(looped(model, loss_of, batch, chosen), chosen, clip_norm)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def refuse_mixing_layers(model: nn.Module) -> None:
    """Refuse layers through which one example reaches another's output or the model's buffers.

    Raises:
        PlanMismatchError: the model has one.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, _NormBase):
            continue
        kind = type(layer).__name__
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            msg = (
                f"layer {name!r} ({kind}) normalises by the statistics of the whole batch, so that "
                "no example has a gradient of its own to clip; choose a network with group norm"
            )
            raise PlanMismatchError(msg)
        if layer.training and layer.track_running_stats:
            msg = (
                f"layer {name!r} ({kind}) stores running statistics of the examples, which no clip "
                "bounds; build it with track_running_stats=False"
            )
            raise PlanMismatchError(msg)


def _clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, C / norm), (B,): 1 where the norm is 0, and 0 where it is not finite."""
    # C / inf is 0; NaN goes through the clamp and is sorted out behind it.
    return norms.reciprocal().mul_(clip_norm).clamp_(max=1.0).nan_to_num_(nan=0.0)


def _sum_of_stacks(
    stacks: Iterator[list[Tensor]], parameters: Mapping[str, Tensor], clip_norm: float
) -> ClippedSum:
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    norms: list[Tensor] = []
    for stack in stacks:
        rows = [gradients.flatten(1) for gradients in stack]
        parts = [row_norms(row) for row in rows]
        norms.append(row_norms(torch.stack(parts, dim=1)))
        factors = _clip_factors(norms[-1], clip_norm)
        finite = factors > 0
        for total, row in zip(sums.values(), rows, strict=True):
            total += (factors[finite] @ row[finite]).view(total.shape)
    return ClippedSum(sums, torch.cat(norms))
