"""The data set of a run, frozen: hashes of contents, fixed at the run's first order."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from asterion_client.data import npz, table
from asterion_client.data.admission import Admission
from asterion_client.data.dicom import slice_files
from asterion_client.data.records import Record
from asterion_client.withdrawals import FIX, forget_trained
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
        At the first call all records that may enter. Later those of the stored manifest, on the
        sides they had: new files wait for the next run. Records that may not stay have left it,
        and what they had a part in is removed.

    Raises:
        DataProblemError: ``data_withdrawn``: a record of the manifest is gone or changed without a
            withdrawal; or what ``divide`` raises.
        FileProblemError: the stored manifest is not what was written.
        DiskProblemError: the manifest cannot be stored.
    """
    if path is not None and path.exists():
        return _thaw(_keys(found, admission), path, admission)
    # Of all that are found, so that a record has the same key whoever else is admitted.
    keys = {_place(record): key for key, record in _keys(found, admission).items()}
    admitted = [record for record in found if admission.may_enter(record)]
    parts = [(keys[_place(record)], record) for record in divide(admitted)]
    frozen = _frozen(parts)
    if path is not None:
        mark_of = admission.withdrawals.mark_of
        rows = [_Row(key, r.split, r.region, mark_of(r.group)) for key, r in parts]
        _store(path, rows, admission, ())
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


@dataclass(frozen=True, slots=True, order=True)
class _Row:
    """A record, or its part, as the stored manifest has it; the mark says whose it is."""

    key: str
    split: str
    region: tuple[tuple[int, int], ...]
    mark: str

    @property
    def name_sha256(self) -> str:
        return _name_sha256(self.key, self.split, self.region)


def _store(
    path: Path, rows: Sequence[_Row], admission: Admission, left: Sequence[dict[str, Any]]
) -> None:
    stored = {
        "sha256": _set_sha256(row.name_sha256 for row in rows),
        "marks": admission.withdrawals.salt_sha256,
        "left": left,
        "records": [asdict(row) for row in sorted(rows)],
    }
    write_atomically(path, json.dumps(stored, indent=0).encode())


def _thaw(keys: dict[str, Record], path: Path, admission: Admission) -> Frozen:
    fix = "take part in the next run; this one cannot know its data any more"
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        rows = [
            _Row(
                str(row["key"]),
                str(row["split"]),
                tuple((int(start), int(stop)) for start, stop in row["region"]),
                str(row["mark"]),
            )
            for row in stored["records"]
        ]
        wanted, marks, left = str(stored["sha256"]), str(stored["marks"]), list(stored["left"])
    except (OSError, ValueError, KeyError, TypeError):
        raise FileProblemError(path, "is not the manifest that was written", fix) from None
    if _set_sha256(row.name_sha256 for row in rows) != wanted:
        raise FileProblemError(path, "was edited: its hash does not fit", fix)
    if marks != admission.withdrawals.salt_sha256:
        what = "was made beside another file of withdrawals, so some may be forgotten"
        raise FileProblemError(path, what, FIX)
    staying = [row for row in rows if _may_stay(row, keys, admission)]
    if len(staying) < len(rows):
        # First what they had a part in: whoever is killed here does it again.
        forget_trained(path.parent)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        left.append({"at": at, "num_records": len(rows) - len(staying), "sha256_before": wanted})
        _store(path, staying, admission, left)
    num_gone = len({row.key for row in staying if row.key not in keys})
    if num_gone:
        msg = (
            f"{num_gone} records of the run's frozen data set are gone or changed; put them back "
            "to go on, or take part in the next run"
        )
        raise DataProblemError(msg, code="data_withdrawn")
    parts = [(r.key, replace(keys[r.key], split=r.split, region=r.region)) for r in staying]
    return _frozen(parts)


def _may_stay(row: _Row, keys: dict[str, Record], admission: Admission) -> bool:
    """By its mark also where the file is gone already, or has another name."""
    if row.mark in admission.withdrawals.moments:
        return False
    return row.key not in keys or admission.may_stay(keys[row.key])


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
    hashes = [_name_sha256(key, record.split, record.region) for key, record in ordered]
    ids = tuple(h[:12] for h in hashes)
    return Frozen(tuple(r for _, r in ordered), ids, _set_sha256(hashes))


def _name_sha256(key: str, split: str, region: tuple[tuple[int, int], ...]) -> str:
    return hashlib.sha256(f"{key} {split} {region}".encode()).hexdigest()


def _set_sha256(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
