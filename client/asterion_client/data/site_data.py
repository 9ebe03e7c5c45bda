"""A site's data set, as training sees it: found, split, frozen, read, counted."""

import hmac
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.admission import admission_of
from asterion_client.data.dicom import read_dicom
from asterion_client.data.dicom_seg import read_dicom_with_mask
from asterion_client.data.fits import Grid, fits_grid, read_fits
from asterion_client.data.manifest import Frozen, freeze
from asterion_client.data.nifti import read_nifti
from asterion_client.data.npz import read_npz
from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_client.data.records import Record, find_records
from asterion_client.data.splits import split_field, split_records
from asterion_client.data.subgroups import in_subgroups
from asterion_client.data.table_cases import group_hash, read_table, training_scale
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_client.withdrawals import ensure_salt
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import DataProblemError
from asterion_shared.plan import DataContract, Plan
from asterion_shared.table_columns import Scale


def load_site_data(
    settings: SiteSettings,
    folder: Path,
    plan: Plan,
    *,
    run: str | None = None,
    group_salt: str = "",
) -> SiteData:
    """Read a site's data set for a plan.

    Args:
        settings: the site's settings.
        folder: where ``site.toml`` lies.
        plan: says what the data are turned into.
        run: identity of the run whose data set is frozen on disk; None freezes nothing.
        group_salt: a secret of the site, of 64 hex digits, in a private run. Patients' names and
            the hash of the data set are hashed with it: who knows all records but one could else
            find that one by the hash that leaves. Empty: the hash is that of the records alone,
            and it is the salt of the names, so that equal names at two sites or in two data sets
            have nothing in common.

    Returns:
        Train and test cases. Every file was read once, so that the unreadable ones are known;
        cases that fit into ``data.memory_bytes`` are kept. For anomaly only normals are trained.

    Raises:
        DataProblemError: with code ``no_data``, ``too_many_bad_files``, ``data_withdrawn``,
            ``label_outside_classes``, ``mask_shape_mismatch``, ``settings_invalid`` (a patient is
            on both sides) or ``wrong_task`` (a table for a plan of images, or the reverse).
        FileProblemError: the folder or the manifest is missing or wrong.
        SettingsError: ``consent.protocols`` is set and the records do not say theirs.
        MissingExtraError: the reader's package is not installed.
        DiskProblemError: the frozen manifest cannot be stored.
    """
    frozen = _freeze(settings, folder, plan, run)
    labels = [class_of(r, settings.data, plan) for r in frozen.records]
    cases, bad = _read_all(frozen, labels, settings, plan, group_salt or frozen.sha256)
    share = len(bad) / max(len(frozen.records), 1)
    if share > settings.data.max_bad_fraction:
        msg = (
            f"{len(bad)} of {len(frozen.records)} files cannot be used, the first because "
            f"{next(iter(bad.values()))}; mend them or raise data.max_bad_fraction"
        )
        raise DataProblemError(msg, code="too_many_bad_files")
    good = [i for i, case_id in enumerate(frozen.ids) if case_id not in bad]
    normals_only = plan.task == "anomaly"
    train = [
        i
        for i in good
        if frozen.records[i].split == "train" and (labels[i] == 0 or not normals_only)
    ]
    test = [i for i in good if frozen.records[i].split == "test"]
    if not train and (plan.kind == "train" or not test):
        msg = f"site {settings.name} has no readable example to {plan.kind}"
        raise DataProblemError(msg, code="no_data")
    return SiteData(
        site=settings.name,
        train=_part(cases, train),
        test=in_subgroups(_part(cases, test), [frozen.records[i] for i in test], settings, plan),
        num_bad_files=len(bad),
        manifest_sha256=_keyed(frozen.sha256, group_salt),
        bad_files=bad,
        num_train_patients=len({frozen.records[i].group for i in train}),
        num_test_patients=len({frozen.records[i].group for i in test}),
    )


def _keyed(sha256: str, secret: str) -> str:
    return sha256 if not secret else hmac.digest(secret.encode(), sha256.encode(), "sha256").hex()


def check_frozen(
    settings: SiteSettings, folder: Path, plan: Plan, run: str, group_salt: str
) -> str:
    """Look whether every record of a run's frozen data set is still there, unchanged.

    Records whose patient has withdrawn, or whose consent was taken away, leave it here.

    Returns:
        Its hash, as :func:`load_site_data` gives it: another one when records have left.

    Raises:
        DataProblemError: ``data_withdrawn``: a record is gone or changed without a withdrawal.
    """
    return _keyed(_freeze(settings, folder, plan, run).sha256, group_salt)


def manifest_path(settings: SiteSettings, folder: Path, run: str | None) -> Path | None:
    """Where the frozen manifest of a run stands."""
    if run is None:
        return None
    return folder / settings.state_folder / "runs" / run / "manifest.json"


def records_for(settings: SiteSettings, folder: Path, plan: Plan) -> list[Record]:
    """What the site has for a plan, not yet split.

    Raises:
        DataProblemError: ``no_data``: there is nothing; ``wrong_task``: a table for a plan of
            images, or the reverse.
        FileProblemError: the folder or the manifest is missing or wrong.
    """
    data, place = settings.data, folder / settings.data.folder
    if (data.format == "table") != (plan.data.kind == "table"):
        msg = (
            f"data.format is {data.format!r} and the plan's data.kind {plan.data.kind!r}; "
            "ask for a plan for these data"
        )
        raise DataProblemError(msg, code="wrong_task")
    records = find_records(data, place, settings.task)
    if not records:
        msg = f"{place} holds no {data.format} data; correct data.folder in site.toml"
        raise DataProblemError(msg, code="no_data")
    return records


def scale_at_site(settings: SiteSettings, folder: Path, plan: Plan) -> Scale:
    """Mean and deviation that the site's tables are standardised by in training, today.

    Raises:
        DataProblemError, FileProblemError, SettingsError: as :func:`load_site_data`.
    """
    return training_scale(_freeze(settings, folder, plan, None).records, settings, plan)


def divide(records: Sequence[Record], settings: SiteDataSettings, plan: Plan) -> list[Record]:
    """Each record on its side; the images of a site with one field are cut in two regions each.

    Raises:
        DataProblemError: ``settings_invalid``: a group is on both sides, or the images of the one
            field are of several sizes; ``no_data``: the field is too short to cut.
    """
    whole = split_records(records, settings.test_fraction, plan.seed)
    lone = settings.format == "fits" and len({r.group for r in records}) == 1
    if not lone or plan.task != "segmentation" or settings.test_fraction == 0 or records[0].split:
        return whole
    usable: list[tuple[Record, Grid]] = []
    for record in records:
        try:
            usable.append((record, fits_grid(record.path, settings, plan.data.dimensions)))
        except UnreadableFileError:
            continue  # it stays whole, and reading it counts it
    if len({grid.shape for _, grid in usable}) > 1:
        msg = (
            f"the {len(usable)} images of the one field have several sizes, so that one cut does "
            "not hold for all; name the split in the manifest"
        )
        raise DataProblemError(msg, code="settings_invalid")
    cut = {record.path: _cut(record, grid, settings, plan) for record, grid in usable}
    return [part for r in whole for part in cut.get(r.path, (r,))]


def _cut(
    record: Record, grid: Grid, settings: SiteDataSettings, plan: Plan
) -> tuple[Record, Record]:
    tile: Sequence[int] = plan.data.patch_size
    if plan.data.pixel_scale_arcsec is not None and grid.scale_arcsec is not None:
        ratio = plan.data.pixel_scale_arcsec / grid.scale_arcsec
        tile = [math.ceil(size * ratio - 1e-6) for size in tile]
    return split_field(record, grid.shape, tile, settings.test_fraction)


def _freeze(settings: SiteSettings, folder: Path, plan: Plan, run: str | None) -> Frozen:
    try:
        found = records_for(settings, folder, plan)
    except DataProblemError as error:
        path = manifest_path(settings, folder, run)
        if error.code == "no_data" and path is not None and path.exists():
            found = []  # everything is gone: that is for the manifest to say
        else:
            raise
    if run is not None:
        ensure_salt(folder / settings.state_folder)  # the manifest's marks need it
    return freeze(
        found,
        lambda records: divide(records, settings.data, plan),
        manifest_path(settings, folder, run),
        admission_of(settings, folder, found),
    )


def class_of(record: Record, settings: SiteDataSettings, plan: Plan) -> int:
    """Class number of a record's label; -1 for segmentation and for what cannot be read.

    Raises:
        DataProblemError: ``label_outside_classes``.
    """
    if plan.task == "segmentation" or record.problem:
        return -1
    name = settings.labels.get(record.label, record.label)
    if name in plan.data.classes:
        return plan.data.classes.index(name)
    if not settings.labels and name.isdecimal() and int(name) < len(plan.data.classes):
        return int(name)
    msg = (
        f"{record.path.name}: label {record.label!r} is none of the plan's classes "
        f"{plan.data.classes}; map it in data.labels of site.toml"
    )
    raise DataProblemError(msg, code="label_outside_classes")


def read_case(
    record: Record, case_id: str, label: int, settings: SiteDataSettings, plan: Plan
) -> Case:
    """Read one image as a case.

    Raises:
        UnreadableFileError: the file cannot be used.
        DataProblemError: ``mask_shape_mismatch`` or ``label_outside_classes``.
    """
    raw, name = read_raw(record, settings, plan.data), record.path.name
    if plan.task == "segmentation" and raw.mask is None:
        msg = f"{name} has no mask"
        raise UnreadableFileError(msg)
    mask = None
    if raw.mask is not None and plan.task != "classification":
        mask = class_mask(raw, raw.mask, name, settings, plan)
    return case_of(raw, mask, plan.data, case_id=case_id, label=label, name=name)


def case_of(
    raw: RawImage,
    mask: npt.NDArray[np.int16] | None,
    contract: DataContract,
    *,
    case_id: str,
    name: str,
    label: int = -1,
) -> Case:
    """A stored image as a case on the plan's grid; ``name`` is for what an error says.

    Raises:
        UnreadableFileError: as :func:`asterion_client.data.transforms.prepare`.
    """
    from asterion_client.data.transforms import prepare  # MONAI's take seconds to load

    try:
        prepared = prepare(raw, mask, contract)
    except UnreadableFileError as error:
        msg = f"{name}: {error}"
        raise UnreadableFileError(msg) from None
    return Case(
        id=case_id,
        image=prepared.image,
        label=label,
        mask=prepared.mask,
        native_mask=prepared.native_mask,
        native_shape=raw.image.shape[1:],
        native_spacing=raw.spacing,
        spacing_unit=raw.unit,
    )


def read_raw(record: Record, settings: SiteDataSettings, contract: DataContract) -> RawImage:
    """Read a record's file by the site's format.

    Raises:
        UnreadableFileError: it cannot be used.
    """
    path, mask_path, dimensions = record.path, record.mask_path, contract.dimensions
    if record.problem:
        raise UnreadableFileError(record.problem)
    try:
        match settings.format:
            case "nifti":
                return read_nifti(path, mask_path, dimensions)
            case "fits":
                region = tuple(slice(start, stop) for start, stop in record.region)
                return read_fits(path, settings, dimensions, mask_path=mask_path, region=region)
            case "npz":
                return read_npz(path, record.index or 0, dimensions)
            case "dicom" if mask_path is not None:
                return read_dicom_with_mask(path, mask_path, dimensions)
            case "dicom":
                return read_dicom(path, dimensions)
            case "table":
                msg = "a table has no images"
                raise UnreadableFileError(msg)
    except OSError as error:
        msg = f"{record.path.name}: {error.strerror or type(error).__name__}"
        raise UnreadableFileError(msg) from None


def class_mask(
    raw: RawImage,
    stored: npt.NDArray[np.int64],
    name: str,
    settings: SiteDataSettings,
    plan: Plan,
) -> npt.NDArray[np.int16]:
    """Stored mask values as class numbers.

    Raises:
        DataProblemError: ``mask_shape_mismatch`` or ``label_outside_classes``.
    """
    shape = raw.image.shape[1:]
    if stored.shape != shape:
        msg = f"{name}: its mask has shape {stored.shape} and the image {shape}; make them equal"
        raise DataProblemError(msg, code="mask_shape_mismatch")
    if plan.task == "anomaly" or (settings.format == "fits" and not settings.labels):
        return (stored > 0).astype(np.int16)
    classes = plan.data.classes
    mask = np.zeros(shape, np.int16)
    for value in np.unique(stored):
        wanted = settings.labels.get(str(value))
        if wanted is None and not settings.labels and 0 <= value < len(classes):
            mask[stored == value] = value
        elif wanted in classes:
            mask[stored == value] = classes.index(wanted)
        elif value != 0:
            msg = (
                f"the mask of {name} holds {value}, which is none of the plan's classes {classes}; "
                "map it in data.labels of site.toml"
            )
            raise DataProblemError(msg, code="label_outside_classes")
    return mask


def _read_all(
    frozen: Frozen, labels: Sequence[int], settings: SiteSettings, plan: Plan, salt: str
) -> tuple[CaseList, dict[str, str]]:
    """Every case, and the ids of those that cannot be read with the reason."""
    if settings.data.format == "table":
        return read_table(frozen, labels, settings, plan, salt)
    readers: list[Callable[[], Case]] = [
        partial(_read_member, record, case_id, label, settings.data, plan, salt)
        for record, case_id, label in zip(frozen.records, frozen.ids, labels, strict=True)
    ]
    cases = CaseList(readers, memory_bytes=settings.data.memory_bytes)
    bad: dict[str, str] = {}
    for index, case_id in enumerate(frozen.ids):
        try:
            cases[index]
        except UnreadableFileError as error:
            bad[case_id] = str(error)
    return cases, bad


def _read_member(
    record: Record,
    case_id: str,
    label: int,
    settings: SiteDataSettings,
    plan: Plan,
    salt: str,
) -> Case:
    """One image as a case that knows its group."""
    case = read_case(record, case_id, label, settings, plan)
    return replace(case, group=group_hash(record, salt), group_named=record.group_named)


def _part(cases: CaseList, indices: Sequence[int]) -> CaseList:
    """Some of the cases; what they keep in memory is kept once, by ``cases``."""
    return CaseList([partial(cases.__getitem__, index) for index in indices], memory_bytes=0)
