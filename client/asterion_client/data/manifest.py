"""The data set of a run, frozen: hashes of contents, fixed at the run's first order."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from asterion_client.data import npz, table
from asterion_client.data.dicom import slice_files
from asterion_client.data.records import Record
from asterion_shared.errors import DataProblemError
from asterion_shared.files import write_atomically


@dataclass(frozen=True, slots=True)
class Frozen:
    """The records of a run and the hash that stands for them.

    Attributes:
        records: those that the run uses, with their id (12 hex digits) in the same order.
        ids: see above.
        sha256: hash over ids, splits and labels, sorted; names and paths are not in it.
    """

    records: tuple[Record, ...]
    ids: tuple[str, ...]
    sha256: str


def freeze(records: Sequence[Record], path: Path | None) -> Frozen:
    """Fix the data set of a run.

    Args:
        records: what the site has now, split.
        path: where the run's manifest is stored; None to store nothing (simulation).

    Returns:
        At the first call all records. Later those of the stored manifest: new files wait for the
        next run.

    Raises:
        DataProblemError: ``data_withdrawn``: a record of the manifest is gone or changed.
        DiskProblemError: the manifest cannot be stored.
    """
    keys = _keys(records)
    if path is None or not path.exists():
        frozen = _frozen(keys)
        if path is not None:
            write_atomically(path, json.dumps(sorted(keys), indent=0).encode())
        return frozen
    wanted: list[str] = json.loads(path.read_text())
    gone = [key for key in wanted if key not in keys]
    if gone:
        msg = (
            f"{len(gone)} records of the run's frozen data set are gone or changed; put them back "
            "to go on, or take part in the next run"
        )
        raise DataProblemError(msg, code="data_withdrawn")
    return _frozen({key: keys[key] for key in wanted})


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of those of all slices of a series, by name."""
    files = slice_files(path) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(_file_sha256(file, status.st_size, status.st_mtime_ns).encode())
    return digest.hexdigest()


@lru_cache(maxsize=100_000)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keys(records: Sequence[Record]) -> dict[str, Record]:
    """Records by a hash of their content; a second equal one gets a hash of its own."""
    keys: dict[str, Record] = {}
    for record in records:
        parts = [_content(record), content_sha256(record.mask_path) if record.mask_path else ""]
        parts += [str(record.region), record.label, record.split, record.group]
        key = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        while key in keys:
            key = hashlib.sha256(key.encode()).hexdigest()
        keys[key] = record
    return keys


def _content(record: Record) -> str:
    """A row's own content, so that a new row does not change the others; else the file's."""
    if record.index is None:
        return content_sha256(record.path)
    if record.path.suffix.lower() == ".csv":
        row = table.read_rows(record.path)[record.index]
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    return npz.row_sha256(record.path, record.index)


def _frozen(keys: dict[str, Record]) -> Frozen:
    ordered: Iterable[tuple[str, Record]] = sorted(
        keys.items(), key=lambda item: (str(item[1].path), item[1].index or 0, item[1].region)
    )
    pairs = tuple(ordered)
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    return Frozen(tuple(r for _, r in pairs), tuple(key[:12] for key, _ in pairs), digest)
