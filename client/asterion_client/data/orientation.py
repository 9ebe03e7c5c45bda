"""Axes of volumes in one order at every site: to the right, to the front, to the head (RAS).

Only whole axes are swapped and flipped, so no value changes, and overlaps and distances are those
of the stored grid. Without it a patch of (40, 56, 40) would mean something else at each site.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
"""Shape (4, 4): array indices to mm in the patient's frame, RAS+ as in NIfTI."""


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along each array axis, mm; 1 where the affine has nothing."""
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    first, second, third = (float(v) if v > 0 else 1.0 for v in lengths)
    return first, second, third


def axis_order(affine: Affine) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which array axis runs along x, y and z most closely, and in which direction.

    Returns:
        Three array axes, all different, and three signs (1 or -1).
    """
    directions = affine[:3, :3] / np.array(spacing_of(affine))
    left = np.abs(directions)
    axes = [0, 0, 0]
    # The clearest axis is settled first, so that an oblique volume has no axis twice.
    for _ in range(3):
        world, stored = (int(i) for i in np.unravel_index(np.argmax(left), left.shape))
        axes[world] = stored
        left[world, :] = left[:, stored] = -1.0
    signs = tuple(-1 if directions[w, a] < 0 else 1 for w, a in enumerate(axes))
    return tuple(axes), signs


def to_canonical(volume: npt.NDArray[Any], affine: Affine) -> npt.NDArray[Any]:
    """The volume with its last three axes in RAS order; a view.

    Args:
        volume: shape ``(..., A, B, C)``.
        affine: of the array axes A, B, C.
    """
    axes, signs = axis_order(affine)
    before = volume.ndim - 3
    turned = volume.transpose(*range(before), *(before + axis for axis in axes))
    flipped = tuple(before + world for world, sign in enumerate(signs) if sign < 0)
    return np.flip(turned, flipped)


def from_canonical(volume: npt.NDArray[Any], affine: Affine) -> npt.NDArray[Any]:
    """A volume in RAS order with its last three axes as stored: undoes :func:`to_canonical`.

    Args:
        volume: shape ``(..., X, Y, Z)``.
        affine: of the stored axes.
    """
    axes, signs = axis_order(affine)
    before = volume.ndim - 3
    flipped = tuple(before + world for world, sign in enumerate(signs) if sign < 0)
    stored = (before + int(world) for world in np.argsort(axes))
    return np.flip(volume, flipped).transpose(*range(before), *stored)


def canonical_spacing(affine: Affine) -> tuple[float, ...]:
    """Voxel size along the axes of :func:`to_canonical`, mm."""
    axes, _ = axis_order(affine)
    spacing: Sequence[float] = spacing_of(affine)
    return tuple(spacing[axis] for axis in axes)
