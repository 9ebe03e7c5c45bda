"""The rules of dense layers, of norms that treat each example alone, and of PReLU."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asterion_shared.clipped_gradients.tape import Tape, row_norms

# Shapes: B examples, I and O features in and out, C channels, S spatial axes, T any other axes.


@dataclass(frozen=True, slots=True)
class LinearUse:
    """One use of a dense layer's weight.

    Attributes:
        inputs: (B, *T, I).
        gradients: of the loss by the outputs, (B, *T, O).
    """

    inputs: Tensor
    gradients: Tensor

    def select(self, examples: slice | Tensor) -> "LinearUse":
        """The same use by some of the examples."""
        return LinearUse(self.inputs[examples], self.gradients[examples])

    def form(self) -> Tensor:
        """The gradient of each example, (B, O, I)."""
        inputs, gradients = (
            t.reshape(len(t), -1, t.shape[-1]) for t in (self.inputs, self.gradients)
        )
        return torch.bmm(gradients.transpose(1, 2), inputs)

    @property
    def is_product(self) -> bool:
        """Whether there is one row an example."""
        return self.inputs.ndim == 2

    def norms(self) -> Tensor:
        """Norms (B,) of outer products of one row an example."""
        return row_norms(self.inputs) * row_norms(self.gradients)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """The ordinary gradient of the weight, of a loss in which example b counts factors[b]."""
        if self.is_product:
            return (self.gradients * factors.unsqueeze(1)).t() @ self.inputs
        scaled = self.gradients * factors.view(-1, *[1] * (self.gradients.ndim - 1))
        rows = self.inputs.reshape(-1, self.inputs.shape[-1])
        return scaled.reshape(-1, scaled.shape[-1]).t() @ rows


class Linear(torch.autograd.Function):
    """A dense layer whose backward pass puts each example's gradient on the tape."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """(B, *T, I) to (B, *T, O)."""
        ctx.save_for_backward(inputs, weight, bias)
        ctx.tape = tape
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; those by weight and bias go to the tape."""
        (gradients,) = grad_outputs
        inputs, weight, bias = ctx.saved_tensors
        if ctx.tape.wants(weight):
            # Detached: with its graph it would hold the tape that holds it.
            ctx.tape.keep(weight, LinearUse(inputs.detach(), gradients))
        if ctx.tape.wants(bias):
            between = tuple(range(1, gradients.ndim - 1))
            ctx.tape.form(bias, gradients.sum(between) if between else gradients)
        return None, gradients @ weight if ctx.needs_input_grad[1] else None, None, None


class GroupNorm(torch.autograd.Function):
    """Group norm, and instance norm as groups of one channel. Source: Wu and He 2018."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        inputs: Tensor,
        num_groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        """(B, C, *S) to the same shape."""
        inputs = inputs.contiguous(memory_format=_memory_format(inputs))
        sizes = _sizes(inputs)
        outputs, mean, scale = torch.native_group_norm(
            inputs, weight, bias, *sizes, num_groups, eps
        )
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        ctx.tape = tape
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; those by weight and bias go to the tape."""
        (gradients,) = grad_outputs
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        gradients = gradients.contiguous(memory_format=_memory_format(inputs))
        if inputs.is_contiguous():
            # As one image with the channels of all examples: torch then adds over nothing else.
            weights = None if weight is None else weight.repeat(len(inputs))
            flat = (t.view(1, -1, *t.shape[2:]) for t in (gradients, inputs, mean, scale))
            before, by_weight, by_bias = _group_norm_backward(weights, *flat)
            before = before.view(inputs.shape)
        else:
            before = _group_norm_backward(
                weight, gradients, inputs, mean, scale, by_parameters=False
            )[0]
            space = tuple(range(2, inputs.ndim))
            by_bias, products = gradients.sum(space), (gradients * inputs).sum(space)
            by_channel = [t.view(*mean.shape, -1) for t in (products, by_bias)]
            centred = by_channel[0].addcmul(mean.unsqueeze(2), by_channel[1], value=-1)
            by_weight = centred * scale.unsqueeze(2)
        for parameter, found in ((weight, by_weight), (bias, by_bias)):
            if ctx.tape.wants(parameter):
                ctx.tape.form(parameter, found)
        return None, before, None, None, None, None


def _group_norm_backward(
    weight: Tensor | None,
    gradients: Tensor,
    inputs: Tensor,
    mean: Tensor,
    scale: Tensor,
    *,
    by_parameters: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by inputs and, if asked for, by weight and bias, summed over the first axis."""
    mask = [True, by_parameters, by_parameters]
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward.default(
        gradients, inputs, mean, scale, weight, *_sizes(inputs), mean.shape[1], mask
    )
    return found


def _memory_format(inputs: Tensor) -> torch.memory_format:
    """The layout of the channels that the kernels of group norm take as it is."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(inputs.ndim)
    if (
        last is not None
        and inputs.device.type == "cpu"
        and inputs.is_contiguous(memory_format=last)
    ):
        return last
    return torch.contiguous_format


def _sizes(inputs: Tensor) -> tuple[int, int, int]:
    """B, C, and the number of points of one channel."""
    return inputs.shape[0], inputs.shape[1], inputs[0, 0].numel()


class LayerNorm(torch.autograd.Function):
    """Layer norm over the last axes. Source: Ba et al. 2016."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        inputs: Tensor,
        shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        """(B, *T, *shape) to the same shape."""
        outputs, mean, scale = torch.native_layer_norm(inputs, shape, weight, bias, eps)
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        ctx.tape, ctx.shape = tape, shape
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; those by weight and bias go to the tape."""
        (gradients,) = grad_outputs
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        if ctx.tape.wants(weight):
            rows = (gradients * (inputs - mean) * scale).flatten(1)
            ctx.tape.form(weight, rows.view(len(inputs), -1, weight.numel()).sum(1))
        if ctx.tape.wants(bias):
            rows = gradients.flatten(1)
            ctx.tape.form(bias, rows.view(len(inputs), -1, bias.numel()).sum(1))
        before = None
        if ctx.needs_input_grad[1]:
            before = torch.ops.aten.native_layer_norm_backward.default(
                gradients,
                inputs,
                ctx.shape,
                mean,
                scale,
                weight,
                bias,
                [True, False, False],
            )[0]
        return None, before, None, None, None, None


class PReLU(torch.autograd.Function):
    """A rectifier with a learned slope below zero. Source: He et al. 2015."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, inputs: Tensor, weight: Tensor) -> Tensor:
        """(B, C, *S) to the same shape; one slope, or one for each channel."""
        ctx.save_for_backward(inputs, weight)
        ctx.tape = tape
        return torch.prelu(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; that by the slope goes to the tape."""
        (gradients,) = grad_outputs
        inputs, weight = ctx.saved_tensors
        if ctx.tape.wants(weight):
            products = gradients * inputs.clamp(max=0)
            ctx.tape.form(weight, products.reshape(len(inputs), weight.numel(), -1).sum(2))
        before = None
        if ctx.needs_input_grad[1]:
            slope = weight.view(-1, *[1] * (inputs.ndim - 2))
            before = torch.where(inputs > 0, gradients, gradients * slope)
        return None, before, None
