"""What a shift must know of an image beside its pixels, and how it measures the rest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from asterion_shared.cases import Image
from asterion_shared.errors import DataProblemError

Plane = npt.NDArray[np.float32]

MAD_TO_DEVIATION = 1.4826
"""Deviation of a Gaussian over its median absolute deviation."""

_SMOOTH = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The circumstances of one image.

    Attributes:
        spacing: pixel size along each spatial axis, in ``unit``.
        unit: ``mm``, ``arcsec``, or empty when the file does not say.
        noise: deviation of the noise in the image's unit where it is known, as for generated
            images before their noise; None: it is measured on the image.
        draws: where everything random comes from.
    """

    spacing: tuple[float, ...]
    unit: str
    noise: float | None
    draws: np.random.Generator

    def sizes(self, unit: str, shift: str) -> tuple[float, ...]:
        """Pixel size in a unit.

        Raises:
            DataProblemError: ``settings_invalid``: the image's size in that unit is not known.
        """
        if self.unit != unit:
            msg = (
                f"the shift {shift!r} is in {unit} and the images' pixel size in {unit} is not "
                "known; set data.spacing_mm or data.pixel_scale_arcsec of the plan"
            )
            raise DataProblemError(msg, code="settings_invalid")
        return self.spacing


def signal_range(channel: Plane) -> tuple[float, float]:
    """The darkest and the brightest value of a channel, without the outermost 0.5 % each."""
    values = channel.ravel()
    low = int(0.005 * (values.size - 1))
    high = values.size - 1 - low
    ordered = np.partition(values, (low, high))
    return float(ordered[low]), float(ordered[high])


def noise_of(channel: Plane, frame: Frame) -> float:
    """Deviation of a channel's noise: as known, else 1.48 median absolute deviations.

    The deviation itself where more than half of the pixels are equal.
    """
    if frame.noise is not None:
        return frame.noise
    deviation = float(np.median(np.abs(channel - np.median(channel))))
    return MAD_TO_DEVIATION * deviation if deviation > 0 else float(channel.std())


def coarsen(image: Image, factors: tuple[float, ...]) -> Image:
    """See an image with larger pixels, and bring it back to its own grid.

    Args:
        image: float32 ``(C, *spatial)``, 2 or 3 spatial axes.
        factors: new pixel size over the old one for each axis; below 1 counts as 1, for a
            coarse detector cannot be made finer.

    Returns:
        float32, same shape: the mean over each large pixel, joined by straight lines.
    """
    shape = image.shape[1:]
    small = tuple(max(1, round(n / max(f, 1.0))) for n, f in zip(shape, factors, strict=True))
    if small == shape:
        return image
    means = functional.interpolate(torch.from_numpy(image)[None], size=small, mode="area")
    back = functional.interpolate(means, size=shape, mode=_SMOOTH[len(shape)])
    return np.asarray(back[0], np.float32)
