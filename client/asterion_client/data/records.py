"""Which examples a site has: from a manifest CSV, or from the folder's layout."""

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asterion_client.data import dicom, npz, table
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.settings import SiteDataSettings
from asterion_shared.errors import FileProblemError
from asterion_shared.plan import TaskName

SUFFIXES: dict[str, tuple[str, ...]] = {
    "nifti": (".nii", ".nii.gz"),
    "dicom": (".dcm",),
    "fits": (".fits", ".fits.gz", ".fit", ".fits.fz"),
    "npz": (".npz",),
    "table": (".csv",),
}
SPLITS = ("", "train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One example that the site says it has.

    Attributes:
        path: the file (a folder for a DICOM series).
        mask_path: the file of its mask, when that is another file.
        label: the class as the site writes it; empty when there is none.
        group: patient or field; examples of one group stay on one side of the split.
        group_named: whether the site named the group; else it is the name of the file or row.
        split: ``train``, ``test``, or empty when the site leaves it to us.
        consent: what the column of consents says; None where there is no such column.
        index: row of a table or of an npz, else None.
        region: for a part of a field, (start, stop) on each axis; empty for the whole.
        problem: why it cannot be used, known without reading it; empty when it may be.
        row: what the manifest or the table says of it, by column; empty without one.
    """

    path: Path
    mask_path: Path | None = None
    label: str = ""
    group: str
    group_named: bool = False
    split: str = ""
    consent: str | None = None
    index: int | None = None
    region: tuple[tuple[int, int], ...] = ()
    problem: str = ""
    row: Mapping[str, str | None] = field(default_factory=dict, repr=False, hash=False)


def find_records(settings: SiteDataSettings, folder: Path, task: TaskName) -> list[Record]:
    """Every record of a site, sorted by path and row.

    Args:
        settings: the ``[data]`` section of ``site.toml``.
        folder: the data folder, absolute or relative to the working directory.
        task: decides what a label is.

    Returns:
        The records; empty when the folder holds none.

    Raises:
        FileProblemError: the folder, the manifest or a column is missing, or a split is neither
            train nor test. A file that the manifest lists and that is missing is a record with a
            problem.
    """
    if not folder.is_dir():
        raise FileProblemError(folder, "no such folder", "correct data.folder in site.toml")
    if settings.format == "table":
        records = _table_records(settings, folder)
    elif settings.format == "npz":
        records = _npz_records(settings, folder)
    elif settings.manifest is not None:
        records = _manifest_records(settings, folder / settings.manifest, folder, task)
    else:
        records = _layout_records(settings, folder, task)
    return sorted(records, key=lambda r: (str(r.path), -1 if r.index is None else r.index))


def find_unlabelled(settings: SiteDataSettings, folder: Path, dimensions: int) -> list[Record]:
    """Every image or row below a folder, at any depth, sorted; no label, mask or split is read.

    For a plan of 3 dimensions several DICOM files in one folder are a series. A folder ``labels``
    beside a folder ``images`` holds masks and is left out.

    Args:
        settings: the format, and how its files are read.
        folder: absolute or relative to the working directory.
        dimensions: spatial dimensions of the plan.

    Returns:
        The records; empty when the folder holds none of the format.

    Raises:
        FileProblemError: the folder is missing. A file of rows that cannot be read is a record
            with a problem.
    """
    if not folder.is_dir():
        raise FileProblemError(folder, "no such folder", "check the path")
    found = sorted(_files_below(folder, settings.format, dimensions))
    if settings.format in ("table", "npz"):
        return [record for path in found for record in _rows_of(path, settings.format)]
    return [Record(path=path, group=bare_name(path)) for path in found]


def mask_beside(path: Path) -> Path | None:
    """The mask of an image in a folder ``images`` with a folder ``labels`` beside it; else None."""
    if path.parent.name != "images":
        return None
    masks = {bare_name(p): p for p in _entries(path.parent.with_name("labels"), None)}
    return masks.get(bare_name(path))


def _rows_of(path: Path, format_: str) -> list[Record]:
    """A record for each row; one stands for a file that cannot be read."""
    try:
        count = len(table.read_rows(path)) if format_ == "table" else npz.read_index(path).count
    except (UnreadableFileError, FileProblemError) as error:
        return [Record(path=path, group=path.name, index=0, problem=str(error))]
    return [Record(path=path, group=f"{path.name}:{i}", index=i) for i in range(count)]


def _files_below(folder: Path, format_: str, dimensions: int) -> Iterator[Path]:
    for here, inner, names in os.walk(folder):
        skipped = {"labels"} if "images" in inner else set()
        inner[:] = [n for n in inner if not n.startswith(".") and n not in skipped]
        place = Path(here)
        if format_ == "dicom":
            slices = dicom.slice_files(place)
            yield from [place] if dimensions == 3 and len(slices) > 1 else slices
        else:
            kept = (n for n in names if n.lower().endswith(SUFFIXES[format_]))
            yield from (place / name for name in kept if not name.startswith("."))


def bare_name(path: Path) -> str:
    """The file's name without any of its suffixes' known endings: ``a.nii.gz`` gives ``a``."""
    for suffix in sorted((s for group in SUFFIXES.values() for s in group), key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _manifest_records(
    settings: SiteDataSettings, manifest: Path, folder: Path, task: TaskName
) -> list[Record]:
    rows = _read_rows(manifest)
    records: list[Record] = []
    seen: set[Path] = set()
    for number, row in enumerate(rows, start=2):
        where = f"line {number} of {manifest.name}"
        name = (row.get("path") or "").strip()
        if not name:
            raise FileProblemError(manifest, f"{where} has no path", "add it or remove the line")
        if folder / name in seen:
            raise FileProblemError(manifest, f"{where} names {name} again", "remove the line")
        seen.add(folder / name)
        split, label = (row.get("split") or "").strip(), (row.get("label") or "").strip()
        path, is_mask = folder / name, task == "segmentation" and label != ""
        named = (path, folder / label) if is_mask else (path,)
        missing = [p.name for p in named if not p.exists()]
        records.append(
            Record(
                path=path,
                mask_path=folder / label if is_mask else None,
                label="" if is_mask else label,
                group=(row.get("group") or "").strip() or bare_name(path),
                group_named=bool((row.get("group") or "").strip()),
                split=_checked_split(split, where, manifest),
                consent=_cell(row, settings.consent_column),
                problem=f"{where} names {missing[0]}, which does not exist" if missing else "",
                row=row,
            )
        )
    return records


def _cell(row: Mapping[str, str | None], column: str) -> str | None:
    """What a row says in a column, empty where it says nothing; None without the column."""
    return (row[column] or "").strip() if column in row else None


def _checked_split(split: str, where: str, path: Path) -> str:
    if split not in SPLITS:
        fix = "write train, test, or nothing"
        raise FileProblemError(path, f"{where} has split {split!r}", fix)
    return split


def _read_rows(manifest: Path) -> list[dict[str, str | None]]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                raise FileProblemError(manifest, "has no column 'path'", "add it")
            return list(reader)
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(manifest, what, "correct data.manifest in site.toml") from None
    except (UnicodeDecodeError, csv.Error):
        raise FileProblemError(manifest, "is not a CSV in UTF-8", "save it as CSV, UTF-8") from None


def _layout_records(settings: SiteDataSettings, folder: Path, task: TaskName) -> list[Record]:
    if task == "segmentation":
        images = folder / "images" if (folder / "images").is_dir() else folder
        masks = {bare_name(p): p for p in _entries(folder / "labels", None)}
        return [
            Record(path=path, mask_path=masks.get(bare_name(path)), group=bare_name(path))
            for path in _entries(images, settings.format)
        ]
    return [
        Record(path=path, label=classes.name, group=bare_name(path))
        for classes in sorted(p for p in folder.iterdir() if p.is_dir())
        for path in _entries(classes, settings.format)
    ]


def _entries(folder: Path, format_: str | None) -> list[Path]:
    """Files of a format (of any, with None), and for DICOM also the folders that hold some."""
    if not folder.is_dir():
        return []
    suffixes = SUFFIXES[format_] if format_ else tuple(s for g in SUFFIXES.values() for s in g)
    # Names that begin with a dot are what file systems leave behind, not images.
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in inside if p.is_file() and p.name.lower().endswith(suffixes)]
    if format_ in ("dicom", None):
        found += [p for p in inside if p.is_dir() and dicom.slice_files(p)]
    return sorted(found)


def _table_records(settings: SiteDataSettings, folder: Path) -> list[Record]:
    paths = [folder / settings.manifest] if settings.manifest else _entries(folder, "table")
    records = []
    for path in paths:
        for number, row in enumerate(table.read_rows(path)):
            for key, column in (("label", settings.label_column), ("group", settings.group_column)):
                if column is not None and column not in row:
                    fix = f"correct data.{key}_column in site.toml"
                    raise FileProblemError(path, f"has no column {column!r}", fix)
            named = row.get(settings.group_column or "", "").strip()
            label = row[settings.label_column].strip()
            split = _checked_split(row.get("split", "").strip(), f"row {number + 1}", path)
            records.append(
                Record(
                    path=path,
                    label=label,
                    group=named or f"{path.name}:{number}",
                    group_named=bool(named),
                    split=split,
                    consent=_cell(row, settings.consent_column),
                    index=number,
                    row=row,
                )
            )
    return records


def _npz_records(settings: SiteDataSettings, folder: Path) -> list[Record]:
    paths = [folder / settings.manifest] if settings.manifest else _entries(folder, "npz")
    records = []
    for path in paths:
        try:
            index = npz.read_index(path)
        except UnreadableFileError as error:
            # One record stands for the whole file.
            records.append(Record(path=path, group=path.name, index=0, problem=str(error)))
            continue
        for number in range(index.count):
            records.append(
                Record(
                    path=path,
                    label=index.labels[number] if index.labels else "",
                    group=index.groups[number] if index.groups else f"{path.name}:{number}",
                    group_named=bool(index.groups),
                    split=_checked_split(
                        index.splits[number] if index.splits else "", f"row {number}", path
                    ),
                    consent=index.consents[number] if index.consents else None,
                    index=number,
                )
            )
    return records
