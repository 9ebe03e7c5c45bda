from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy", reason="FITS needs astropy")

from asterion_client.settings import read_site_settings
from asterion_shared.plan import read_plan
from asterion_sim.demo_sites import GAP, OBSERVATORIES, band_rows, make_demo_sites, observe
from asterion_sim.sky_field import SkyField, read_sky_field, write_sky_field

ROOT = Path(__file__).parents[2]


def test_three_observatories_share_no_pixel(tmp_path: Path) -> None:
    folders = make_demo_sites(tmp_path)
    assert [f.name for f in folders] == [o.name for o in OBSERVATORIES]
    whole = read_sky_field(ROOT / "simulations/asterion_sim/assets/hst_xdf.fits")
    rows = band_rows(whole.image.shape[0], 3)
    assert all(b.start - a.stop == GAP for a, b in pairwise(rows))
    assert rows[-1].stop <= whole.image.shape[0]
    for folder, part in zip(folders, rows, strict=True):
        field = read_sky_field(folder / "images" / "field.fits")
        assert np.array_equal(field.segments, whole.segments[part])
        assert read_site_settings(folder / "site.toml").task == "segmentation"


def test_a_pixel_of_one_part_changes_no_other_part(tmp_path: Path) -> None:
    image = np.zeros((400, 90), np.float32)
    bright = image.copy()
    first = band_rows(400, 3)[0]
    bright[first.stop - 1] = 1e6
    fields = []
    for number, pixels in enumerate((image, bright)):
        source = tmp_path / f"{number}.fits"
        write_sky_field(SkyField(pixels, np.zeros(image.shape, np.int32), 1.0, {}), source)
        folders = make_demo_sites(tmp_path / str(number), source)
        fields.append([read_sky_field(f / "images" / "field.fits").image for f in folders])
    changed = [not np.array_equal(a, b) for a, b in zip(*fields, strict=True)]
    assert changed == [True, False, False]


def test_world_coordinates_move_with_the_part(tmp_path: Path) -> None:
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 5.0, "CRPIX2": 300.0}
    source = tmp_path / "field.fits"
    pixels = np.zeros((400, 90), np.float32)
    write_sky_field(SkyField(pixels, np.zeros((400, 90), np.int32), 1.0, header), source)
    folders = make_demo_sites(tmp_path / "sites", source)
    starts = [part.start for part in band_rows(400, 3)]
    for folder, start in zip(folders, starts, strict=True):
        moved = read_sky_field(folder / "images" / "field.fits").header
        assert moved["CRPIX1"] == 5.0
        assert moved["CRPIX2"] == 300.0 - start


@pytest.mark.parametrize("by", OBSERVATORIES, ids=lambda by: by.name)
def test_the_sky_and_its_noise_are_as_stated(by) -> None:  # type: ignore[no-untyped-def]
    seen = observe(np.zeros((200, 200), np.float32), 3.0, by)
    assert seen.mean() == pytest.approx(by.sky, abs=5 * by.gain * by.noise_rms * 3 / 200)
    assert seen.std() == pytest.approx(by.gain * by.noise_rms * 3, rel=0.03)


def test_the_demo_plan_asks_for_at_least_five_rounds() -> None:
    plan = read_plan(ROOT / "simulations/asterion_sim/assets/demo_plan.toml")
    assert plan.task == "segmentation"
    assert plan.rounds.count >= 5
    assert plan.data.patch_size[0] <= GAP
