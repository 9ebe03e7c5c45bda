"""The data set of a run, frozen: hashes of contents, fixed at the run's first order."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from asterion_client.data import npz, table
from asterion_client.data.admission import Admission
from asterion_client.data.dicom import slice_files
from asterion_client.data.records import Record
from asterion_shared.errors import DataProblemError, FileProblemError
from asterion_shared.files import write_atomically

Divide = Callable[[Sequence[Record]], Sequence[Record]]
"""Gives each record its side, and may cut one into regions."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The records of a run and the hash that stands for them.

    Attributes:
        records: those that the run uses, each with its side.
        ids: their ids (12 hex digits), in the same order.
        sha256: hash over contents, sides and labels, sorted; names and paths are not in it.
    """

    records: tuple[Record, ...]
    ids: tuple[str, ...]
    sha256: str


def freeze(
    found: Sequence[Record], divide: Divide, path: Path | None, admission: Admission
) -> Frozen:
    """Fix the data set of a run, and who is on which side.

    Args:
        found: what the site has now.
        divide: how it is split, asked only at the first call.
        path: where the run's manifest is stored; None to store nothing (simulation).
        admission: which records may be in it.

    Returns:
        At the first call all records that may enter. Later those of the stored manifest, on the sides they had:
        new files wait for the next run.

    Raises:
        DataProblemError: ``data_withdrawn``: a record of the manifest is gone or changed; or what
            ``divide`` raises.
        FileProblemError: the stored manifest is not what was written.
        DiskProblemError: the manifest cannot be stored.
    """
    if path is not None and path.exists():
        return _thaw(_keys(found, admission), path)
    # Of all that are found, so that a record has the same key whoever else is admitted.
    keys = {_place(record): key for key, record in _keys(found, admission).items()}
    admitted = [record for record in found if admission.may_enter(record)]
    parts = [(keys[_place(record)], record) for record in divide(admitted)]
    frozen = _frozen(parts)
    if path is not None:
        rows = [{"key": key, "split": r.split, "region": r.region} for key, r in parts]
        rows.sort(key=lambda row: (row["key"], row["region"]))
        text = json.dumps({"sha256": frozen.sha256, "records": rows}, indent=0)
        write_atomically(path, text.encode())
    return frozen


def content_sha256(path: Path) -> str:
    """SHA-256 over a file's bytes, or over those of all slices of a series, in whatever order.

    A file that cannot be read has a hash of its own.
    """
    files = slice_files(path) if path.is_dir() else [path]
    contents: list[str] = []
    for file in files:
        try:
            status = file.stat()
            contents.append(_file_sha256(file, status.st_size, status.st_mtime_ns))
        except OSError as error:
            contents.append(f"unreadable {error.errno}")
    return hashlib.sha256("\n".join(sorted(contents)).encode()).hexdigest()


@lru_cache(maxsize=100_000)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thaw(keys: dict[str, Record], path: Path) -> Frozen:
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        rows = [
            (
                str(row["key"]),
                str(row["split"]),
                tuple((int(start), int(stop)) for start, stop in row["region"]),
            )
            for row in stored["records"]
        ]
        wanted = str(stored["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        fix = "take part in the next run; this one cannot know its data any more"
        raise FileProblemError(path, "is not the manifest that was written", fix) from None
    num_gone = len({key for key, _, _ in rows if key not in keys})
    if num_gone:
        msg = (
            f"{num_gone} records of the run's frozen data set are gone or changed; put them back "
            "to go on, or take part in the next run"
        )
        raise DataProblemError(msg, code="data_withdrawn")
    frozen = _frozen([(k, replace(keys[k], split=s, region=region)) for k, s, region in rows])
    if frozen.sha256 != wanted:
        fix = "take part in the next run; this one cannot know its data any more"
        raise FileProblemError(path, "was edited: its hash does not fit", fix)
    return frozen


def _keys(records: Sequence[Record], admission: Admission) -> dict[str, Record]:
    """Records by a hash of their content; a second equal one gets a hash of its own."""
    keys: dict[str, Record] = {}
    for record in sorted(records, key=_place):
        own = _content(record, admission.settings.consent_column)
        parts = [own, content_sha256(record.mask_path) if record.mask_path else ""]
        # The group is not in it: it may be a file's name, and the sides are stored anyway.
        key = hashlib.sha256("\x1f".join([*parts, record.label]).encode()).hexdigest()
        while key in keys:
            key = hashlib.sha256(key.encode()).hexdigest()
        keys[key] = record
    return keys


def _content(record: Record, consent_column: str) -> str:
    """A row's own content, so that a new row does not change the others; else the file's.

    The row's consents are not in it: they may change, and it is the same record.
    """
    if record.index is None or record.problem:
        return content_sha256(record.path)
    if record.path.suffix.lower() == ".csv":
        cells = table.read_rows(record.path)[record.index]
        row = {name: cell for name, cell in cells.items() if name != consent_column}
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    return npz.row_sha256(record.path, record.index)


def _place(record: Record) -> tuple[str, int]:
    return str(record.path), -1 if record.index is None else record.index


def _frozen(parts: Sequence[tuple[str, Record]]) -> Frozen:
    ordered = sorted(parts, key=lambda part: (*_place(part[1]), part[1].region))
    names = [f"{key} {record.split} {record.region}" for key, record in ordered]
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    return Frozen(tuple(r for _, r in ordered), tuple(h[:12] for h in hashes), digest)
