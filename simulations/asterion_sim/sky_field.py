"""A sky field as a FITS file: image, source segmentation, and where it lies on the sky."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import MissingExtraError

_WCS_PREFIXES = ("CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT", "CROTA", "CD", "PC", "LONPOLE",
                 "LATPOLE", "EQUINOX", "RADESYS", "WCSAXES")  # fmt: skip


@dataclass(frozen=True, slots=True)
class SkyField:
    """One field.

    Attributes:
        image: float32, shape (H, W), in the instrument's own unit.
        segments: int32, same shape: 0 sky, 1..n sources.
        sky_rms: deviation of the sky noise, in the image's unit.
        header: its world coordinates, FITS keyword to value; empty when the source had none.
    """

    image: npt.NDArray[np.float32]
    segments: npt.NDArray[np.int32]
    sky_rms: float
    header: Mapping[str, Any]


def read_sky_field(path: Path) -> SkyField:
    """Read extensions SCI and SEG.

    Raises:
        MissingExtraError: astropy is not installed.
    """
    fits = _fits()
    with fits.open(path) as hdus:
        header = hdus["SCI"].header
        world = {key: header[key] for key in header if key.rstrip("0123456789_") in _WCS_PREFIXES}
        image = np.array(hdus["SCI"].data, np.float32)
        segments = np.array(hdus["SEG"].data, np.int32)
        return SkyField(image, segments, float(header["SKYRMS"]), world)


def write_sky_field(field: SkyField, path: Path) -> None:
    """Write extensions SCI and SEG; equal fields give equal bytes.

    Raises:
        MissingExtraError: astropy is not installed.
    """
    fits = _fits()
    image = fits.ImageHDU(field.image, name="SCI")
    for key, value in field.header.items():
        image.header[key] = value
    image.header["SKYRMS"] = (field.sky_rms, "sky noise in image units")
    segments = fits.CompImageHDU(field.segments, name="SEG", compression_type="RICE_1")
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([fits.PrimaryHDU(), image, segments]).writeto(path, overwrite=True)


def _fits() -> Any:
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    return fits
