"""Telescope, camera and interferometer shifts against what can be worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from asterion_shared.errors import DataProblemError, MissingExtraError
from asterion_sim import shifts_sky
from asterion_sim.shift_frame import Frame
from asterion_sim.star_fields import moffat_stamp


def frame(
    seed: int = 0, scale: float = 0.3, noise: float | None = None, unit: str = "arcsec"
) -> Frame:
    return Frame(spacing=(scale, scale), unit=unit, noise=noise, draws=np.random.default_rng(seed))


def point(size: int = 65, flux: float = 1000.0) -> np.ndarray:
    image = np.zeros((1, size, size), np.float32)
    image[0, size // 2, size // 2] = flux
    return image


def fitted_fwhm(plane: np.ndarray) -> float:
    """Width of a round Moffat profile fitted to all pixels."""
    rows, columns = np.indices(plane.shape)
    radius = np.hypot(rows - plane.shape[0] // 2, columns - plane.shape[1] // 2).ravel()

    def moffat(r: np.ndarray, peak: float, core: float, beta: float) -> np.ndarray:
        return peak * (1 + (r / core) ** 2) ** -beta

    (_, core, beta), _ = curve_fit(moffat, radius, plane.ravel(), (plane.max(), 2.0, 3.0))
    return float(2 * core * math.sqrt(2 ** (1 / beta) - 1))


def blur(image: np.ndarray, seeing: float, native: float = 0.0, **at: float) -> np.ndarray:
    return shifts_sky.psf(
        image, frame(**at), seeing_arcsec=seeing, beta=3.0, native_arcsec=native, profile="moffat"
    )  # fmt: skip


@pytest.mark.parametrize(("seeing", "scale"), [(0.75, 0.3), (1.5, 0.3), (1.0, 0.1)])
def test_a_point_gets_the_width_of_the_seeing(seeing: float, scale: float) -> None:
    assert fitted_fwhm(blur(point(), seeing, scale=scale)[0]) * scale == pytest.approx(
        seeing, rel=0.03
    )


def test_seeing_takes_account_of_the_width_that_is_there() -> None:
    stamp, _ = moffat_stamp((65, 65), 32.0, 32.0, 1000.0, 2.0)
    star = np.zeros((1, 65, 65), np.float32)
    star[0, 32 - stamp.shape[0] // 2 : 33 + stamp.shape[0] // 2,
         32 - stamp.shape[1] // 2 : 33 + stamp.shape[1] // 2] = stamp  # fmt: skip
    seen = blur(star, 1.5, native=0.6)
    assert fitted_fwhm(seen[0]) * 0.3 == pytest.approx(1.5, rel=0.03)
    np.testing.assert_array_equal(blur(star, 0.5, native=0.6), star)


@given(row=st.integers(0, 31), column=st.integers(0, 31), seeing=st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_seeing_conserves_flux_wherever_the_source_lies(
    row: int, column: int, seeing: float
) -> None:
    image = np.zeros((2, 32, 32), np.float32)
    image[0, row, column] = 500.0
    image[1] = 7.0
    seen = blur(image, seeing)
    assert seen[0].sum() == pytest.approx(500.0, rel=1e-4)
    np.testing.assert_allclose(seen[1], 7.0, rtol=1e-5)


def test_seeing_of_a_cube_is_that_of_its_planes() -> None:
    cube = np.random.default_rng(0).random((1, 3, 16, 16)).astype(np.float32)
    seen = blur(cube, 1.0)
    for depth in range(3):
        np.testing.assert_allclose(seen[:, depth], blur(cube[:, depth], 1.0), rtol=1e-5)


def test_kolmogorov_needs_galsim_and_has_its_width() -> None:
    def blurred() -> np.ndarray:
        return shifts_sky.psf(
            point(), frame(), seeing_arcsec=1.5, beta=3.0, native_arcsec=0.0, profile="kolmogorov"
        )  # fmt: skip

    try:
        import galsim  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="galsim"):
            blurred()
        return
    assert fitted_fwhm(blurred()[0]) * 0.3 == pytest.approx(1.5, rel=0.03)
    assert blurred().sum() == pytest.approx(1000.0, rel=1e-4)


def test_sizes_in_arcsec_are_needed() -> None:
    with pytest.raises(DataProblemError, match="arcsec is not known"):
        shifts_sky.pixel_scale(point(), frame(unit=""), scale_arcsec=1.0)


def test_photon_transfer_curve() -> None:
    """Variance over mean is a line of slope 1 / gain from the square of the read noise."""
    gain, read = 2.5, 8.0
    means, variances = [], []
    for level in (20, 100, 400, 1000, 3000):
        flat = np.full((1, 200, 200), level, np.float32)
        seen = shifts_sky.gain_read_noise(
            flat, frame(level), gain_electrons_per_adu=gain, read_noise_electrons=read
        )
        means.append(seen.mean())
        variances.append(seen.var())
    slope, intercept = np.polyfit(means, variances, 1, w=1 / np.array(variances))
    np.testing.assert_allclose(means, [20, 100, 400, 1000, 3000], rtol=0.01)
    assert slope == pytest.approx(1 / gain, rel=0.02)
    assert intercept == pytest.approx((read / gain) ** 2, rel=0.15)


def test_what_is_below_zero_gets_the_read_noise_alone() -> None:
    dark = np.full((1, 100, 100), -50.0, np.float32)
    seen = shifts_sky.gain_read_noise(
        dark, frame(), gain_electrons_per_adu=2.0, read_noise_electrons=6.0
    )
    assert seen.mean() == pytest.approx(-50, abs=0.15)
    assert seen.std() == pytest.approx(3.0, rel=0.03)


def test_sky_level_and_slope_by_hand() -> None:
    image = np.zeros((2, 21, 31), np.float32)
    seen = shifts_sky.sky(image, frame(noise=2.0), level_sigma=10.0, gradient_sigma=4.0)
    assert seen[0, 10, 15] == pytest.approx(20.0)
    assert seen[0].max() - seen[0].min() == pytest.approx(8.0)
    second = np.diff(seen[0].astype(float), n=2, axis=0)
    np.testing.assert_allclose(second, 0, atol=1e-4)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_noise_is_measured_where_it_is_not_known() -> None:
    noisy = np.random.default_rng(3).normal(100, 5, (1, 100, 100)).astype(np.float32)
    noisy[0, :10] += 1e4  # sources do not count
    seen = shifts_sky.sky(noisy, frame(), level_sigma=1.0, gradient_sigma=0.0)
    assert (seen - noisy).mean() == pytest.approx(5 * 1.1, rel=0.12)


def test_larger_pixels_are_means_and_keep_the_light() -> None:
    image = np.random.default_rng(1).random((1, 24, 24)).astype(np.float32)
    seen = shifts_sky.pixel_scale(image, frame(scale=0.25), scale_arcsec=1.0)
    np.testing.assert_allclose(seen[0, 0, 0], image[0, :4, :4].mean(), rtol=1e-5)
    assert seen.mean() == pytest.approx(image.mean(), rel=0.02)
    finer = shifts_sky.pixel_scale(image, frame(scale=0.25), scale_arcsec=0.1)
    np.testing.assert_array_equal(finer, image)


def crowd(mask: np.ndarray | None, seed: int, class_: int = 2):  # type: ignore[no-untyped-def]
    image = np.zeros((1, 100, 100), np.float32)
    return shifts_sky.crowding(
        image, mask, frame(seed, noise=10.0), per_arcmin2=80.0, faintest_sigma=5.0,
        brightest_sigma=500.0, fwhm_arcsec=0.6, class_=class_,
    )  # fmt: skip


def test_new_stars_are_as_many_as_said_and_in_the_truth() -> None:
    mask = np.zeros((100, 100), np.int16)
    mask[40:60, 40:60] = 1
    mask[0, :] = -1
    counts = []
    for seed in range(40):
        image, seen = crowd(mask, seed)
        light = image[0] / 10
        assert ((seen == 2) == ((light > 2.0) & (mask == 0))).all()
        assert (seen[mask != 0] == mask[mask != 0]).all()
        padded = np.pad(light, 1)
        highest = np.max(
            [padded[1 + i : 101 + i, 1 + j : 101 + j]
             for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j], axis=0,
        )  # fmt: skip
        counts.append(int(((light > highest) & (light > 3)).sum()))
    # 100 x 100 pixels of 0.3 arcsec are 0.25 arcmin2: 20 stars, less those that overlap
    assert 15 < np.mean(counts) <= 20 + 4 * np.sqrt(20 / 40)
    assert (mask[40:60, 40:60] == 1).all()


def test_class_zero_leaves_the_mask_and_no_mask_stays_none() -> None:
    mask = np.zeros((100, 100), np.int16)
    assert crowd(mask, 1, class_=0)[1] is mask
    assert crowd(None, 1)[1] is None


def trails(per_image: float, length: float | None, seed: int = 0) -> np.ndarray:
    return shifts_sky.satellite_trails(
        np.zeros((1, 201, 201), np.float32), frame(seed, noise=2.0), per_image=per_image,
        peak_sigma=50.0, width_arcsec=0.9, length_arcsec=length,
    )  # fmt: skip


def test_a_trail_has_its_length_width_and_brightness() -> None:
    seen = 0
    for seed in range(60):
        image = trails(1.0, 15.0, seed)[0]  # 50 pixels long, 3 wide
        lit = np.argwhere(image > 50)
        inside = len(lit) and (lit.min() > 1) and (lit.max() < 199)
        total = image.sum() / (100 * 3 * math.sqrt(math.pi / (4 * math.log(2))) * 50)
        if not inside or round(total) != 1:
            continue  # none, several, or cut by the rim
        seen += 1
        spread = np.ptp(lit @ np.linalg.svd(lit - lit.mean(axis=0))[2][0])
        assert spread == pytest.approx(50, abs=3)
        assert image.max() == pytest.approx(100, rel=0.05)
        # area above half maximum is length times full width at half maximum
        assert len(lit) == pytest.approx(150, rel=0.1)
    assert seen > 5


def test_a_trail_crosses_the_image_by_default() -> None:
    for seed in range(30):
        lit = trails(1.0, None, seed)[0] > 50
        if lit.any():
            rim = np.concatenate([lit[0], lit[-1], lit[:, 0], lit[:, -1]])
            assert rim.sum() >= 2


def test_trails_and_hits_come_as_often_as_said() -> None:
    lit = [trails(0.5, None, seed).any() for seed in range(200)]
    expected = 1 - math.exp(-0.5)
    assert abs(np.mean(lit) - expected) < 4 * math.sqrt(expected * (1 - expected) / 200)


def test_cosmic_rays_are_short_sharp_and_as_many_as_said() -> None:
    image = np.zeros((1, 200, 200), np.float32)
    hit = shifts_sky.cosmic_rays(
        image, frame(noise=3.0), hits_per_1000_pixels=1.0, peak_sigma=20.0, mean_length_pixels=4.0
    )[0]
    values = hit[hit > 0]
    # 40 hits, each of 1 pixel and about 4 to 5 more (a slanted track crosses more pixels)
    assert 40 * 2.5 < len(values) < 40 * 9
    assert np.median(values) == pytest.approx(60, rel=0.5)
    neighbours = np.abs(np.diff(hit, axis=1)).max()
    assert neighbours > 30  # no point-spread between a hit and the sky
    none = shifts_sky.cosmic_rays(
        image, frame(), hits_per_1000_pixels=0.0, peak_sigma=20.0, mean_length_pixels=4.0
    )
    np.testing.assert_array_equal(none, image)


def dirty(image: np.ndarray, antennas: int = 9, hours: float = 2.0) -> np.ndarray:
    return shifts_sky.uv_undersampling(
        image, frame(), antennas=antennas, hours=hours, declination_deg=45.0, extent=0.8
    )


def test_an_interferometer_keeps_a_points_peak_and_loses_the_mean() -> None:
    seen = dirty(point(64, 5.0))
    assert seen[0, 32, 32] == pytest.approx(5.0, rel=1e-5)
    assert seen.max() == seen[0, 32, 32]
    assert abs(seen.mean()) < 1e-6
    np.testing.assert_allclose(dirty(np.full((1, 64, 64), 9.0, np.float32)), 0, atol=1e-4)


def test_coverage_is_symmetric_grows_and_ends_at_the_longest_baseline() -> None:
    few = shifts_sky.uv_coverage(64, 64, 6, 0.0, 45.0, 0.8)
    # 6 antennas have 15 baselines; a snapshot measures at most 30 cells
    assert 20 <= few.sum() <= 30
    long = shifts_sky.uv_coverage(64, 64, 6, 6.0, 45.0, 0.8)
    more = shifts_sky.uv_coverage(64, 64, 27, 6.0, 45.0, 0.8)
    assert few.sum() < long.sum() < more.sum()
    flipped = np.roll(more[::-1, ::-1], 1, axis=(0, 1))
    np.testing.assert_array_equal(more, flipped)
    rows, columns = np.nonzero(more)
    lengths = np.hypot(np.fft.fftfreq(64)[rows], np.fft.fftfreq(64)[columns])
    assert lengths.max() == pytest.approx(0.4, abs=1 / 64)
    assert lengths.min() > 0


def test_measured_cells_are_those_of_the_image() -> None:
    image = np.random.default_rng(0).random((1, 32, 32)).astype(np.float32)
    sampled = shifts_sky.uv_coverage(32, 32, 9, 2.0, 45.0, 0.8)
    spectrum = np.fft.fft2(dirty(image))[0] * sampled.mean()
    np.testing.assert_allclose(spectrum[sampled], np.fft.fft2(image)[0][sampled], atol=1e-3)
    np.testing.assert_allclose(spectrum[~sampled], 0, atol=1e-3)
