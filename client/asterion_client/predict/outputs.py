"""Masks and maps of one image, written in the format that it came in."""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from asterion_client.data.orientation import from_canonical
from asterion_client.predict.dicom_masks import Author, write_segmentation
from asterion_client.predict.inputs import Input, Member
from asterion_client.predict.results import Part
from asterion_client.predict.uncertainty import Spread
from asterion_client.settings import SiteDataSettings
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where results go, and what they are written for.

    Attributes:
        out: the folder of results.
        settings: how the site's files are read.
        plan: of the release.
        author: what a DICOM segmentation says of the model.
    """

    out: Path
    settings: SiteDataSettings
    plan: Plan
    author: Author = field(default_factory=lambda: Author("", "", ""))


def write_masks(
    desk: Desk, member: Member, read: Input, mask: npt.NDArray[np.int16], spread: Spread,
    probabilities: Floats,
) -> list[str]:  # fmt: skip
    """Write a mask and the map of its uncertainty; of FITS also the probability of any object.

    NIfTI: both as NIfTI. DICOM: a segmentation, and the map as NIfTI where the series says where
    it lies. FITS: one file with planes. npz: arrays (npy).

    Returns:
        The files, below the folder of results.

    Raises:
        UnreadableFileError: the image's file does not allow it.
        DiskProblemError: a file cannot be written.
    """
    map_ = spread.entropy.astype(np.float32)
    if desk.settings.format == "fits":
        from asterion_client.predict import fits_maps as maps

        path = desk.out / "masks" / f"{member.stem}.fits"
        any_object = (1.0 - probabilities[0]).astype(np.float32)
        planes = {maps.MASK: mask, maps.PROBABILITY: any_object, maps.UNCERTAINTY: map_}
        maps.write_planes(path, planes, maps.sky_of(member.record.path, desk.settings))
        return [_below(desk, path)]
    if desk.settings.format == "dicom":
        path = desk.out / "masks" / f"{member.stem}.dcm"
        stored = _as_slices(read, mask)
        classes = desk.plan.data.classes
        write_segmentation(path, stored, member.record.path, read.order, classes, desk.author)
        written = [_below(desk, path)]
    else:
        small = np.uint8 if len(desk.plan.data.classes) <= 256 else np.int16
        written = [_write_map(desk, member, read, mask.astype(small), "masks")]
    return [*written, _write_map(desk, member, read, map_, "uncertainty")]


def write_error_map(desk: Desk, member: Member, read: Input, errors: Floats) -> str:
    """Write the map of an anomaly's squared errors, on the stored grid.

    Returns:
        The file, below the folder of results.

    Raises:
        UnreadableFileError: the image's file does not allow it.
        DiskProblemError: it cannot be written.
    """
    native = stretched(errors, read.case.native_shape)
    if desk.settings.format == "fits":
        from asterion_client.predict import fits_maps as maps

        path = desk.out / "error_maps" / f"{member.stem}.fits"
        maps.write_planes(
            path, {maps.ERROR: native}, maps.sky_of(member.record.path, desk.settings)
        )
        return _below(desk, path)
    return _write_map(desk, member, read, native, "error_maps")


def stretched(values: Floats, shape: tuple[int, ...]) -> Floats:
    """A map of the plan's grid on the stored one; both have the same extent, edge to edge."""
    if values.shape == shape or not shape:
        return values
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    made = functional.interpolate(torch.from_numpy(values)[None, None], shape, mode=mode)
    return np.asarray(made[0, 0], np.float32)


def _write_map(desk: Desk, member: Member, read: Input, values: npt.NDArray[Any], kind: str) -> str:
    path = desk.out / kind / f"{member.stem}.nii.gz"
    if desk.settings.format == "nifti":
        from asterion_client.predict.nifti_maps import write_like

        write_like(path, values, member.record.path, desk.plan.data.dimensions)
    elif desk.settings.format == "dicom" and read.affine is not None:
        from asterion_client.predict.nifti_maps import write_with_affine

        write_with_affine(path, _as_slices(read, values), read.affine)
    else:
        path = desk.out / kind / f"{member.stem}.npy"
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        write_atomically(path, buffer.getvalue())
    return _below(desk, path)


def _as_slices(read: Input, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``(slices, rows, columns)`` of a DICOM image, the slices in the order of their places."""
    if values.ndim == 2:
        return values[np.newaxis]
    return values if read.affine is None else from_canonical(values, read.affine)


def _below(desk: Desk, path: Path) -> str:
    return path.relative_to(desk.out).as_posix()


def parts_of(
    mask: npt.NDArray[np.int16], probabilities: Floats, read: Input, plan: Plan
) -> tuple[Part, ...]:
    """How much of each class but the first a mask has."""
    case = read.case
    unit = f"{case.spacing_unit}{mask.ndim}" if case.spacing_unit else ""
    point = math.prod(case.native_spacing)
    parts = []
    for number, name in enumerate(plan.data.classes[1:], start=1):
        inside = mask == number
        count = int(inside.sum())
        parts.append(
            Part(
                name=name,
                num_points=count,
                size=count * point if unit else None,
                unit=unit,
                probability=float(probabilities[number][inside].mean()) if count else None,
            )
        )
    return tuple(parts)
