"""What every reader of images returns: the stored numbers, before any change."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import AsterionError


class UnreadableFileError(AsterionError):
    """A file cannot be used; it is skipped and counted. The text is for the site's own eyes."""

    exit_code = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """An image as stored.

    Attributes:
        image: float32, shape ``(C, *spatial)``; NaN where the file marks a pixel as bad.
        spacing: size of a voxel along each spatial axis, in ``unit``; ones when unknown.
        unit: ``mm``, ``arcsec`` or ``""`` when the file does not say.
        mask: integers as stored, shape ``spatial``; None when there is none.
    """

    image: npt.NDArray[np.float32]
    spacing: tuple[float, ...]
    unit: str = ""
    mask: npt.NDArray[np.int64] | None = None


def whole_numbers(values: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.int64]:
    """Cast mask values to integers; some tools store them as floats.

    Raises:
        UnreadableFileError: a value is not a whole number.
    """
    floats = np.asarray(values)
    if floats.dtype.kind in "iub":
        return floats.astype(np.int64)
    if not np.isfinite(floats).all() or (np.rint(floats) != floats).any():
        msg = f"{name} holds values that are not whole numbers; store class numbers"
        raise UnreadableFileError(msg)
    return floats.astype(np.int64)


def with_channel(
    array: npt.NDArray[np.generic], dimensions: int, name: str
) -> npt.NDArray[np.float32]:
    """Float32 in native byte order with one leading channel axis.

    Accepts ``spatial``, ``(C, *spatial)`` and drops axes of length 1 that are too many.

    Raises:
        UnreadableFileError: the number of axes does not fit ``dimensions``.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and so a bad pixel
        values = np.asarray(array, dtype=np.float32)
    while values.ndim > dimensions + 1 and 1 in values.shape:
        values = np.squeeze(values, axis=values.shape.index(1))
    if values.ndim == dimensions + 1 and values.shape[-1] == 1 and values.shape[0] != 1:
        values = values[..., 0]
    if values.ndim == dimensions:
        values = values[np.newaxis]
    if values.ndim != dimensions + 1 or 0 in values.shape:
        msg = f"{name} has shape {np.shape(array)}; the plan needs {dimensions} spatial dimensions"
        raise UnreadableFileError(msg)
    return values
