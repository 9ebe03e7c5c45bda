"""The reliability diagram: how sure the model was, how often it was right, and on how many calls.

DeGroot and Fienberg 1983; the 95 % interval of each share is Wilson's.
"""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from asterion_shared.metrics.confusion import NUM_CONFIDENCE_BINS
from asterion_shared.metrics.reliability import ConfidenceBin, Reliability
from asterion_shared.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.report_page import plural
from asterion_shared.result import Result

MOST_CURVES = 30
"""Sites that are drawn behind the pooled points; of more, none is."""

FEWEST_CALLS = 10
"""Calls in a range from which on a site's line goes through it: of fewer the share jumps."""

_COUNTS = 110  # height of the bars of counts below the diagram
_ROOM = 34  # between the two, for the numbers on the bars

_MEANING = (
    "A model that says 80 % should be right in 80 % of such calls. On the dashed line it is; below "
    "the line it is surer than it should be, above it not sure enough. Each dot is a range of "
    "confidence, its whisker the 95 % interval, the bar below it how many calls are in it."
)
_TOO_LOW = (
    "The calibration error that is read off merged ranges can only come out too low: within a "
    "range, being too sure and being not sure enough cancel."
)


def calibration_section(result: Result) -> dict[str, Any]:
    """What the page shows of calibration; all of it empty where nothing was told."""
    pooled = result.final_calibration
    if pooled is None:
        return {"calibration_chart": "", "calibration_notes": [], "calibration_rows": []}
    return {
        "calibration_chart": reliability_chart(pooled, result.site_calibration),
        "calibration_notes": _notes(result, pooled),
        "calibration_rows": [_row(one) for one in pooled.bins],
    }


def _notes(result: Result, pooled: Reliability) -> list[str]:
    error = result.final_metrics.get("calibration_error")
    notes = [_MEANING]
    if error is not None:
        notes.append(
            f"Mean gap between confidence and the share that was right, weighted by calls "
            f"(calibration error): {number(error)}."
        )
    if pooled.is_merged:
        notes.append(
            f"Sites merged ranges in which too few patients stood; {pooled.num_ranges} of "
            f"{NUM_CONFIDENCE_BINS} are left over all sites. {_TOO_LOW}"
        )
    merged = [name for name, one in result.site_calibration.items() if one.is_merged]
    if merged:
        notes.append(
            f"The same holds for the calibration errors of {plural(len(merged), 'site')} that "
            "merged ranges: small ones say little."
        )
    silent = [name for name in result.final_sites if name not in result.site_calibration]
    if silent and not result.secure_sum:
        notes.append(
            f"{plural(len(silent), 'site')} sent nothing for it, because too few patients stand "
            "behind it there; the diagram is over the others."
        )
    if 0 < len(result.site_calibration) <= MOST_CURVES:
        notes.append(
            f"The thin lines are the sites, through ranges with at least {FEWEST_CALLS} calls."
        )
    return notes


def _row(one: ConfidenceBin) -> tuple[str, ...]:
    low, high = one.right_bounds
    return (f"{one.low:.0%} to {one.high:.0%}", f"{one.num_cases:,}", number(one.confidence),
            number(one.right), f"{number(low)} to {number(high)}")  # fmt: skip


def reliability_chart(pooled: Reliability, sites: Mapping[str, Reliability]) -> Markup:
    """Confidence against the share that was right, with the number of calls below.

    Args:
        pooled: over all sites.
        sites: of each, drawn thin behind it; of more than :data:`MOST_CURVES` none is.

    Returns:
        An ``svg`` element.
    """
    drawn = sites if len(sites) <= MOST_CURVES else {}
    bins = [one for each in (pooled, *drawn.values()) for one in each.bins]
    # Of K classes no call is less sure than 1 / K: room below that would stay empty.
    first = min(math.floor(min(one.low for one in bins) * 5) / 5, 0.8)

    def at_x(x: float) -> float:
        return round(LEFT + (x - first) / (1 - first) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM), 1)

    parts = [_axes(first, at_x, at_y)]
    parts += [_site_line(name, one, at_x, at_y) for name, one in drawn.items()]
    parts.append('<g class="pooled">')
    parts += [_point(one, at_x, at_y) for one in pooled.bins]
    parts.append("</g>")
    parts.append(_bars(pooled, at_x))
    title = "Reliability diagram: share of right calls by confidence, with the number of calls"
    height = HEIGHT + _ROOM + _COUNTS
    return Markup(  # noqa: S704  # every text in it is escaped where it is put in
        f'<svg class="chart reliability" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title>{"".join(parts)}</svg>'
    )


def _axes(first: float, at_x: Scale, at_y: Scale) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y)}" y2="{at_y(y)}"/>'
        f'<text x="{LEFT - 10}" y="{at_y(y)}" class="tick-y">{y:.0%}</text>'
        for y in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    steps = [x / 10 for x in range(round(first * 10), 11)]
    ticks = steps if len(steps) <= 6 else steps[::2]
    lines += [
        f'<text x="{at_x(x)}" y="{HEIGHT - BOTTOM + 24}" class="tick-x">{x:.0%}</text>'
        for x in ticks
    ]
    lines.append(
        f'<line class="baseline" x1="{at_x(first)}" y1="{at_y(first)}" x2="{at_x(1.0)}" '
        f'y2="{at_y(1.0)}"/>'
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" class="tick-x">confidence of the call; upwards: '
        "share that was right</text>"
    )
    return "".join(lines)


def _site_line(name: str, site: Reliability, at_x: Scale, at_y: Scale) -> str:
    shown = [one for one in site.bins if one.num_cases >= FEWEST_CALLS]
    points = " ".join(f"{at_x(one.confidence)},{at_y(one.right)}" for one in shown)
    return (
        f'<g class="faint"><polyline class="curve" points="{points}">'
        f"<title>{escape(name)}</title></polyline></g>"
    )


def _point(one: ConfidenceBin, at_x: Scale, at_y: Scale) -> str:
    x, (low, high) = at_x(one.confidence), one.right_bounds
    return (
        f'<path class="whisker" d="M{x} {at_y(low)}V{at_y(high)}"/>'
        f'<circle class="dot" cx="{x}" cy="{at_y(one.right)}" r="5"><title>confidence '
        f"{one.confidence:.0%}, right {one.right:.0%}, {one.num_cases:,} calls</title></circle>"
    )


def _bars(pooled: Reliability, at_x: Scale) -> str:
    """The calls of each range: bars whose height is the count, with the count on it."""
    floor, most = HEIGHT + _ROOM + _COUNTS - 8, max(one.num_cases for one in pooled.bins)
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>']
    for one in pooled.bins:
        height = round(max(one.num_cases / most * (_COUNTS - 24), 1.0), 1)
        left, right = at_x(one.low) + 1, at_x(one.high) - 1
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{floor - height:.1f}" '
            f'width="{max(right - left, 1):.1f}" height="{height}"/>'
            f'<text x="{(left + right) / 2:.1f}" y="{floor - height - 6:.1f}" class="count">'
            f"{_short(one.num_cases)}</text>"
        )
    return "".join(parts)


def _short(count: int) -> str:
    """A count that fits on a bar.

    >>> _short(9_999), _short(12_345)
    ('9,999', '12k')
    """
    return f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
