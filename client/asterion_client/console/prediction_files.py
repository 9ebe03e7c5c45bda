"""Folders that ``asterion site predict`` wrote, read for the console and never left."""

import csv
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from asterion_shared.settings_files import Settings

SUMMARY = "summary.json"
MOST_BYTES = 64 * 2**20
"""Of a file that a page is made of, or a picture."""

MOST_FOLDERS = 200
PNG = b"\x89PNG\r\n\x1a\n"


class BrokenFolderError(Exception):
    """A folder is none that predictions lie in; the words say why and name no case."""


class Release(Settings, extra="ignore"):
    """Which model predicted."""

    name: str
    version: int
    maturity: str
    sha256: str


class Opinions(Settings, extra="ignore"):
    """How it was measured how sure the model is."""

    how: str


class Skipped(Settings, extra="ignore"):
    """A file that could not be predicted."""

    file: str
    reason: str


class Summary(Settings, extra="ignore"):
    """What the pages show of ``summary.json``."""

    format: Literal[1]
    made: str
    release: Release
    signer_checked: bool
    task: str
    classes: tuple[str, ...]
    temperature: float | None
    thresholds: dict[str, float]
    uncertainty: Opinions
    called_by: str
    notes: tuple[str, ...]
    predicted: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of a case.

    Attributes:
        path: below the folder.
        words: what it shows.
        warning: why it may not be trusted; empty where nothing says so.
    """

    path: str
    words: str
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of a folder, as its row of ``review.csv`` has it; all as text.

    Attributes:
        rank: 1 is the least certain.
        file: as ``review.csv`` names it.
        call: the class; empty for a segmentation.
        uncertainty: 0 to 1; empty where nothing says it.
        disagreement: the part of it between samples; empty without any.
        why: in words.
        pictures: by kind, ``picture`` and ``explanation``.
    """

    rank: int
    file: str
    call: str
    uncertainty: str
    disagreement: str
    why: str
    pictures: Mapping[str, Drawn]


def prediction_folders(place: Path) -> list[str]:
    """Names of the folders in a place, the last changed first, at most :data:`MOST_FOLDERS`.

    Links are no folders here. Empty where the place is missing or cannot be read.
    """
    try:
        with os.scandir(place) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime, entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)[:MOST_FOLDERS]]


def read_inside(place: Path, path: str, most_bytes: int = MOST_BYTES) -> bytes:
    """A plain file below a place.

    Each step is opened from the one before, and none may be a link: what a path says cannot lead
    out, whatever changes meanwhile.

    Args:
        place: a folder.
        path: below it, with ``/``; no part may be ``..``.
        most_bytes: the file may have, >= 0.

    Raises:
        BrokenFolderError: there is no such plain file, or it is larger.
    """
    parts = PurePosixPath(path).parts
    if not parts or "/" in parts or ".." in parts or "\0" in path:
        msg = "a file is named that lies outside"
        raise BrokenFolderError(msg)
    try:
        with _opened(place, parts) as file:
            return _plain(file, most_bytes)
    except OSError as error:
        msg = f"a file cannot be opened ({error.strerror or type(error).__name__})"
        raise BrokenFolderError(msg) from None


@contextmanager
def _opened(place: Path, parts: tuple[str, ...]) -> Iterator[int]:
    here = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number, part in enumerate(parts, start=1):
            kind = os.O_DIRECTORY if number < len(parts) else os.O_NONBLOCK
            there = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=here)
            os.close(here)
            here = there
        yield here
    finally:
        os.close(here)


def _plain(file: int, most_bytes: int) -> bytes:
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most_bytes:
        msg = f"a file is no plain one of at most {most_bytes:,} bytes"
        raise BrokenFolderError(msg)
    with os.fdopen(os.dup(file), "rb") as opened:
        return opened.read(most_bytes)


def read_summary(place: Path, name: str) -> Summary:
    """What a folder is of.

    Raises:
        BrokenFolderError: ``summary.json``, which is written last, is missing or none.
    """
    try:
        content = read_inside(place, f"{name}/{SUMMARY}")
    except BrokenFolderError:
        msg = f"it has no {SUMMARY}, which is written last: it goes on, or was broken off"
        raise BrokenFolderError(msg) from None
    try:
        return Summary.model_validate(json.loads(content))
    except (ValidationError, ValueError, RecursionError):
        msg = f"its {SUMMARY} is none that asterion site predict writes"
        raise BrokenFolderError(msg) from None


def read_cases(place: Path, name: str) -> list[Case]:
    """The cases of a folder, the least certain first.

    Raises:
        BrokenFolderError: ``review.csv`` is missing or none, or a list of pictures is none.
    """
    pictures = {row["file"]: Drawn(row["picture"], row["shown"])
                for row in read_rows(place, name, "pictures.csv",
                                     ("file", "picture", "shown"))}  # fmt: skip
    flagged = "this map is like those of networks with random weights: it shows nothing learnt"
    maps = {row["file"]: Drawn(row["picture"], f"where the classifier looked for {row['class']}",
                               flagged if row["flagged"] == "yes" else "")
            for row in read_rows(place, name, "explanations.csv",
                                 ("file", "picture", "class", "flagged"))}  # fmt: skip
    wanted = ("file", "call", "uncertainty", "disagreement", "why")
    rows = read_rows(place, name, "review.csv", wanted, must=True)
    return [
        Case(
            rank=rank,
            file=row["file"],
            call=row["call"],
            uncertainty=row["uncertainty"],
            disagreement=row["disagreement"],
            why=row["why"],
            pictures={
                kind: found[row["file"]]
                for kind, found in (("picture", pictures), ("explanation", maps))
                if row["file"] in found
            },
        )
        for rank, row in enumerate(rows, start=1)
    ]


def read_rows(
    place: Path, name: str, file: str, wanted: tuple[str, ...], *, must: bool = False
) -> list[dict[str, str]]:
    """Rows of a CSV of a folder; none where it is missing and need not be there.

    Raises:
        BrokenFolderError: it is missing and must be there, or lacks a column or a cell.
    """
    try:
        content = read_inside(place, f"{name}/{file}")
    except BrokenFolderError:
        if must or (place / name / file).exists():
            msg = f"its {file} is missing or cannot be read"
            raise BrokenFolderError(msg) from None
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    for row in rows:
        if None in row or None in row.values() or not set(wanted) <= row.keys():
            msg = f"its {file} is none that asterion site predict writes"
            raise BrokenFolderError(msg)
    return rows


def read_picture(place: Path, name: str, drawn: Drawn) -> bytes:
    """A picture of a case.

    Raises:
        BrokenFolderError: it is no PNG that lies in the folder.
    """
    content = read_inside(place, f"{name}/{drawn.path}")
    if not content.startswith(PNG):
        msg = "the picture is no PNG"
        raise BrokenFolderError(msg)
    return content
