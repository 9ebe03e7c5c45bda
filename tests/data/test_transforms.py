"""From the stored grid to the plan's and back; each image brought to one range by itself."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from asterion_client.data.nifti import read_nifti
from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_client.data.transforms import normalise, prepare, working_shape
from asterion_shared.plan import DataContract, Normalisation

FIXTURES = Path(__file__).parents[1] / "fixtures"


def contract(**values: object) -> DataContract:
    values = {"normalisation": "none"} | values
    dimensions = values.get("dimensions", 2)
    return DataContract.model_validate({"patch_size": (8,) * int(str(dimensions))} | values)


def raw(image: np.ndarray, *spacing: float, unit: str = "mm") -> RawImage:
    given_ = spacing or (1.0,) * (image.ndim - 1)
    return RawImage(image=np.asarray(image, np.float32), spacing=given_, unit=unit)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)


def test_without_a_target_the_stored_grid_is_the_plans() -> None:
    mask = np.arange(12, dtype=np.int16).reshape(3, 4)
    done = prepare(raw(ramp(3, 4), 5, 7), mask, contract())
    np.testing.assert_array_equal(done.image, ramp(3, 4))
    np.testing.assert_array_equal(done.mask, mask)
    assert done.native_mask is None


def test_both_grids_cover_the_same_extent() -> None:
    """Averages of an edge-to-edge ramp: a shift of half a pixel would show as 0.5."""
    image = raw(np.broadcast_to(np.arange(24.0), (1, 6, 24)), 1, 1)
    done = prepare(image, None, contract(spacing_mm=(1, 3)))
    assert done.image.shape == (1, 6, 8)
    np.testing.assert_allclose(done.image[0, 0, 2:-2], np.arange(1, 24, 3)[2:-2], atol=1e-2)


def test_a_mask_keeps_its_classes_when_resampled() -> None:
    mask = np.zeros((9, 12), np.int16)
    mask[:, 4:8], mask[:, 8:] = 2, 7
    done = prepare(raw(ramp(9, 12), 2, 2), mask, contract(spacing_mm=(1, 4)))
    assert done.mask is not None
    assert done.mask.shape == (18, 6)
    assert done.mask[0].tolist() == [0, 0, 2, 2, 7, 7]
    np.testing.assert_array_equal(done.native_mask, mask)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    wanted=st.tuples(*[st.floats(0.5, 8)] * 3),
)
def test_the_voxel_size_is_the_plans_up_to_the_rounding_of_the_shape(
    shape: tuple[int, ...], spacing: tuple[float, ...], wanted: tuple[float, ...]
) -> None:
    image = raw(np.zeros((1, *shape)), *spacing)
    size = working_shape(image, contract(dimensions=3, spacing_mm=wanted))
    for n, have, m, want in zip(shape, spacing, size, wanted, strict=True):
        assert m >= 1
        assert m == 1 or abs(n * have - m * want) <= want / 2 + 1e-6


def test_finer_and_back_is_the_mask_itself() -> None:
    draws = np.random.default_rng(0)
    mask = (draws.random((10, 11, 12)) > 0.5).astype(np.int16)
    image = raw(draws.normal(size=(1, 10, 11, 12)), 3, 3, 3)
    done = prepare(image, mask, contract(dimensions=3, spacing_mm=(1.5, 1.0, 3.0)))
    np.testing.assert_array_equal(_back(done.mask, mask.shape), mask)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (4, 4, 4), (2, 2, 5), (6, 6, 6)])
@pytest.mark.parametrize("name", [("ct_sm", "seg"), ("mr_sm", "seg_mr")], ids=["ct", "mr"])
def test_real_organs_come_back_to_their_native_grid(
    name: tuple[str, str], spacing: tuple[float, ...]
) -> None:
    folder = os.environ.get("ASTERION_DATA")
    if folder is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    place = Path(folder) / "ct-organs"
    image, mask = (place / f"example_{part}.nii.gz" for part in name)
    stored = read_nifti(image, mask, 3)
    assert stored.mask is not None
    organs = (stored.mask > 0).astype(np.int16)
    done = prepare(
        stored, organs, contract(dimensions=3, spacing_mm=spacing, normalisation="standardise")
    )
    assert done.image.shape[1:] == tuple(
        round(n * 3 / s) for n, s in zip(organs.shape, spacing, strict=True)
    )
    back = _back(done.mask, organs.shape)
    dice = 2 * (back * organs).sum() / (back.sum() + organs.sum())
    # Organs with folds of one voxel: 6 mm voxels on 3 mm ones reach 0.918 and 0.935.
    assert dice > (0.999 if max(spacing) < 3 else 0.95 if max(spacing) < 6 else 0.91)


def _back(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The way of a prediction: probabilities stretched to the native shape."""
    assert mask is not None
    classes = functional.one_hot(torch.from_numpy(mask).long(), 2).movedim(-1, 0)[None].float()
    mode = "bilinear" if mask.ndim == 2 else "trilinear"
    return functional.interpolate(classes, shape, mode=mode)[0].argmax(0).numpy()


def test_the_fixture_comes_to_two_millimetres() -> None:
    stored = read_nifti(FIXTURES / "mr_t1_4mm.nii.gz", FIXTURES / "mr_brainmask_4mm.nii.gz", 3)
    assert stored.mask is not None
    done = prepare(
        stored,
        stored.mask.astype(np.int16),
        contract(dimensions=3, spacing_mm=(2, 2, 2), normalisation="standardise"),
    )
    assert done.mask is not None
    extent = [n * s for n, s in zip(stored.mask.shape, stored.spacing, strict=True)]
    assert done.image.shape == (1, *(round(e / 2) for e in extent))
    volume = [m.sum() * v for m, v in ((stored.mask, np.prod(stored.spacing)), (done.mask, 8.0))]
    assert volume[1] == pytest.approx(volume[0], rel=0.01)
    assert np.isfinite(done.image).all()


def test_bad_pixels_take_the_local_sky_and_count_nowhere() -> None:
    image = np.stack([np.full((5, 5), 10.0), np.full((5, 5), 700.0)])
    image[0, 1, 1] = np.nan
    image[1, 2, 2] = np.inf
    mask = np.ones((5, 5), np.int16)
    done = prepare(raw(image), mask, contract(channels=("a", "b")))
    assert done.image[0, 1, 1] == 10, "filled from its own channel"
    assert done.image[1, 2, 2] == 700
    assert done.mask is not None
    assert sorted(map(tuple, np.argwhere(done.mask == -1))) == [(1, 1), (2, 2)]
    assert mask.min() == 1, "the caller's mask is not touched"


def test_bad_pixels_stay_unknown_on_both_grids() -> None:
    image = ramp(6, 6).copy()
    image[0, 0, 0] = np.nan
    done = prepare(raw(image, 2, 2), np.zeros((6, 6), np.int16), contract(spacing_mm=(1, 1)))
    assert done.mask is not None
    assert done.native_mask is not None
    assert (done.mask == -1).sum() == 4
    assert (done.native_mask == -1).sum() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_channel_without_a_good_pixel_is_unreadable(value: float) -> None:
    image = np.stack([np.zeros((3, 3)), np.full((3, 3), value)])
    with pytest.raises(UnreadableFileError, match="no pixel"):
        prepare(raw(image), None, contract(channels=("a", "b")))


def test_other_channels_than_the_plans_are_unreadable() -> None:
    with pytest.raises(UnreadableFileError, match="1 channels; the plan has 2"):
        prepare(raw(ramp(3, 3)), None, contract(channels=("a", "b")))


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [("", {"spacing_mm": (1, 1)}), ("arcsec", {"spacing_mm": (1, 1)}),
     ("mm", {"pixel_scale_arcsec": 0.5}), ("", {"pixel_scale_arcsec": 0.5})],
)  # fmt: skip
def test_a_size_in_another_unit_is_not_guessed(unit: str, wanted: dict[str, object]) -> None:
    with pytest.raises(UnreadableFileError, match="does not give a size"):
        prepare(raw(ramp(4, 4), 1, 1, unit=unit), None, contract(**wanted))


def test_sky_images_come_to_the_plans_pixel_scale() -> None:
    done = prepare(
        raw(ramp(30, 40), 0.4, 0.4, unit="arcsec"), None, contract(pixel_scale_arcsec=0.2)
    )
    assert done.image.shape == (1, 60, 80)


KINDS: list[Normalisation] = ["standardise", "asinh", "zscale"]


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    gain=st.floats(1e-3, 1e6),
    offset=st.floats(-1e3, 1e3),
)
def test_the_unit_of_the_export_does_not_matter(
    kind: Normalisation, gain: float, offset: float
) -> None:
    image = np.random.default_rng(4).normal(size=(1, 40, 40)).astype(np.float32)
    image[0, 10:14, 10:14] += 30
    other = (image.astype(np.float64) + offset / 100) * gain
    first, second = normalise(image, kind), normalise(other.astype(np.float32), kind)
    np.testing.assert_allclose(first, second, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_normalised_each_by_itself(kind: Normalisation) -> None:
    image = np.random.default_rng(4).normal(size=(2, 32, 32)).astype(np.float32)
    image[1] = 5000 * image[1] + 9
    both = normalise(image, kind)
    for channel in range(2):
        alone = normalise(image[channel : channel + 1], kind)
        np.testing.assert_allclose(both[channel], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_a_constant_image_stays_finite(kind: Normalisation) -> None:
    done = normalise(np.full((1, 8, 8), 3.0, np.float32), kind)
    assert np.isfinite(done).all()
    assert np.unique(done).size == 1


def test_standardised_by_hand() -> None:
    done = normalise(np.array([[[1, 2], [3, 6]]], np.float32), "standardise")
    np.testing.assert_allclose(done[0], (np.array([[1, 2], [3, 6]]) - 3) / np.sqrt(3.5), rtol=1e-5)


def test_asinh_by_hand() -> None:
    """Sky 10, absolute deviations 2 1 0 1 90, noise 1.4826."""
    done = normalise(np.array([[[8, 9, 10, 11, 100]]], np.float32), "asinh")
    wanted = np.arcsinh((np.array([8, 9, 10, 11, 100]) - 10) / 1.4826)
    np.testing.assert_allclose(done[0, 0], wanted, rtol=1e-5)


def test_asinh_of_a_mostly_empty_image_uses_the_deviation() -> None:
    """Radio images are clipped at their noise: more than half of the pixels are equal."""
    image = np.zeros((1, 10, 10), np.float32)
    image[0, 0, 0] = 1000
    done = normalise(image, "asinh")
    assert done.max() == pytest.approx(np.arcsinh(1000 / 100), rel=1e-4)


def test_zscale_is_clipped_to_one() -> None:
    image = np.random.default_rng(1).normal(100, 2, (1, 50, 50)).astype(np.float32)
    image[0, 0, 0] = 1e6
    done = normalise(image, "zscale")
    assert done.min() >= -1
    assert done.max() == 1
    assert abs(float(np.median(done))) < 0.5


@pytest.mark.parametrize("spacing", [(2.5, 2.5), (0.7, 3.0)])
def test_resampling_leaves_a_constant_image_constant_up_to_its_rim(
    spacing: tuple[float, float],
) -> None:
    raw = RawImage(image=np.full((1, 20, 24), 5, np.float32), spacing=(1.0, 1.0), unit="mm")
    contract = DataContract(spacing_mm=spacing, normalisation="none", patch_size=(8, 8))
    assert np.allclose(prepare(raw, None, contract).image, 5.0, atol=1e-5)
