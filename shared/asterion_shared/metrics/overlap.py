"""How well two label maps of one case agree: Dice, IoU, and the Hausdorff distance."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Labels = npt.NDArray[np.integer]
Flags = npt.NDArray[np.bool_]


def overlaps(
    truth: Labels, called: Labels, num_classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Dice and IoU of each foreground class.

    Args:
        truth: class numbers in [0, num_classes), any shape; negative where nobody knows, and
            those points are left out.
        called: class numbers in [0, num_classes), same shape.
        num_classes: K, background included.

    Returns:
        Two arrays of shape ``(K - 1,)`` in [0, 1]: Dice (Dice 1945) and IoU (Jaccard 1901). Both
        maps empty of a class gives 1; one empty gives 0.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != called.shape:
        msg = f"the truth has shape {truth.shape} and the prediction {called.shape}; make them one"
        raise ValueError(msg)
    known = truth >= 0
    pairs = truth[known].astype(np.int64) * num_classes + called[known]
    matrix = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    both = np.diag(matrix)[1:].astype(np.float64)
    sizes = (matrix.sum(axis=0) + matrix.sum(axis=1))[1:].astype(np.float64)
    either = sizes - both
    dice = np.divide(2 * both, sizes, out=np.ones_like(both), where=sizes > 0)
    iou = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return dice, iou


def hausdorff95(truth: Flags, called: Flags, spacing: Sequence[float]) -> float:
    """The 95 % Hausdorff distance between the surfaces of two masks.

    A surface is the points of a mask with a neighbour (sharing a side) outside it, or outside the
    image. From each surface the 95th percentile of the distances to the other is taken, and the
    larger of the two is returned (Huttenlocher et al. 1993; the percentile as in BraTS).

    Args:
        truth: bool, any number of axes.
        called: bool, same shape.
        spacing: distance between neighbours along each axis, > 0; its unit is the result's.

    Returns:
        The distance >= 0; NaN (undefined) when either mask is empty, also when both are.
    """
    if not truth.any() or not called.any():
        return float("nan")
    box = _bounding_box(truth | called)
    first, second = _surface(truth[box]), _surface(called[box])
    there = _distance_to(second, spacing)[first]
    back = _distance_to(first, spacing)[second]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _distance_to(surface: Flags, spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))


def _surface(mask: Flags) -> Flags:
    inside: Flags = np.asarray(ndimage.binary_erosion(mask), np.bool_)
    return mask & ~inside


def _bounding_box(mask: Flags) -> tuple[slice, ...]:
    axes = range(mask.ndim)
    ranges = [
        np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis)))
        for axis in axes
    ]
    return tuple(slice(int(r[0]), int(r[-1]) + 1) for r in ranges)
