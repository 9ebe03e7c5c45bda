"""DICOM (pydicom): a series of slices, or one file of one or many frames.

Slices are sorted by their position along the normal of the plane, and the distance between them
is taken from these positions: SliceThickness is something else, and often wrong for this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.dicom_file import (
    Dataset,
    Plane,
    guarded_header,
    pixel_spacing,
    pixels,
    plane_of,
    read_file,
)
from asterion_client.data.orientation import Affine, canonical_spacing, to_canonical
from asterion_client.data.raw_image import RawImage, UnreadableFileError, with_channel

UNEVEN_SHARE = 0.02
"""Slice distances may differ by this share of their median; a missing slice differs by 1."""


@dataclass(frozen=True, slots=True)
class Series:
    """A volume as stored, its slices in the order of their places.

    Attributes:
        volume: float32 ``(slices, rows, columns)``, in its real unit (HU for CT).
        places: place of each slice along the normal, mm; empty when the file does not say.
        spacing: (between slices, between rows, between columns), mm; None where unknown.
        affine: array indices to mm, RAS; None when the file does not say.
        order: which stored frame each slice is, counted through the files by name.
    """

    volume: npt.NDArray[np.float32]
    places: tuple[float, ...]
    spacing: tuple[float | None, float | None, float | None]
    affine: Affine | None
    order: tuple[int, ...]


def slice_files(folder: Path) -> list[Path]:
    """The DICOM files of a series' folder, by name; empty when it holds none.

    Files end in ``.dcm``, or have no ending and the mark of DICOM at byte 128.
    """
    return sorted(p for p in folder.iterdir() if p.is_file() and _is_dicom(p))


def read_dicom(path: Path, dimensions: int) -> RawImage:
    """Read a series (a folder) or one file.

    Returns:
        A volume with its axes in RAS order, or an image ``(1, rows, columns)``; spacing in mm.

    Raises:
        UnreadableFileError: not DICOM, without pixels, a transfer syntax that needs a decoder
            that is not installed, a structure set, two series in one folder, or a missing slice.
        MissingExtraError: pydicom is not installed.
    """
    return raw_image_of(read_series(path), dimensions, path.name)


def raw_image_of(series: Series, dimensions: int, name: str) -> RawImage:
    """A series as an image of 2 or 3 dimensions.

    Raises:
        UnreadableFileError: several slices and a plan for 2 dimensions.
    """
    if dimensions == 2 and len(series.volume) > 1:
        msg = f"{name} holds {len(series.volume)} slices; the plan needs 2 spatial dimensions"
        raise UnreadableFileError(msg)
    known = [value for value in series.spacing[-dimensions:] if value is not None]
    unit = "mm" if len(known) == dimensions else ""
    spacing = tuple(known) if unit else (1.0,) * dimensions
    image = with_channel(series.volume, dimensions, name)
    if dimensions == 3 and series.affine is not None:
        image = np.ascontiguousarray(to_canonical(image, series.affine))
        spacing = canonical_spacing(series.affine) if unit else spacing
    return RawImage(image=image, spacing=spacing, unit=unit)


def read_series(path: Path) -> Series:
    """Read all slices, in the order of their places.

    Raises:
        UnreadableFileError, MissingExtraError: as :func:`read_dicom`.
    """
    files = slice_files(path) if path.is_dir() else [path]
    if not files:
        msg = f"{path.name} holds no DICOM file"
        raise UnreadableFileError(msg)
    with guarded_header(path.name):
        slices = [read_file(file) for file in files]
        if len({str(s.get("SeriesInstanceUID", "")) for s in slices}) > 1:
            msg = f"{path.name} holds more than one series; give each its own folder"
            raise UnreadableFileError(msg)
        frames = [pixels(s, file.name) for s, file in zip(slices, files, strict=True)]
        if len({frame.shape[1:] for frame in frames}) > 1:
            msg = f"{path.name} holds slices of several sizes; give each series its own folder"
            raise UnreadableFileError(msg)
        volume = np.concatenate(frames)
        planes = [
            plane_of(s, i) for s, f in zip(slices, frames, strict=True) for i in range(len(f))
        ]
        return _in_order(volume, planes, slices[0], path.name)


def _in_order(
    volume: npt.NDArray[np.float32], planes: Sequence[Plane | None], first: Dataset, name: str
) -> Series:
    rows, columns = pixel_spacing(first)
    known = [plane for plane in planes if plane is not None]
    if len(known) < len(planes):
        # Frames of one file are stored in order; files of a folder are in no order at all.
        if len(planes) > 1 and int(first.get("NumberOfFrames", 1)) != len(planes):
            msg = f"{name}: a slice has no position or orientation; the order is not known"
            raise UnreadableFileError(msg)
        distance = float(first.get("SpacingBetweenSlices", 0) or 0)
        as_stored = tuple(range(len(volume)))
        return Series(volume, (), (distance or None, rows, columns), None, as_stored)
    if any(not np.allclose(p.orientation, known[0].orientation, atol=1e-3) for p in known):
        msg = f"{name} holds slices of several orientations; give each its own folder"
        raise UnreadableFileError(msg)
    places = np.array([plane.place for plane in known])
    order = np.argsort(places, kind="stable")
    if len(known) > 1:
        distance = _even_distance(places[order], name)
    else:
        distance = float(first.get("SpacingBetweenSlices", 0) or 0)
    spacing = (distance or None, rows, columns)
    affine = _affine(known[int(order[0])], tuple(value or 1.0 for value in spacing))
    sorted_places = tuple(float(p) for p in places[order])
    return Series(volume[order], sorted_places, spacing, affine, tuple(order.tolist()))


def _even_distance(places: npt.NDArray[np.float64], name: str) -> float:
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    if usual <= 0 or (np.abs(gaps - usual) > UNEVEN_SHARE * usual).any():
        low, high = gaps.min(), gaps.max()
        msg = (
            f"{name}: slice distances run from {low:g} to {high:g} mm; a slice misses or is double"
        )
        raise UnreadableFileError(msg)
    return usual


def _affine(plane: Plane, spacing: Sequence[float]) -> Affine:
    """Indices (slice, row, column) to mm. DICOM points left and back (LPS), NIfTI does not."""
    affine = np.eye(4)
    along_row, along_column = plane.orientation[:3], plane.orientation[3:]
    for axis, direction in enumerate((plane.normal, along_column, along_row)):
        affine[:3, axis] = direction * spacing[axis]
    affine[:3, 3] = plane.position
    affine[:2] *= -1
    return affine


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    if path.suffix or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
