"""What there is to predict: files and rows below a folder, without labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asterion_client.data import table
from asterion_client.data.dicom import raw_image_of, read_series
from asterion_client.data.orientation import Affine
from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_client.data.records import SUFFIXES, Record, bare_name, find_unlabelled
from asterion_client.data.site_data import case_of, read_raw
from asterion_client.predict.dicom_masks import refuse_segmentation
from asterion_client.settings import SiteDataSettings
from asterion_shared.cases import Case
from asterion_shared.errors import DataProblemError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.table_columns import Scale, codes_of, to_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One image or row to predict.

    Attributes:
        record: where it lies.
        id: what the results call it: its path below the folder, and ``#ROW`` of a file of rows.
        stem: path of its own output files, without an ending; no two have the same.
    """

    record: Record
    id: str
    stem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A member that was read.

    Attributes:
        case: as the network sees it.
        raw: as stored; None for a row of a table.
        affine: DICOM: indices (slice, row, column) to mm; None when the file does not say.
        order: DICOM: which stored frame each slice is.
    """

    case: Case
    raw: RawImage | None = None
    affine: Affine | None = None
    order: tuple[int, ...] = ()


def choose_settings(
    folder: Path, plan: Plan, site: SiteDataSettings | None, format_: str | None
) -> SiteDataSettings:
    """How the files are read: as the site says, or by the one format that the folder holds.

    Args:
        folder: with the files.
        plan: of tables or of images.
        site: the site's ``[data]``; None: defaults.
        format_: the format that was asked for; None: the site's, or whichever is found.

    Raises:
        FileProblemError: the folder is missing.
        UserInputError: an unknown format, or the folder holds several.
        DataProblemError: ``no_data``: it holds none; ``wrong_task``: a table for a plan of images,
            or the reverse.
    """
    if format_ is not None and format_ not in SUFFIXES:
        msg = f"--format is {format_!r}; it must be one of {', '.join(SUFFIXES)}"
        raise UserInputError(msg)
    wanted = format_ or (site.format if site is not None else None) or _format_in(folder, plan)
    if (wanted == "table") != (plan.data.kind == "table"):
        msg = (
            f"the release is for a {plan.data.kind} and the files are of format {wanted!r}; use a "
            "release for these data"
        )
        raise DataProblemError(msg, code="wrong_task")
    base = site.model_dump() if site is not None else {}
    return SiteDataSettings.model_validate(base | {"format": wanted})


def _format_in(folder: Path, plan: Plan) -> str:
    if plan.data.kind == "table":
        return "table"
    wanted = [name for name in SUFFIXES if name != "table"]
    found = [
        name
        for name in wanted
        if find_unlabelled(
            SiteDataSettings.model_validate({"format": name}), folder, plan.data.dimensions
        )
    ]
    if len(found) > 1:
        msg = f"{folder} holds {' and '.join(found)}; say which with --format"
        raise UserInputError(msg)
    if not found:
        msg = f"{folder} holds no {', '.join(wanted)} files; check the path"
        raise DataProblemError(msg, code="no_data")
    return found[0]


def find_members(folder: Path, settings: SiteDataSettings, plan: Plan) -> list[Member]:
    """Everything of a format below a folder, in the order of names and rows; at least one.

    Raises:
        FileProblemError: the folder is missing.
        DataProblemError: ``no_data``.
    """
    records = find_unlabelled(settings, folder, plan.data.dimensions)
    if not records:
        msg = f"{folder} holds no {settings.format} data; check the path"
        raise DataProblemError(msg, code="no_data")
    names = [_name(record, folder) for record in records]
    short = [str(Path(name).with_name(bare_name(Path(name)))) for name in names]
    uses = Counter({(stem, name) for stem, name in zip(short, names, strict=True)})
    shared = Counter(stem for stem, _ in uses)
    return [
        Member(
            record=record,
            id=name if record.index is None else f"{name}#{record.index}",
            stem=_with_row(stem if shared[stem] == 1 else name, record.index),
        )
        for record, name, stem in zip(records, names, short, strict=True)
    ]


def _name(record: Record, folder: Path) -> str:
    path = record.path.relative_to(folder)
    return path.as_posix() if path.parts else record.path.resolve().name


def _with_row(stem: str, index: int | None) -> str:
    return stem if index is None else f"{stem}/{index:06d}"


def missing_features(members: Sequence[Member], settings: SiteDataSettings, plan: Plan) -> set[str]:
    """Features that some table lacks, so that they count as missing; for tables only."""
    theirs = {ours: name for name, ours in settings.columns.items()}
    missing: set[str] = set()
    for path in {m.record.path for m in members if not m.record.problem}:
        columns = table.read_rows(path)[0].keys()
        missing |= {f for f in plan.data.features if theirs.get(f, f) not in columns}
    return missing


def unscaled_features(plan: Plan) -> set[str]:
    """Numeric features without a mean and deviation in the plan: a site's own rows give them."""
    return set(plan.data.features) - set(plan.data.scale) - set(codes_of(plan.data))


def read_member(
    member: Member, settings: SiteDataSettings, plan: Plan, scale: Scale | None
) -> Input:
    """Read one image or row.

    Args:
        member: which.
        settings: how.
        plan: what it is turned into.
        scale: of the features of a table; None for images.

    Raises:
        UnreadableFileError: it cannot be used.
        MissingExtraError: the reader's package is not installed.
    """
    record, contract = member.record, plan.data
    if record.problem:
        raise UnreadableFileError(record.problem)
    if scale is not None:
        values = table.feature_values(record.path, record.index or 0, contract, settings)
        if not np.isfinite(values).any():
            msg = f"row {(record.index or 0) + 1} has none of the features that the release takes"
            raise UnreadableFileError(msg)
        return Input(case=Case(id="", image=to_columns(values[np.newaxis], contract, scale)[0]))
    affine: Affine | None = None
    order: tuple[int, ...] = ()
    if settings.format == "dicom":
        try:
            refuse_segmentation(record.path)
            series = read_series(record.path)
        except OSError as error:
            msg = f"{record.path.name}: {error.strerror or type(error).__name__}"
            raise UnreadableFileError(msg) from None
        raw = raw_image_of(series, contract.dimensions, record.path.name)
        affine, order = series.affine, series.order
    else:
        raw = read_raw(record, settings, contract)
    case = case_of(raw, None, contract, case_id="", name=record.path.name)
    return Input(case=case, raw=raw, affine=affine, order=order)
