"""NIfTI files (nibabel). Volumes come with their axes in RAS order."""

import gzip
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.orientation import Affine, canonical_spacing, spacing_of, to_canonical
from asterion_client.data.raw_image import (
    RawImage,
    UnreadableFileError,
    whole_numbers,
    with_channel,
)
from asterion_shared.errors import MissingExtraError


def read_nifti(path: Path, mask_path: Path | None, dimensions: int) -> RawImage:
    """Read an image and its mask; spacing in mm from the affine.

    A fourth axis holds channels. Image and mask may be stored in different orientations.

    Raises:
        UnreadableFileError: not NIfTI, truncated, or of other dimensions.
        MissingExtraError: nibabel is not installed.
    """
    values, affine = _load(path)
    while values.ndim > dimensions and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == dimensions + 1:
        values = np.moveaxis(values, -1, 0)
    image = with_channel(values, dimensions, path.name)
    spacing = spacing_of(affine)[:dimensions]
    if dimensions == 3:
        image, spacing = to_canonical(image, affine), canonical_spacing(affine)
    mask = None if mask_path is None else read_nifti_mask(mask_path, dimensions)
    return RawImage(image=np.ascontiguousarray(image), spacing=spacing, unit="mm", mask=mask)


def read_nifti_mask(path: Path, dimensions: int) -> npt.NDArray[np.int64]:
    """Read a mask; float labels are cast when whole. Axes as :func:`read_nifti`.

    Raises:
        UnreadableFileError: not NIfTI, truncated, or not whole numbers.
    """
    values, affine = _load(path)
    while values.ndim > dimensions and values.shape[-1] == 1:
        values = values[..., 0]
    mask = whole_numbers(values, path.name)
    return to_canonical(mask, affine) if mask.ndim == dimensions == 3 else mask


def _load(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise MissingExtraError(package="nibabel", extra="medical") from None
    # It logs header values while it reads, which must reach no log.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    try:
        image: Any = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, np.float64)
        if path.suffix.lower() == ".gz":
            _check_sum(path)
    except (
        AttributeError,
        EOFError,
        HeaderDataError,
        ImageFileError,
        MemoryError,
        OSError,
        OverflowError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        msg = f"{path.name} is not a readable NIfTI file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None
    if values.dtype.kind not in "iufb" or not np.isfinite(affine).all():
        msg = f"{path.name} holds {values.dtype} values or a broken affine; store plain numbers"
        raise UnreadableFileError(msg)
    return values, affine


def _check_sum(path: Path) -> None:
    """Read a gzip file to its end: nibabel stops before the checksum, so damage goes unseen."""
    with gzip.open(path) as file:
        while file.read(2**20):
            pass
