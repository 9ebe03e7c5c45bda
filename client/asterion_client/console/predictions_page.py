"""Pages of local predictions: folders, the review queue of one, and one case with its pictures."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from asterion_client.console.prediction_files import (
    BrokenFolderError,
    Case,
    Summary,
    prediction_folders,
    read_cases,
    read_picture,
    read_rows,
    read_summary,
)
from asterion_client.settings import read_site_settings
from asterion_shared.console.guard import REPORT_POLICY
from asterion_shared.console.pages import Answer, NotThereError, Page, Sent, Shown, Visit
from asterion_shared.console.rendering import clock, short
from asterion_shared.reports.metric_words import number

CASES_A_PAGE = 100
SHOWN_FIRST = 4
"""Pictures on the page of a folder, of the cases to look at first."""

KINDS = {"picture": "picture", "explanation": "where it looked"}
"""Of pictures, with what a row of the table says."""


def prediction_pages(site_toml: Path) -> list[Page]:
    """The pages of ``predictions`` in ``[console]``; without it one that says how to set it."""

    def place_of() -> Path | None:
        # Anew: a person edits the file while the console runs.
        console = read_site_settings(site_toml).console
        if console is None or console.predictions is None:
            return None
        return site_toml.resolve().parent / console.predictions

    def folders(visit: Visit) -> Answer:
        return Shown("predictions.html.j2", folders_values(place_of()))

    def in_folder(show: Callable[[Path, str, Visit], Answer]) -> Callable[[Visit], Answer]:
        def shown(visit: Visit) -> Answer:
            place, name = place_of(), visit.path["folder"]
            if place is None or not _is_text(name) or name not in prediction_folders(place):
                msg = "There is no such folder of predictions."
                raise NotThereError(msg)
            try:
                return show(place, name, visit)
            except BrokenFolderError as error:
                values = {"name": name, "words": str(error)}
                return Shown("prediction_broken.html.j2", values, 404)

        return shown

    def queue(place: Path, name: str, visit: Visit) -> Answer:
        values = queue_values(place, name, _number(visit.path.get("page", "1")))
        return Shown("prediction.html.j2", values)

    def case(place: Path, name: str, visit: Visit) -> Answer:
        return Shown(
            "prediction_case.html.j2", case_values(place, name, _number(visit.path["rank"]))
        )

    def picture(place: Path, name: str, visit: Visit) -> Answer:
        found = _case(read_cases(place, name), _number(visit.path["rank"]))
        drawn = found.pictures.get(visit.path["kind"])
        if drawn is None:
            msg = "The case has no such picture."
            raise NotThereError(msg)
        return Sent(read_picture(place, name, drawn), "image/png", REPORT_POLICY)

    root = "/predictions/{folder}"
    return [
        Page(path="/predictions", show=folders),
        Page(path=root, show=in_folder(queue)),
        Page(path=f"{root}/page/{{page}}", show=in_folder(queue)),
        Page(path=f"{root}/case/{{rank}}", show=in_folder(case)),
        Page(path=f"{root}/case/{{rank}}/{{kind}}.png", show=in_folder(picture)),
    ]


def folders_values(place: Path | None) -> dict[str, Any]:
    """What ``predictions.html.j2`` shows."""
    rows, broken = [], []
    for name in [] if place is None else prediction_folders(place):
        if not _is_text(name):
            broken.append((_readable(name), "its name is no UTF-8; give it another"))
            continue
        try:
            summary = read_summary(place or Path(), name)
        except BrokenFolderError as error:
            broken.append((_readable(name), str(error)))
            continue
        rows.append((
            Markup('<a href="{}">{}</a>').format(_path(name), name),
            _release_words(summary),
            summary.task,
            f"{summary.predicted:,}",
            f"{len(summary.skipped):,}" if summary.skipped else "",
            _when(summary.made),
        ))  # fmt: skip
    is_there = place is not None and place.is_dir()
    return {"is_set": place is not None, "is_there": is_there, "body": rows, "broken": broken}


def queue_values(place: Path, name: str, page: int) -> dict[str, Any]:
    """What ``prediction.html.j2`` shows: a part of the review queue.

    Raises:
        BrokenFolderError: the folder is none of predictions.
        NotThereError: there is no such page.
    """
    summary, cases = read_summary(place, name), read_cases(place, name)
    num_pages = max(1, -(-len(cases) // CASES_A_PAGE))
    if not 1 <= page <= num_pages:
        msg = "There is no such page."
        raise NotThereError(msg)
    here = cases[(page - 1) * CASES_A_PAGE : page * CASES_A_PAGE]
    drawn = [c for c in here if "picture" in c.pictures] if page == 1 else []
    columns: dict[str, Callable[[Case], str | Markup]] = {
        "case": lambda c: Markup('<a href="{}">{}</a>').format(_path(name, c.rank), c.rank),
        "file": lambda c: c.file,
        "call": lambda c: c.call or number(None),
        "uncertainty": lambda c: _share(c.uncertainty),
        "disagreement": lambda c: _share(c.disagreement),
        "why": lambda c: c.why,
        "drawn": lambda c: ", ".join(words for kind, words in KINDS.items() if kind in c.pictures),
    }
    for optional in ("call", "disagreement"):
        if not any(getattr(c, optional) for c in cases):
            del columns[optional]
    head = list(columns)
    return {
        "name": name,
        "path": _path(name),
        "summary": summary,
        "release": _release_words(summary),
        "first": [(c, _path(name, c.rank), _share(c.uncertainty)) for c in drawn[:SHOWN_FIRST]],
        "head": head,
        "words": (1, len(head) - 2, len(head) - 1),
        "body": [[told(c) for told in columns.values()] for c in here],
        "facts": _facts(summary),
        "page": page,
        "before": (page - 1) * CASES_A_PAGE,
        "num_pages": num_pages,
        "total": len(cases),
    }


def case_values(place: Path, name: str, rank: int) -> dict[str, Any]:
    """What ``prediction_case.html.j2`` shows.

    Raises:
        BrokenFolderError: the folder is none of predictions.
        NotThereError: there is no such case.
    """
    summary, cases = read_summary(place, name), read_cases(place, name)
    found = _case(cases, rank)
    parts = [
        (row["class"], _count(row["points"]),
         f"{_rounded(row['size'])} {_unit(row['unit'])}".strip(), _share(row["mean_probability"]))
        for row in read_rows(place, name, "segments.csv",
                             ("file", "class", "points", "size", "unit", "mean_probability"))
        if row["file"] == found.file
    ]  # fmt: skip
    told = next((row for row in read_rows(place, name, "predictions.csv", ("file",))
                 if row["file"] == found.file), {})  # fmt: skip
    return {
        "name": name,
        "path": _path(name),
        "case": found,
        "release": _release_words(summary),
        "pictures": [
            (f"{_path(name, rank)}/{kind}.png", drawn) for kind, drawn in found.pictures.items()
        ],
        "facts": _case_facts(found, told, summary),
        "parts": parts,
        "before": _path(name, rank - 1) if rank > 1 else "",
        "after": _path(name, rank + 1) if rank < len(cases) else "",
        "total": len(cases),
    }


def _case(cases: list[Case], rank: int) -> Case:
    if not 1 <= rank <= len(cases):
        msg = "There is no such case."
        raise NotThereError(msg)
    return cases[rank - 1]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    points = ", ".join(f"{name} {value:.3g}" for name, value in summary.thresholds.items())
    warm = summary.temperature
    return [
        ("release", f"{_release_words(summary)}, {short(summary.release.sha256)}"),
        ("signer", "checked" if summary.signer_checked else "not checked: no --key was given"),
        ("how sure", f"by {summary.uncertainty.how}"),
        ("called by", summary.called_by),
        ("thresholds", points or "none"),
        ("temperature", "none" if warm is None else f"{warm:.3g}"),
        ("made", _when(summary.made)),
    ]  # fmt: skip


def _case_facts(case: Case, told: dict[str, str], summary: Summary) -> list[tuple[str, str]]:
    shares = [(f"probability of {name}", _share(told[f"p_{name}"]))
              for name in summary.classes if told.get(f"p_{name}")]  # fmt: skip
    sides = [
        (
            f"threshold {key.removeprefix('at_or_above_')}",
            "at or above" if side == "yes" else "below",
        )
        for key, side in told.items()
        if key.startswith("at_or_above_")
    ]
    wanted = [
        ("file", case.file),
        ("call", case.call),
        ("score", _rounded(told.get("score", ""))),
        *shares,
        *sides,
        ("uncertainty", f"{_share(case.uncertainty)} (0 is certain, 1 knows nothing)"
         if case.uncertainty else "not known"),
        ("disagreement", _share(case.disagreement)),
        ("why", case.why),
    ]  # fmt: skip
    return [(what, value) for what, value in wanted if value]


def _release_words(summary: Summary) -> str:
    release = summary.release
    return f"{release.name} version {release.version} ({release.maturity})"


def _is_text(name: str) -> bool:
    return _readable(name) == name


def _readable(name: str) -> str:
    """A folder's name as text; bytes that are no UTF-8 as question marks."""
    return name.encode("utf-8", "replace").decode()


def _path(name: str, rank: int | None = None) -> str:
    folder = f"/predictions/{quote(name, safe='')}"
    return folder if rank is None else f"{folder}/case/{rank}"


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= 9 else 0  # 0: there is none


def _count(text: str) -> str:
    return f"{int(text):,}" if text.isdecimal() else text


def _share(text: str) -> str:
    """A number of 0 to 1 in a file's text."""
    with suppress(ValueError):
        return number(float(text)) if text else ""
    return text


def _rounded(text: str) -> str:
    with suppress(ValueError):
        if text:
            value = float(text)
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text


def _unit(text: str) -> str:
    """``mm3`` and ``arcsec2`` as they are written."""
    return text.replace("2", "\u00b2").replace("3", "\u00b3")


def _when(made: str) -> str:
    with suppress(ValueError):
        return clock(made)
    return made
