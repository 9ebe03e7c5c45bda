"""The four hospitals of the UCI Heart Disease data, each with its own table."""

import csv
import hashlib
from pathlib import Path

from asterion_sim.prepare_common import source_file, write_csv, write_site

TEST_FRACTION = 0.25
ZERO_IS_MISSING = ("chol", "trestbps")
"""Columns where a zero cannot be a measurement: all of Switzerland's cholesterol is 0."""


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder a hospital.

    A quarter of the healthy and a quarter of the ill of each hospital, chosen by a hash of the
    row, are its test.

    Args:
        data: the folder of data sets; ``heart-4-hospitals`` is read.
        out: where the sites' folders go.

    Returns:
        The four folders, sorted.

    Raises:
        FileProblemError: the table is missing.
    """
    table = source_file(data, "heart-4-hospitals/heart.csv")
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name not in ("hospital", "num")]
        patients: dict[str, list[dict[str, str]]] = {}
        for number, row in enumerate(reader):
            patients.setdefault(row["hospital"], []).append(row | {"id": f"p{number:03d}"})
    return [_write(out / name, name, rows, columns) for name, rows in sorted(patients.items())]


def _write(folder: Path, name: str, rows: list[dict[str, str]], columns: list[str]) -> Path:
    test = _held_out(rows)
    header = ("patient", "split", *columns, "disease")
    lines = [
        (
            row["id"],
            "test" if row["id"] in test else "train",
            *(_cell(column, row[column]) for column in columns),
            int(row["num"] != "0"),
        )
        for row in rows
    ]
    write_csv(folder / "patients.csv", header, lines)
    settings = {
        "format": "table",
        "manifest": "patients.csv",
        "label_column": "disease",
        "group_column": "patient",
        "labels": {"0": "healthy", "1": "disease"},
    }
    return write_site(folder, name=name, task="classification", data=settings)


def _held_out(rows: list[dict[str, str]]) -> set[str]:
    """Ids of the test patients: the first quarter of each class in the order of their hashes."""
    chosen: set[str] = set()
    for ill in (False, True):
        ids = [row["id"] for row in rows if (row["num"] != "0") == ill]
        ids.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        chosen.update(ids[: round(TEST_FRACTION * len(ids))])
    return chosen


def _cell(column: str, text: str) -> str:
    if not text or (column in ZERO_IS_MISSING and float(text) == 0):
        return ""
    return f"{float(text):g}"
