"""NIfTI files (nibabel). The stored grid and orientation are kept."""

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
from asterion_shared.errors import MissingExtraError


def read_nifti(path: Path, mask_path: Path | None, dimensions: int) -> RawImage:
    """Read an image and its mask; spacing in mm from the affine.

    Raises:
        UnreadableFileError: not NIfTI, truncated, or of other dimensions.
        MissingExtraError: nibabel is not installed.
    """
    values, spacing = _load(path)
    image = with_channel(values, dimensions, path.name)
    mask = None if mask_path is None else read_nifti_mask(mask_path)
    return RawImage(image=image, spacing=spacing[:dimensions], unit="mm", mask=mask)


def read_nifti_mask(path: Path) -> npt.NDArray[np.int64]:
    """Read a mask, axes of length 1 at the end dropped; float labels are cast when whole.

    Raises:
        UnreadableFileError: not NIfTI, truncated, or not whole numbers.
    """
    values, _ = _load(path)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return whole_numbers(values, path.name)


def _load(path: Path) -> tuple[npt.NDArray[Any], tuple[float, ...]]:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError:
        raise MissingExtraError(package="nibabel", extra="medical") from None
    try:
        image: Any = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, np.float64)
    except (ImageFileError, OSError, EOFError, ValueError, AttributeError) as error:
        msg = f"{path.name} is not a readable NIfTI file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return values, tuple(float(v) if v > 0 else 1.0 for v in lengths)
