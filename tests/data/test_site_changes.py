"""What may change at a site during a run, and fields with several images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from asterion_client.data.site_data import load_site_data
from asterion_client.settings import SiteSettings
from asterion_shared.errors import DataProblemError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


def plan(task: str = "classification", **data: Any) -> Plan:
    models = {"classification": {"name": "residual"}, "segmentation": {"name": "unet"}}
    data = {"classes": ["well", "ill"], "patch_size": [8, 8]} | data
    model = {"name": "logistic"} if "features" in data else models[task]
    values = {"name": "p", "task": task, "data": data, "model": model}
    return validate(Plan, values, "plan")


def site(format_: str, task: str = "classification", **data: Any) -> SiteSettings:
    values = {"name": "s", "task": task, "data": {"format": format_, "folder": "data"} | data}
    return validate(SiteSettings, values, "site.toml")


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def store_sky(path: Path, image: np.ndarray, *, mask: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI")]
    if mask:
        hdus.append(fits.ImageHDU((image > 1).astype(np.uint8), name="SEG"))
    fits.HDUList(hdus).writeto(path)


def test_a_renamed_file_is_still_the_same_record(tmp_path: Path) -> None:
    for number in range(8):
        store_sky(tmp_path / f"data/{'well' if number % 2 else 'ill'}/{number}.fits",
                  pixels(number, 9, 9), mask=False)  # fmt: skip
    settings = site("fits")
    before = load_site_data(settings, tmp_path, plan(), run="r")
    (tmp_path / "data/well/3.fits").rename(tmp_path / "data/well/Secret_Person.fits")
    after = load_site_data(settings, tmp_path, plan(), run="r")
    assert after.manifest_sha256 == before.manifest_sha256
    assert {c.id for c in after.train} == {c.id for c in before.train}
    assert {c.id for c in after.test} == {c.id for c in before.test}


@pytest.mark.parametrize("place", [1, 4, 9])
def test_a_row_that_is_put_into_a_table_disturbs_nothing(tmp_path: Path, place: int) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.csv"
    lines = ["age,label", *(f"{30 + i},{'ill' if i % 3 else 'well'}" for i in range(8))]
    path.write_text("\n".join(lines))
    wanted = plan(kind="table", features=["age"])
    before = load_site_data(site("table"), tmp_path, wanted, run="r")
    path.write_text("\n".join([*lines[:place], "99,ill", *lines[place:]]))
    after = load_site_data(site("table"), tmp_path, wanted, run="r")
    assert after.manifest_sha256 == before.manifest_sha256
    for one, other in ((before.train, after.train), (before.test, after.test)):
        assert [c.id for c in one] == [c.id for c in other]
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left.image, right.image)
    following = load_site_data(site("table"), tmp_path, wanted, run="next")
    assert len(following.train) + len(following.test) == 9


def test_what_file_systems_leave_behind_is_no_image(tmp_path: Path) -> None:
    for name in "abcd":
        store_sky(tmp_path / f"data/well/{name}.fits", pixels(1, 9, 9), mask=False)
    (tmp_path / "data/well/._a.fits").write_bytes(b"left by another system")
    (tmp_path / "data/.cache").mkdir()
    data = load_site_data(site("fits"), tmp_path, plan())
    assert data.num_bad_files == 0
    assert len(data.train) + len(data.test) == 4


def test_images_of_one_field_are_cut_at_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    images = {name: pixels(seed, 12, 64) for seed, name in enumerate("gr")}
    for name, image in images.items():
        store_sky(tmp_path / f"data/{name}.fits", image)
    (tmp_path / "data" / "list.csv").write_text("path,group\ng.fits,deep\nr.fits,deep\n")
    settings = site("fits", "segmentation", manifest="list.csv")
    wanted = plan("segmentation", normalisation="none")
    data = load_site_data(settings, tmp_path, wanted)
    assert len(data.train) == len(data.test) == 2
    for case in data.train:
        assert any(np.array_equal(case.image[0], image[:, :40]) for image in images.values())
    for case in data.test:
        assert any(np.array_equal(case.image[0], image[:, 48:]) for image in images.values())
    store_sky(tmp_path / "data/b.fits", pixels(9, 12, 63))
    (tmp_path / "data" / "list.csv").write_text("path,group\ng.fits,deep\nb.fits,deep\n")
    with pytest.raises(DataProblemError, match="several sizes") as caught:
        load_site_data(settings, tmp_path, wanted)
    assert caught.value.code == "settings_invalid"


def test_the_gap_in_a_field_is_a_tile_of_the_plans_pixels(tmp_path: Path) -> None:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg",
                          "CUNIT2": "deg", "CDELT1": -0.1 / 3600, "CDELT2": 0.1 / 3600,
                          "CRVAL1": 1.0, "CRVAL2": 2.0, "CRPIX1": 1.0, "CRPIX2": 1.0})  # fmt: skip
    image = pixels(1, 20, 100)
    mask = fits.ImageHDU((image > 1).astype(np.uint8), name="SEG")
    (tmp_path / "data").mkdir()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, header, name="SCI"), mask]).writeto(
        tmp_path / "data" / "a.fits"
    )
    wanted = plan("segmentation", pixel_scale_arcsec=0.2)  # 8 pixels of the plan are 16 stored
    data = load_site_data(site("fits", "segmentation"), tmp_path, wanted)
    assert data.train[0].native_shape == (20, 75 - 16)
    assert data.test[0].native_shape == (20, 25)
    assert data.test[0].image.shape == (1, 10, 12)
    assert data.test[0].native_spacing == pytest.approx((0.1, 0.1))


def test_masks_do_not_matter_to_classification(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.savez(
        tmp_path / "data" / "a.npz",
        images=pixels(1, 6, 9, 9),
        labels=np.array([0, 1] * 3),
        masks=np.full((6, 9, 9), 200, np.uint8),  # instances, no classes
    )
    data = load_site_data(site("npz"), tmp_path, plan())
    assert len(data.train) + len(data.test) == 6
    assert data.train[0].mask is None


def test_a_site_that_only_evaluates_needs_some_data(tmp_path: Path) -> None:
    for name in "abcd":
        store_sky(tmp_path / f"data/well/{name}.fits", pixels(1, 9, 9), mask=False)
    settings = site("fits", test_fraction=1.0)
    values = plan().model_dump() | {"kind": "count"}
    counted = load_site_data(settings, tmp_path, validate(Plan, values, "plan"))
    assert (len(counted.train), len(counted.test)) == (0, 4)
    with pytest.raises(DataProblemError) as caught:
        load_site_data(settings, tmp_path, plan())
    assert caught.value.code == "no_data"
