"""DICOM (pydicom): a series of slices, a multi-frame file, or a segmentation object.

Slices are sorted by their position along the normal of the plane, and the distance between them
is taken from these positions: SliceThickness is something else, and often wrong for this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import RawImage, UnreadableFileError, with_channel
from asterion_shared.errors import MissingExtraError

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
UNEVEN_SHARE = 0.02
"""Slice distances may differ by this share of their median; a missing slice differs by 1."""


def slice_files(folder: Path) -> list[Path]:
    """The DICOM files of a series' folder, by name; empty when it holds none."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() == ".dcm")


def read_dicom(path: Path, dimensions: int) -> RawImage:
    """Read a series (a folder) or one file, rescaled to its real unit (HU for CT).

    Returns:
        Image ``(1, slices, rows, columns)`` or ``(1, rows, columns)``; spacing in mm.

    Raises:
        UnreadableFileError: not DICOM, without pixels, a transfer syntax that needs a decoder
            that is not installed, a structure set, two series in one folder, or a missing slice.
        MissingExtraError: pydicom is not installed.
    """
    files = slice_files(path) if path.is_dir() else [path]
    if not files:
        msg = f"{path.name} holds no .dcm file"
        raise UnreadableFileError(msg)
    slices = [_read(file) for file in files]
    if len({str(getattr(s, "SeriesInstanceUID", "")) for s in slices}) > 1:
        msg = f"{path.name} holds more than one series; give each its own folder"
        raise UnreadableFileError(msg)
    if len(slices) == 1:
        frames = _pixels(slices[0], files[0].name)
        volume = frames if frames.ndim == 3 else frames[np.newaxis]
        distance = _frame_distance(slices[0], len(volume))
    else:
        positions = np.array([_position(s) for s in slices])
        order = np.argsort(positions, kind="stable")
        distance = _even_distance(positions[order], path.name)
        frames_in_order = [_pixels(slices[i], files[i].name) for i in order]
        if len({frame.shape for frame in frames_in_order}) > 1:
            msg = f"{path.name} holds slices of several sizes; give each series its own folder"
            raise UnreadableFileError(msg)
        volume = np.stack(frames_in_order)
    rows, columns = _pixel_spacing(slices[0])
    spacing = (distance, rows, columns)[-dimensions:]
    return RawImage(image=with_channel(volume, dimensions, path.name), spacing=spacing, unit="mm")


def read_dicom_mask(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """A mask from a DICOM segmentation: segment numbers, 0 outside; later segments win.

    Frames are put in order of their position, as the slices of the image are.

    Args:
        path: the segmentation object.
        shape: spatial shape of the image it belongs to, ``(slices, rows, columns)``.

    Raises:
        UnreadableFileError: a structure set (contours are not read), another object, or frames
            that are not one a slice.
    """
    data = _read(path)
    if str(data.SOPClassUID) != SEGMENTATION:
        msg = f"{path.name} is not a DICOM segmentation; convert it to one, or to NIfTI"
        raise UnreadableFileError(msg)
    frames = _pixels(data, path.name)
    frames = frames if frames.ndim == 3 else frames[np.newaxis]
    numbers, places = [], []
    for group in data.PerFrameFunctionalGroupsSequence:
        numbers.append(int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber))
        places.append(_place(data, group))
    levels = {place: i for i, place in enumerate(sorted(set(places)))}
    mask = np.zeros((len(levels), *frames.shape[1:]), np.int64)
    for frame, number, place in sorted(
        zip(frames, numbers, places, strict=True), key=lambda item: item[1]
    ):
        mask[levels[place]][frame > 0] = number
    if mask.shape != shape and mask.shape[1:] == shape[-2:] and len(shape) == 2:
        mask = mask[0]
    return mask


def _read(path: Path) -> Any:
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingExtraError(package="pydicom", extra="medical") from None
    try:
        data = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError) as error:
        msg = f"{path.name} is not a readable DICOM file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None
    if str(getattr(data, "SOPClassUID", "")) == STRUCTURE_SET:
        msg = f"{path.name} is an RTSTRUCT; contours are not read: convert it to DICOM SEG or NIfTI"
        raise UnreadableFileError(msg)
    return data


def _pixels(data: Any, name: str) -> npt.NDArray[np.float32]:
    try:
        stored = np.asarray(data.pixel_array, np.float32)
    except (AttributeError, RuntimeError, NotImplementedError, ValueError) as error:
        syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
        known = getattr(syntax, "name", "unknown")
        msg = (
            f"{name}: its pixels cannot be decoded (transfer syntax {known}, "
            f"{type(error).__name__}); install a decoder, or store it uncompressed"
        )
        raise UnreadableFileError(msg) from None
    if int(getattr(data, "SamplesPerPixel", 1)) != 1:
        msg = f"{name} is a colour image; only grey images are read"
        raise UnreadableFileError(msg)
    slope, intercept = getattr(data, "RescaleSlope", 1), getattr(data, "RescaleIntercept", 0)
    return stored * np.float32(slope) + np.float32(intercept)


def _normal(orientation: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.cross(np.array(orientation[:3], float), np.array(orientation[3:], float))


def _position(data: Any) -> float:
    """Place of a slice along the normal of its plane, mm."""
    try:
        orientation = [float(v) for v in data.ImageOrientationPatient]
        return float(_normal(orientation) @ np.array(data.ImagePositionPatient, float))
    except (AttributeError, TypeError, ValueError):
        msg = "a slice has no position or orientation; the series cannot be put in order"
        raise UnreadableFileError(msg) from None


def _even_distance(positions: npt.NDArray[np.float64], name: str) -> float:
    gaps = np.diff(positions)
    usual = float(np.median(gaps))
    if usual <= 0 or (np.abs(gaps - usual) > UNEVEN_SHARE * usual).any():
        msg = f"{name}: slice distances run from {gaps.min():g} to {gaps.max():g} mm; a slice is missing or double"  # noqa: E501
        raise UnreadableFileError(msg)
    return usual


def _pixel_spacing(data: Any) -> tuple[float, float]:
    values = getattr(data, "PixelSpacing", None)
    if values is None:
        groups = getattr(data, "SharedFunctionalGroupsSequence", None)
        values = groups[0].PixelMeasuresSequence[0].PixelSpacing if groups else (1.0, 1.0)
    return float(values[0]), float(values[1])


def _frame_distance(data: Any, count: int) -> float:
    """Distance between the frames of a multi-frame file, from their positions where given."""
    groups = getattr(data, "PerFrameFunctionalGroupsSequence", None)
    if groups and count > 1 and hasattr(groups[0], "PlanePositionSequence"):
        places = np.sort([_place(data, group)[0] for group in groups])
        return _even_distance(places, "the multi-frame file")
    return float(getattr(data, "SpacingBetweenSlices", None) or 1.0)


def _place(data: Any, group: Any) -> tuple[float]:
    """Place of a frame along the normal, mm, rounded so that equal places are equal."""
    shared = data.SharedFunctionalGroupsSequence[0]
    plane = group if hasattr(group, "PlaneOrientationSequence") else shared
    orientation = [float(v) for v in plane.PlaneOrientationSequence[0].ImageOrientationPatient]
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    return (round(float(_normal(orientation) @ position), 3),)
