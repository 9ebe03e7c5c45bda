"""FITS: scaled and compressed pixels, bad ones, the scale of the sky, parts of a mosaic."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from asterion_client.data.fits import fits_grid, read_fits
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.settings import SiteDataSettings
from asterion_shared.errors import DataProblemError

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = SiteDataSettings(format="fits")
WEIGHTED = SiteDataSettings(format="fits", weight_hdu="WHT")
NOISE = np.random.default_rng(1).normal(100, 5, (20, 30)).astype(np.float32)


def store(path: Path, *hdus: fits.hdu.base.ExtensionHDU) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def wcs_header(arcsec: float) -> fits.Header:
    world = WCS(naxis=2)
    world.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    world.wcs.crval = [53.1, -27.8]
    world.wcs.crpix = [10, 10]
    turn = np.deg2rad(30)
    matrix = [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    world.wcs.cd = np.array(matrix) * arcsec / 3600
    return world.to_header()


def test_unsigned_integers_stored_with_an_offset_keep_their_values(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 32768, 65535]] * 2, np.uint16)
    path = store(tmp_path / "a.fits", fits.ImageHDU(stored, name="SCI"))
    with fits.open(path) as hdus:
        assert hdus["SCI"].header["BITPIX"] == 16, "the test needs an offset in the file"
    raw = read_fits(path, PLAIN, 2)
    np.testing.assert_array_equal(raw.image[0], stored)


def test_scaled_integers_and_their_blank_value(tmp_path: Path) -> None:
    hdu = fits.ImageHDU(np.array([[1, 2], [3, -99]], np.int16), name="SCI")
    hdu.header["BLANK"] = -99
    path = store(tmp_path / "a.fits", hdu)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        hdus["SCI"].header["BSCALE"] = 0.5
        hdus["SCI"].header["BZERO"] = 10.0
    np.testing.assert_allclose(read_fits(path, PLAIN, 2).image[0], [[10.5, 11], [11.5, np.nan]])


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i2", "u1"])
def test_every_kind_of_pixel_becomes_native_float32(tmp_path: Path, kind: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind)
    raw = read_fits(store(tmp_path / "a.fits", fits.ImageHDU(values, name="SCI")), PLAIN, 2)
    assert raw.image.dtype == np.float32
    assert raw.image.dtype.isnative
    np.testing.assert_array_equal(raw.image[0], np.arange(12).reshape(3, 4))


def test_infinite_and_missing_pixels_are_bad(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan, np.inf, -np.inf, 1e300]])
    raw = read_fits(store(tmp_path / "a.fits", fits.ImageHDU(values, name="SCI")), PLAIN, 2)
    np.testing.assert_array_equal(np.isnan(raw.image[0, 0]), [False, True, True, True, True])


def test_rice_compressed_integers_come_back_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 3000, (64, 64)).astype(np.int16)
    mask = (values > 2000).astype(np.uint8)
    path = store(
        tmp_path / "a.fits.fz",
        fits.CompImageHDU(values, name="SCI", compression_type="RICE_1"),
        fits.CompImageHDU(mask, name="SEG", compression_type="RICE_1"),
    )
    raw = read_fits(path, PLAIN, 2)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.image[0], values)
    np.testing.assert_array_equal(raw.mask, mask)
    part = read_fits(path, PLAIN, 2, region=(slice(8, 40), slice(5, 64)))
    np.testing.assert_array_equal(part.image[0], values[8:40, 5:64])
    assert fits_grid(path, PLAIN, 2).shape == (64, 64)


def test_a_gzipped_file_is_read(tmp_path: Path) -> None:
    plain = store(tmp_path / "a.fits", fits.ImageHDU(NOISE, name="SCI"))
    packed = tmp_path / "a.fits.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_fits(packed, PLAIN, 2).image[0], NOISE)
    region = (slice(2, 9), slice(0, 30))
    np.testing.assert_array_equal(read_fits(packed, PLAIN, 2, region=region).image[0], NOISE[2:9])


def test_the_weight_plane_marks_bad_pixels(tmp_path: Path) -> None:
    weight = np.array([[1.0, 0.0], [-1.0, np.nan]], np.float32)
    image = np.ones((2, 2), np.float32)
    path = store(
        tmp_path / "a.fits", fits.ImageHDU(image, name="SCI"), fits.ImageHDU(weight, name="WHT")
    )
    np.testing.assert_array_equal(
        read_fits(path, WEIGHTED, 2).image[0], [[1, np.nan], [np.nan, np.nan]]
    )
    assert np.isfinite(read_fits(path, PLAIN, 2).image).all()


def test_in_a_data_quality_plane_nought_is_good(tmp_path: Path) -> None:
    flags = np.array([[0, 4], [16, 0]], np.int32)
    image = np.ones((2, 2), np.float32)
    path = store(
        tmp_path / "a.fits", fits.ImageHDU(image, name="SCI"), fits.ImageHDU(flags, name="DQ")
    )
    settings = SiteDataSettings(format="fits", weight_hdu="DQ")
    np.testing.assert_array_equal(read_fits(path, settings, 2).image[0], [[1, np.nan], [np.nan, 1]])


def test_a_missing_or_ill_shaped_weight_plane_is_named(tmp_path: Path) -> None:
    image = fits.ImageHDU(NOISE, name="SCI")
    with pytest.raises(UnreadableFileError, match="no extension WHT"):
        read_fits(store(tmp_path / "a.fits", image), WEIGHTED, 2)
    weight = fits.ImageHDU(np.ones((20, 29), np.float32), name="WHT")
    path = store(tmp_path / "b.fits", image, weight)
    for region in ((), (slice(0, 9), slice(0, 9))):
        with pytest.raises(UnreadableFileError, match="shape"):
            read_fits(path, WEIGHTED, 2, region=region)


@pytest.mark.parametrize("arcsec", [0.03, 0.396, 7.5])
def test_the_pixel_scale_comes_from_a_turned_wcs(tmp_path: Path, arcsec: float) -> None:
    hdu = fits.ImageHDU(NOISE, header=wcs_header(arcsec), name="SCI")
    path = store(tmp_path / "a.fits", hdu)
    raw = read_fits(path, PLAIN, 2)
    assert raw.unit == "arcsec"
    assert raw.spacing == pytest.approx((arcsec, arcsec), rel=1e-6)
    assert fits_grid(path, PLAIN, 2).scale_arcsec == pytest.approx(arcsec, rel=1e-6)


def test_without_a_wcs_the_scale_is_unknown(tmp_path: Path) -> None:
    raw = read_fits(store(tmp_path / "a.fits", fits.ImageHDU(NOISE, name="SCI")), PLAIN, 2)
    assert raw.unit == ""
    assert raw.spacing == (1.0, 1.0)


def test_the_first_image_stands_in_and_a_table_does_not(tmp_path: Path) -> None:
    path = store(
        tmp_path / "a.fits",
        fits.ImageHDU((NOISE > 100).astype(np.uint8), name="SEG"),
        fits.ImageHDU(NOISE, name="R_BAND"),
    )
    np.testing.assert_array_equal(read_fits(path, PLAIN, 2).image[0], NOISE)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.ones(3))], name="CAT")
    with pytest.raises(UnreadableFileError, match="image_hdu"):
        read_fits(store(tmp_path / "b.fits", table), PLAIN, 2)


def test_bands_are_channels_and_idle_axes_go(tmp_path: Path) -> None:
    cube = np.stack([NOISE, NOISE * 2, NOISE * 3])
    bands = read_fits(store(tmp_path / "a.fits", fits.ImageHDU(cube, name="SCI")), PLAIN, 2)
    np.testing.assert_array_equal(bands.image, cube)
    radio = fits.ImageHDU(NOISE[np.newaxis, np.newaxis], name="SCI")
    path = store(tmp_path / "b.fits", radio)
    np.testing.assert_array_equal(read_fits(path, PLAIN, 2).image, NOISE[np.newaxis])
    part = read_fits(path, PLAIN, 2, region=(slice(3, 9), slice(1, 5)))
    np.testing.assert_array_equal(part.image[0], NOISE[3:9, 1:5])


def test_a_region_of_a_mosaic_equals_a_slice_of_the_whole(tmp_path: Path) -> None:
    mask, weight = (NOISE > 100).astype(np.int16), (NOISE > 90).astype(np.float32)
    path = store(
        tmp_path / "a.fits",
        fits.ImageHDU(NOISE, name="SCI"),
        fits.ImageHDU(mask, name="SEG"),
        fits.ImageHDU(weight, name="WHT"),
    )
    whole = read_fits(path, WEIGHTED, 2)
    part = read_fits(path, WEIGHTED, 2, region=(slice(3, 17), slice(11, 30)))
    assert whole.mask is not None
    assert part.mask is not None
    np.testing.assert_array_equal(part.image, whole.image[:, 3:17, 11:30])
    np.testing.assert_array_equal(part.mask, whole.mask[3:17, 11:30])


def test_a_mask_of_its_own_file(tmp_path: Path) -> None:
    mask = (NOISE > 100).astype(np.uint8)
    image = store(tmp_path / "a.fits", fits.ImageHDU(NOISE, name="SCI"))
    for name, hdu in (("m", fits.ImageHDU(mask, name="SEG")), ("n", fits.ImageHDU(mask))):
        path = store(tmp_path / f"{name}.fits", hdu)
        raw = read_fits(image, PLAIN, 2, mask_path=path)
        assert raw.mask is not None
        np.testing.assert_array_equal(raw.mask, mask)


@pytest.mark.parametrize("region", [(), (slice(0, 20), slice(0, 30))])
@pytest.mark.parametrize("kept", [0, 100, 2880, 5760, 6500])
def test_a_truncated_file_is_unreadable(
    tmp_path: Path, kept: int, region: tuple[slice, ...]
) -> None:
    path = store(tmp_path / "a.fits", fits.ImageHDU(NOISE, name="SCI"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnreadableFileError):
        read_fits(path, PLAIN, 2, region=region)


def test_another_file_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    for content in (b"", b"hello", bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(UnreadableFileError):
            read_fits(path, PLAIN, 2)
        with pytest.raises(UnreadableFileError):
            fits_grid(path, PLAIN, 2)


@pytest.mark.parametrize("name", ["sun_aia171_128", "sun_hmi_100", "hst_deep_128"])
def test_real_images_are_read_as_astropy_reads_them(name: str) -> None:
    path = FIXTURES / f"{name}.fits"
    raw = read_fits(path, PLAIN, 2)
    with fits.open(path) as hdus:
        hdu = hdus["SCI"] if "SCI" in hdus else next(h for h in hdus if h.is_image and h.shape)
        expected = np.asarray(hdu.data, np.float32)
        scale = hdu.header.get("CDELT1")
    expected = np.where(np.isfinite(expected), expected, np.nan)
    np.testing.assert_array_equal(raw.image[0], expected)
    if name.startswith("sun"):
        assert raw.unit == "arcsec"
        assert raw.spacing == pytest.approx((scale, scale), rel=1e-3)
    else:
        assert raw.mask is not None
        assert 0 < raw.mask.mean() < 0.5


@pytest.mark.parametrize("region", [(), (slice(0, 9), slice(0, 9))])
def test_a_mask_of_another_shape_is_not_cut_to_fit(
    tmp_path: Path, region: tuple[slice, ...]
) -> None:
    mask = fits.ImageHDU(np.ones((20, 31), np.uint8), name="SEG")
    path = store(tmp_path / "a.fits", fits.ImageHDU(NOISE, name="SCI"), mask)
    with pytest.raises(DataProblemError) as caught:
        read_fits(path, PLAIN, 2, region=region)
    assert caught.value.code == "mask_shape_mismatch"
