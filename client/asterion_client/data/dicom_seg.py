"""Masks of DICOM images: a DICOM segmentation, or a NIfTI file of the same volume."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.dicom import Series, raw_image_of, read_series, slice_files
from asterion_client.data.dicom_file import (
    Dataset,
    group_item,
    guarded_header,
    pixels,
    plane_of,
    read_file,
)
from asterion_client.data.nifti import read_nifti_mask
from asterion_client.data.orientation import to_canonical
from asterion_client.data.raw_image import RawImage, UnreadableFileError

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
NEAR_MM = 0.01
"""A frame belongs to a slice whose place differs by no more."""


def read_dicom_with_mask(path: Path, mask_path: Path, dimensions: int) -> RawImage:
    """Read a series or file, and its mask.

    Args:
        path: the image.
        mask_path: a DICOM segmentation (or the folder that holds it), or a NIfTI file.
        dimensions: spatial dimensions of the plan.

    Raises:
        UnreadableFileError: either cannot be used.
    """
    series = read_series(path)
    raw = raw_image_of(series, dimensions, path.name)
    file = _segmentation_file(mask_path)
    if file is None and (dimensions == 2 or series.affine is None):
        # A flat NIfTI has its axes the other way round, and nothing in it says so.
        msg = (
            f"{mask_path.name}: a NIfTI mask cannot be laid on this image; convert it to DICOM SEG"
        )
        raise UnreadableFileError(msg)
    if file is None:
        mask = read_nifti_mask(mask_path, dimensions)
    else:
        mask = read_segmentation(file, series)
        if dimensions == 3 and series.affine is not None:
            mask = to_canonical(mask, series.affine)
        mask = mask[0] if dimensions == 2 and len(mask) == 1 else mask
    return RawImage(image=raw.image, spacing=raw.spacing, unit=raw.unit, mask=mask)


def read_segmentation(path: Path, series: Series) -> npt.NDArray[np.int64]:
    """Segment numbers on the slices of a series, 0 outside; later segments win.

    Slices without a frame are empty: segmentations may leave them out.

    Returns:
        Shape ``(slices, rows, columns)``, the rows and columns of the segmentation.

    Raises:
        UnreadableFileError: another object, or a frame that lies on no slice of the image.
    """
    with guarded_header(path.name):
        data = read_file(path)
        if str(data.get("SOPClassUID", "")) != SEGMENTATION:
            msg = f"{path.name} is not a DICOM segmentation; convert it to one, or to NIfTI"
            raise UnreadableFileError(msg)
        frames = pixels(data, path.name)
        mask = np.zeros((len(series.volume), *frames.shape[1:]), np.int64)
        items = [(_segment_number(data, i, path), _slice_of(data, i, series, path), i)
                 for i in range(len(frames))]  # fmt: skip
        for number, place, index in sorted(items):
            mask[place][frames[index] > 0] = number
    return mask


def _segmentation_file(path: Path) -> Path | None:
    """The one DICOM file of a mask; None when the mask is of another format."""
    if not path.is_dir():
        return None if path.name.lower().endswith((".nii", ".nii.gz")) else path
    files = slice_files(path)
    if len(files) != 1:
        msg = f"{path.name} holds {len(files)} DICOM files; a mask is one segmentation object"
        raise UnreadableFileError(msg)
    return files[0]


def _segment_number(data: Dataset, frame: int, path: Path) -> int:
    item = group_item(data, frame, "SegmentIdentificationSequence")
    if item is None:
        msg = f"{path.name}: a frame names no segment; write the segmentation again"
        raise UnreadableFileError(msg)
    return int(item.ReferencedSegmentNumber)


def _slice_of(data: Dataset, frame: int, series: Series, path: Path) -> int:
    plane = plane_of(data, frame)
    if len(series.volume) == 1 and (plane is None or not series.places):
        return 0
    if plane is None or not series.places:
        msg = f"{path.name}: image or mask has no positions, so their slices cannot be matched"
        raise UnreadableFileError(msg)
    away = np.abs(np.array(series.places) - plane.place)
    if away.min() > NEAR_MM:
        msg = f"{path.name}: frame {frame + 1} lies on no slice of the image; use its own mask"
        raise UnreadableFileError(msg)
    return int(away.argmin())
