"""Patches: boxes cut from images, filled up where the image ends, mirrored and turned."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Mask

Scalar = TypeVar("Scalar", bound=np.generic)
Start = tuple[int, ...]
"""First index of a patch along each spatial axis; negative when the image is the smaller one."""


def centre_start(shape: Sequence[int], size: Sequence[int]) -> Start:
    """Where a patch starts that has the image's centre in its own."""
    return tuple((length - wanted) // 2 for length, wanted in zip(shape, size, strict=True))


def random_start(
    shape: Sequence[int], size: Sequence[int], generator: np.random.Generator
) -> Start:
    """A uniform draw from the patches that lie inside; centred along axes that are too short."""
    room = np.maximum(np.subtract(shape, size), 0)
    drawn = generator.integers(0, room + 1)
    return _centred_if_short(drawn, shape, size)


def start_around_object(
    mask: Mask, size: Sequence[int], generator: np.random.Generator
) -> Start | None:
    """A patch that holds a random point of the foreground, at a random place inside the patch.

    Returns:
        None when the mask has no foreground.
    """
    points = np.flatnonzero(mask > 0)
    if points.size == 0:
        return None
    point = np.unravel_index(points[generator.integers(points.size)], mask.shape)
    shape = mask.shape
    wanted = np.array([int(p) for p in point]) - generator.integers(0, size)
    drawn = np.clip(wanted, 0, np.maximum(np.subtract(shape, size), 0))
    return _centred_if_short(drawn, shape, size)


def grid_starts(shape: Sequence[int], size: Sequence[int]) -> list[Start]:
    """Patches side by side that cover an image; the last of each axis ends where it ends."""
    axes = []
    for length, wanted, first in zip(shape, size, centre_start(shape, size), strict=True):
        full = list(range(0, length - wanted, wanted))
        axes.append([*full, length - wanted] if length > wanted else [first])
    mesh = np.meshgrid(*axes, indexing="ij")
    return [tuple(int(i) for i in row) for row in np.stack([m.ravel() for m in mesh], axis=1)]


def take(
    array: npt.NDArray[Scalar], start: Start, size: Sequence[int], fill: float = 0
) -> npt.NDArray[Scalar]:
    """Cut a patch out of the last ``len(size)`` axes; what lies outside the array is ``fill``."""
    leading = array.ndim - len(size)
    inside, place = _overlap(array.shape[leading:], start, size)
    every = (slice(None),) * leading
    piece = array[every + inside]
    if piece.shape[leading:] == tuple(size):
        return piece
    patch = np.full((*array.shape[:leading], *size), fill, array.dtype)
    patch[every + place] = piece
    return patch


def put(array: npt.NDArray[Any], start: Start, patch: npt.NDArray[Any]) -> None:
    """Write a patch back where :func:`take` cut it, in place; ``array`` has no other axes."""
    inside, place = _overlap(array.shape, start, patch.shape)
    array[inside] = patch[place]


def augment(
    arrays: Sequence[npt.NDArray[Any]],
    dimensions: int,
    kinds: Sequence[str],
    generator: np.random.Generator,
) -> list[npt.NDArray[Any]]:
    """Mirror and turn patches that belong together, all in the same way.

    Args:
        arrays: spatial axes last.
        dimensions: number of spatial axes.
        kinds: ``flip``: each axis is mirrored in half of the draws; ``rotate90``: zero to three
            quarter turns in the plane of the last two axes, where the patch is square in them.
        generator: draws; untouched when ``kinds`` is empty.
    """
    turned = list(arrays)
    if "flip" in kinds:
        chosen = np.flatnonzero(generator.integers(0, 2, dimensions))
        axes = tuple(int(axis) - dimensions for axis in chosen)
        turned = [np.flip(array, axes) for array in turned]
    if "rotate90" in kinds and arrays[0].shape[-1] == arrays[0].shape[-2]:
        quarter_turns = int(generator.integers(0, 4))
        turned = [np.rot90(array, quarter_turns, (-2, -1)) for array in turned]
    return turned


def _centred_if_short(
    drawn: npt.NDArray[np.int64], shape: Sequence[int], size: Sequence[int]
) -> Start:
    centred = centre_start(shape, size)
    return tuple(c if c < 0 else int(d) for c, d in zip(centred, drawn, strict=True))


def _overlap(
    shape: Sequence[int], start: Start, size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of the image in the patch, and its place in the patch."""
    inside, place = [], []
    for length, first, wanted in zip(shape, start, size, strict=True):
        low, high = max(first, 0), min(first + wanted, length)
        inside.append(slice(low, high))
        place.append(slice(low - first, high - first))
    return tuple(inside), tuple(place)
