"""What scanners and annotators do to a medical image. Each function is one cause.

Images are float32 ``(C, *spatial)`` with 2 or 3 spatial axes, of a volume from left to right,
back to front and foot to head, so that slices follow the last axis. Each channel is treated by
itself. Amounts in per cent are of the channel's signal: its brightest less its darkest value,
without the outermost 0.5 % each. A shift therefore does the same to raw and to linearly
normalised images.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms.intensity.array import AdjustContrast, GibbsNoise, RandBiasField
from scipy.ndimage import distance_transform_edt

from asterion_shared.cases import Image, Mask
from asterion_sim.shift_frame import Frame, coarsen, signal_range


def gain_offset(image: Image, frame: Frame, *, gain: float, offset_percent: float) -> Image:
    """``gain * (image + offset)``: another scale of stored numbers, as between exports.

    Args:
        image: float32 ``(C, *spatial)``.
        frame: not used.
        gain: stored units for one unit of signal, > 0.
        offset_percent: added before the gain, per cent of the signal.
    """
    shifted = [gain * (c + offset_percent / 100 * _signal(c)) for c in image]
    return np.stack(shifted).astype(np.float32)


def bias_field(image: Image, frame: Frame, *, ratio: float, degree: float) -> Image:
    """Multiply by a smooth positive field, as uneven coils do.

    The field is the exponential of a polynomial with random coefficients (Van Leemput et al.
    1999, as in MONAI), stretched so that on the body (what is above a tenth of the signal of the
    first channel) its largest over its smallest value is ``ratio`` and its geometric mean is 1;
    in the air it goes no further. It multiplies what is above the darkest value.

    Args:
        image: float32 ``(C, *spatial)``.
        frame: its stream gives the coefficients; all channels share one field.
        ratio: brightest over darkest, >= 1; 1 leaves the image.
        degree: of the polynomial, 1 to 5.
    """
    polynomial = RandBiasField(degree=round(degree), coeff_range=(-1.0, 1.0), prob=1.0)
    polynomial.set_random_state(seed=int(frame.draws.integers(2**31)))
    drawn = np.asarray(polynomial(np.ones((1, *image.shape[1:]), np.float32)))[0]
    logarithm, dark = np.log(drawn), _darkest(image)
    on_body = logarithm[image[0] >= dark[0] + 0.1 * _signal(image[0])]
    low, high = on_body.min(), on_body.max()
    if low == high:
        return image
    centred = np.clip(logarithm, low, high) - on_body.mean()
    field = np.exp(centred * (np.log(ratio) / (high - low))).astype(np.float32)
    return np.asarray(dark + (image - dark) * field, np.float32)


def noise(image: Image, frame: Frame, *, sigma_percent: float, distribution: str) -> Image:
    """Add receiver noise.

    Args:
        image: float32 ``(C, *spatial)``.
        frame: its stream gives the noise.
        sigma_percent: deviation in each receiver channel, per cent of the signal, >= 0.
        distribution: ``gaussian``, or ``rician`` for the magnitude of a complex MR image
            (Gudbjartsson & Patz 1995), whose mean in air is ``sigma * sqrt(pi / 2)``.
    """
    noisy = []
    for channel in image:
        sigma = np.float32(sigma_percent / 100 * _signal(channel))
        real = sigma * frame.draws.standard_normal(channel.shape, np.float32)
        if distribution == "gaussian":
            noisy.append(channel + real)
            continue
        imaginary = sigma * frame.draws.standard_normal(channel.shape, np.float32)
        dark, _ = signal_range(channel)
        noisy.append(dark + np.hypot(channel - dark + real, imaginary))
    return np.stack(noisy).astype(np.float32)


def resolution(
    image: Image, frame: Frame, *, in_plane_mm: float | None, slice_mm: float | None
) -> Image:
    """Acquire with larger voxels; the grid stays, so masks stay where they are.

    Args:
        image: float32 ``(C, *spatial)``.
        frame: its spacing must be in mm.
        in_plane_mm: voxel size in the plane of a slice; None, or finer than the image: as it is.
        slice_mm: slice thickness of a volume, without gaps; likewise.

    Raises:
        DataProblemError: the spacing in mm is not known.
    """
    spacing = frame.sizes("mm", "resolution")
    wanted = [in_plane_mm, in_plane_mm, slice_mm][: len(spacing)]
    factors = tuple((want or have) / have for want, have in zip(wanted, spacing, strict=True))
    return coarsen(image, factors)


def gibbs(image: Image, frame: Frame, *, alpha: float) -> Image:
    """Cut the outer k-space, so that edges ring (MONAI's ``GibbsNoise``).

    Args:
        image: float32 ``(C, *spatial)``.
        frame: not used.
        alpha: in [0, 1): frequencies beyond ``(1 - alpha) * sqrt(2) / 2`` cycles a pixel along
            the longest axis are dropped; from about 0.4 on it is seen.
    """
    return np.asarray(GibbsNoise(alpha)(image), np.float32)


def kspace_undersampling(
    image: Image, frame: Frame, *, acceleration: float, centre_fraction: float
) -> Image:
    """Keep some lines of k-space and fill the others with zeros: a fast scan, badly rebuilt.

    Lines are phase encodings along the first spatial axis. The centre is kept whole, the others
    are drawn at random (Lustig et al. 2007). The result is the magnitude.

    Args:
        image: float32 ``(C, *spatial)``.
        frame: its stream chooses the lines.
        acceleration: all lines over kept lines, >= 1; 1 leaves the image.
        centre_fraction: share of the lines that is kept around the centre; it counts as kept.
    """
    kept = kept_lines(image.shape[1], acceleration, centre_fraction, frame.draws)
    lines = kept.reshape(-1, *[1] * (image.ndim - 2))
    dark = _darkest(image)
    measured = np.fft.fft(image - dark, axis=1) * lines
    return dark + np.abs(np.fft.ifft(measured, axis=1)).astype(np.float32)


def kept_lines(
    num_lines: int, acceleration: float, centre_fraction: float, draws: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which lines of k-space are measured, in the order of ``numpy.fft``, shape (num_lines,).

    ``round(num_lines / acceleration)`` of them, or the centre alone where that is more.
    """
    distance = np.abs(np.fft.fftfreq(num_lines))
    order = np.argsort(distance, kind="stable")
    num_centre = max(1, round(num_lines * centre_fraction))
    num_kept = max(num_centre, round(num_lines / acceleration))
    chosen = draws.permutation(order[num_centre:])[: num_kept - num_centre]
    kept = np.zeros(num_lines, np.bool_)
    kept[order[:num_centre]] = True
    kept[chosen] = True
    return kept


def contrast_curve(image: Image, frame: Frame, *, gamma: float) -> Image:
    """Bend the grey scale: ``x ** gamma`` between a channel's extremes (MONAI's AdjustContrast).

    Args:
        image: float32 ``(C, *spatial)``.
        frame: not used.
        gamma: > 0; below 1 brightens the middle, above 1 darkens it.
    """
    curve = AdjustContrast(gamma)
    return np.stack([np.asarray(curve(channel), np.float32) for channel in image])


def annotation_style(mask: Mask, spacing: tuple[float, ...], grow: float) -> Mask:
    """Draw outlines wider or tighter than the truth.

    Args:
        mask: class numbers; 0 is background, -1 a bad pixel, which stays.
        spacing: pixel size along each axis, in the unit of ``grow``.
        grow: distance by which objects grow over the background (a new pixel gets the class of
            the nearest object), or, below 0, by which they shrink from it. Borders between
            two classes stay.

    Returns:
        int16, same shape.
    """
    object_ = mask > 0
    if grow == 0 or not object_.any():
        return mask
    styled = mask.copy()
    reach = abs(grow) * (1 + 1e-9)  # a whole number of pixels is meant to reach its last one
    if grow < 0 and not (mask == 0).any():
        return mask
    if grow < 0:
        depth: npt.NDArray[np.float64] = np.asarray(distance_transform_edt(mask != 0, spacing))
        styled[object_ & (depth <= reach)] = 0
        return styled
    found: Any = distance_transform_edt(~object_, spacing, return_indices=True)
    distance, nearest = found
    new = (distance <= reach) & (mask == 0)
    styled[new] = mask[tuple(nearest)][new]
    return styled


def noisy_label(
    label: int, probability: float, num_classes: int, draws: np.random.Generator
) -> int:
    """A class, or with a probability one of the others, each alike; -1 (none) stays."""
    if label < 0 or draws.random() >= probability:
        return label
    return int((label + draws.integers(1, num_classes)) % num_classes)


def _signal(channel: npt.NDArray[np.float32]) -> float:
    dark, bright = signal_range(channel)
    return bright - dark


def _darkest(image: Image) -> Image:
    """The darkest value of each channel, shape ``(C, 1, ...)``."""
    dark = [signal_range(channel)[0] for channel in image]
    return np.array(dark, np.float32).reshape(-1, *[1] * (image.ndim - 1))
