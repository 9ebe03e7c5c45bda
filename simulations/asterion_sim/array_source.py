"""A data set as arrays in a folder, split over virtual sites.

The folder holds ``images.npy`` (N, C, *S) and ``labels.npy`` (N,) or ``masks.npy`` (N, *S), and
any column ``NAME.npy`` (N,), such as ``scanner`` or ``patient``; or all of them in one npz.
Uncompressed arrays are memory-mapped, so that a simulation's memory does not grow with them.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.npz import text_of
from asterion_client.data.transforms import normalise
from asterion_shared.cases import CaseList, SiteData
from asterion_shared.errors import FileProblemError
from asterion_shared.evaluation_settings import OTHER, EvaluationSettings
from asterion_shared.metrics.subgroups import value_told
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream
from asterion_sim.case_arrays import Pool, PoolCases
from asterion_sim.splits import SplitSettings, split_indices

Column = npt.NDArray[Any]
_GROUP = "group"
"""The column of patients or fields, which a split keeps whole."""


@dataclass(frozen=True, slots=True)
class ArrayData:
    """A data set in arrays.

    Attributes:
        pool: images and truth.
        columns: natural columns by name, (N,).
        classes: class of each example, int64 (N,), for the split; of a mask, the class with the
            most points beside the background. None when there is no truth.
    """

    pool: Pool
    columns: Mapping[str, Column]
    classes: npt.NDArray[np.int64] | None


def read_arrays(path: Path, plan: Plan) -> ArrayData:
    """Read a data set; images are normalised as the plan says.

    Raises:
        FileProblemError: an array is missing, of another length, or does not fit the plan.
    """
    arrays = _load(path)
    if "images" not in arrays:
        raise FileProblemError(path, "has no images", "add images.npy, shape (N, channels, ...)")
    images = arrays.pop("images")
    for name, array in arrays.items():
        if len(array) != len(images):
            what = f"{name} has {len(array)} rows and images {len(images)}"
            raise FileProblemError(path, what, "give one row for each image")
    _check_images(path, images, plan)
    labels, masks = arrays.pop("labels", None), arrays.pop("masks", None)
    wanted = {"segmentation": masks, "classification": labels, "anomaly": labels}[plan.task]
    if wanted is None:
        name = "masks" if plan.task == "segmentation" else "labels"
        fix = f"{plan.task} needs them: add {name}.npy"
        raise FileProblemError(path, f"has no {name}", fix)
    for name, truth in (("labels", labels), ("masks", masks)):
        if truth is not None and int(truth.max()) >= len(plan.data.classes):
            what = f"{name} go up to {int(truth.max())}"
            fix = f"the plan has {len(plan.data.classes)} classes: name them all in data.classes"
            raise FileProblemError(path, what, fix)
    pool = Pool(
        str(path.name),
        normalised(images, plan),
        None if labels is None else np.asarray(labels, np.int64),
        None if masks is None else _of_type(masks, np.int16),
        {name: _subgroups(arrays.get(name), name, len(images), plan.evaluation)
         for name in plan.evaluation.subgroups},
    )  # fmt: skip
    return ArrayData(pool, arrays, _classes(labels, masks, len(plan.data.classes)))


def split_arrays(
    data: ArrayData, split: SplitSettings, num_sites: int | None, test_share: float, plan: Plan
) -> dict[str, SiteData]:
    """Virtual sites of a data set, each with training and test cases.

    Args:
        data: as read.
        split: how the examples are shared out.
        num_sites: how many sites; None with a natural column: one for each of its values.
        test_share: share of a site's examples (or groups) that are its test, in [0, 1).
        plan: its seed addresses the draws.

    Raises:
        SettingsError: the data cannot be split so.
    """
    groups = data.columns.get(_GROUP)
    rows_by_site = split_indices(
        split,
        data.classes,
        data.columns,
        num_sites,
        plan.seed,
        groups=groups,
        num_examples=len(data.pool.inputs),
    )
    names = _site_names(split, num_sites, data.columns, rows_by_site)
    sites = {}
    for name, rows in zip(names, rows_by_site.values(), strict=True):
        test = _is_test(plan, name, rows, data, test_share)
        sites[name] = SiteData(
            site=name,
            train=PoolCases(data.pool, rows[~test]),
            test=PoolCases(data.pool, rows[test]) if test.any() else CaseList(()),
        )
    return sites


def _subgroups(
    column: Column | None, attribute: str, count: int, evaluation: EvaluationSettings
) -> tuple[str, ...]:
    """The subgroup of each example; ``other`` without a column of the attribute's name."""
    if column is None or column.ndim != 1:
        return (OTHER,) * count
    return tuple(value_told(text_of(value), attribute, evaluation, {}) for value in column)


def _site_names(
    split: SplitSettings,
    num_sites: int | None,
    columns: Mapping[str, Column],
    rows_by_site: Mapping[str, npt.NDArray[np.int64]],
) -> list[str]:
    """The values of a natural column where each is a site and they make names; else numbers."""
    if split.kind != "column" or num_sites is not None:
        return list(rows_by_site)
    column = columns[split.column]
    values = [str(column[rows[0]]).lower() for rows in rows_by_site.values()]
    names = [re.sub(r"[^a-z0-9_.-]", "_", value)[:63] for value in values]
    plain = all(name[:1].isalnum() for name in names) and len(set(names)) == len(names)
    return names if plain else list(rows_by_site)


def _is_test(
    plan: Plan, name: str, rows: npt.NDArray[np.int64], data: ArrayData, share: float
) -> npt.NDArray[np.bool_]:
    """Which of a site's rows are its test: the share of each class, groups whole.

    A class keeps at least one unit to train on; its last one is never tested.
    """
    if share == 0:
        return np.zeros(len(rows), bool)
    groups = data.columns.get(_GROUP)
    keys = np.arange(len(rows)) if groups is None else groups[rows]
    _, first, unit_of = np.unique(keys, return_index=True, return_inverse=True)
    classes = np.zeros(len(rows), np.int64) if data.classes is None else data.classes[rows]
    draws = stream(plan.seed, round_=0, site=name, purpose="test cases")
    chosen: list[npt.NDArray[np.int64]] = []
    for number in np.unique(classes[first]):
        units = draws.permutation(np.flatnonzero(classes[first] == number))
        chosen.append(units[: min(round(share * len(units)), len(units) - 1)])
    return np.isin(unit_of, np.concatenate(chosen))


def _load(path: Path) -> dict[str, Column]:
    try:
        if path.is_dir():
            # Copy on write: nothing is ever written, but torch takes no read-only array.
            return {
                file.stem: np.load(file, mmap_mode="c", allow_pickle=False)
                for file in sorted(path.glob("*.npy"))
            }
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        fix = "give a folder of npy files, or an npz, without pickled objects"
        raise FileProblemError(path, f"cannot be read ({error})", fix) from None


def _check_images(path: Path, images: Column, plan: Plan) -> None:
    expected = 2 + plan.data.dimensions if plan.data.kind == "image" else 2
    if images.ndim != expected:
        what = f"images have shape {images.shape}"
        raise FileProblemError(path, what, f"the plan needs {expected} axes, examples first")
    if plan.data.kind == "image" and images.shape[1] != len(plan.data.channels):
        what = f"images have {images.shape[1]} channels"
        fix = f"the plan has {len(plan.data.channels)}: name them all in data.channels"
        raise FileProblemError(path, what, fix)


def normalised(images: Column, plan: Plan) -> npt.NDArray[np.float32]:
    """Images (N, C, *S), or rows (N, columns), each scaled by itself as the plan says; float32."""
    if plan.data.kind == "table" or plan.data.normalisation == "none":
        kept: npt.NDArray[np.float32] = _of_type(images, np.float32)
        return kept
    found = np.empty(images.shape, np.float32)
    for row, image in zip(found, images, strict=True):
        row[:] = normalise(np.asarray(image, np.float32), plan.data.normalisation)
    return found


def _of_type(array: Column, kind: type[np.generic]) -> Any:
    """The array itself, still memory-mapped, if it has the type already."""
    return array if array.dtype == kind else np.asarray(array, kind)


def _classes(
    labels: Column | None, masks: Column | None, num_classes: int
) -> npt.NDArray[np.int64] | None:
    if labels is not None:
        return np.asarray(labels, np.int64)
    if masks is None:
        return None
    axes = tuple(range(1, masks.ndim))
    counts = np.stack([(masks == number).sum(axes) for number in range(1, num_classes)], axis=1)
    return np.where(counts.any(1), counts.argmax(1) + 1, 0)
