"""Scanner and annotator shifts against what can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import generic_filter

from asterion_shared.errors import DataProblemError
from asterion_sim import shifts_medical as medical
from asterion_sim.shift_frame import Frame


def frame(seed: int = 0, spacing: tuple[float, ...] = (1.0, 1.0), unit: str = "mm") -> Frame:
    return Frame(spacing=spacing, unit=unit, noise=None, draws=np.random.default_rng(seed))


def halves(shape: tuple[int, ...] = (128, 128), bright: float = 1000.0) -> np.ndarray:
    """Air in the left half, tissue in the right."""
    image = np.zeros((1, *shape), np.float32)
    image[..., shape[-1] // 2 :] = bright
    return image


def test_gain_and_offset_by_hand() -> None:
    image = halves()
    shifted = medical.gain_offset(image, frame(), gain=3.0, offset_percent=10.0)
    assert set(np.unique(shifted)) == {300.0, 3300.0}


@given(ratio=st.floats(1.0, 10.0), degree=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_bias_field_is_positive_smooth_and_of_the_ratio(
    ratio: float, degree: int, seed: int
) -> None:
    image = np.full((1, 40, 32), 5.0, np.float32)
    image[0, 0, :2] = 0.0  # darkest 0.5 percentile stays at the rest of the image
    image[0, 0, 2:20] = 0.0
    field = medical.bias_field(image, frame(seed), ratio=ratio, degree=degree) / 5.0
    on_body = field[0, 1:]
    assert on_body.min() > 0
    assert on_body.max() / on_body.min() <= ratio * 1.001
    body = field[image > 0]
    assert body.max() / body.min() == pytest.approx(ratio, rel=1e-3)
    assert np.exp(np.log(body).mean()) == pytest.approx(1.0, rel=1e-3)
    # smooth: neighbours differ by little; a polynomial of degree 5 on 32 points cannot jump
    steps = np.abs(np.diff(np.log(on_body), axis=1)).max()
    assert steps <= np.log(ratio) * 0.5 + 1e-6


def test_a_bias_field_multiplies_and_leaves_air_dark() -> None:
    image = halves()
    biased = medical.bias_field(image, frame(3), ratio=4.0, degree=3)
    assert (biased[image == 0] == 0).all()
    two = medical.bias_field(np.concatenate([image, 2 * image]), frame(3), ratio=4.0, degree=3)
    np.testing.assert_allclose(two[1], 2 * two[0], rtol=1e-5)
    np.testing.assert_allclose(two[0], biased[0], rtol=1e-5)


def test_rician_noise_in_air_has_the_mean_of_rayleigh() -> None:
    noisy = medical.noise(halves((256, 256)), frame(), sigma_percent=5, distribution="rician")
    air, tissue = noisy[..., :128], noisy[..., 128:]
    sigma = 50.0
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.02)
    assert air.min() >= 0
    # far from air: mean sqrt(A^2 + sigma^2), deviation sigma
    assert tissue.mean() == pytest.approx(np.hypot(1000, sigma), rel=0.001)
    assert tissue.std() == pytest.approx(sigma, rel=0.02)


def test_gaussian_noise_has_mean_zero_and_its_deviation() -> None:
    image = halves((256, 256))
    added = medical.noise(image, frame(), sigma_percent=5, distribution="gaussian") - image
    assert abs(added.mean()) < 4 * 50 / 256
    assert added.std() == pytest.approx(50, rel=0.02)


def test_larger_voxels_average_whole_blocks() -> None:
    image = np.random.default_rng(1).random((2, 12, 12)).astype(np.float32)
    seen = medical.resolution(image, frame(), in_plane_mm=4.0, slice_mm=None)
    blocks = image.reshape(2, 3, 4, 3, 4).mean(axis=(2, 4))
    # The corner pixels lie beyond the centres of the corner blocks, where the line is level.
    np.testing.assert_allclose(seen[:, 0, 0], blocks[:, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(seen[:, -1, -1], blocks[:, -1, -1], rtol=1e-5)
    assert seen.shape == image.shape


def test_slices_are_thickened_along_the_last_axis_alone() -> None:
    image = np.zeros((1, 8, 8, 12), np.float32)
    image[0, 4, 4, 6:8] = 1.0
    spacing = frame(spacing=(1.0, 1.0, 1.0))
    thick = medical.resolution(image, spacing, in_plane_mm=None, slice_mm=4.0)
    assert thick[0, 4, 4].max() == pytest.approx(0.5, abs=0.13)
    away = thick.copy()
    away[0, 4, 4] = 0
    assert (away == 0).all()
    np.testing.assert_array_equal(
        medical.resolution(image, spacing, in_plane_mm=0.5, slice_mm=1.0), image
    )


def test_resolution_needs_a_size_in_mm() -> None:
    with pytest.raises(DataProblemError, match="in mm is not known"):
        medical.resolution(halves(), frame(unit="arcsec"), in_plane_mm=2.0, slice_mm=None)


def test_gibbs_keeps_low_frequencies_and_rings_at_edges() -> None:
    image = halves((64, 64))
    same = medical.gibbs(image, frame(), alpha=0.0)
    np.testing.assert_allclose(same, image, atol=0.01)
    ringing = medical.gibbs(image, frame(), alpha=0.7)
    # Gibbs: the overshoot of a cut Fourier series is 9 % of the step
    assert ringing.max() == pytest.approx(1089, abs=25)
    assert ringing.mean() == pytest.approx(500, rel=0.01)


@given(
    lines=st.integers(8, 200), acceleration=st.floats(1, 8), centre=st.floats(0.0, 0.3),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_share_of_measured_lines(
    lines: int, acceleration: float, centre: float, seed: int
) -> None:
    kept = medical.kept_lines(lines, acceleration, centre, np.random.default_rng(seed))
    num_centre = max(1, round(lines * centre))
    assert kept.sum() == max(num_centre, round(lines / acceleration))
    middle = np.sort(np.abs(np.fft.fftfreq(lines)))[num_centre - 1]
    assert kept[np.abs(np.fft.fftfreq(lines)) < middle].all()


def test_all_lines_give_the_image_and_one_line_its_mean() -> None:
    image = np.random.default_rng(2).random((1, 16, 9)).astype(np.float32)
    whole = medical.kspace_undersampling(image, frame(), acceleration=1.0, centre_fraction=0.1)
    np.testing.assert_allclose(whole, image, atol=1e-5)
    lowest = medical.kspace_undersampling(image, frame(), acceleration=16.0, centre_fraction=0.0)
    np.testing.assert_allclose(
        lowest[0], np.abs(np.broadcast_to((image - image.min()).mean(axis=1), (16, 9)))
        + image.min(), atol=1e-5
    )  # fmt: skip


def test_undersampling_folds_along_the_first_axis_alone() -> None:
    image = np.zeros((1, 32, 32), np.float32)
    image[0, :, 10:20] = np.linspace(0, 1, 32)[:, np.newaxis]
    seen = medical.kspace_undersampling(image, frame(), acceleration=3.0, centre_fraction=0.1)
    np.testing.assert_allclose(seen[0, :, :10], 0, atol=1e-6)


def test_a_contrast_curve_by_hand() -> None:
    image = np.array([[[0.0, 0.25, 1.0]], [[0.0, 1.0, 4.0]]], np.float32)
    bent = medical.contrast_curve(image, frame(), gamma=0.5)
    np.testing.assert_allclose(bent, [[[0, 0.5, 1]], [[0, 2, 4]]], atol=1e-5)


def square() -> np.ndarray:
    mask = np.zeros((20, 20), np.int16)
    mask[5:10, 5:10] = 1
    mask[5:10, 10:15] = 2
    return mask


def test_dilated_and_eroded_volumes_by_hand() -> None:
    mask = square()
    # By one pixel a 5 x 10 rectangle gets a rim without corners: 2 * 5 + 2 * 10 pixels.
    grown = medical.annotation_style(mask, (1.0, 1.0), 1.0)
    assert (grown > 0).sum() == 50 + 30
    assert (grown == 1).sum() == (grown == 2).sum() == 40
    assert (grown[mask > 0] == mask[mask > 0]).all()
    shrunk = medical.annotation_style(mask, (1.0, 1.0), -1.0)
    assert (shrunk > 0).sum() == 3 * 8  # the border between the classes stays
    assert (shrunk[shrunk > 0] == mask[shrunk > 0]).all()


def test_growth_follows_the_voxel_size() -> None:
    mask = np.zeros((9, 9, 9), np.int16)
    mask[4, 4, 4] = 3
    grown = medical.annotation_style(mask, (1.0, 1.0, 2.5), 2.0)
    # pixels within 2 mm in the plane: a disc of 13; none above or below at 2.5 mm
    assert (grown == 3).sum() == 13
    assert (grown[..., [3, 5]] == 0).all()


def test_bad_pixels_and_empty_masks_stay() -> None:
    mask = square()
    mask[4, 5:10] = -1
    for grow in (2.0, -2.0):
        styled = medical.annotation_style(mask, (1.0, 1.0), grow)
        assert (styled[4, 5:10] == -1).all()
    empty = np.zeros((5, 5), np.int16)
    assert (medical.annotation_style(empty, (1.0, 1.0), 3.0) == 0).all()
    full = np.ones((5, 5), np.int16)
    assert (medical.annotation_style(full, (1.0, 1.0), -3.0) == 1).all()


@given(grow=st.floats(0.1, 4.0), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_growth_equals_a_slow_search(grow: float, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((12, 12)) < 0.05).astype(np.int16)
    grown = medical.annotation_style(mask, (1.0, 1.0), grow)
    reach = int(np.ceil(grow))
    offsets = np.arange(-reach, reach + 1)
    disc = np.hypot(offsets[:, None], offsets[None]) <= grow * (1 + 1e-9)
    slow = generic_filter(mask, np.max, footprint=disc, mode="constant")
    np.testing.assert_array_equal(grown > 0, slow > 0)


def test_labels_flip_as_often_as_said_and_to_every_other_class() -> None:
    draws = np.random.default_rng(0)
    labels = np.array([medical.noisy_label(2, 0.3, 5, draws) for _ in range(4000)])
    wrong = labels != 2
    assert abs(wrong.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    shares = np.bincount(labels[wrong], minlength=5) / wrong.sum()
    assert shares[2] == 0
    np.testing.assert_allclose(shares[[0, 1, 3, 4]], 0.25, atol=4 * np.sqrt(0.1875 / 1200))
    assert medical.noisy_label(-1, 1.0, 5, draws) == -1
    assert all(medical.noisy_label(3, 0.0, 5, draws) == 3 for _ in range(100))


@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_shifts_do_the_same_to_raw_and_normalised_images(scale: float) -> None:
    image = np.random.default_rng(5).gamma(2.0, 1.0, (1, 32, 32)).astype(np.float32)
    other = scale * image - 7 * scale
    for shift in (
        lambda x: medical.noise(x, frame(1), sigma_percent=5, distribution="rician"),
        lambda x: medical.bias_field(x, frame(1), ratio=2.0, degree=3),
        lambda x: medical.kspace_undersampling(x, frame(1), acceleration=2.0, centre_fraction=0.1),
        lambda x: medical.contrast_curve(x, frame(), gamma=1.5),
    ):
        np.testing.assert_allclose(
            shift(other), scale * shift(image) - 7 * scale, rtol=1e-3, atol=2e-3 * scale
        )
