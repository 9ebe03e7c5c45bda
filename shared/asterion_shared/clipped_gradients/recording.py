"""One forward and one backward pass that leave every example's gradient on a tape.

The rules belong to operations, not to layer classes: whatever calls ``conv2d`` with a parameter as
its weight is followed, be it ``nn.Conv2d``, a subclass or a bare function. Each rule hides its
parameters from autograd; so when autograd reaches one all the same, an operation without a rule
has used it, and the tape is not the whole gradient. Source: book-keeping, Bu et al. 2023.
"""
# ruff: noqa: A002  # The rules' arguments have the names of the functions they stand for.

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from asterion_shared.clipped_gradients.convolution import Kernel, Settings, convolve
from asterion_shared.clipped_gradients.layers import GroupNorm, LayerNorm, Linear, PReLU
from asterion_shared.clipped_gradients.tape import Tape
from asterion_shared.errors import PlanMismatchError

Sizes = int | Sequence[int]


class NoRuleError(PlanMismatchError):
    """A parameter is used by an operation that has no rule."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"parameter {name} is used by an operation without a rule for per-example gradients; "
            "let choose_method pick, or use Method('vmap')"
        )


def record(
    outputs_of: Callable[[], Tensor],
    losses_of: Callable[[Tensor], Tensor],
    parameters: Mapping[str, nn.Parameter],
    batch_size: int,
    kernels: Mapping[str, Kernel] | None = None,
    largest_formed_bytes: int | None = None,
) -> Tape:
    """Run the network once forward and once back, with the rules in force.

    Args:
        outputs_of: runs the network; only in it are the rules in force.
        losses_of: outputs to the loss of each example, (B,); no parameter is used in it.
        parameters: those whose gradients are wanted, by name.
        batch_size: B.
        kernels: by the names of convolution weights; ``grouped`` for those not named.
        largest_formed_bytes: as of :class:`Tape`.

    Raises:
        NoRuleError: an operation without a rule uses a parameter.
    """
    tensors = list(parameters.values())
    tape = Tape(tensors, batch_size, largest_formed_bytes)
    kernel_of: dict[str, Kernel] = dict(kernels or {})
    by_weight: dict[int, Kernel] = {
        id(parameter): kernel_of[name]
        for name, parameter in parameters.items()
        if name in kernel_of
    }
    with _Rules(tape, by_weight):
        outputs = outputs_of()
    losses = losses_of(outputs)
    past_the_rules = torch.autograd.grad(
        losses, tensors, grad_outputs=torch.ones_like(losses), allow_unused=True
    )
    for name, gradient in zip(parameters, past_the_rules, strict=True):
        if gradient is not None:
            raise NoRuleError(name)
    return tape


class _Rules(TorchFunctionMode):
    """While this is entered, operations on the tape's parameters go by their rules."""

    def __init__(self, tape: Tape, kernels: Mapping[int, Kernel]) -> None:
        super().__init__()
        self.tape, self.kernels = tape, kernels

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        rule = _RULES.get(func)
        found = None if rule is None else rule(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found

    def applies(self, inputs: Tensor, *parameters: Tensor | None) -> bool:
        """Whether a parameter of the tape meets one row of inputs an example."""
        return len(inputs) == self.tape.batch_size and any(
            self.tape.wants(parameter) for parameter in parameters
        )


# Each rule gives None to leave a call to torch.


def _linear(
    rules: _Rules, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if input.ndim < 2 or not rules.applies(input, weight, bias):
        return None
    return _apply(Linear, rules.tape, input, weight, bias)


def _convolution(
    rules: _Rules,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor | None:
    if input.ndim != weight.ndim or not rules.applies(input, weight, bias):
        return None
    axes = weight.ndim - 2
    spread = _per_axis(dilation, axes)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        # An even kernel needs one point more on the far side than on the near one.
        reach = [d * (size - 1) for d, size in zip(spread, weight.shape[2:], strict=True)]
        pads = [p for r in reversed(reach) for p in (r // 2, r - r // 2)]
        return _convolution(
            rules, functional.pad(input, pads), weight, bias, stride, 0, dilation, groups
        )
    settings = Settings(
        _per_axis(stride, axes), _per_axis(padding, axes), spread, False, (0,) * axes, groups
    )
    return _convolve(rules, input, weight, bias, settings)


def _transposed(
    rules: _Rules,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor | None:
    if input.ndim != weight.ndim or not rules.applies(input, weight, bias):
        return None
    each = [_per_axis(s, weight.ndim - 2) for s in (stride, padding, dilation, output_padding)]
    settings = Settings(each[0], each[1], each[2], True, each[3], groups)
    return _convolve(rules, input, weight, bias, settings)


def _convolve(
    rules: _Rules, inputs: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings
) -> Tensor:
    kernel = rules.kernels.get(id(weight), "grouped")
    return convolve(rules.tape, kernel, settings, inputs, weight, bias)


def _group_norm(
    rules: _Rules,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if not rules.applies(input, weight, bias):
        return None
    return _apply(GroupNorm, rules.tape, input, num_groups, weight, bias, eps)


def _instance_norm(
    rules: _Rules,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not (use_input_stats and rules.applies(input, weight, bias)):
        return None
    return _apply(GroupNorm, rules.tape, input, input.shape[1], weight, bias, eps)


def _layer_norm(
    rules: _Rules,
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if input.ndim <= len(normalized_shape) or not rules.applies(input, weight, bias):
        return None
    return _apply(LayerNorm, rules.tape, input, normalized_shape, weight, bias, eps)


def _prelu(rules: _Rules, input: Tensor, weight: Tensor) -> Tensor | None:
    if input.ndim < 2 or not rules.applies(input, weight):
        return None
    return _apply(PReLU, rules.tape, input, weight)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    outputs: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return outputs


def _per_axis(sizes: Sizes | str, axes: int) -> tuple[int, ...]:
    return (sizes,) * axes if isinstance(sizes, int) else tuple(sizes)  # type: ignore[arg-type]


_RULES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.linear: _linear,
    functional.conv1d: _convolution,
    functional.conv2d: _convolution,
    functional.conv3d: _convolution,
    functional.conv_transpose1d: _transposed,
    functional.conv_transpose2d: _transposed,
    functional.conv_transpose3d: _transposed,
    functional.group_norm: _group_norm,
    functional.instance_norm: _instance_norm,
    functional.layer_norm: _layer_norm,
    functional.prelu: _prelu,
}
