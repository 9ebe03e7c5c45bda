import re
from xml.etree import ElementTree as ET

from asterion_shared.reports.bracket_charts import (
    LABEL_WIDTH,
    VERDICT_WIDTH,
    Band,
    Dumbbell,
    Spot,
    band_chart,
    dumbbell_chart,
    heat_cells,
)
from asterion_shared.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

NASTY = '<b>"x" & y</b>'


def parsed(svg: str) -> ET.Element:
    """The text as XML: it is well-formed."""
    return ET.fromstring(svg)  # noqa: S314  # our own text


def row(name: str = "north", verdict: str = "helps") -> Dumbbell:
    return Dumbbell(
        name=name,
        spots=[
            ("site1", Spot(value=0.5, low=0.0, high=1.0)),
            ("site0", Spot(value=1.0)),
            ("site2", Spot(value=0.25, low=0.2, high=0.3)),
        ],
        verdict=verdict,
        verdict_class="good",
    )


def test_a_band_lies_where_its_numbers_are() -> None:
    points = [(0.0, 0.5, 0.0, 1.0), (10.0, 1.0, 0.5, 1.0)]
    svg = band_chart([Band(name="a", points=points, style="site0")], title="t", x_label="steps")
    parsed(svg)
    left, right, top, bottom = float(LEFT), float(WIDTH - RIGHT), float(TOP), float(HEIGHT - BOTTOM)
    middle = (top + bottom) / 2
    polygon = re.search(r'polygon points="([^"]*)"', svg)
    line = re.search(r'polyline class="curve" points="([^"]*)"', svg)
    assert polygon is not None
    assert line is not None
    # up along the highs, back along the lows
    assert polygon[1] == (f"{left},{top} {right},{top} {right},{middle} {left},{bottom}")
    assert line[1] == f"{left},{middle} {right},{top}"
    assert "a, at 10: 1.000 (0.500 to 1.000)" in svg


def test_a_dumbbell_joins_own_and_together() -> None:
    svg = dumbbell_chart([row()], title="t", x_label="Dice")
    root = parsed(svg)
    left, right = float(LABEL_WIDTH), float(WIDTH - VERDICT_WIDTH)
    bar = next(e for e in root.iter() if "stroke-width: 5" in e.get("style", ""))
    assert float(bar.get("x1", "")) == (left + right) / 2  # own, 0.5 of 0 to 1
    assert float(bar.get("x2", "")) == right  # together, 1.0
    intervals = [e for e in root.iter() if "stroke-width: 1.6" in e.get("style", "")]
    assert len(intervals) == 2  # the second has none
    assert "north: 0.500 (0.000 to 1.000)" in svg
    assert "north: 1.000<" in svg


def test_texts_are_escaped_and_long_names_cut() -> None:
    svg = dumbbell_chart([row(NASTY * 3, NASTY)], title=NASTY, x_label=NASTY)
    parsed(svg)
    assert "<b>" not in svg
    assert "\u2026" in svg
    band = Band(name=NASTY, points=[(0, 0.5, 0.4, 0.6)], style="site0")
    svg = band_chart([band], title=NASTY, x_label=NASTY)
    parsed(svg)
    assert "<b>" not in svg


def test_nothing_to_draw_is_nothing() -> None:
    assert band_chart([], title="t", x_label="x") == ""
    assert dumbbell_chart([], title="t", x_label="x") == ""


def test_cells_are_tinted_from_the_lowest_to_the_highest() -> None:
    rows = [("one", {"a": 0.2, "b": 0.6}, "a"), ("two", {"a": 1.0, "b": None}, "")]
    (_, first), (_, second) = heat_cells(rows, ["a", "b"])
    assert "var(--accent) 0%" in first[0]
    assert "outline" in first[0]
    assert "var(--accent) 25%" in first[1]  # half way of at most 50 %
    assert "outline" not in first[1]
    assert "var(--accent) 50%" in second[0]
    assert second[1] == "<td>\u2013</td>"
    ((_, level),) = heat_cells([("one", {"a": 0.5}, "")], ["a"])
    assert "var(--accent) 0%" in level[0]
