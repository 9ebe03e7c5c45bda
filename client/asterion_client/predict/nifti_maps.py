"""Masks and maps as NIfTI, on the grid of the file that they belong to."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from asterion_client.data.orientation import Affine, from_canonical
from asterion_client.data.raw_image import UnreadableFileError
from asterion_shared.files import write_atomically

_Image: Any = nibabel.Nifti1Image  # its methods have no types


def write_like(path: Path, values: npt.NDArray[Any], source: Path, dimensions: int) -> None:
    """Write a mask or a map beside the image that it was made from.

    The axes are those of the stored image, with its affine, its codes and its units. Nothing else
    of its header is taken over.

    Args:
        path: ends in ``.nii.gz``; replaced atomically.
        values: of a volume with its axes in RAS order, as it was read; of 2D as stored.
        source: the image's file.
        dimensions: 2 or 3, as the image was read.

    Raises:
        UnreadableFileError: the image is no longer what it was when it was read.
        DiskProblemError: the file cannot be written.
    """
    image: Any = nibabel.load(source)
    stored = tuple(int(n) for n in image.shape)
    if dimensions == 3:
        values = from_canonical(values, np.asarray(image.affine, np.float64))
    if values.shape != stored[:dimensions]:
        msg = f"{source.name} changed while it was predicted"
        raise UnreadableFileError(msg)
    if dimensions == 2 and stored[2:3] == (1,):
        values = values[..., np.newaxis]
    made = _Image(np.ascontiguousarray(values), image.affine)
    if isinstance(image, _Image):
        header = image.header
        made.set_sform(header.get_sform(), int(header["sform_code"]))
        if int(header["qform_code"]) > 0:
            made.set_qform(header.get_qform(), int(header["qform_code"]))
        made.header.set_xyzt_units(*header.get_xyzt_units())
    _write(path, made)


def write_with_affine(path: Path, values: npt.NDArray[Any], affine: Affine) -> None:
    """Write a volume whose axes are those of an affine (indices to mm, RAS).

    Raises:
        DiskProblemError: the file cannot be written.
    """
    _write(path, _Image(np.ascontiguousarray(values), affine))


def _write(path: Path, image: Any) -> None:
    # Without a time in its header, so that equal maps are equal files.
    write_atomically(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
