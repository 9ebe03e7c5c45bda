import math
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.reports.charts import (
    ALONE,
    Series,
    line_chart,
    nice_ticks,
    site_series,
    spread_series,
)

finite = st.floats(-1e6, 1e6)


@given(finite, finite)
def test_ticks_span_the_values_in_even_round_steps(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    step = ticks[1] - ticks[0]
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert all(math.isclose(y - x, step, rel_tol=1e-6) for x, y in pairwise(ticks))


def test_ticks_respect_floor_and_ceiling() -> None:
    ticks = nice_ticks(0.93, 0.99, floor=0, ceiling=1)
    assert min(ticks) >= 0
    assert max(ticks) <= 1


def test_a_gap_breaks_the_curve() -> None:
    series = Series(name="a", points=[(0, 0.1), (1, None), (2, 0.3), (3, 0.4)])
    root = ET.fromstring(line_chart([series], title="t"))  # noqa: S314  # our own text
    (curve,) = [e for e in root.iter("path") if e.get("class") == "curve"]
    assert (curve.get("d") or "").count("M") == 2
    assert len([e for e in root.iter("path") if e.get("class") == "dot"]) == 3


def test_a_gap_breaks_the_band_and_what_stands_alone_is_seen() -> None:
    series = Series(name="a", points=[(0, 0.1), (1, None), (2, 0.3), (3, 0.4)])
    edges = [(0.0, 0.0, 0.2), (1.0, None, None), (2.0, 0.2, 0.4), (3.0, 0.3, 0.5)]
    root = ET.fromstring(line_chart([series], title="t", band=edges))  # noqa: S314
    polygons = [e.get("points") or "" for e in root.iter("polygon")]
    corners = [[float(p.split(",")[0]) for p in polygon.split()] for polygon in polygons]
    (alone, others) = corners
    assert len(alone) == len(others) == 4
    assert max(alone) - min(alone) == 2 * ALONE
    assert max(alone) < min(others)


def test_higher_values_are_drawn_higher_and_the_baseline_where_it_belongs() -> None:
    series = Series(name="a", points=[(0, 0.0), (1, 1.0)])
    text = line_chart([series], title="t", baseline=0.5, floor=0, ceiling=1)
    root = ET.fromstring(text)  # noqa: S314
    dots = [e.get("transform") or "" for e in root.iter("path") if e.get("class") == "dot"]
    heights = [float(d.rstrip(")").split()[1]) for d in dots]
    (line,) = [e for e in root.iter("line") if e.get("class") == "baseline"]
    assert heights[1] < heights[0]
    assert float(line.get("y1") or 0) == sum(heights) / 2


def test_nothing_to_draw_gives_nothing() -> None:
    assert line_chart([], title="t") == ""
    assert line_chart([Series(name="a", points=[(0, None)])], title="t") == ""


def test_names_are_escaped() -> None:
    text = line_chart([Series(name="<b>&", points=[(0, 1.0)])], title='"><script>')
    assert "<script>" not in text
    assert "<b>" not in text
    ET.fromstring(text)  # noqa: S314


def test_many_sites_are_drawn_thin_few_in_colours_of_their_own() -> None:
    few = site_series((str(i), [(0, 1.0)]) for i in range(6))
    assert len({s.style for s in few}) == len({s.marker for s in few}) == 6
    many = site_series((str(i), [(0, 1.0)]) for i in range(7))
    assert {s.style for s in many} == {"faint"}


def test_a_spread_is_the_quantiles_by_hand_and_breaks_where_nobody_measured() -> None:
    area, middle = spread_series([(0, list(range(11))), (1, []), (2, [5.0])])
    assert area.points == [(0, 9.0), (1, None), (2, 5.0)]
    assert area.lower == [(0, 1.0), (1, None), (2, 5.0)]
    assert middle.points == [(0, 5.0), (1, None), (2, 5.0)]
    root = ET.fromstring(line_chart([area, middle], title="t"))  # noqa: S314
    polygons = [e.get("points") or "" for e in root.iter("polygon")]
    assert [len(p.split()) for p in polygons] == [4, 4]  # each stands alone
    assert "-" not in "".join(polygons)  # the axis reaches down to the lower edge


def test_the_same_numbers_give_the_same_text() -> None:
    series = [Series(name="a", points=[(i, math.sin(i)) for i in range(30)])]
    assert line_chart(series, title="t") == line_chart(series, title="t")
