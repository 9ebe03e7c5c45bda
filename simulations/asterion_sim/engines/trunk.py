"""The layers before the wide one of the shared-base engine: site by site, slopes by hand.

Every operation is called as torch's autograd would call it, without its records, its copies and
its sums: ReLU works in place, results are written where they are needed, and the slope of a bias
is a plain sum, five times faster than the convolution's own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asterion_shared.plan import Plan
from asterion_sim.engines.shapes import unflatten
from asterion_sim.engines.stacked_network import channels_last

# Shapes: A sites, B examples each, C channels of an image, *S its sides, F numbers that come out.

Convolution = nn.Conv2d | nn.Conv3d
Maximum = nn.MaxPool2d | nn.MaxPool3d
_KNOWN = (nn.Conv2d, nn.Conv3d, nn.ReLU, nn.MaxPool2d, nn.MaxPool3d)
_operations: Any = torch.ops.aten
_OF_MAXIMUM: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.MaxPool2d: (
        _operations.max_pool2d_with_indices,
        _operations.max_pool2d_with_indices_backward,
    ),
    nn.MaxPool3d: (
        _operations.max_pool3d_with_indices,
        _operations.max_pool3d_with_indices_backward,
    ),
}


def is_known(layer: nn.Module) -> bool:
    """Whether a trunk can have this layer."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, _KNOWN)


class Trunk:
    """Runs A sites, one after the other, each with its own weights.

    Maps leave it with their channels last, as the convolutions make them; the wide weight's columns
    are arranged alike, so that nothing is copied.

    Args:
        layers: those before the first dense one, all known; none or with a convolution.
        plan: gives the size of the images.
        dtype: of maps and products.
    """

    def __init__(self, layers: nn.Sequential, plan: Plan, dtype: torch.dtype) -> None:
        self._layers, self._dtype = list(layers.named_children()), dtype
        self.names = [name for name, _ in layers.named_parameters()]
        with torch.no_grad():
            probe = torch.zeros(1, len(plan.data.channels), *plan.data.patch_size)
            grid: tuple[int, ...] = tuple(layers(probe).shape[1:]) if self.names else (0,)
        self._channels, self._sides = grid[0], grid[1:]
        learns = [bool(list(layer.parameters())) for _, layer in self._layers]
        self._first = learns.index(True) if self.names else 0
        self._low: dict[str, Tensor] = {}
        self._like: dict[str, Tensor] = {}
        self._tapes: list[list[tuple[Tensor, Tensor]]] = []

    def arranged(self, weight: Tensor) -> Tensor:
        """The wide weight (O, F) with its columns in the order of the rows."""
        if not self.names:
            return weight
        return unflatten(weight, 1, (self._channels, *self._sides)).movedim(1, -1).flatten(1)

    def stored(self, weight: Tensor) -> Tensor:
        """The opposite of :meth:`arranged`."""
        if not self.names:
            return weight
        return unflatten(weight, 1, (*self._sides, self._channels)).movedim(-1, 1).flatten(1)

    def stacked(self, weight: Tensor, num_sites: int) -> Tensor:
        """A weight once for each site, (S, *shape), in the memory order of its operation."""
        if weight.ndim < 4:
            return weight.expand(num_sites, *weight.shape).clone()
        last = weight.movedim(1, -1)
        return last.expand(num_sites, *last.shape).clone().movedim(-1, 2)

    def forward(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Rows (A, B, F) for the wide layer, from inputs (A, B, C, *S) or (A, B, N).

        Args:
            weights: stacked, (A, *shape) each.
            inputs: are left as they are.
        """
        if not self.names:
            return inputs.flatten(2).to(self._dtype)
        shape = (*inputs.shape[:2], *self._sides, self._channels)
        rows = inputs.new_empty(shape, dtype=self._dtype)
        self._low = {name: weights[name].to(self._dtype) for name in self.names}
        # The slope of a maximum asks only for the shape of what it took: one map serves all sites,
        # and the others' memory is free, and still in the cache, for the next site.
        self._like = dict[str, Tensor]()
        self._tapes = [
            self._run(site, channels_last(images), rows[site].movedim(-1, 1))
            for site, images in enumerate(inputs.to(self._dtype))
        ]
        return rows.flatten(2)

    def _run(self, site: int, images: Tensor, out: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Write one site's last maps to ``out``; for each layer, what its slope needs."""
        found, tape = images, list[tuple[Tensor, Tensor]]()
        for place, (name, layer) in enumerate(self._layers):
            given, rest = found, self._layers[place + 1 :]
            last = all(isinstance(later, nn.ReLU) for _, later in rest)
            if isinstance(layer, Convolution):
                weight, bias = self._low[f"{name}.weight"][site], self._low.get(f"{name}.bias")
                found = _convolved(layer, given, weight, None if bias is None else bias[site])
                tape.append((given, weight))
            elif isinstance(layer, Maximum):
                found, chosen = _largest(layer, given, out if last else None)
                tape.append((self._like.setdefault(name, given), chosen))
            else:
                # In place: no slope needs what a convolution or a maximum gave, only what it took.
                to = out if last else given if place else None
                found = torch.clamp(given, min=0, out=to)
                tape.append((found, found))
        if found is not out:
            out.copy_(found)
        return tape

    def backward(self, slopes: Tensor | None) -> list[Tensor]:
        """Slopes of the trunk's weights, (A, *shape) each, from those of the rows (A, B, F)."""
        if slopes is None:
            return []
        found = {n: torch.empty_like(low, dtype=torch.float32) for n, low in self._low.items()}
        maps = unflatten(slopes, 2, (*self._sides, self._channels))
        for site, (tape, own) in enumerate(zip(self._tapes, maps, strict=True)):
            slope = own.movedim(-1, 1)
            for place in reversed(range(self._first, len(tape))):
                (name, layer), (one, other) = self._layers[place], tape[place]
                if isinstance(layer, Convolution):
                    if layer.bias is not None:
                        found[f"{name}.bias"][site] = slope.sum((0, *range(2, slope.ndim)))
                    slope, by_weight = _convolution_slopes(
                        layer, slope, one, other, inner=place > self._first
                    )
                    found[f"{name}.weight"][site] = by_weight
                elif isinstance(layer, Maximum):
                    slope = _largest_slopes(layer, slope, one, other)
                else:
                    slope = _operations.threshold_backward(slope, one, 0)
        self._tapes = []
        return [found[name] for name in self.names]


def _convolved(layer: Convolution, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolve = torch.conv2d if isinstance(layer, nn.Conv2d) else torch.conv3d
    found: Tensor = convolve(
        maps, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    return found


def _convolution_slopes(
    layer: Convolution, slope: Tensor, maps: Tensor, weight: Tensor, *, inner: bool
) -> tuple[Tensor, Tensor]:
    """Slopes of what went in, if ``inner``, and of the weight."""
    by_maps, by_weight, _ = _operations.convolution_backward(
        slope, maps, weight, None, layer.stride, layer.padding, layer.dilation,
        False, [0] * len(layer.stride), layer.groups, [inner, True, False],
    )  # fmt: skip
    return by_maps, by_weight


def _largest(layer: Maximum, maps: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The maxima, in ``out`` if that is given, and where each was."""
    find = _OF_MAXIMUM[type(layer)][0]
    if out is None:
        found: tuple[Tensor, Tensor] = find(maps, *_window(layer))
        return found
    chosen = torch.empty_like(out, dtype=torch.int64)
    # torch writes to ``out`` in the memory order of the maps.
    find.out(channels_last(maps), *_window(layer), out=out, indices=chosen)
    return out, chosen


def _largest_slopes(layer: Maximum, slope: Tensor, maps: Tensor, chosen: Tensor) -> Tensor:
    spread = _OF_MAXIMUM[type(layer)][1]
    found: Tensor = spread(slope, maps, *_window(layer), chosen)
    return found


def _window(layer: Maximum) -> tuple[Any, ...]:
    dimensions = 2 if isinstance(layer, nn.MaxPool2d) else 3
    sides = [
        [value] * dimensions if isinstance(value, int) else list(value)
        for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    ]
    return (*sides, layer.ceil_mode)
