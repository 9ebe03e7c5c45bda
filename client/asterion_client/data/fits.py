"""FITS files (astropy): compressed extensions, BZERO, big-endian data, NaN, WCS."""

from pathlib import Path
from typing import Any

import numpy as np

from asterion_client.data.raw_image import (
    RawImage,
    UnreadableFileError,
    whole_numbers,
    with_channel,
)
from asterion_client.settings import SiteDataSettings
from asterion_shared.errors import MissingExtraError

Section = tuple[slice, ...]


def read_fits(
    path: Path, settings: SiteDataSettings, dimensions: int, region: Section = ()
) -> RawImage:
    """Read the image, mask and weight extensions that ``site.toml`` names.

    Args:
        path: the file; uncompressed images are memory-mapped, so a region costs only itself.
        settings: names the extensions. The first image is used when ``image_hdu`` is absent.
        dimensions: spatial dimensions of the plan.
        region: part of the spatial axes; empty for all.

    Returns:
        The image with bad pixels (weight 0 or less, not finite) as NaN; pixel scale in arcsec
        from the WCS when there is one.

    Raises:
        UnreadableFileError: not FITS, truncated, without an image, or planes of other shapes.
        MissingExtraError: astropy is not installed.
    """
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    try:
        with fits.open(path, memmap=True, lazy_load_hdus=True) as hdus:
            hdu = _image_hdu(hdus, settings.image_hdu, path)
            image = with_channel(_pixels(hdu, region, dimensions), dimensions, path.name)
            mask = None
            if _has(hdus, settings.mask_hdu):
                stored = np.array(_pixels(hdus[settings.mask_hdu], region, dimensions))
                mask = whole_numbers(stored, f"{settings.mask_hdu} of {path.name}")
            if settings.weight_hdu is not None:
                image = _without_bad_pixels(image, hdus, settings.weight_hdu, region, path)
            scale = _pixel_scale_arcsec(hdu.header)
    except (OSError, TypeError, ValueError, IndexError, KeyError) as error:
        msg = f"{path.name} is not a readable FITS file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None
    image = np.where(np.isfinite(image), image, np.float32(np.nan))
    unit = "" if scale is None else "arcsec"
    return RawImage(image=image, spacing=(scale or 1.0,) * dimensions, unit=unit, mask=mask)


def fits_shape(path: Path, settings: SiteDataSettings, dimensions: int) -> tuple[int, ...]:
    """Spatial shape of the image, from the header alone.

    Raises:
        UnreadableFileError: not FITS or without an image.
        MissingExtraError: astropy is not installed.
    """
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    try:
        with fits.open(path, lazy_load_hdus=True) as hdus:
            return tuple(_image_hdu(hdus, settings.image_hdu, path).shape[-dimensions:])
    except (OSError, TypeError, ValueError) as error:
        msg = f"{path.name} is not a readable FITS file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None


def _image_hdu(hdus: Any, name: str, path: Path) -> Any:
    if _has(hdus, name):
        return hdus[name]
    for hdu in hdus:
        if hdu.is_image and hdu.shape:
            return hdu
    msg = f"{path.name} holds no image; name its extension in data.image_hdu"
    raise UnreadableFileError(msg)


def _has(hdus: Any, name: str) -> bool:
    return any(hdu.name == name.upper() for hdu in hdus)


def _pixels(hdu: Any, region: Section, dimensions: int) -> Any:
    extra = len(hdu.shape) - dimensions
    where = (slice(None),) * extra + region if region else ...
    return hdu.section[where] if region and hasattr(hdu, "section") else hdu.data[where]


def _without_bad_pixels(image: Any, hdus: Any, name: str, region: Section, path: Path) -> Any:
    if not _has(hdus, name):
        msg = f"{path.name} has no extension {name}; correct data.weight_hdu in site.toml"
        raise UnreadableFileError(msg)
    weight = np.asarray(_pixels(hdus[name], region, image.ndim - 1), np.float32)
    if weight.shape != image.shape[1:]:
        msg = f"{name} of {path.name} has shape {weight.shape}, its image {image.shape[1:]}"
        raise UnreadableFileError(msg)
    # A weight of 0 means: not observed. NaN weights are bad as well.
    return np.where(weight > 0, image, np.float32(np.nan))


def _pixel_scale_arcsec(header: Any) -> float | None:
    """Pixel size from the celestial WCS, or None without one."""
    import warnings

    from astropy.wcs import WCS, FITSFixedWarning
    from astropy.wcs.utils import proj_plane_pixel_scales

    if "CTYPE1" not in header:
        return None
    with warnings.catch_warnings():
        # Old surveys write dates and units that astropy mends and tells about.
        warnings.simplefilter("ignore", FITSFixedWarning)
        world = WCS(header)
    if not world.has_celestial:
        return None
    scales = proj_plane_pixel_scales(world.celestial)
    degrees = float(np.mean(scales))
    return degrees * 3600 if degrees > 0 else None
