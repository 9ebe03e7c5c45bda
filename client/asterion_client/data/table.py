"""Rows of a CSV as numbers; a column the site lacks is missing in every row."""

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.settings import SiteDataSettings
from asterion_shared.errors import FileProblemError
from asterion_shared.plan import DataContract

MISSING = frozenset({"", "na", "nan", "null", "none", "?"})
"""Cells that mean: not measured (in any case)."""


def read_rows(path: Path) -> Sequence[dict[str, str]]:
    """Every row of a CSV with a header, by column name.

    Raises:
        FileProblemError: missing, not UTF-8, without a header, or a row of another length.
    """
    try:
        return _read_version(path, path.stat().st_mtime_ns)
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "correct data.manifest in site.toml") from None


@lru_cache(maxsize=4)
def _read_version(path: Path, mtime_ns: int) -> Sequence[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "correct data.manifest in site.toml") from None
    except (UnicodeDecodeError, csv.Error):
        raise FileProblemError(path, "is not a CSV in UTF-8", "save it as CSV, UTF-8") from None
    header = [name.strip() for name in header]
    if not header or len(set(header)) != len(header):
        what = f"its first line gives the columns {header}"
        raise FileProblemError(path, what, "give each column one name of its own")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            what = f"line {number} has {len(row)} cells and the header {len(header)}"
            raise FileProblemError(path, what, "mend that line")
    return tuple(dict(zip(header, row, strict=True)) for row in rows)


def feature_values(
    path: Path, index: int, contract: DataContract, settings: SiteDataSettings
) -> npt.NDArray[np.float64]:
    """The features of one row, shape ``(F,)``, NaN where missing.

    Raises:
        UnreadableFileError: a cell is neither a number nor empty.
        FileProblemError: as :func:`read_rows`.
    """
    row = read_rows(path)[index]
    theirs = {ours: name for name, ours in settings.columns.items()}
    return np.array(
        [_number(row.get(theirs.get(name, name), ""), name, index) for name in contract.features]
    )


def _number(cell: str, column: str, index: int) -> float:
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        msg = f"column {column} of row {index + 1} is not a number; write a number or nothing"
        raise UnreadableFileError(msg) from None
    return value if math.isfinite(value) else math.nan
