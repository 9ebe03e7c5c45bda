"""What was found in one image or row, and the files that list it."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asterion_client.predict.uncertainty import Opinions
from asterion_shared.files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a segmentation has of one class.

    Attributes:
        name: of the class.
        num_points: pixels or voxels of the stored grid.
        size: their area or volume.
        unit: ``mm3``, ``mm2``, ``arcsec2``; empty when the file does not give its pixel size.
        probability: mean over these points; None where there are none.
    """

    name: str
    num_points: int
    size: float | None
    unit: str
    probability: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What a release says of one image or row.

    Attributes:
        id: the file below the folder, and ``#ROW`` of a file of rows.
        call: the class; empty for segmentation, and for an anomaly without a threshold.
        probabilities: by class, for classification; else empty.
        score: of an anomaly, else None.
        points: by name of a release's further threshold, whether the case lies at or above it.
        parts: of a segmentation, by class but the first; else empty.
        uncertainty: 0 (certain) to 1; of an anomaly the relative spread of the score between
            releases. None where nothing says it.
        disagreement: the part of it that is between the samples; None without samples.
        why: what stands behind it, in words.
        files: what was written, below the folder of results.
    """

    id: str
    call: str = ""
    probabilities: tuple[float, ...] = ()
    score: float | None = None
    points: tuple[tuple[str, bool], ...] = ()
    parts: tuple[Part, ...] = ()
    uncertainty: float | None = None
    disagreement: float | None = None
    why: str = ""
    files: tuple[str, ...] = ()


def by_certainty(results: Sequence[CaseResult]) -> list[CaseResult]:
    """The least certain first.

    Anomalies that no second release looked at have no uncertainty: the highest score first.
    """
    return sorted(
        results,
        key=lambda r: (r.uncertainty is None, -(r.uncertainty or 0.0), -(r.score or 0.0), r.id),
    )


def write_review(path: Path, results: Sequence[CaseResult], opinions: Opinions) -> None:
    """Write ``review.csv``: the least certain first, each with why, and how that was measured.

    Raises:
        DiskProblemError: it cannot be written.
    """
    rows = [
        [rank, r.id, r.call, _text(r.uncertainty), _text(r.disagreement), opinions.method, r.why]
        for rank, r in enumerate(by_certainty(results), start=1)
    ]
    head = ["rank", "file", "call", "uncertainty", "disagreement", "measured_by", "why"]
    write_csv(path, head, rows)


def write_predictions(path: Path, results: Sequence[CaseResult], classes: Sequence[str]) -> None:
    """Write ``predictions.csv``: classes with their probabilities, or scores.

    Raises:
        DiskProblemError: it cannot be written.
    """
    points = [f"at_or_above_{name}" for name, _ in results[0].points] if results else []
    if results and results[0].score is not None:
        head = ["file", "call", "score", *points, "uncertainty"]
        rows = [[r.id, r.call, _text(r.score), *_sides(r), _text(r.uncertainty)] for r in results]
    else:
        shares = [f"p_{name}" for name in classes]
        head = ["file", "call", *shares, *points, "uncertainty", "disagreement"]
        rows = [
            [r.id, r.call, *map(_text, r.probabilities), *_sides(r), _text(r.uncertainty),
             _text(r.disagreement)]
            for r in results
        ]  # fmt: skip
    write_csv(path, head, rows)


def write_parts(path: Path, results: Sequence[CaseResult]) -> None:
    """Write ``segments.csv``: a row for each image and class.

    Raises:
        DiskProblemError: it cannot be written.
    """
    head = ["file", "class", "points", "size", "unit", "mean_probability"]
    rows = [
        [r.id, part.name, part.num_points, _text(part.size), part.unit, _text(part.probability)]
        for r in results
        for part in r.parts
    ]
    write_csv(path, head, rows)


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV in UTF-8 atomically.

    Raises:
        DiskProblemError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _sides(result: CaseResult) -> list[str]:
    return ["yes" if above else "no" for _, above in result.points]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
