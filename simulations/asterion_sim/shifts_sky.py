"""What air, telescopes, cameras and interferometers do to an image of the sky.

Each function is one cause. Images are float32 ``(C, H, W)``, or ``(C, D, H, W)`` for a cube, whose
planes are treated one by one; they are linear in flux. Amounts in sigma are in units of the
image's own noise (1.48 median absolute deviations), because the counts of an image that was
normalised are gone. Each band is an exposure of its own: it has its own trails and hits.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Image, Mask
from asterion_shared.errors import MissingExtraError
from asterion_sim.shift_frame import Frame, Plane, coarsen, noise_of
from asterion_sim.star_fields import DETECTION_SIGMA, moffat_stamp, power_law, trail

SHARPEST_PIXELS = 2.0
"""Below this width a kernel is averaged over each pixel instead of taken at its centre."""

VLA_LATITUDE = math.radians(34.08)
HOUR_STEP = 0.1
"""Hours between two visibilities of a baseline."""


def psf(
    image: Image,
    frame: Frame,
    *,
    seeing_arcsec: float,
    beta: float,
    native_arcsec: float,
    profile: str,
) -> Image:
    """Blur as the air does; no light is lost or made.

    A recorded image's noise is blurred with it; add noise after it to make a recorded image look
    as if it had been taken in that seeing.

    Args:
        image: float32 ``(C, [D,] H, W)``.
        frame: its spacing must be in arcsec.
        seeing_arcsec: full width at half maximum of a point source afterwards.
        beta: of the Moffat profile; 4.765 fits turbulence (Trujillo et al. 2001), 2.5 a real
            telescope with wings.
        native_arcsec: width that the image has already, as a Moffat profile of the same beta: the
            kernel is the one that makes the wanted profile of that one. 0: a point is a pixel.
        profile: ``moffat`` (astropy) or ``kolmogorov`` (galsim).

    Raises:
        DataProblemError: the spacing in arcsec is not known.
        MissingExtraError: astropy, or galsim for ``kolmogorov``, is not installed.
    """
    pixel = frame.sizes("arcsec", "psf")[-1]
    if seeing_arcsec <= native_arcsec:
        return image
    reach = min(math.ceil(6 * seeing_arcsec / pixel), 2 * max(image.shape[-2:]))
    kernel = psf_kernel(seeing_arcsec / pixel, native_arcsec / pixel, reach, beta, profile)
    return _by_plane(image, lambda plane: _convolved(plane, kernel))


@lru_cache(maxsize=256)  # a site has one, and it costs more than a convolution
def psf_kernel(
    fwhm_pixels: float, native_pixels: float, reach: int, beta: float, profile: str
) -> npt.NDArray[np.float64]:
    """What turns a point of width ``native_pixels`` into one of ``fwhm_pixels``.

    The quotient of the two profiles' Fourier transforms, which falls with frequency because the
    wanted one is wider; the wanted profile itself where the native width is 0.

    Returns:
        float64 ``(2 reach + 1, 2 reach + 1)``, its sum is 1.
    """
    make = moffat_kernel if profile == "moffat" else kolmogorov_kernel
    wanted = make(fwhm_pixels, reach, beta)
    if native_pixels == 0:
        return wanted
    native = np.fft.fft2(np.fft.ifftshift(moffat_kernel(native_pixels, reach, beta)))
    quotient = np.fft.fft2(np.fft.ifftshift(wanted)) / native
    return _of_sum_one(np.fft.fftshift(np.fft.ifft2(quotient).real))


def moffat_kernel(fwhm_pixels: float, reach: int, beta: float) -> npt.NDArray[np.float64]:
    """Moffat profile on ``(2 reach + 1, 2 reach + 1)`` pixels; its sum is 1."""
    convolution = _astropy_convolution()
    core = fwhm_pixels / (2 * math.sqrt(2 ** (1 / beta) - 1))
    side = 2 * reach + 1
    mode = "center" if fwhm_pixels >= SHARPEST_PIXELS else "oversample"
    kernel = convolution.Moffat2DKernel(core, beta, x_size=side, y_size=side, mode=mode)
    return _of_sum_one(kernel.array)


def kolmogorov_kernel(fwhm_pixels: float, reach: int, beta: float) -> npt.NDArray[np.float64]:
    """Long-exposure profile of Kolmogorov turbulence; ``beta`` is not used; its sum is 1."""
    try:
        galsim = import_module("galsim")
    except ImportError:
        raise MissingExtraError(package="galsim", extra="galsim") from None
    side = 2 * reach + 1
    drawn = galsim.Kolmogorov(fwhm=fwhm_pixels).drawImage(
        nx=side, ny=side, scale=1.0, dtype=np.float64,
        method="no_pixel" if fwhm_pixels >= SHARPEST_PIXELS else "auto",
    )  # fmt: skip
    return _of_sum_one(drawn.array)


def _of_sum_one(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(values / values.sum(), np.float64)


def sky(image: Image, frame: Frame, *, level_sigma: float, gradient_sigma: float) -> Image:
    """Add a bright sky with a slope, as by moonlight or stray light.

    The level alone changes nothing that a normalisation keeps; its photon noise does, which
    ``gain_read_noise`` after this shift adds.

    Args:
        image: float32 ``(C, [D,] H, W)``.
        frame: its stream gives the direction of the slope, one for all bands.
        level_sigma: brightness in the middle.
        gradient_sigma: brightest less darkest point of the slope.
    """
    rows, columns = image.shape[-2:]
    angle = frame.draws.uniform(0, 2 * math.pi)
    down, right = np.linspace(-1, 1, rows)[:, np.newaxis], np.linspace(-1, 1, columns)
    slope = down * math.sin(angle) + right * math.cos(angle)
    slope *= gradient_sigma / (2 * (abs(math.sin(angle)) + abs(math.cos(angle))))
    added = (level_sigma + slope).astype(np.float32)
    return np.stack([channel + np.float32(noise_of(channel, frame)) * added for channel in image])


def gain_read_noise(
    image: Image, frame: Frame, *, gain_electrons_per_adu: float, read_noise_electrons: float
) -> Image:
    """Detect photons: Poisson noise of the electrons and Gaussian noise of the amplifier.

    Counts with variance = mean / gain + (read noise / gain)^2 (Janesick 2001). What is below 0,
    which only an image with its sky taken off has, gets the read noise alone.

    Args:
        image: float32 ``(C, [D,] H, W)`` in ADU.
        frame: its stream gives the noise.
        gain_electrons_per_adu: > 0.
        read_noise_electrons: deviation, >= 0.
    """
    electrons = image.astype(np.float64) * gain_electrons_per_adu
    counted = frame.draws.poisson(np.maximum(electrons, 0)) + np.minimum(electrons, 0)
    read = read_noise_electrons * frame.draws.standard_normal(image.shape, np.float32)
    return ((counted + read) / gain_electrons_per_adu).astype(np.float32)


def pixel_scale(image: Image, frame: Frame, *, scale_arcsec: float) -> Image:
    """See with larger pixels, brought back to the plan's grid, so that masks stay.

    Raises:
        DataProblemError: the spacing in arcsec is not known.
    """
    spacing = frame.sizes("arcsec", "pixel_scale")
    factors = (1.0,) * (len(spacing) - 2) + tuple(scale_arcsec / s for s in spacing[-2:])
    return coarsen(image, factors)


def crowding(
    image: Image,
    mask: Mask | None,
    frame: Frame,
    *,
    per_arcmin2: float,
    faintest_sigma: float,
    brightest_sigma: float,
    fwhm_arcsec: float,
    class_: int,
) -> tuple[Image, Mask | None]:
    """Add stars, as nearer to the plane of the Galaxy.

    Args:
        image: float32 ``(C, [D,] H, W)``; every plane gets the same stars.
        mask: class numbers, or None.
        frame: its spacing must be in arcsec.
        per_arcmin2: mean number of new stars.
        faintest_sigma: faintest peak; their number falls as the flux rises (power law, slope 1).
        brightest_sigma: brightest peak.
        fwhm_arcsec: width of their Moffat profile.
        class_: class number that the mask gets where a new star outshines twice the noise and no
            object was; 0 leaves the mask.

    Returns:
        The image, and the mask, a new one where it changed.

    Raises:
        DataProblemError: the spacing in arcsec is not known.
    """
    pixel = frame.sizes("arcsec", "crowding")[-1]
    rows, columns = image.shape[-2:]
    count = int(frame.draws.poisson(per_arcmin2 * rows * columns * (pixel / 60) ** 2))
    places = frame.draws.uniform((0, 0), (rows - 1, columns - 1), (count, 2))
    light = np.zeros((rows, columns), np.float32)
    peaks = power_law(count, faintest_sigma, brightest_sigma, frame.draws)
    for (row, column), peak in zip(places, peaks, strict=True):
        stamp, (top, left) = moffat_stamp(light.shape, row, column, peak, fwhm_arcsec / pixel)
        light[top : top + stamp.shape[0], left : left + stamp.shape[1]] += stamp
    crowded = np.stack([c + np.float32(noise_of(c, frame)) * light for c in image])
    if mask is None or class_ == 0:
        return crowded, mask
    seen = (light > DETECTION_SIGMA) & (mask == 0)
    return crowded, np.where(seen, class_, mask).astype(np.int16)


def satellite_trails(
    image: Image,
    frame: Frame,
    *,
    per_image: float,
    peak_sigma: float,
    width_arcsec: float,
    length_arcsec: float | None,
) -> Image:
    """Add straight tracks with a Gaussian cross-section.

    Args:
        image: float32 ``(C, [D,] H, W)``.
        frame: its spacing must be in arcsec; its stream gives places and directions.
        per_image: mean number in one band's exposure (Poisson).
        peak_sigma: brightness on the axis.
        width_arcsec: full width at half maximum of the cross-section.
        length_arcsec: from end to end; None: across the image.

    Raises:
        DataProblemError: the spacing in arcsec is not known.
    """
    pixel = frame.sizes("arcsec", "satellite_trails")[-1]
    rows, columns = image.shape[-2:]
    crossed = image.copy()
    for channel in crossed:
        noise = noise_of(channel, frame)
        for _ in range(frame.draws.poisson(per_image)):
            channel += trail(
                (rows, columns),
                centre=(frame.draws.uniform(0, rows - 1), frame.draws.uniform(0, columns - 1)),
                angle=frame.draws.uniform(0, math.pi),
                peak=peak_sigma * noise,
                fwhm_pixels=width_arcsec / pixel,
                length_pixels=math.inf if length_arcsec is None else length_arcsec / pixel,
            )
    return crossed


def cosmic_rays(
    image: Image,
    frame: Frame,
    *,
    hits_per_1000_pixels: float,
    peak_sigma: float,
    mean_length_pixels: float,
) -> Image:
    """Add hits of charged particles: short, sharp tracks that no point-spread has softened.

    Args:
        image: float32 ``(C, [D,] H, W)``.
        frame: its stream gives them.
        hits_per_1000_pixels: mean number in a plane (Poisson).
        peak_sigma: median brightness of a hit pixel (log-normal, one e-fold).
        mean_length_pixels: of a track beyond its first pixel (exponential).
    """
    rows, columns = image.shape[-2:]
    hit = image.copy()
    for channel in hit:
        noise = noise_of(channel, frame)
        for plane in channel.reshape(-1, rows, columns):
            count = int(frame.draws.poisson(hits_per_1000_pixels * rows * columns / 1000))
            for _ in range(count):
                _add_hit(plane, noise * peak_sigma, mean_length_pixels, frame.draws)
    return hit


def _add_hit(plane: Plane, peak: float, mean_length: float, draws: np.random.Generator) -> None:
    angle, length = draws.uniform(0, 2 * math.pi), draws.exponential(mean_length)
    steps = np.arange(0, length + 0.5, 0.5)
    row, column = draws.uniform((0, 0), plane.shape)
    places = np.floor(
        np.stack([row + steps * math.sin(angle), column + steps * math.cos(angle)], axis=1)
    ).astype(int)
    inside = ((places >= 0) & (places < plane.shape)).all(axis=1)
    track = np.unique(places[inside], axis=0)
    plane[track[:, 0], track[:, 1]] += peak * np.exp(draws.standard_normal())


def uv_undersampling(
    image: Image,
    frame: Frame,
    *,
    antennas: float,
    hours: float,
    declination_deg: float,
    extent: float,
) -> Image:
    """See as an interferometer of few antennas: the dirty image, without deconvolution.

    Natural weights; scaled so that a point source keeps its peak. There is no zero spacing, so
    the mean of the image is lost.

    Args:
        image: float32 ``(C, [D,] H, W)``.
        frame: not used; the array stands still, and the same sky gives the same image.
        antennas: number of antennas, 3 or more.
        hours: length of the track around the meridian; 0 is a snapshot.
        declination_deg: of the field.
        extent: longest projected baseline over the highest frequency that the pixels hold.
    """
    rows, columns = image.shape[-2:]
    sampled = uv_coverage(rows, columns, round(antennas), hours, declination_deg, extent)
    share = sampled.mean()
    spectrum = np.fft.fft2(image) * (sampled / share)
    return np.fft.ifft2(spectrum).real.astype(np.float32)


@lru_cache(maxsize=256)
def uv_coverage(
    rows: int, columns: int, antennas: int, hours: float, declination_deg: float, extent: float
) -> npt.NDArray[np.bool_]:
    """Cells of the uv plane that an array measures, in the order of ``numpy.fft.fft2``.

    A Y of three arms with antennas at ``k ** 1.716`` (the VLA: Thompson et al. 1980), at its
    latitude; baselines by eq. 4.1 of Thompson, Moran & Swenson (2017).
    """
    arm = np.arange(antennas) % 3
    distance = (1.0 + np.arange(antennas) // 3) ** 1.716
    bearing = np.radians(5 + 120 * arm)
    east, north = distance * np.sin(bearing), distance * np.cos(bearing)
    first, second = np.triu_indices(antennas, 1)
    east, north = east[first] - east[second], north[first] - north[second]
    x, y, z = -north * math.sin(VLA_LATITUDE), east, north * math.cos(VLA_LATITUDE)
    num_steps = math.floor(hours / HOUR_STEP) + 1
    angle = np.radians(15 * (np.arange(num_steps) - (num_steps - 1) / 2) * HOUR_STEP)[:, np.newaxis]
    declination = math.radians(declination_deg)
    u = np.sin(angle) * x + np.cos(angle) * y
    v = math.sin(declination) * (np.sin(angle) * y - np.cos(angle) * x) + math.cos(declination) * z
    scale = 0.5 * extent / np.hypot(u, v).max()
    sampled = np.zeros((rows, columns), np.bool_)
    for sign in (1, -1):  # the sky is real: each baseline measures both
        down, right = np.round(sign * scale * v * rows), np.round(sign * scale * u * columns)
        sampled[down.astype(int) % rows, right.astype(int) % columns] = True
    sampled[0, 0] = False
    return sampled


def _by_plane(image: Image, change: Callable[[Plane], Plane]) -> Image:
    planes = image.reshape(-1, *image.shape[-2:])
    return np.stack([change(plane) for plane in planes]).reshape(image.shape).astype(np.float32)


def _convolved(plane: Plane, kernel: npt.NDArray[np.float64]) -> Plane:
    """Convolve; beyond the rim the image is its own mirror image, so that light is conserved."""
    reach = kernel.shape[0] // 2
    padded = np.pad(plane, reach, mode="symmetric")
    # Padded by the kernel's reach, nothing that wraps round gets into what is kept.
    done = _astropy_convolution().convolve_fft(
        padded, kernel, boundary="wrap", nan_treatment="fill", normalize_kernel=False
    )
    return np.asarray(done[reach:-reach, reach:-reach], np.float32)


def _astropy_convolution() -> Any:
    try:
        from astropy import convolution
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    return convolution
