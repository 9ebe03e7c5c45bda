"""The page on shifts names every kind and number, and its sheets can be drawn again."""

import re
import runpy
import typing
from pathlib import Path

import pytest

from asterion_sim.shift_settings import LabelShiftSettings, Shift

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
KINDS = typing.get_args(typing.get_args(Shift)[0])


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings.__name__)
def test_the_page_has_a_row_for_each_kind_with_its_numbers(settings: type) -> None:
    page = (ROOT / "docs" / "shifts.md").read_text(encoding="utf-8")
    fields = settings.model_fields  # type: ignore[attr-defined]
    kind = fields["kind"].default
    (row,) = re.findall(rf"^\| `{kind}` \|.*$", page, re.MULTILINE)
    own = set(fields) - set(LabelShiftSettings.model_fields) - {"kind"}
    assert {name for name in own if f"`{name}`" not in row} == set()


@pytest.mark.parametrize("name", ["medical", "sky"])
def test_a_sheet_can_be_drawn_again(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(Path(__file__).with_name("make_sheets.py")))[name](tmp_path)
    drawn = (tmp_path / f"shifts-{name}.png").read_bytes()
    kept = (PICTURES / f"shifts-{name}.png").read_bytes()
    assert drawn[:24] == kept[:24]  # the header, with width and height
    assert len(kept) < 400_000
