"""Masks of the sky with their coordinates, catalogues, completeness and purity."""

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from tests.predict.releases import PLANE, Bright, Mean, plan_of, predict, released

from asterion_client.predict.reference_match import nearest_pairs, read_reference
from asterion_client.predict.sky_desk import sky_desk
from asterion_shared.errors import FileProblemError, UserInputError

SCALE_ARCSEC = 0.5
BOXES = ((2, 5, 2, 4), (10, 12, 20, 25), (30, 31, 8, 9))  # rows, columns


def world(frame: str = "ICRS") -> WCS:
    """Turned by 30 degrees, at declination 60, where a degree of right ascension is half."""
    found = WCS(naxis=2)
    turn, step = math.radians(30), SCALE_ARCSEC / 3600
    found.wcs.ctype = ["GLON-TAN", "GLAT-TAN"] if frame == "galactic" else ["RA---TAN", "DEC--TAN"]
    found.wcs.crval, found.wcs.crpix = [150.0, 60.0], [16.5, 20.5]
    found.wcs.cd = step * np.array([[-math.cos(turn), math.sin(turn)],
                                    [math.sin(turn), math.cos(turn)]])  # fmt: skip
    if frame == "FK5":
        found.wcs.radesys, found.wcs.equinox = "FK5", 1975.0
    return found


def store_field(folder: Path, coordinates: WCS | None = None, frame: str = "ICRS") -> Path:
    folder.mkdir()
    image = np.zeros((40, 32), np.float32)
    for number, (top, bottom, left, right) in enumerate(BOXES, start=1):
        image[top:bottom, left:right] = number
    image[20:22, 20:22] = 5
    image[20, 20] = np.nan  # a bad pixel, which is in no source
    header = (coordinates or world(frame)).to_header()
    fits.PrimaryHDU(image, header).writeto(folder / "field.fits")
    return folder


def catalogue(out: Path) -> Table:
    return Table(fits.getdata(out / "catalogues/field.fits", "SOURCES"))


@pytest.mark.parametrize("frame", ["ICRS", "galactic", "FK5"])
def test_sources_have_the_positions_of_the_coordinates(tmp_path: Path, frame: str) -> None:
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    found = predict(model, store_field(tmp_path / "in", frame=frame), tmp_path / "out")
    assert found.facts["sources"] == 4
    rows = catalogue(tmp_path / "out")
    order = np.argsort(rows["Y"])
    x = np.array([2.5, 22.0, 20 + 2 / 3, 8.0])
    y = np.array([3.0, 10.5, 20 + 2 / 3, 30.0])
    np.testing.assert_allclose(rows["X"][order], x)
    np.testing.assert_allclose(rows["Y"][order], y)
    sky = world(frame).pixel_to_world(x, y).icrs
    away = SkyCoord(rows["RA"][order], rows["DEC"][order], unit="deg").separation(sky)
    assert away.arcsec.max() < 1e-6
    assert rows["NPIX"][order].tolist() == [6, 10, 3, 1]
    np.testing.assert_allclose(rows["AREA"][order], np.array([6, 10, 3, 1]) * SCALE_ARCSEC**2)
    np.testing.assert_allclose(rows["FLUX_grey"][order], [6, 20, 15, 3])
    assert set(rows["CLASS"]) == {"bright"}
    with fits.open(tmp_path / "out/masks/field.fits") as mask:
        stored = fits.getdata(tmp_path / "in/field.fits")
        np.testing.assert_array_equal(mask["SEG"].data, np.nan_to_num(stored) > 0)
        there = WCS(mask["SEG"].header).pixel_to_world(31, 39)
        assert there.separation(world(frame).pixel_to_world(31, 39)).arcsec < 1e-6
        assert {h.name for h in mask} == {"SEG", "PROB", "UNCERT"}


def test_completeness_and_purity_are_counted_by_quarter(tmp_path: Path) -> None:
    places = [(2.5, 3.0), (22.5, 10.5), (15.0, 35.0), (200.0, 3.0), (20.0, 20.0)]
    sky = world().pixel_to_world(*np.array(places).T)
    lines = [f"{c.ra.deg:.9f},{c.dec.deg:.9f},{mag}"
             for c, mag in zip(sky, (20, 21, 25, 18, 19), strict=True)]  # fmt: skip
    (tmp_path / "known.csv").write_text("\n".join(["RAJ2000,DEJ2000,mag", *lines]))
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    reference = {"reference": tmp_path / "known.csv"}
    found = predict(model, store_field(tmp_path / "in"), tmp_path / "out", **reference)
    facts = found.facts["reference"]
    # The fourth lies off the image, the fifth on a bad pixel; both are nobody's fault.
    assert facts["completeness"] == {"count": 2, "of": 3, "share": pytest.approx(2 / 3)}
    assert facts["purity"] == {"count": 2, "of": 4, "share": 0.5}
    assert [i["radius_arcsec"] for i in facts["images"]] == [1.0]
    assert facts["images"][0]["purity"] == facts["purity"]
    counts = [(q["count"], q["of"]) for q in facts["completeness_by_flux"]]
    assert counts == [(0, 1), (1, 1), (1, 1), (0, 0)]  # faintest first
    assert [q["flux_from"] for q in facts["images"][0]["purity_by_flux"]] == [3, 6, 15, 20]
    large = predict(model, tmp_path / "in", tmp_path / "large", smallest_pixels=6, **reference)
    assert large.facts["sources"] == 2
    assert large.facts["reference"]["purity"] == {"count": 2, "of": 2, "share": 1.0}
    near = predict(model, tmp_path / "in", tmp_path / "near", radius_arcsec=0.2, **reference)
    assert near.facts["reference"]["completeness"]["count"] == 1


def test_bad_pixels_are_no_object(tmp_path: Path) -> None:
    # What is dark is the object to this one, and bad pixels are shown to it as dark sky.
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright(-20.0))
    predict(model, store_field(tmp_path / "in"), tmp_path / "out")
    with fits.open(tmp_path / "out/masks/field.fits") as mask:
        assert (mask["SEG"].data[20, 20], mask["PROB"].data[20, 20]) == (0, 0)
        assert (mask["SEG"].data[0, 0], mask["UNCERT"].data[20, 20]) == (1, 0)


def test_quarters_are_those_of_each_image(tmp_path: Path) -> None:
    folder = store_field(tmp_path / "in")
    with fits.open(folder / "field.fits") as bright:
        fits.PrimaryHDU(bright[0].data * 1000, bright[0].header).writeto(folder / "other.fits")
    (tmp_path / "known.csv").write_text("ra,dec\n0,0\n")
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    found = predict(model, folder, tmp_path / "out", reference=tmp_path / "known.csv")
    # Of both images one source each, and not the faint image in the first two quarters.
    assert [q["of"] for q in found.facts["reference"]["purity_by_flux"]] == [2, 2, 2, 2]
    ends = [i["purity_by_flux"][0]["flux_from"] for i in found.facts["reference"]["images"]]
    assert ends == [3, 3000]
    assert found.facts["reference"]["completeness_by_flux"] == []


def test_the_radius_is_two_pixels_where_they_are_wider(tmp_path: Path) -> None:
    wide = world()
    wide.wcs.cd = wide.wcs.cd * 10
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    (tmp_path / "known.csv").write_text("ra,dec\n150,60\n")
    folder = store_field(tmp_path / "in", wide)
    found = predict(model, folder, tmp_path / "out", reference=tmp_path / "known.csv")
    assert found.facts["reference"]["images"][0]["radius_arcsec"] == pytest.approx(10.0)


def test_each_has_one_partner_the_nearest_pair_first() -> None:
    second = 1 / 3600
    ours = (np.array([10.0, 10.0]), np.array([0.0, 0.8 * second]))
    theirs = (np.array([10.0, 200.0]), np.array([0.5 * second, 0.0]))
    hit, found = nearest_pairs(ours, theirs, 1.0)
    assert (hit.tolist(), found.tolist()) == ([False, True], [True, False])
    none = (np.zeros(0), np.zeros(0))
    assert nearest_pairs(none, theirs, 1.0)[1].tolist() == [False, False]


def test_an_image_without_coordinates_has_a_catalogue_in_pixels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = np.zeros((9, 9), np.float32)
    image[4, 5] = 1
    fits.PrimaryHDU(image).writeto(tmp_path / "in/field.fits")
    (tmp_path / "known.csv").write_text("ra,dec\n150,60\n")
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    found = predict(model, tmp_path / "in", tmp_path / "out", reference=tmp_path / "known.csv")
    (row,) = catalogue(tmp_path / "out")
    assert (row["X"], row["Y"], math.isnan(row["RA"])) == (5, 4, True)
    assert found.facts["images_without_coordinates"] == 1
    assert found.facts["reference"]["completeness"]["share"] is None


def test_a_reference_may_be_a_fits_table(tmp_path: Path) -> None:
    table = Table({"ALPHA_J2000": [1.0], "DELTA_J2000": [2.0], "FLUX_AUTO": [3.0], "NAME": ["x"]})
    table.write(tmp_path / "known.fits")
    found = read_reference(tmp_path / "known.fits")
    assert found.flux is not None
    assert (found.ra[0], found.dec[0], found.flux[0]) == (1, 2, 3)
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n")
    with pytest.raises(FileProblemError, match="has the columns x, y"):
        sky_desk(tmp_path / "bad.csv", None)


def test_a_reference_is_for_the_sky(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/a.npz", images=np.zeros((1, 8, 8), np.float32))
    model = released(tmp_path / "r", plan_of("classification", PLANE), Mean())
    with pytest.raises(UserInputError, match="--reference"):
        predict(model, tmp_path / "in", tmp_path / "out", reference=tmp_path / "x.csv")
