"""The rule of every convolution, plain or transposed, of one, two or three dimensions."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from asterion_shared.clipped_gradients.tape import Tape, row_norms

# Shapes: B examples, C channels in, O channels out, S and T the spatial axes before and after.

Kernel = Literal["grouped", "merged", "unfold"]
"""How the gradients of a convolution's weight are formed, example by example.

``grouped``: by one convolution in which every example is a group. ``merged``: the forward pass and
the gradient by the inputs are done that way too, in fewer and, for few channels, faster kernels.
``unfold``: patches copied side by side, then a batched matrix product; it takes more memory, and
wins where a device's grouped kernels are poor.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """A convolution without its tensors, as torch names them; a number for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def in_order(self, copies: int = 1) -> tuple[Any, ...]:
        """As ``aten::convolution`` and its backward take them, for copies of it side by side."""
        return (
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups * copies,
        )


@dataclass(frozen=True, slots=True)
class ConvolutionUse:
    """One use of a convolution's weight.

    Attributes:
        inputs: (B, C, *S).
        gradients: of the loss by the outputs, (B, O, *T).
        weight: for its shape.
        settings: of the convolution.
        kernel: how gradients are formed.
    """

    inputs: Tensor
    gradients: Tensor
    weight: Tensor
    settings: Settings
    kernel: Kernel

    def select(self, examples: slice | Tensor) -> "ConvolutionUse":
        """The same use by some of the examples."""
        return replace(self, inputs=self.inputs[examples], gradients=self.gradients[examples])

    def form(self) -> Tensor:
        """The gradient of each example, (B, *weight.shape)."""
        return self._unfolded() if self.kernel == "unfold" else self._grouped()

    @property
    def is_product(self) -> bool:
        """False: many positions share the weight, so that the norm needs the gradient."""
        return False

    def norms(self) -> Tensor:
        """Norms (B,) of the gradients, which are formed for it."""
        return row_norms(self.form().flatten(1))

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """The ordinary gradient of the weight, of a loss in which example b counts factors[b]."""
        scaled = self.gradients * factors.view(-1, *[1] * (self.gradients.ndim - 1))
        settings = self.settings.in_order()
        return _backward(scaled, self.inputs, self.weight, settings, [False, True, False])[1]

    def _grouped(self) -> Tensor:
        copies = len(self.inputs)
        gradients, inputs = _as_channels(self.gradients), _as_channels(self.inputs)
        # Only the shape of the groups' weights matters here: their values are not read.
        weights = self.weight.new_empty(copies * self.weight.shape[0], *self.weight.shape[1:])
        settings = self.settings.in_order(copies)
        formed = _backward(gradients, inputs, weights, settings, [False, True, False])[1]
        return formed.view(copies, *self.weight.shape)

    def _unfolded(self) -> Tensor:
        # A transposed convolution is the gradient of a plain one: inputs and outputs trade places.
        both = (self.inputs, self.gradients)
        wide, narrow = reversed(both) if self.settings.transposed else both
        num_groups = len(narrow) * self.settings.groups
        size = self.weight.shape[2:]
        patches = _patches(wide, size, narrow.shape[2:], self.settings)
        # (B groups, channels of a group, *size, *T) against (B groups, channels of a group, T)
        columns = patches.reshape(num_groups, -1, narrow[0, 0].numel())
        rows = narrow.reshape(num_groups, -1, columns.shape[-1])
        return torch.bmm(rows, columns.transpose(1, 2)).view(len(narrow), *self.weight.shape)


def _patches(
    wide: Tensor, size: tuple[int, ...], positions: tuple[int, ...], settings: Settings
) -> Tensor:
    """The patch under the weight at every position: a view, (B, C, *size, *positions)."""
    padding = [p for width in reversed(settings.padding) for p in (width, width)]
    padded = functional.pad(wide, padding)
    steps = padded.stride()[2:]
    inside = [step * apart for step, apart in zip(steps, settings.dilation, strict=True)]
    between = [step * apart for step, apart in zip(steps, settings.stride, strict=True)]
    shape = (*padded.shape[:2], *size, *positions)
    return padded.as_strided(shape, (*padded.stride()[:2], *inside, *between))


class Convolution(torch.autograd.Function):
    """A convolution whose backward pass puts each example's gradient on the tape."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        kernel: Kernel,
        settings: Settings,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """(B, C, *S) to (B, O, *T)."""
        ctx.save_for_backward(inputs, weight, bias)
        ctx.tape, ctx.kernel, ctx.settings = tape, kernel, settings
        return torch.convolution(inputs, weight, bias, *settings.in_order())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; those by weight and bias go to the tape."""
        (gradients,) = grad_outputs
        inputs, weight, bias = ctx.saved_tensors
        if ctx.tape.wants(weight):
            # Detached: with its graph it would hold the tape that holds it.
            kept = inputs.detach()
            use = ConvolutionUse(kept, gradients, weight, ctx.settings, ctx.kernel)
            ctx.tape.keep(weight, use)
        _form_bias(ctx.tape, bias, gradients)
        before = None
        if ctx.needs_input_grad[3]:
            settings, mask = ctx.settings.in_order(), [True, False, False]
            before = _backward(gradients, inputs, weight, settings, mask)[0]
        return None, None, None, before, None, None


class MergedConvolution(torch.autograd.Function):
    """The same as one convolution of one image that has the channels of all examples."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        settings: Settings,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """(B, C, *S) to (B, O, *T)."""
        copies = len(inputs)
        merged = _as_channels(inputs)
        weights = weight.expand(copies, *weight.shape).flatten(0, 1)
        biases = None if bias is None else bias.repeat(copies)
        ctx.save_for_backward(merged, weights, weight, bias)
        ctx.tape, ctx.settings, ctx.shape = tape, settings.in_order(copies), inputs.shape
        outputs = torch.convolution(merged, weights, biases, *ctx.settings)
        # Not a view to autograd: it must allow an activation in place.
        apart: Tensor = torch.ops.aten._unsafe_view.default(
            outputs, [copies, -1, *outputs.shape[2:]]
        )
        return apart

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the inputs; those by weight and bias go to the tape."""
        (gradients,) = grad_outputs
        merged, weights, weight, bias = ctx.saved_tensors
        _form_bias(ctx.tape, bias, gradients)
        mask = [ctx.needs_input_grad[2], ctx.tape.wants(weight), False]
        before, by_weight = _backward(_as_channels(gradients), merged, weights, ctx.settings, mask)
        if ctx.tape.wants(weight):
            ctx.tape.form(weight, by_weight)
        return None, None, None if before is None else before.view(ctx.shape), None, None


def convolve(
    tape: Tape,
    kernel: Kernel,
    settings: Settings,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """(B, C, *S) to (B, O, *T), whose backward pass goes by the kernel."""
    outputs: Tensor
    if kernel == "merged":
        outputs = MergedConvolution.apply(tape, settings, inputs, weight, bias)  # type: ignore[no-untyped-call]
    else:
        outputs = Convolution.apply(tape, kernel, settings, inputs, weight, bias)  # type: ignore[no-untyped-call]
    return outputs


def _form_bias(tape: Tape, bias: Tensor | None, gradients: Tensor) -> None:
    """By torch's sum, which adds in pairs; the convolution's backward adds one after another."""
    if bias is not None and tape.wants(bias):
        tape.form(bias, gradients.sum(tuple(range(2, gradients.ndim))))


def _as_channels(tensor: Tensor) -> Tensor:
    """(B, C, *S) to (1, B C, *S)."""
    return tensor.reshape(1, -1, *tensor.shape[2:])


def _backward(
    gradients: Tensor, inputs: Tensor, weight: Tensor, settings: tuple[Any, ...], mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients by inputs and weight that the mask asks for; None for the others."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward.default(
        gradients, inputs, weight, None, *settings, mask
    )
    return found[:2]
