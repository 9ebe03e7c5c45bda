"""The Hubble field as three observatories: one sky, three telescopes, no pixel shared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_shared.randomness import stream
from asterion_sim.prepare_common import write_site
from asterion_sim.sky_field import SkyField, read_sky_field, write_sky_field

SEED = 22
GAP = 64
"""Pixels between two observatories' parts that nobody gets: one training patch."""

TEST_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Observatory:
    """How an observatory sees the sky.

    Attributes:
        name: the site's name.
        seeing_pixels: deviation of its Gaussian point-spread, pixels.
        gain: its counts for one count of the original.
        sky: its sky level, in its own counts.
        noise_rms: deviation of its added noise, in units of the field's own sky noise.
    """

    name: str
    seeing_pixels: float
    gain: float
    sky: float
    noise_rms: float


OBSERVATORIES = (
    Observatory("mountain", seeing_pixels=1.0, gain=1.0, sky=40.0, noise_rms=0.5),
    Observatory("island", seeing_pixels=1.6, gain=12.0, sky=900.0, noise_rms=0.7),
    Observatory("plain", seeing_pixels=2.4, gain=0.2, sky=15.0, noise_rms=0.9),
)


def make_demo_sites(out: Path, field: Path | None = None) -> list[Path]:
    """Write three site folders, each with its own part of the field.

    The parts are bands of rows with a gap between them. Each site's reader keeps a contiguous
    region of its own part for testing, again with a gap.

    Args:
        out: where the sites' folders go; files there are replaced.
        field: a FITS file with extensions SCI (with SKYRMS) and SEG; absent: the Hubble field
            that comes with the product.

    Returns:
        The three folders, in the order of :data:`OBSERVATORIES`.

    Raises:
        MissingExtraError: astropy is not installed.
    """
    whole = read_sky_field(field or Path(__file__).parent / "assets" / "hst_xdf.fits")
    rows = band_rows(whole.image.shape[0], len(OBSERVATORIES))
    return [_write(out, whole, part, by) for part, by in zip(rows, OBSERVATORIES, strict=True)]


def band_rows(height: int, count: int) -> list[slice]:
    """Equal bands of rows, :data:`GAP` apart.

    >>> band_rows(height=328, count=3)
    [slice(0, 66, None), slice(130, 196, None), slice(260, 326, None)]
    """
    rows = (height - (count - 1) * GAP) // count
    return [slice(i * (rows + GAP), i * (rows + GAP) + rows) for i in range(count)]


def observe(
    image: npt.NDArray[np.float32], sky_rms: float, by: Observatory
) -> npt.NDArray[np.float32]:
    """What an observatory's camera would have stored.

    Args:
        image: float32, shape (H, W).
        sky_rms: deviation of its sky noise, in its unit.
        by: the observatory.

    Returns:
        float32, same shape, in the observatory's counts.
    """
    from scipy.ndimage import gaussian_filter

    draws = stream(SEED, round_=0, site=by.name, purpose="camera noise")
    blurred = gaussian_filter(image.astype(np.float64), by.seeing_pixels, mode="reflect")
    noisy = blurred + by.noise_rms * sky_rms * draws.standard_normal(image.shape)
    stored: npt.NDArray[np.float32] = (by.gain * noisy + by.sky).astype(np.float32)
    return stored


def _write(out: Path, whole: SkyField, rows: slice, by: Observatory) -> Path:
    # Blur only the band itself, so that not even the tail of a star crosses the gap.
    image = observe(whole.image[rows], whole.sky_rms, by)
    part = SkyField(
        image,
        whole.segments[rows],
        by.gain * by.noise_rms * whole.sky_rms,
        _shifted(whole.header, rows.start),
    )
    write_sky_field(part, out / by.name / "images" / "field.fits")
    settings = {
        "format": "fits",
        "image_hdu": "SCI",
        "mask_hdu": "SEG",
        "test_fraction": TEST_FRACTION,
    }
    return write_site(out / by.name, name=by.name, task="segmentation", data=settings)


def _shifted(header: Mapping[str, Any], first_row: int) -> dict[str, Any]:
    """World coordinates of a part that starts at a row: the reference pixel moves with it."""
    shifted = dict(header)
    if "CRPIX2" in shifted:
        shifted["CRPIX2"] -= first_row
    return shifted
