"""NIfTI: orientation, spacing, channels, labels stored as floats, broken files."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_client.data.nifti import read_nifti, read_nifti_mask
from asterion_client.data.raw_image import UnreadableFileError

FIXTURES = Path(__file__).parents[1] / "fixtures"


def store(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def test_spacing_goes_with_its_axis(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    raw = read_nifti(store(tmp_path / "a.nii", values, np.diag([0.5, 2, 7, 1])), None, 3)
    assert raw.image.shape == (1, 2, 3, 4)
    assert raw.spacing == pytest.approx((0.5, 2, 7))
    assert raw.unit == "mm"
    np.testing.assert_array_equal(raw.image[0], values)


@settings(deadline=None)
@given(order=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3))
def test_every_orientation_of_one_volume_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], flips: tuple[bool, bool, bool]
) -> None:
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(values, np.diag([0.5, 2, 7, 1]))
    turned = image.as_reoriented(
        np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    )
    path = tmp_path_factory.mktemp("n") / "a.nii"
    nibabel.save(turned, path)
    raw = read_nifti(path, None, 3)
    np.testing.assert_array_equal(raw.image[0], values)
    assert raw.spacing == pytest.approx((0.5, 2, 7))


def test_image_and_mask_of_different_orientation_meet(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    image = store(tmp_path / "a.nii", values)
    mask = tmp_path / "m.nii"
    turned = nibabel.Nifti1Image(values, np.eye(4)).as_reoriented([[2, -1], [0, 1], [1, -1]])
    nibabel.save(turned, mask)
    raw = read_nifti(image, mask, 3)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.image[0], raw.mask)


def test_the_last_axis_holds_the_channels_of_a_volume(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    raw = read_nifti(store(tmp_path / "a.nii.gz", values), None, 3)
    np.testing.assert_array_equal(raw.image, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1)])
def test_a_flat_image_is_two_dimensional(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(30, dtype=np.float32).reshape(shape)
    raw = read_nifti(store(tmp_path / "a.nii", values, np.diag([2, 3, 9, 1])), None, 2)
    assert raw.image.shape == (1, 5, 6)
    assert raw.spacing == pytest.approx((2, 3))


def test_a_flat_mask_meets_a_flat_image(tmp_path: Path) -> None:
    image = store(tmp_path / "a.nii", np.zeros((5, 6), np.float32))
    mask = store(tmp_path / "m.nii", np.ones((5, 6, 1), np.uint8))
    raw = read_nifti(image, mask, 2)
    assert raw.mask is not None
    assert raw.mask.shape == (5, 6)


def test_float_labels_are_cast_and_others_refused(tmp_path: Path) -> None:
    labels = np.array([[[0.0, 1.0], [2.0, 3.0]]], np.float32)
    mask = read_nifti_mask(store(tmp_path / "m.nii", labels), 3)
    assert mask.dtype == np.int64
    np.testing.assert_array_equal(mask, labels)
    for wrong in (0.5, np.nan):
        labels[0, 0, 0] = wrong
        with pytest.raises(UnreadableFileError, match="whole numbers"):
            read_nifti_mask(store(tmp_path / "w.nii", labels), 3)


def test_the_stored_slope_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.array([[[1, 2]]], np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii")
    with_slope = nibabel.load(tmp_path / "a.nii")
    np.testing.assert_allclose(
        read_nifti(tmp_path / "a.nii", None, 3).image[0], np.asarray(with_slope.dataobj)
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0, 1, 200, 0.5, 0.99])
def test_a_truncated_file_is_unreadable(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 1000, (9, 9, 9)).astype(np.int16)
    path = store(tmp_path / name, noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(UnreadableFileError, match="readable NIfTI"):
        read_nifti(path, None, 3)


def test_other_files_and_damaged_bytes_are_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for content in (b"", b"hello", gzip.compress(b"hello"), gzip.compress(bytes(400))):
        path.write_bytes(content)
        with pytest.raises(UnreadableFileError):
            read_nifti(path, None, 3)
    store(path, np.random.default_rng(2).normal(size=(9, 9, 9)))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UnreadableFileError):
        read_nifti(path, None, 3)


@settings(deadline=None)
@given(place=st.integers(0, 351), value=st.integers(0, 255))
def test_no_damaged_header_byte_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = store(tmp_path_factory.mktemp("n") / "a.nii", np.ones((3, 4, 5), np.int16))
    damaged = bytearray(path.read_bytes())
    damaged[place] = value
    path.write_bytes(damaged)
    try:
        raw = read_nifti(path, None, 3)
    except UnreadableFileError:
        return
    assert raw.image.ndim == 4
    assert min(raw.spacing) > 0


def test_a_volume_for_a_flat_plan_and_colour_are_refused(tmp_path: Path) -> None:
    flat = store(tmp_path / "a.nii", np.zeros((5, 6), np.float32))
    with pytest.raises(UnreadableFileError, match="3 spatial dimensions"):
        read_nifti(flat, None, 3)
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UnreadableFileError):
        read_nifti(store(tmp_path / "c.nii", colour), None, 3)


def test_a_real_head_lies_in_ras_with_its_brain() -> None:
    raw = read_nifti(FIXTURES / "mr_t1_4mm.nii.gz", FIXTURES / "mr_brainmask_4mm.nii.gz", 3)
    stored = nibabel.as_closest_canonical(nibabel.load(FIXTURES / "mr_t1_4mm.nii.gz"))
    np.testing.assert_array_equal(raw.image[0], np.asarray(stored.dataobj))
    assert raw.spacing == pytest.approx(stored.header.get_zooms())
    assert raw.mask is not None
    assert raw.mask.shape == raw.image.shape[1:]
    assert raw.image[0][raw.mask == 1].mean() > 2 * raw.image[0][raw.mask == 0].mean()
