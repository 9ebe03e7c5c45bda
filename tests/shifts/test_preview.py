"""The contact sheet: its size, its order, and that each case is where it belongs."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim import preview
from asterion_sim.preview import seen_by_each, shift_notes, write_preview
from asterion_sim.shift_settings import BiasField, Noise, Psf
from asterion_sim.synthetic import generated_sites

MODELS = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}


def plan_for(task: str = "segmentation", **data: Any) -> Plan:
    values = {"name": "p", "task": task, "seed": 5, "model": {"name": MODELS[task]}}
    return validate(Plan, values | {"data": data}, "test")


def size_of(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("segmentation", {"patch_size": [32, 48]}),
        ("segmentation", {"patch_size": [12, 16, 16], "dimensions": 3}),
        ("classification", {"patch_size": [40, 40], "normalisation": "asinh"}),
        ("anomaly", {"patch_size": [40, 40], "channels": ["red", "green", "blue"]}),
    ],
)
def test_every_task_gives_a_sheet_that_is_the_same_again(
    task: str, data: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_for(task, **data)
    sites = generated_sites(plan, 2, cases_per_site=12)
    for name in ("one.png", "two.png"):
        write_preview(plan, sites, tmp_path / name, cases_per_site=2, heading="distance 0.3")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert imread(tmp_path / "one.png")[..., :3].std() > 0.1


def test_rows_and_columns_are_as_many_as_asked_for(tmp_path: Path) -> None:
    plan = plan_for(patch_size=[64, 64])
    sites = generated_sites(plan, 5, cases_per_site=12)
    write_preview(plan, sites, tmp_path / "a.png", max_sites=3, cases_per_site=4)
    width, height = size_of(tmp_path / "a.png")
    side = 128
    row = side + preview.LABEL_PIXELS + preview.GAP_PIXELS
    assert width == preview.TEXT_PIXELS + 4 * (side + preview.GAP_PIXELS)
    assert height == preview.HEAD_PIXELS + 3 * row


def test_a_picture_shows_its_case_pixel_by_pixel(tmp_path: Path) -> None:
    image = np.zeros((1, 32, 32), np.float32)
    image[0, :16, :16] = 1.0  # bright in the upper left quarter alone
    case = Case(id="a" * 12, image=image)
    data = SiteData(site="s", train=CaseList.of([case, case]), test=CaseList([]))
    plan = plan_for("classification", patch_size=[32, 32])
    write_preview(plan, {"s": data}, tmp_path / "a.png", cases_per_site=2)
    sheet = imread(tmp_path / "a.png")[..., 0]
    for column in range(2):
        left = preview.TEXT_PIXELS + column * (128 + preview.GAP_PIXELS)
        part = sheet[preview.HEAD_PIXELS : preview.HEAD_PIXELS + 128, left : left + 128]
        expected = np.kron(image[0], np.ones((4, 4)))
        assert (np.abs(part - expected) < 0.05).mean() > 0.995


def test_outlines_are_drawn_in_the_classes_colours(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 32, 32)).astype(np.float32)
    mask = np.zeros((32, 32), np.int16)
    mask[8:24, 8:24] = 1
    plan = plan_for(patch_size=[32, 32])

    def blue(mask: np.ndarray) -> int:
        case = Case(id="a" * 12, image=image, mask=mask)
        data = SiteData(site="s", train=CaseList.of([case]), test=CaseList([]))
        write_preview(plan, {"s": data}, tmp_path / "a.png")
        sheet = imread(tmp_path / "a.png")[preview.HEAD_PIXELS :, preview.TEXT_PIXELS :]
        return int((sheet[..., 2] - sheet[..., 0] > 0.2).sum())

    # the rim of 16 x 16 pixels at 4 times their size: 4 * 64 pixels, about one wide
    assert 180 < blue(mask) < 900
    assert blue(np.zeros_like(mask)) == 0


def test_a_large_field_is_shown_where_its_sources_are() -> None:
    mask = np.zeros((400, 300), np.int16)
    mask[350:360, 20:30] = 1
    image = np.zeros((1, 400, 300), np.float32)
    part = preview._window(Case(id="a" * 12, image=image, mask=mask))
    assert part.image.shape == (1, 128, 128)
    assert part.mask is not None
    assert part.mask.sum() == 100


def test_notes_say_what_each_site_has() -> None:
    plan = plan_for()
    shifts = (BiasField(ratio=2, sites=("a",)), Noise(sigma_percent=3.5))
    sites = dict.fromkeys(("a", "b"), generated_sites(plan, 1, cases_per_site=4)["site_001"])
    notes = shift_notes(plan, shifts, sites)
    assert notes == {
        "a": "bias field: ratio 2, degree 3\nnoise: sigma 3.5 %, gaussian",
        "b": "noise: sigma 3.5 %, gaussian",
    }
    assert shift_notes(plan, (), sites)["a"] == "no shift"


def test_the_same_cases_are_seen_by_each_site() -> None:
    plan = plan_for(patch_size=[32, 32], normalisation="asinh", pixel_scale_arcsec=0.3)
    site = generated_sites(plan, 1, cases_per_site=8)["site_001"]
    seen = seen_by_each(site, ["sharp", "soft"], (Psf(seeing_arcsec=2, sites=("soft",)),), plan)
    assert [case.id for case in seen["soft"].train] == [case.id for case in site.train]
    np.testing.assert_array_equal(seen["sharp"].train[0].image, site.train[0].image)
    assert not np.array_equal(seen["soft"].train[0].image, site.train[0].image)
    assert seen["soft"].site == "soft"


def test_a_table_or_no_case_cannot_be_shown(tmp_path: Path) -> None:
    values = {
        "name": "t",
        "task": "classification",
        "data": {"kind": "table", "features": ["age"]},
        "model": {"name": "logistic"},
    }
    with pytest.raises(UserInputError, match="table"):
        write_preview(validate(Plan, values, "t"), {}, tmp_path / "a.png")
    empty = SiteData(site="s", train=CaseList([]), test=CaseList([]))
    with pytest.raises(UserInputError, match="none of 1 sites"):
        write_preview(plan_for(), {"s": empty}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
