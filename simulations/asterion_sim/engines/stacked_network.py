"""A network for several sites at once: every layer has the weights of all of them.

Images of S sites travel merged, ``(B, S*C, *spatial)`` with the sites' channels side by side, so
that a convolution of S sites is one grouped convolution. Rows travel stacked, ``(S, B, N)``, so
that a dense layer is one batched product. Layers without weights are the network's own.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.networks.layers.simplelayers import SkipConnection
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm as _InstanceNormBase

from asterion_shared.errors import PlanMismatchError
from asterion_shared.networks import Join, ZeroFirst
from asterion_sim.engines.shapes import unflatten

Weights = Mapping[str, Tensor]
"""Stacked weights by name, ``(S, *shape)``."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLVE: dict[int, Callable[..., Tensor]] = {
    3: torch.conv1d,
    4: torch.conv2d,
    5: torch.conv3d,
}
_CONVOLVE_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    3: functional.conv_transpose1d,
    4: functional.conv_transpose2d,
    5: functional.conv_transpose3d,
}
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_AS_THEY_ARE = (
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
)
"""Layers that treat every channel or number by itself: sites side by side change nothing."""

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class StackedNetwork:
    """Runs S sites, each with its own weights, in one pass.

    Args:
        model: the network of one site.

    Raises:
        PlanMismatchError: a layer couples the examples of a batch (batch norm), draws at random
            (dropout), or is not known here; the message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._dense = not any(isinstance(m, _CONVOLUTIONS + _TRANSPOSED) for m in model.modules())
        self._layers: dict[str, _Layer] = {}
        self._num_sites = 0
        # In a container of one, so that a network that is a single layer is swapped like others.
        self._model = nn.Sequential(copy.deepcopy(model)).train()
        self._swap(self._model, "")

    def load(self, weights: Weights) -> None:
        """Use these from now on: all of the network's, stacked."""
        for name, layer in self._layers.items():
            layer.weights = {k: weights[f"{name}{k}"] for k in layer.names}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs of all sites.

        Args:
            inputs: ``(S, B, C, *spatial)``, or ``(S, B, N)``, of as many sites as the weights.

        Returns:
            ``(S, B, K, ...)``, what each site's own network would give for its inputs.
        """
        num_sites = len(inputs)
        if num_sites != self._num_sites:
            for layer in self._layers.values():
                layer.num_sites = num_sites
            self._num_sites = num_sites
        if self._dense:
            outputs: Tensor = self._model(inputs)
            return outputs
        outputs = self._model(_merge(inputs))
        if outputs.ndim == inputs.ndim - 1:
            return unflatten(outputs, 1, (num_sites, -1)).movedim(1, 0)
        return outputs

    def _swap(self, parent: nn.Module, path: str) -> None:
        """Put the layers of S sites in the place of those of one."""
        for name, child in list(parent.named_children()):
            inner = f"{path}{name}."
            stacked = self._stacked(child)
            if stacked is not None:
                setattr(parent, name, stacked)
                self._layers[inner.removeprefix("0.")] = stacked
                self._swap(stacked, inner)
            elif list(child.children()):
                self._swap(child, inner)
            elif not isinstance(child, _AS_THEY_ARE):
                where = inner.removeprefix("0.").rstrip(".") or "0"
                msg = f"layer {where} of the network ({type(child).__name__}) {_why(child)}"
                raise PlanMismatchError(msg)

    def _stacked(self, layer: nn.Module) -> "_Layer | None":
        if isinstance(layer, _TRANSPOSED):
            return _Transposed(layer)
        if isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "zeros":
            return _Convolution(layer)
        if isinstance(layer, nn.Linear):
            return _Dense(layer)
        if isinstance(layer, nn.GroupNorm):
            return _GroupNorm(layer)
        if isinstance(layer, nn.ReLU):
            return _ReLU()
        if isinstance(layer, _INSTANCE_NORMS) and not layer.track_running_stats:
            return _InstanceNorm(layer)
        if isinstance(layer, nn.PReLU):
            return _PReLU(layer)
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            return _Flatten(self._dense)
        if isinstance(layer, nn.Unflatten) and layer.dim == 1:
            return _Unflatten(layer)
        if isinstance(layer, Join):
            return _Join()
        if isinstance(layer, SkipConnection) and layer.mode == "cat":
            return _Skip(layer.submodule)
        if isinstance(layer, ZeroFirst):
            return _ZeroFirst()
        if isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Dropout3d) and layer.p == 0:
            return _Same()
        if isinstance(layer, nn.Sequential) and len(layer) == 0:
            return _Same()
        return None


def _why(layer: nn.Module) -> str:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return "couples the examples of a batch; use --engine sequential"
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return "draws at random for each site; use --engine sequential or model.dropout = 0"
    return "has no rule for several sites at once; use --engine sequential"


class _Layer(nn.Module):
    """A layer of S sites; their number and the stacked weights are set before a pass."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.names = () if layer is None else tuple(n for n, _ in layer.named_parameters())
        self.weights: Weights = {}
        self.num_sites = 0

    def flat(self, name: str) -> Tensor | None:
        """A weight with its sites side by side along the first axis; None if there is none."""
        found = self.weights.get(name)
        return None if found is None else found.flatten(0, 1)


class _Convolution(_Layer):
    def __init__(self, layer: _ConvNd) -> None:
        super().__init__(layer)
        self._stride, self._padding = layer.stride, layer.padding
        self._dilation, self._groups = layer.dilation, layer.groups
        self._convolve = _CONVOLVE[layer.weight.ndim]
        plain = set(layer.kernel_size) == {1} and layer.groups == 1
        self._pointwise = plain and not any(layer.padding)

    def _product(self, inputs: Tensor) -> Tensor:
        """A 1x1 convolution as a batched product: torch splits a grouped one site by site.

        With a stride as well: for fewer than eight channels, channels last, the weight's slope of
        a strided 1x1 convolution writes past its memory on a CPU with AVX2 and without AVX-512
        (torch 2.13, oneDNN's ``jit_1x1:avx2``).
        """
        strides = tuple(slice(None, None, step) for step in self._stride)
        maps = inputs.movedim(1, -1)[:, *strides]
        batch, *spatial, _ = maps.shape
        points = unflatten(maps.flatten(0, -2), 1, (self.num_sites, -1))
        weight = self.weights["weight"].flatten(2)
        if weight.shape[1] == 1:  # one output: a product has nothing to share, a sum is faster
            found = (points * weight.squeeze(1)).sum(-1, keepdim=True)
        else:
            found = torch.bmm(points.movedim(1, 0), weight.transpose(1, 2)).movedim(0, 1)
        if "bias" in self.weights:
            found = found + self.weights["bias"]
        return unflatten(found.flatten(1), 0, (batch, *spatial)).movedim(-1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        if self._pointwise:
            return self._product(inputs)
        return self._convolve(
            inputs,
            channels_last(self.weights["weight"].flatten(0, 1)),
            self.flat("bias"),
            stride=self._stride,
            padding=self._padding,
            dilation=self._dilation,
            groups=self._groups * self.num_sites,
        )


class _Transposed(_Layer):
    def __init__(self, layer: _ConvTransposeNd) -> None:
        super().__init__(layer)
        self._stride, self._padding = layer.stride, layer.padding
        self._output_padding = layer.output_padding
        self._dilation, self._groups = layer.dilation, layer.groups
        self._convolve = _CONVOLVE_TRANSPOSED[layer.weight.ndim]

    def forward(self, inputs: Tensor) -> Tensor:
        return self._convolve(
            inputs,
            channels_last(self.weights["weight"].flatten(0, 1)),
            self.flat("bias"),
            stride=self._stride,
            padding=self._padding,
            output_padding=self._output_padding,
            groups=self._groups * self.num_sites,
            dilation=self._dilation,
        )


class _Dense(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        weight, device = self.weights["weight"], inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
        bias = self.weights.get("bias")
        found: Tensor = _Product.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """``x @ w' + b`` for each site; the weight's slope has the memory order of the weight.

    torch's own is a transposed view, which every later step would read across its rows.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias = bias is not None
        found = torch.bmm(inputs, weight.transpose(1, 2))
        if bias is None:
            return found
        # In bfloat16 the sum is float32, the bias's own.
        wide = bias.unsqueeze(1)
        return found.add_(wide) if found.dtype == wide.dtype else found + wide

    @staticmethod
    def backward(ctx: Any, *slopes_of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = slopes_of_outputs
        inputs, weight = ctx.saved_tensors
        by_bias = slopes.sum(1) if ctx.has_bias else None
        slopes = slopes.to(weight.dtype)
        inner = torch.bmm(slopes, weight) if ctx.needs_input_grad[0] else None
        return inner, torch.bmm(slopes.transpose(1, 2), inputs), by_bias


class _ReLU(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = _Bend.apply(inputs)  # type: ignore[no-untyped-call]
        return found


class _Bend(torch.autograd.Function):
    """ReLU in place, with slopes brought to the memory order of the maps.

    torch's own is twenty times slower where the two orders differ.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        found = inputs.relu_()
        ctx.mark_dirty(inputs)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *slopes_of_outputs: Tensor) -> Tensor:
        (slopes,) = slopes_of_outputs
        (found,) = ctx.saved_tensors
        inner: Tensor = torch.ops.aten.threshold_backward(channels_last(slopes), found, 0)
        return inner


class _GroupNorm(_Layer):
    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__(layer)
        self._groups, self._eps = layer.num_groups, layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        groups = self._groups * self.num_sites
        return functional.group_norm(
            inputs, groups, self.flat("weight"), self.flat("bias"), self._eps
        )


class _InstanceNorm(_Layer):
    def __init__(self, layer: _InstanceNormBase) -> None:
        super().__init__(layer)
        self._eps = layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.instance_norm(
            inputs, weight=self.flat("weight"), bias=self.flat("bias"), eps=self._eps
        )


class _PReLU(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        slopes = self.weights["weight"]
        channels = inputs.shape[1] // self.num_sites
        return functional.prelu(inputs, slopes.expand(-1, channels).reshape(-1))


class _Flatten(_Layer):
    def __init__(self, dense: bool) -> None:
        super().__init__()
        self._dense = dense

    def forward(self, inputs: Tensor) -> Tensor:
        if self._dense:
            return inputs.flatten(2)
        return unflatten(inputs, 1, (self.num_sites, -1)).movedim(1, 0).flatten(2)


class _Unflatten(_Layer):
    def __init__(self, layer: nn.Unflatten) -> None:
        super().__init__()
        self._shape = tuple(layer.unflattened_size)

    def forward(self, inputs: Tensor) -> Tensor:
        return _merge(unflatten(inputs, 2, self._shape))


class _Join(_Layer):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return _joined(one, other, self.num_sites)


class _Skip(_Layer):
    """A part of the network, with its input joined to its output."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, inputs: Tensor) -> Tensor:
        return _joined(inputs, self.submodule(inputs), self.num_sites)


class _ZeroFirst(_Layer):
    def forward(self, logit: Tensor) -> Tensor:
        single = unflatten(logit, 1, (self.num_sites, 1))
        return functional.pad(single, (0, 0) * (logit.ndim - 2) + (1, 0)).flatten(1, 2)


class _Same(_Layer):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def _joined(one: Tensor, other: Tensor, num_sites: int) -> Tensor:
    """Each site's channels of both maps side by side."""
    found: Tensor = _Side.apply(one, other, num_sites)  # type: ignore[no-untyped-call]
    return found


class _Side(torch.autograd.Function):
    """Maps (B, S*C, *spatial) and (B, S*D, *spatial) to (B, S*(C+D), *spatial), channels last."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, num_sites: int) -> Tensor:
        parts = [unflatten(part.movedim(1, -1), -1, (num_sites, -1)) for part in (one, other)]
        ctx.num_sites, ctx.channels = num_sites, [part.shape[-1] for part in parts]
        return torch.cat(parts, -1).flatten(-2).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *slopes_of_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        whole = unflatten(slopes_of_outputs[0].movedim(1, -1), -1, (ctx.num_sites, -1))
        one, other = (
            part.flatten(-2).movedim(-1, 1) for part in torch.split(whole, ctx.channels, -1)
        )
        return one, other, None


def _merge(stacked: Tensor) -> Tensor:
    """(S, B, C, *spatial) to (B, S*C, *spatial), channels last in memory."""
    return channels_last(stacked.movedim(0, 1).flatten(1, 2))


def channels_last(tensor: Tensor) -> Tensor:
    """The same numbers, with the channels last in memory where torch has such a format."""
    if tensor.ndim not in FORMATS:
        return tensor
    return tensor.contiguous(memory_format=FORMATS[tensor.ndim])
