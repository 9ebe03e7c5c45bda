"""FITS files (astropy): compressed extensions, BZERO, big-endian data, NaN, WCS."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import (
    RawImage,
    UnreadableFileError,
    whole_numbers,
    with_channel,
)
from asterion_client.settings import SiteDataSettings
from asterion_shared.errors import DataProblemError, MissingExtraError

Section = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of a FITS image lie.

    Attributes:
        shape: spatial shape, pixels.
        scale_arcsec: pixel size; None without a celestial WCS.
    """

    shape: tuple[int, ...]
    scale_arcsec: float | None


def read_fits(
    path: Path,
    settings: SiteDataSettings,
    dimensions: int,
    *,
    mask_path: Path | None = None,
    region: Section = (),
) -> RawImage:
    """Read the image, mask and weight extensions that ``site.toml`` names.

    Args:
        path: the file; uncompressed images are memory-mapped, so a region costs only itself.
        settings: names the extensions. The first image is used when ``image_hdu`` is absent.
        dimensions: spatial dimensions of the plan.
        mask_path: a file of its own for the mask; its first image counts when it has no
            ``mask_hdu``. None: the mask is in ``path``, if anywhere.
        region: part of the spatial axes; empty for all.

    Returns:
        The image with bad pixels as NaN: not finite, a weight of 0 or less (a plane of floats),
        or a data-quality flag other than 0 (a plane of integers). Pixel scale in arcsec from the
        WCS when there is one.

    Raises:
        UnreadableFileError: not FITS, truncated, without an image, or planes of other shapes.
        DataProblemError: ``mask_shape_mismatch``.
        MissingExtraError: astropy is not installed.
    """
    with _opened(path) as hdus:
        hdu = _image_hdu(hdus, settings.image_hdu, path, _other_planes(settings))
        whole = tuple(hdu.shape[-dimensions:])
        image = with_channel(_pixels(hdu, region, dimensions), dimensions, path.name)
        if settings.weight_hdu is not None:
            bad = _bad_pixels(hdus, settings.weight_hdu, region, whole, path)
            image = np.where(bad, np.float32(np.nan), image)
        mask = None
        if mask_path is None and _has(hdus, settings.mask_hdu):
            mask = _mask(hdus[settings.mask_hdu], region, whole, path)
        scale = _pixel_scale_arcsec(hdu.header)
    if mask_path is not None:
        with _opened(mask_path) as hdus:
            plane = _image_hdu(hdus, settings.mask_hdu, mask_path)
            mask = _mask(plane, region, whole, mask_path)
    image = np.where(np.isfinite(image), image, np.float32(np.nan))
    unit = "" if scale is None else "arcsec"
    return RawImage(image=image, spacing=(scale or 1.0,) * dimensions, unit=unit, mask=mask)


def fits_grid(path: Path, settings: SiteDataSettings, dimensions: int) -> Grid:
    """Shape and pixel scale of the image, from the header alone.

    Raises:
        UnreadableFileError: not FITS or without an image.
        MissingExtraError: astropy is not installed.
    """
    with _opened(path) as hdus:
        hdu = _image_hdu(hdus, settings.image_hdu, path, _other_planes(settings))
        return Grid(tuple(hdu.shape[-dimensions:]), _pixel_scale_arcsec(hdu.header))


def header_texts(path: Path, settings: SiteDataSettings, key: str) -> tuple[str, ...]:
    """What a key says in the file's first header and in that of the image; empty when in neither.

    Raises:
        UnreadableFileError: not FITS or without an image.
        MissingExtraError: astropy is not installed.
    """
    with _opened(path) as hdus:
        image = _image_hdu(hdus, settings.image_hdu, path, _other_planes(settings))
        return tuple(str(h.header[key]).strip() for h in (hdus[0], image) if key in h.header)


@contextmanager
def image_header(path: Path, settings: SiteDataSettings) -> Iterator[tuple[Any, Any]]:
    """The header of the image, and the open file for what it refers to.

    Raises:
        UnreadableFileError: not FITS or without an image.
        MissingExtraError: astropy is not installed.
    """
    with _opened(path) as hdus:
        yield _image_hdu(hdus, settings.image_hdu, path, _other_planes(settings)).header, hdus


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from astropy.io import fits
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    try:
        with warnings.catch_warnings():
            # Old surveys write dates and units that astropy mends and tells about, with values.
            warnings.simplefilter("ignore")
            # Memory-mapping is not asked for but left on: when asked for, scaled data is refused.
            with fits.open(path, lazy_load_hdus=True) as hdus:
                yield hdus
    except (OSError, EOFError, TypeError, ValueError, IndexError, KeyError) as error:
        msg = f"{path.name} is not a readable FITS file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None


def _image_hdu(hdus: Any, name: str, path: Path, other: frozenset[str] = frozenset()) -> Any:
    """The extension of that name, else the first image that is not one of the ``other``."""
    if _has(hdus, name):
        return hdus[name]
    for hdu in hdus:
        if hdu.is_image and hdu.shape and hdu.name not in other:
            return hdu
    msg = f"{path.name} holds no image; name its extension in data.image_hdu"
    raise UnreadableFileError(msg)


def _other_planes(settings: SiteDataSettings) -> frozenset[str]:
    """Names that never stand in for the image: a mask as input would give the answer away."""
    return frozenset(n.upper() for n in (settings.mask_hdu, settings.weight_hdu) if n)


def _has(hdus: Any, name: str) -> bool:
    return any(hdu.name == name.upper() for hdu in hdus)


def _pixels(hdu: Any, region: Section, dimensions: int) -> Any:
    extra = len(hdu.shape) - dimensions
    return hdu.section[(slice(None),) * extra + region] if region else hdu.data


def _mask(hdu: Any, region: Section, whole: tuple[int, ...], path: Path) -> npt.NDArray[np.int64]:
    if tuple(hdu.shape[-len(whole) :]) != whole:
        msg = f"{path.name}: its mask has shape {hdu.shape} and the image {whole}; make them equal"
        raise DataProblemError(msg, code="mask_shape_mismatch")
    stored = np.array(_pixels(hdu, region, len(whole)))
    while stored.ndim > len(whole) and stored.shape[0] == 1:
        stored = stored[0]
    return whole_numbers(stored, f"the mask of {path.name}")


def _bad_pixels(
    hdus: Any, name: str, region: Section, whole: tuple[int, ...], path: Path
) -> npt.NDArray[np.bool_]:
    if not _has(hdus, name):
        msg = f"{path.name} has no extension {name}; correct data.weight_hdu in site.toml"
        raise UnreadableFileError(msg)
    if tuple(hdus[name].shape) != whole:
        msg = f"{name} of {path.name} has shape {hdus[name].shape}, its image {whole}"
        raise UnreadableFileError(msg)
    plane = np.asarray(_pixels(hdus[name], region, len(whole)))
    # Weights are floats, and NaN is bad as well; data-quality planes are bits, and 0 is good.
    bad: npt.NDArray[np.bool_] = plane != 0 if plane.dtype.kind in "iub" else ~(plane > 0)
    return bad


def _pixel_scale_arcsec(header: Any) -> float | None:
    """Pixel size from the celestial WCS, or None without one."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    if "CTYPE1" not in header:
        return None
    world = WCS(header)
    if not world.has_celestial:
        return None
    degrees = float(np.mean(proj_plane_pixel_scales(world.celestial)))
    return degrees * 3600 if math.isfinite(degrees) and degrees > 0 else None
