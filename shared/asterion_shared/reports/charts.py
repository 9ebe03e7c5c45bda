"""Curves as SVG text that takes its colours from the page, so that dark mode just works.

The same numbers always give the same text.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

Scale = Callable[[float], float]
Points = Sequence[tuple[float, float | None]]
Between = tuple[float, float | None, float | None]
"""x, and a lower and an upper edge there; None where there is none."""

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 16, 60
ALONE = 5
"""Half the width of an interval between two gaps."""

NUM_COLOURS = 6
"""Site colours of the page's style sheet; each goes with a marker of its own."""

_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-4 -4H4V4H-4Z",
    "M0 -5L5 4H-5Z",
    "M0 -5.5L5 0L0 5.5L-5 0Z",
    "M0 5L5 -4H-5Z",
    "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5Z",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve.

    Attributes:
        name: what the legend and the tooltips call it.
        points: x rising, y None where there is no value: the curve has a gap there.
        style: ``pooled``, ``faint``, ``spread`` or ``site0`` to ``site5``, also with `` dashed``
            after it; classes of the page's style sheet.
        lower: the lower edge at the same x, for an area instead of a curve; else empty.
    """

    name: str
    points: Points
    style: str = "pooled"
    lower: Points = ()

    @property
    def marker(self) -> str:
        """Path of its marker around (0, 0); empty when it has none."""
        if self.style in ("faint", "spread"):
            return ""
        return _MARKERS[int(self.style[4]) if self.style.startswith("site") else 0]


def site_series(values: Iterable[tuple[str, Points]]) -> list[Series]:
    """A curve for each site: its own colour and marker, or all of them thin when they are many."""
    sites = list(values)
    few = len(sites) <= NUM_COLOURS
    return [
        Series(name=name, points=points, style=f"site{index}" if few else "faint")
        for index, (name, points) in enumerate(sites)
    ]


def spread_series(values: Iterable[tuple[float, Sequence[float]]]) -> list[Series]:
    """The middle of many sites instead of a curve for each: their median, and an area around it.

    Args:
        values: x, rising, and the value of every site that has one there, in any order.

    Returns:
        The area between the 10 % and the 90 % quantile (linear between neighbours), and the
        median; both have a gap where no site has a value.
    """
    low: list[tuple[float, float | None]] = []
    middle: list[tuple[float, float | None]] = []
    high: list[tuple[float, float | None]] = []
    for x, known in values:
        ends = np.quantile(known, (0.1, 0.5, 0.9)).tolist() if len(known) else (None, None, None)
        for points, end in zip((low, middle, high), ends, strict=True):
            points.append((x, end))
    return [
        Series(name="middle 80 % of the sites", points=high, lower=low, style="spread"),
        Series(name="median of the sites", points=middle, style="site0"),
    ]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "round",
    baseline: float | None = None,
    band: Sequence[Between] = (),
    floor: float | None = None,
    ceiling: float | None = None,
    from_zero: bool = False,
) -> Markup:
    """Curves over rounds.

    Args:
        series: drawn in order, so the last one is on top.
        title: read out by screen readers.
        x_label: name of the horizontal axis.
        baseline: a dashed horizontal line.
        band: (x, low, high) of a shaded band, such as a confidence interval; None is a gap.
        floor: the vertical axis never goes below it.
        ceiling: the vertical axis never goes above it.
        from_zero: the vertical axis starts at 0.

    Returns:
        An ``svg`` element; empty text when no series has a value.
    """
    known = [(x, y) for one in series for x, y in (*one.points, *one.lower) if y is not None]
    if not known:
        return Markup("")
    heights = [y for _, y in known] + [y for _, *ends in band for y in ends if y is not None]
    heights += [baseline] if baseline is not None else []
    heights += [0.0] if from_zero else []
    ticks_y = nice_ticks(min(heights), max(heights), floor=floor, ceiling=ceiling)
    first, last = min(x for x, _ in known), max(x for x, _ in known)
    span_x, span_y = (last - first) or 1.0, ticks_y[-1] - ticks_y[0]

    def at_x(x: float) -> float:
        share = (x - first) / span_x if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        share = min(max((y - ticks_y[0]) / span_y, 0.0), 1.0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        _axes(ticks_y, _round_ticks(first, last), at_x, at_y, x_label),
        _between(band, "band", at_x, at_y),
    ]
    if baseline is not None:
        y = at_y(baseline)
        parts.append(f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts += [(_area if one.lower else _curve)(one, at_x, at_y) for one in series]
    return Markup(  # noqa: S704  # every text in it is escaped where it is put in
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def nice_ticks(
    low: float, high: float, *, floor: float | None = None, ceiling: float | None = None
) -> list[float]:
    """Four to eight round numbers that span [low, high], in steps of 1, 2 or 5 times a power of 10.

    >>> nice_ticks(0.02, 0.71, floor=0, ceiling=1)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if high - low < 1e-9:
        low, high = low - max(abs(low) * 0.05, 0.01), high + max(abs(high) * 0.05, 0.01)
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    if high <= low:
        high = low + 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(index * step, decimals) for index in range(first, last + 1)]


def _round_ticks(first: float, last: float) -> list[int]:
    """At most nine whole numbers from first to last."""
    step = max(1, math.ceil((last - first) / 8))
    return list(range(math.ceil(first), math.floor(last) + 1, step))


def _axes(ticks_y: list[float], ticks_x: list[int], at_x: Scale, at_y: Scale, x_label: str) -> str:
    step = ticks_y[1] - ticks_y[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y)}" y2="{at_y(y)}"/>'
        f'<text x="{LEFT - 10}" y="{at_y(y)}" class="tick-y">{y:.{decimals}f}</text>'
        for y in ticks_y
    ]
    lines += [
        f'<text x="{at_x(x)}" y="{HEIGHT - BOTTOM + 24}" class="tick-x">{x}</text>' for x in ticks_x
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="tick-x">{escape(x_label)}</text>')
    return "".join(lines)


def _curve(series: Series, at_x: Scale, at_y: Scale) -> str:
    commands, pen_down = [], False
    for x, y in series.points:
        if y is not None:
            commands.append(f"{'L' if pen_down else 'M'}{at_x(x)} {at_y(y)}")
        pen_down = y is not None
    parts = [f'<path class="curve" d="{"".join(commands)}"/>']
    if series.marker and len(series.points) <= 40:
        parts += [
            f'<path class="dot" d="{series.marker}" transform="translate({at_x(x)} {at_y(y)})">'
            f"<title>{escape(series.name)}, round {x:g}: {y:.3f}</title></path>"
            for x, y in series.points
            if y is not None
        ]
    return f'<g class="{series.style}">{"".join(parts)}</g>'


def _area(series: Series, at_x: Scale, at_y: Scale) -> str:
    pairs = zip(series.points, series.lower, strict=True)
    edges = [(x, low, high) for (x, high), (_, low) in pairs]
    return f'<g class="{series.style}">{_between(edges, "area", at_x, at_y)}</g>'


def _between(edges: Sequence[Between], style: str, at_x: Scale, at_y: Scale) -> str:
    """What lies between two edges; each stretch without a gap is a polygon."""
    stretches: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in edges:
        if high is None or low is None:
            stretches.append([])
        else:
            stretches[-1].append((at_x(x), at_y(low), at_y(high)))
    polygons = ""
    for stretch in filter(None, stretches):
        if len(stretch) == 1:  # it has no width of its own
            ((x, low, high),) = stretch
            stretch = [(round(x + by, 1), low, high) for by in (-ALONE, ALONE)]
        upper = [f"{x},{high}" for x, _, high in stretch]
        lower = [f"{x},{low}" for x, low, _ in reversed(stretch)]
        polygons += f'<polygon class="{style}" points="{" ".join(upper + lower)}"/>'
    return polygons
