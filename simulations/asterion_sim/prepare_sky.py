"""Five instruments' sky fields as five observatories, with noise that hides the faint sources."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_shared.randomness import stream
from asterion_sim.prepare_common import source_file, write_site
from asterion_sim.sky_field import SkyField, read_sky_field, write_sky_field

SITES = ("sdss_r", "spitzer_irac", "2mass_k", "2mass_j", "hst_xdf")
ADDED_NOISE_RMS = 2.0
"""Deviation of the added noise, in units of the field's own sky noise. The labels were made on
the field as it is, so the noisy image no longer shows all of them plainly."""

SEED = 20
TEST_FRACTION = 0.25


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder an instrument; the site's reader splits its field into regions.

    Args:
        data: the folder of data sets; ``sky-fields`` is read.
        out: where the sites' folders go.

    Returns:
        The five folders, in the order of :data:`SITES`.

    Raises:
        FileProblemError: a field is missing.
        MissingExtraError: astropy is not installed.
    """
    return [
        _write(source_file(data, f"sky-fields/{site}.fits"), out / site, site) for site in SITES
    ]


def _write(source: Path, folder: Path, site: str) -> Path:
    field = read_sky_field(source)
    draws = stream(SEED, round_=0, site=site, purpose="sky noise")
    noise = ADDED_NOISE_RMS * field.sky_rms * draws.standard_normal(field.image.shape)
    noisy: npt.NDArray[np.float32] = (field.image + noise).astype(np.float32)
    write_sky_field(
        SkyField(noisy, field.segments, field.sky_rms, field.header),
        folder / "images" / "field.fits",
    )
    settings = {
        "format": "fits",
        "image_hdu": "SCI",
        "mask_hdu": "SEG",
        "test_fraction": TEST_FRACTION,
    }
    return write_site(folder, name=site, task="segmentation", data=settings)
