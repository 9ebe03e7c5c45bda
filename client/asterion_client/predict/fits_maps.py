"""Masks and maps of sky images as FITS, with the world coordinates of their image."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

from asterion_client.data.fits import image_header
from asterion_client.settings import SiteDataSettings
from asterion_shared.files import write_atomically

MASK, PROBABILITY, UNCERTAINTY, ERROR = "SEG", "PROB", "UNCERT", "ERROR"
"""Names of extensions; that of the mask is the one that sites read masks from."""


@dataclass(frozen=True, slots=True)
class Sky:
    """World coordinates of an image.

    Attributes:
        world: its celestial part; None when the file has none.
        pixel_arcsec2: area of a pixel; NaN without.
    """

    world: WCS | None
    pixel_arcsec2: float


def sky_of(path: Path, settings: SiteDataSettings) -> Sky:
    """World coordinates of a file's image; tables of distortion are used too.

    Raises:
        UnreadableFileError: not FITS or without an image.
    """
    with image_header(path, settings) as (header, hdus), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of what it mends, with values of the header
        if "CTYPE1" not in header:
            return Sky(None, float("nan"))
        world = WCS(header, hdus)
        if not world.has_celestial:
            return Sky(None, float("nan"))
        celestial = world.celestial
        return Sky(celestial, float(proj_plane_pixel_area(celestial)) * 3600.0**2)


def write_planes(path: Path, planes: dict[str, npt.NDArray[Any]], sky: Sky) -> None:
    """Write planes of one image, the first one as the file's own image, all by name.

    Args:
        path: replaced atomically.
        planes: by name; shapes equal, ``(rows, columns)`` or a cube.
        sky: its world coordinates go into every plane, those of a cube are left out.

    Raises:
        DiskProblemError: the file cannot be written.
    """
    made = fits.HDUList()
    for name, plane in planes.items():
        header = fits.Header()
        tables: list[Any] = []
        if sky.world is not None and plane.ndim == 2:
            # With its tables of distortion, of the first plane alone: one file has one set.
            whole = sky.world.to_fits(relax=True)
            header, tables = whole[0].header, [] if made else list(whole[1:])
        hdu = (fits.ImageHDU if made else fits.PrimaryHDU)(plane, header)
        hdu.name = name
        made.append(hdu)
        made.extend(tables)
    write_hdus(path, made)


def write_hdus(path: Path, hdus: fits.HDUList) -> None:
    """Write a FITS file atomically.

    Raises:
        DiskProblemError: the file cannot be written.
    """
    buffer = io.BytesIO()
    hdus.writeto(buffer, checksum=False)
    write_atomically(path, buffer.getvalue())


def positions(sky: Sky, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Any:
    """ICRS right ascension and declination in degrees, shape ``(2, N)``; NaN without coordinates.

    Args:
        sky: of the image.
        x: columns, the centre of the first pixel being 0.
        y: rows.
    """
    if sky.world is None or not len(x):
        return np.full((2, len(x)), np.nan)
    found = sky.world.pixel_to_world(x, y)
    icrs = found.icrs if hasattr(found, "icrs") else found
    return np.stack([np.asarray(icrs.ra.deg), np.asarray(icrs.dec.deg)])
