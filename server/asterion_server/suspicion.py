"""Which updates of a round are unlike the others', layer by layer.

For each layer (the tensors of one module) two figures of every site are compared with the other
sites': the length of the update there, and the cosine between it and the coordinate median of all
updates. A figure is suspicious by its robust z-score: the distance from the sites' median over
1.4826 times the median distance (Iglewicz and Hoaglin 1993, "How to detect and handle outliers").

Few sites agree by chance, and then the smallest difference would look large. So the scale has a
floor: a quarter of the median length, 0.1 of a cosine, and not less than chance alone does in a
layer of d numbers: a length of d independent normal numbers deviates by the share 1 / sqrt(2 d),
the cosine of two random directions by 1 / sqrt(d). At the thresholds that a plan has by itself, a
length is suspicious from 2.5 times the median on, a cosine from 0.6 below it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_server.fold import Part
from asterion_server.robust_fold import block_size, median
from asterion_shared.blocks import let_go, through
from asterion_shared.fold_rules import FEWEST_JUDGED, QuarantineSettings
from asterion_shared.parameters import Layout

CONSISTENT = 1.4826
"""Makes the median distance of normal numbers their standard deviation."""

LEAST_NORM_SHARE = 0.25
LEAST_COSINE = 0.1
LARGEST_Z = 1e9
"""Stated where the scale is 0: other sites did not move the layer at all."""

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigures:
    """A layer of one site's update beside the other sites'.

    Attributes:
        layer: the module's name in the network, or the tensor's where it is in none.
        norm: Euclidean length of the update there, before any clip.
        median_norm: of all sites.
        norm_z: robust z-score of the length, >= 0.
        cosine: to the coordinate median of all updates, -1 to 1; 0 where either is zero.
        median_cosine: of all sites.
        cosine_z: robust z-score of the cosine; above 0 where it is below the median.
    """

    layer: str
    norm: float
    median_norm: float
    norm_z: float
    cosine: float
    median_cosine: float
    cosine_z: float


def suspicious(
    parts: Mapping[str, Part], layout: Layout, settings: QuarantineSettings
) -> dict[str, tuple[LayerFigures, ...]]:
    """The sites whose update is suspicious, with the layers that make it so.

    Args:
        parts: finite updates ``(layout.size,)`` by site, as they came: clipping is not applied.
        layout: where each layer is.
        settings: the thresholds.

    Returns:
        By site, sorted; at least one layer each, in the layout's order. Empty when nothing is
        suspicious, or there are fewer than :data:`FEWEST_JUDGED` updates.
    """
    sites = sorted(parts)
    if len(sites) < FEWEST_JUDGED:
        return {}
    found: dict[str, list[LayerFigures]] = {}
    for figures in layer_figures([parts[site] for site in sites], layout).values():
        for site, one in zip(sites, figures, strict=True):
            if one.norm_z >= settings.norm_z or one.cosine_z >= settings.cosine_z:
                found.setdefault(site, []).append(one)
    return {site: tuple(found[site]) for site in sorted(found)}


def layer_figures(parts: Sequence[Part], layout: Layout) -> dict[str, tuple[LayerFigures, ...]]:
    """The figures of each update, by layer in the layout's order. At least one update."""
    sums: dict[str, tuple[Figures, int]] = {}
    for tensor in layout.shared:
        layer = tensor.name.rpartition(".")[0] or tensor.name
        total, size = sums.get(layer, (np.zeros((len(parts) + 1, 2)), 0))
        total += _squares_and_products(parts, tensor.offset, tensor.size)
        sums[layer] = (total, size + tensor.size)
    return {layer: _figures(layer, total, size) for layer, (total, size) in sums.items()}


def robust_z(values: Figures, least_scale: float) -> Figures:
    """Distances from the median, with their sign, over the robust deviation or its floor.

    >>> robust_z(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), 0.1).round(2)
    array([-1.35, -0.67,  0.  ,  0.67, 65.43])
    """
    apart = values - np.median(values)
    scale = max(CONSISTENT * float(np.median(np.abs(apart))), least_scale)
    if scale == 0:
        return np.where(apart == 0, 0.0, np.copysign(LARGEST_Z, apart))
    return np.clip(apart / scale, -LARGEST_Z, LARGEST_Z)


def _squares_and_products(parts: Sequence[Part], offset: int, size: int) -> Figures:
    """Of a tensor, ``(len(parts) + 1, 2)``: |u|^2 and u . m of each update u; last |m|^2, m . m."""
    total = np.zeros((len(parts) + 1, 2))
    for block in through(size, block=block_size(len(parts))):
        place = slice(offset + block.start, offset + block.stop)
        rows = np.empty((len(parts), place.stop - place.start), np.float32)
        for row, part in zip(rows, parts, strict=True):
            row[:] = part.update[place]
            let_go(part.update, place)
        middle = median(rows).astype(np.float64)
        for number, row in enumerate((*rows, middle)):
            wide = row.astype(np.float64)
            total[number, 1] += float((wide * middle).sum())
            total[number, 0] += float(np.square(wide, out=wide).sum())
    return total


def _figures(layer: str, total: Figures, size: int) -> tuple[LayerFigures, ...]:
    norms = np.sqrt(total[:-1, 0])
    lengths = norms * math.sqrt(total[-1, 0])
    cosines = np.divide(total[:-1, 1], lengths, out=np.zeros_like(norms), where=lengths > 0)
    cosines = np.clip(cosines, -1, 1)
    middle = float(np.median(norms))
    norm_z = np.abs(robust_z(norms, middle * max(LEAST_NORM_SHARE, 1 / math.sqrt(2 * size))))
    cosine_z = -robust_z(cosines, max(LEAST_COSINE, 1 / math.sqrt(size)))
    return tuple(
        LayerFigures(
            layer=layer,
            norm=float(norms[i]),
            median_norm=middle,
            norm_z=float(norm_z[i]),
            cosine=float(cosines[i]),
            median_cosine=float(np.median(cosines)),
            cosine_z=float(cosine_z[i]) + 0.0,
        )
        for i in range(len(norms))
    )
