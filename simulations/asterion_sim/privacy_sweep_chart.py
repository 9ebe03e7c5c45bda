"""A curve over epsilon as one SVG that needs no page around it: a README can show it."""

import math
from collections.abc import Callable

from markupsafe import escape

from asterion_shared.reports.charts import Series, nice_ticks
from asterion_shared.reports.metric_words import label
from asterion_sim.privacy_curve import PLACEMENT_WORDS, Curve, CurvePoint, Placement

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 14, 52
LEGEND_LINE = 20
_APART = 7
"""Pixels between the markers of two placements at the same epsilon."""

_COLOURS = ("#0069a8", "#b34700", "#00765a", "#a13c7c")
_DARK_COLOURS = ("#56b4e9", "#f0914e", "#3fc79b", "#e79bc9")


def _rules(rules: str, colours: tuple[str, ...]) -> str:
    """CSS of one colour scheme. Each rule holds inside the chart only: a page may hold it."""
    named = [f".c{number}{{stroke:{c};fill:{c}}}" for number, c in enumerate(colours)]
    return "".join(f".sweep {rule}" for rule in (*rules.split(), *named))


_STYLE = (
    ".sweep text{font:13px system-ui,sans-serif}"
    + _rules(
        "text{fill:#55606c} .grid{stroke:#d8dee5} .plain{stroke:#17212b;fill:#17212b} "
        ".base{stroke:#55606c;stroke-dasharray:7,5} .back{fill:#ffffff}",
        _COLOURS,
    )
    + "@media(prefers-color-scheme:dark){"
    + _rules(
        "text{fill:#a6b2be} .grid{stroke:#33404c} .plain{stroke:#e9eef3;fill:#e9eef3} "
        ".base{stroke:#a6b2be} .back{fill:#182129}",
        _DARK_COLOURS,
    )
    + "}"
)


def sweep_chart(curve: Curve) -> str:
    """The headline metric against epsilon, on a logarithmic axis, as SVG text.

    Bars are the intervals; hollow markers are points that are not usable. The thick line is the
    plan without privacy, with its interval, the dashed one the trivial baseline.
    """
    placements: list[Placement] = sorted(
        {p.placement for p in curve.points if p.placement}, key=list(PLACEMENT_WORDS).index
    )
    epsilons = sorted({p.epsilon for p in curve.points if p.epsilon is not None})
    top = TOP + LEGEND_LINE * (len(placements) + 1) + 12
    bottom = HEIGHT - BOTTOM
    everything = (curve.without, *curve.points)
    heights = [
        value
        for p in everything
        for value in (p.headline.value, p.headline.low, p.headline.high)
        if value is not None
    ]
    heights.append(curve.baseline)
    ticks = nice_ticks(max(0.0, min(heights)), min(1.0, max(heights)), floor=0.0, ceiling=1.0)
    span_x = math.log(epsilons[-1] / epsilons[0]) or 1.0

    def at_x(epsilon: float) -> float:
        share = math.log(epsilon / epsilons[0]) / span_x if len(epsilons) > 1 else 0.5
        return round(LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48), 1)

    def at_y(value: float) -> float:
        share = min(max((value - ticks[0]) / (ticks[-1] - ticks[0]), 0.0), 1.0)
        return round(bottom - share * (bottom - top), 1)

    name = label(curve.metric)
    parts = [f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="8"/>']
    parts += [_level(y, at_y(y)) for y in ticks]
    parts += [_tick(at_x(e), bottom + 22, f"{e:g}") for e in epsilons]
    parts.append(_tick((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "epsilon (left: more private)"))
    parts.append(_without(curve, at_y))
    legend = [f"without privacy; dashed: trivial baseline ({name})"]
    for index, placement in enumerate(placements):
        shift = _APART * (index - (len(placements) - 1) / 2)
        points = [p for p in curve.points if p.placement == placement]
        parts.append(_placement(points, index, shift, at_x, at_y))
        legend.append(PLACEMENT_WORDS[placement])
    parts += [_legend(words, row) for row, words in enumerate(legend)]
    title = escape(f"{curve.name}: {name} against epsilon")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sweep" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}"><title>{title}</title><style>{_STYLE}</style>{"".join(parts)}</svg>'
    )


def _without(curve: Curve, at_y: Callable[[float], float]) -> str:
    parts = [_across("base", at_y(curve.baseline), 2)]
    found = curve.without.headline
    if found.low is not None and found.high is not None:
        high, low = at_y(found.high), at_y(found.low)
        parts.append(
            f'<rect class="plain" x="{LEFT}" y="{high}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{round(low - high, 1)}" stroke="none" style="stroke:none" opacity="0.15"/>'
        )
    if found.value is not None:
        parts.append(_across("plain", at_y(found.value), 3))
    return "".join(parts)


def _placement(
    points: list[CurvePoint],
    index: int,
    shift: float,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> str:
    """A line through the points that have a value, their intervals and markers."""
    parts, line = [], []
    marker = Series(name="", points=(), style=f"site{index}").marker
    for point in points:
        found = point.headline
        if point.epsilon is None or found.value is None:
            continue
        x, y = round(at_x(point.epsilon) + shift, 1), at_y(found.value)
        line.append(f"{x},{y}")
        if found.low is not None and found.high is not None:
            parts.append(
                f'<path d="M{x} {at_y(found.low)}V{at_y(found.high)}" fill="none" '
                'stroke-width="1.6"/>'
            )
        hollow = ' style="fill:none" stroke-width="1.6"' if point.verdict == "not usable" else ""
        told = f"epsilon {point.epsilon:g}: {found.value:.3f}, {point.verdict}"
        parts.append(
            f'<path d="{marker}" transform="translate({x} {y})"{hollow}>'
            f"<title>{escape(told)}</title></path>"
        )
    parts.append(f'<polyline points="{" ".join(line)}" style="fill:none" stroke-width="2"/>')
    return f'<g class="c{index}">{"".join(parts)}</g>'


def _legend(words: str, row: int) -> str:
    y = TOP + LEGEND_LINE * (row + 0.5)
    style = f"c{row - 1}" if row else "plain"
    marker = Series(name="", points=(), style=f"site{row - 1}").marker if row else ""
    return (
        f'<g class="{style}"><path d="M{LEFT} {y}h30" stroke-width="{2 if row else 3}"/>'
        f'<path d="{marker}" transform="translate({LEFT + 15} {y})"/></g>'
        f'<text x="{LEFT + 40}" y="{y}" dominant-baseline="middle">{escape(words)}</text>'
    )


def _level(value: float, y: float) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/><text x="{LEFT - 10}" y="{y}" '
        f'text-anchor="end" dominant-baseline="middle">{value:g}</text>'
    )


def _across(style: str, y: float, width: float) -> str:
    return f'<path class="{style}" d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke-width="{width}"/>'


def _tick(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{escape(text)}</text>'
