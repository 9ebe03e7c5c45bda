"""The charts of a bracket: curves with bands, dumbbells by site, a heat map of models and sites.

SVG text and table cells that take their colours from the page's style sheet, as in ``charts``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from asterion_shared.reports.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    Series,
    nice_ticks,
)

ROW_HEIGHT = 62
LABEL_WIDTH, VERDICT_WIDTH = 150, 84
_OFFSET = 13
_MOST_COLOUR = 50
"""Share of the accent colour, in percent, in the cell of the highest value: the text stays legible
in the light and in the dark page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A curve with its spread.

    Attributes:
        name: what the legend calls it.
        points: (x, middle, low, high), x rising.
        style: ``pooled`` or ``site0`` to ``site5``, classes of the page's style sheet.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]
    style: str

    @property
    def series(self) -> Series:
        """Its middle as a plain curve, with the marker that the legend shows."""
        return Series(name=self.name, points=[p[:2] for p in self.points], style=self.style)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A number with its interval; the interval may be unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumbbell:
    """One row: the models of one site, and what follows.

    Attributes:
        name: of the site.
        spots: by style, drawn from top to bottom; the first two are joined.
        verdict: a word at the right end.
        verdict_class: ``good``, ``bad`` or ``muted``, colours of the page's style sheet.
    """

    name: str
    spots: Sequence[tuple[str, Spot]]
    verdict: str
    verdict_class: str


def band_chart(
    bands: Sequence[Band], *, title: str, x_label: str, floor: float = 0.0, ceiling: float = 1.0
) -> Markup:
    """Curves with shaded bands.

    Args:
        bands: drawn in order, all bands below all curves.
        title: read out by screen readers.
        x_label: name of the horizontal axis.
        floor: the vertical axis never goes below it.
        ceiling: the vertical axis never goes above it.

    Returns:
        An ``svg`` element; empty text when there is no point.
    """
    points = [point for band in bands for point in band.points]
    if not points:
        return Markup("")
    heights = [value for point in points for value in point[1:]]
    ticks_y = nice_ticks(min(heights), max(heights), floor=floor, ceiling=ceiling)
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    ticks_x = [tick for tick in nice_ticks(first, last) if first <= tick <= last]
    at_x = _scale(first, last, LEFT, WIDTH - RIGHT)
    at_y = _scale(ticks_y[0], ticks_y[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid_y(ticks_y, at_y)]
    parts += [_tick(at_x(x), HEIGHT - BOTTOM + 24, f"{x:,g}") for x in ticks_x]
    parts.append(_tick((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    for band in bands:
        upper = [f"{at_x(x)},{at_y(high)}" for x, _, _, high in band.points]
        lower = [f"{at_x(x)},{at_y(low)}" for x, _, low, _ in reversed(band.points)]
        parts.append(
            f'<g class="{band.style}"><polygon points="{" ".join(upper + lower)}" '
            'style="fill: var(--own); opacity: 0.16"/></g>'
        )
    for band in bands:
        line = " ".join(f"{at_x(x)},{at_y(y)}" for x, y, _, _ in band.points)
        dots = "".join(
            _marker(band.series, at_x(x), at_y(y), f"{band.name}, at {x:,g}: {y:.3f} "
                    f"({low:.3f} to {high:.3f})")
            for x, y, low, high in band.points
        )  # fmt: skip
        parts.append(f'<g class="{band.style}"><polyline class="curve" points="{line}"/>{dots}</g>')
    return _svg(parts, title, HEIGHT)


def dumbbell_chart(rows: Sequence[Dumbbell], *, title: str, x_label: str) -> Markup:
    """One row a site: a marker and an interval for each model, the first two joined by a bar.

    Args:
        rows: from top to bottom; all with the same styles.
        title: read out by screen readers.
        x_label: name of the horizontal axis.

    Returns:
        An ``svg`` element; empty text when there is no row.
    """
    if not rows:
        return Markup("")
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    ends = [end for row in rows for _, spot in row.spots
            for end in (spot.value, spot.low, spot.high) if end is not None]  # fmt: skip
    ticks = nice_ticks(min(ends), max(ends), floor=0.0, ceiling=1.0)
    at_x = _scale(ticks[0], ticks[-1], LABEL_WIDTH, WIDTH - VERDICT_WIDTH)
    parts = [
        f'<line class="grid" x1="{at_x(x)}" x2="{at_x(x)}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        + _tick(at_x(x), height - BOTTOM + 24, f"{x:g}")
        for x in ticks
    ]
    parts.append(_tick((LABEL_WIDTH + WIDTH - VERDICT_WIDTH) / 2, height - 8, x_label))
    for number, row in enumerate(rows):
        parts.append(_dumbbell(row, TOP + ROW_HEIGHT * (number + 0.5), at_x))
    return _svg(parts, title, height)


def heat_cells(
    rows: Sequence[tuple[str, Mapping[str, float | None], str]], columns: Sequence[str]
) -> list[tuple[str, list[Markup]]]:
    """Cells of a table of models by sites, tinted from the lowest value to the highest.

    Args:
        rows: name of the model, its metric by site (None where undefined), and the site whose
            cell is framed; empty for none.
        columns: the sites, in order.

    Returns:
        For each row its name and a ``td`` element for each column.
    """
    known = [v for _, values, _ in rows for v in values.values() if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def cell(value: float | None, *, framed: bool) -> Markup:
        if value is None:
            return Markup("<td>\u2013</td>")
        share = (value - low) / (high - low) if high > low else 0.0
        tint = f"color-mix(in srgb, var(--accent) {share * _MOST_COLOUR:.0f}%, var(--card))"
        frame = "; outline: 2px solid var(--ink); outline-offset: -3px" if framed else ""
        style = f"background: {tint}; print-color-adjust: exact{frame}"
        return Markup('<td style="{}">{}</td>').format(style, f"{value:.3f}")

    return [
        (name, [cell(values.get(column), framed=column == framed) for column in columns])
        for name, values, framed in rows
    ]


def _dumbbell(row: Dumbbell, middle: float, at_x: Scale) -> str:
    offsets = {style: _OFFSET * (number - (len(row.spots) - 1) / 2)
               for number, (style, _) in enumerate(row.spots)}  # fmt: skip
    parts = [
        f'<text x="{LABEL_WIDTH - 12}" y="{middle}" class="tick-y">{escape(_short(row.name))}'
        f"<title>{escape(row.name)}</title></text>"
    ]
    if len(row.spots) >= 2:
        (one, first), (other, second) = row.spots[:2]
        ends = (at_x(first.value), middle + offsets[one], at_x(second.value))
        parts.append(
            f'<line x1="{ends[0]}" y1="{ends[1]}" x2="{ends[2]}" y2="{middle + offsets[other]}" '
            'style="stroke: var(--muted); stroke-width: 5; opacity: 0.35; stroke-linecap: round"/>'
        )
    for style, spot in row.spots:
        y = middle + offsets[style]
        told = f"{row.name}: {spot.value:.3f}"
        if spot.low is not None and spot.high is not None:
            told += f" ({spot.low:.3f} to {spot.high:.3f})"
            parts.append(
                f'<g class="{style}"><line x1="{at_x(spot.low)}" x2="{at_x(spot.high)}" y1="{y}" '
                f'y2="{y}" style="stroke: var(--own); stroke-width: 1.6"/></g>'
            )
        dot = _marker(Series(name="", points=(), style=style), at_x(spot.value), y, told)
        parts.append(f'<g class="{style}">{dot}</g>')
    parts.append(
        f'<text x="{WIDTH - VERDICT_WIDTH + 12}" y="{middle}" dominant-baseline="middle" '
        f'style="fill: var(--{row.verdict_class}); font-weight: 600">{escape(row.verdict)}</text>'
    )
    return "".join(parts)


def _marker(series: Series, x: float, y: float, told: str) -> str:
    return (
        f'<path class="dot" d="{series.marker}" transform="translate({x} {round(y, 1)}) '
        f'scale(1.25)"><title>{escape(told)}</title></path>'
    )


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0

    def place(value: float) -> float:
        share = min(max((value - low) / span, 0.0), 1.0)
        return round(start + share * (end - start), 1)

    return place


def _grid_y(ticks: Sequence[float], at_y: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y)}" y2="{at_y(y)}"/>'
        f'<text x="{LEFT - 10}" y="{at_y(y)}" class="tick-y">{y:g}</text>'
        for y in ticks
    )


def _tick(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" class="tick-x">{escape(text)}</text>'


def _svg(parts: Sequence[str], title: str, height: float) -> Markup:
    return Markup(  # noqa: S704  # every text in it is escaped where it is put in
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'style="max-height: {max(400, height * 1.4):.0f}px" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
