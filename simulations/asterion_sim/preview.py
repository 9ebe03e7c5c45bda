"""A contact sheet of virtual sites: one row a site, so that a person sees how they differ."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from asterion_shared.cases import Case, SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.reports import drawing
from asterion_sim.shifts import Shift, drawn_shifts, shifted_site

WINDOW_PIXELS = 128
"""Side of the piece that is shown of a larger image."""

CELL_PIXELS = 112
"""Least size of a picture on the sheet; small images are magnified by whole numbers."""

DPI = 110
TEXT_PIXELS = 250
GAP_PIXELS = 6
LABEL_PIXELS = 14
LINE_PIXELS = 14
NAME_PIXELS = 17
CLASS_PIXELS = 120
HEAD_PIXELS = 62
LINE_LETTERS = 38

Item = TypeVar("Item")

OUTLINES = (drawing.TRUTH, drawing.PREDICTION, drawing.CONFUSED, drawing.BOTH)
"""Colours of the classes' outlines, in turn."""


def write_preview(
    plan: Plan,
    sites: Mapping[str, SiteData],
    out: Path,
    *,
    max_sites: int = 12,
    cases_per_site: int = 6,
    notes: Mapping[str, str] | None = None,
    heading: str = "",
) -> None:
    """Write a contact sheet: a row for each site, its name, how it differs, and some cases.

    Images are shown as training sees them, normalised, each stretched between its own 1st and
    99.7th percentile; of volumes the slice with the largest mask, or the middle one; of large
    images a window. Outlines are those of the mask that training gets; classes are written
    below. Cases are spread evenly over the training cases, for anomaly over the test cases, where
    the anomalies are.

    Args:
        plan: says how images are to be seen.
        sites: by name; evenly spread ones are shown when there are more than ``max_sites``.
        out: the PNG file.
        max_sites: most rows, >= 1.
        cases_per_site: most pictures in a row, >= 1.
        notes: text beside a site's pictures, by name (:func:`shift_notes`).
        heading: a line above all, such as the heterogeneity of the sites.

    Raises:
        UserInputError: the plan's data are a table, or there is no site with a case.
        DiskProblemError: the file cannot be written.
    """
    if plan.data.kind == "table":
        msg = "data.kind is 'table'; there is nothing to see in it, preview a plan of images"
        raise UserInputError(msg)
    rows = []
    for name in _spread(sorted(sites), max_sites):
        cases = list(_chosen_cases(plan, sites[name], cases_per_site))
        views = [_view(plan, case) for case in cases]
        if cases:
            rows.append(_Row(name, _wrapped((notes or {}).get(name, "")), cases, views))
    if not rows:
        msg = f"none of {len(sites)} sites has a case to show; check the sites' data"
        raise UserInputError(msg)
    title = f"{plan.name}: {len(rows)} of {len(sites)} sites"
    write_atomically(out, _sheet(plan, rows, title, heading))


def seen_by_each(
    site: SiteData, names: Iterable[str], shifts: Sequence[Shift], plan: Plan
) -> dict[str, SiteData]:
    """The same cases as each of the named sites would record them.

    For a sheet whose rows differ in nothing but the shift.

    Raises:
        SettingsError: a shift does not fit the plan.
    """
    return {name: shifted_site(replace(site, site=name), shifts, plan) for name in names}


def shift_notes(
    plan: Plan, shifts: Sequence[Shift], sites: Mapping[str, SiteData]
) -> dict[str, str]:
    """What each site's shifts are, a line each with numbers and units; ``no shift`` for none."""
    drawn = {name: drawn_shifts(shifts, plan.seed, name) for name in sites}
    return {
        name: "\n".join(shift.words for shift in own) or "no shift" for name, own in drawn.items()
    }


@dataclass(frozen=True, slots=True)
class _Row:
    """What one site's row holds: its name, the lines beside it, and its pictures."""

    name: str
    lines: list[str]
    cases: list[Case]
    views: list[tuple[drawing.View, drawing.Labels | None]]


class _Page:
    """A figure on which things are placed by pixels from the upper left corner."""

    def __init__(self, width: int, height: int, some: drawing.View) -> None:
        self.width, self.height = width, height
        self.figure, _ = drawing._figure(some, [""])  # the reports' own kind of figure, emptied
        self.figure.clear()
        self.figure.set_layout_engine("none")
        self.figure.set_dpi(DPI)
        self.figure.set_size_inches(width / DPI, height / DPI)

    def write(self, left: int, top: int, text: str, colour: str, *, size: float = 7.5) -> None:
        place = left / self.width, 1 - top / self.height
        weight = "bold" if colour == drawing.INK else "normal"
        self.figure.text(*place, text, color=colour, va="top", fontsize=size, weight=weight)

    def show(
        self, left: int, top: int, view: drawing.View, outlines: Sequence[drawing.Flags]
    ) -> None:
        high, broad = _size(view)
        bottom = 1 - (top + high) / self.height
        axis = self.figure.add_axes(
            (left / self.width, bottom, broad / self.width, high / self.height)
        )
        drawing._show(axis, view)
        axis.set_aspect("auto")  # the box has the picture's shape already
        axis.set_axis_off()
        for number, flags in enumerate(outlines):
            drawing._outline(axis, view, flags, OUTLINES[number % len(OUTLINES)], 0.7)


def _sheet(plan: Plan, rows: Sequence[_Row], title: str, heading: str) -> bytes:
    sizes = [_size(view) for row in rows for view, _ in row.views]
    tall, wide = (max(numbers) for numbers in zip(*sizes, strict=True))
    lines = max(len(row.lines) for row in rows)
    row_pixels = max(tall + LABEL_PIXELS, NAME_PIXELS + lines * LINE_PIXELS) + GAP_PIXELS
    columns = max(len(row.views) for row in rows)
    page = _Page(
        TEXT_PIXELS + columns * (wide + GAP_PIXELS),
        HEAD_PIXELS + len(rows) * row_pixels,
        rows[0].views[0][0],
    )
    page.write(8, 6, title, drawing.INK, size=9)
    page.write(8, 25, heading, drawing.SOFT)
    if any(mask is not None for row in rows for _, mask in row.views):
        for number, name in enumerate(plan.data.classes[1:]):
            left = TEXT_PIXELS + number * CLASS_PIXELS
            page.write(left, 42, f"outline: {name}", OUTLINES[number % len(OUTLINES)])
    for number, row in enumerate(rows):
        top = HEAD_PIXELS + number * row_pixels
        page.write(8, top, row.name, drawing.INK, size=9)
        page.write(8, top + NAME_PIXELS, "\n".join(row.lines), drawing.SOFT)
        for column, (case, (view, mask)) in enumerate(zip(row.cases, row.views, strict=True)):
            left = TEXT_PIXELS + column * (wide + GAP_PIXELS)
            page.show(left, top, view, _outlines(plan, mask))
            page.write(left, top + _size(view)[0] + 1, _words(plan, case), drawing.SOFT)
    return drawing._png(page.figure, [], cut=False)


def _outlines(plan: Plan, mask: drawing.Labels | None) -> list[drawing.Flags]:
    if mask is None:
        return []
    return [np.equal(mask, number) for number in range(1, len(plan.data.classes))]


def _wrapped(note: str) -> list[str]:
    return [
        part
        for line in note.splitlines()
        for part in textwrap.wrap(line, LINE_LETTERS, subsequent_indent="  ")
    ]


def _chosen_cases(plan: Plan, site: SiteData, most: int) -> Iterator[Case]:
    cases = site.test if plan.task == "anomaly" else site.train
    return (_window(cases[index]) for index in _spread(range(len(cases)), most))


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` items, evenly spread, the first among them."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def _window(case: Case) -> Case:
    """The piece of a large 2D image where the mask is fullest, or its middle."""
    shape = case.image.shape[1:]
    if len(shape) != 2 or max(shape) <= WINDOW_PIXELS:
        return case
    centre = np.array(shape) / 2
    if case.mask is not None and (case.mask > 0).any():
        centre = np.median(np.argwhere(case.mask > 0), axis=0)
    starts = [
        int(np.clip(c - WINDOW_PIXELS // 2, 0, max(0, n - WINDOW_PIXELS)))
        for c, n in zip(centre, shape, strict=True)
    ]
    part = tuple(slice(start, start + WINDOW_PIXELS) for start in starts)
    mask = None if case.mask is None else case.mask[part]
    return replace(case, image=case.image[(slice(None), *part)], mask=mask)


def _view(plan: Plan, case: Case) -> tuple[drawing.View, drawing.Labels | None]:
    shape, cut = case.image.shape[1:], drawing.middle_slice(case)
    if len(shape) == 3 and case.mask is not None and (case.mask > 0).any():
        cut, _ = drawing.fullest_slice(case.mask, case.native_spacing)
    return drawing.view(plan, case, shape, cut), None if case.mask is None else case.mask[cut]


def _size(view: drawing.View) -> tuple[int, int]:
    """Height and width of a picture on the sheet, pixels."""
    rows, columns = view.turn(view.plane).shape[:2]
    factor = max(1, -(-CELL_PIXELS // max(rows, columns)))
    return round(rows * factor * view.aspect), columns * factor


def _words(plan: Plan, case: Case) -> str:
    if plan.task == "segmentation":
        return "" if case.mask is not None and (case.mask >= 0).any() else "no mask"
    return plan.data.classes[case.label] if case.label >= 0 else "no label"
