"""Masks lie on the image they were made from, in NIfTI and in DICOM."""

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from tests.data.test_dicom_seg import SHAPE, store_series
from tests.predict.releases import CUBE, PLANE, Bright, box, plan_of, predict, released

from asterion_client.data.dicom_seg import read_dicom_with_mask
from asterion_client.settings import SiteDataSettings

TURNS = {
    "as it is": np.diag([1.0, 1.0, 1.0, 1.0]),
    "left, foot first": np.diag([-1.0, 1.0, -1.0, 1.0]),
    "slices along x, oblique": np.array(
        [[0.1, -0.2, 2.0, 5], [1.0, 0.1, 0.0, -7], [0.1, -0.9, -0.2, 11], [0, 0, 0, 1]]
    ),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_mask_lies_on_the_stored_grid(tmp_path: Path, turn: str) -> None:
    image = box((6, 7, 9))
    stored = nibabel.Nifti1Image(image, TURNS[turn])
    stored.set_qform(TURNS[turn], 1)
    stored.set_sform(TURNS[turn], 2)
    stored.header.set_xyzt_units("mm", "sec")
    stored.header["descrip"] = b"JANE DOE"
    (tmp_path / "in" / "deep").mkdir(parents=True)
    nibabel.save(stored, tmp_path / "in" / "deep" / "a.nii")
    model = released(tmp_path / "r", plan_of("segmentation", CUBE), Bright())
    found = predict(model, tmp_path / "in", tmp_path / "out")
    assert not found.skipped
    mask = nibabel.load(tmp_path / "out/masks/deep/a.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), image > 0)
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "in/deep/a.nii").affine)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (2, 1)
    assert mask.header.get_xyzt_units()[0] == "mm"
    assert b"JANE" not in mask.to_bytes()
    uncertainty = nibabel.load(tmp_path / "out/uncertainty/deep/a.nii.gz")
    assert uncertainty.shape == image.shape
    (part,) = found.results[0].parts
    voxel = float(np.sqrt((TURNS[turn][:3, :3] ** 2).sum(axis=0)).prod())
    assert (part.num_points, part.unit) == (int(image.sum()), "mm3")
    assert part.size == pytest.approx(image.sum() * voxel)


def test_a_mask_comes_back_from_the_plan_s_grid(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 8), np.float32)
    image[:, :, 4:] = 1
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1, 1, -1, 1])), tmp_path / "in/a.nii.gz")
    plan = plan_of("segmentation", CUBE | {"spacing_mm": [2, 2, 2]})
    predict(released(tmp_path / "r", plan, Bright()), tmp_path / "in", tmp_path / "out")
    mask = np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, image)


def test_a_flat_nifti_keeps_its_axes(tmp_path: Path) -> None:
    image = box((8, 9))[..., np.newaxis]
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1, 1, 1, 1])), tmp_path / "in/a.nii.gz")
    model = released(tmp_path / "r", plan_of("segmentation", PLANE), Bright())
    predict(model, tmp_path / "in", tmp_path / "out")
    mask = np.asarray(nibabel.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, image)


def test_a_series_gets_a_dicom_segmentation(tmp_path: Path) -> None:
    slices = _series(tmp_path / "in")
    drawn = box(SHAPE)
    model = released(tmp_path / "r", plan_of("segmentation", CUBE), Bright())
    found = predict(model, tmp_path / "in", tmp_path / "out")
    assert not found.skipped
    path = tmp_path / "out/masks/s.dcm"
    raw = read_dicom_with_mask(tmp_path / "in" / "s", path, 3)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, raw.image[0])  # each brightness 0 or 1
    assert raw.mask.sum() == drawn.sum()
    made = highdicom.seg.segread(path)
    assert made.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert made.get_segment_description(1).segment_label == "bright"
    told = {uid for _, _, uid in made.get_source_image_uids()}
    assert told == {s.SOPInstanceUID for s in slices}
    again = made.get_pixels_by_source_instance(
        [s.SOPInstanceUID for s in slices],
        segment_numbers=[1],
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(again[..., 0], drawn)
    map_ = nibabel.load(tmp_path / "out/uncertainty/s.nii.gz")
    # LPS of DICOM is minus RAS of NIfTI, on the axes x and y.
    np.testing.assert_allclose(map_.affine[:3, 3], [20, -30, 100])
    np.testing.assert_allclose(map_.affine[:3, :3] @ [1, 0, 0], [0, 0, 2.5])


def _series(folder: Path) -> list[highdicom.SOPClass]:
    folder.mkdir()
    slices = store_series(folder / "s")
    for index, data in enumerate(slices):
        data.PixelData = box(SHAPE)[index].astype(np.uint16).tobytes()
        data.save_as(folder / "s" / f"{9 - index}.dcm", enforce_file_format=True)
    return slices


def test_what_is_a_mask_already_is_no_image(tmp_path: Path) -> None:
    _series(tmp_path / "in")
    model = released(tmp_path / "r", plan_of("segmentation", CUBE), Bright())
    predict(model, tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/masks/s.dcm").rename(tmp_path / "in/s.dcm")
    found = predict(model, tmp_path / "in", tmp_path / "again")
    assert [r.id for r in found.results] == ["s"]
    assert found.skipped == (("s.dcm", "s.dcm is a segmentation and no image"),)


def test_single_images_of_one_folder_are_apart(tmp_path: Path) -> None:
    _series(tmp_path / "in")
    plan = plan_of("segmentation", PLANE)
    settings = SiteDataSettings(format="dicom")
    model = released(tmp_path / "r", plan, Bright())
    found = predict(model, tmp_path / "in", tmp_path / "out", settings=settings)
    assert len(found.results) == SHAPE[0]
    mask = highdicom.seg.segread(tmp_path / "out/masks/s/8.dcm")
    np.testing.assert_array_equal(mask.pixel_array[-1] if mask.pixel_array.ndim == 3 else
                                  mask.pixel_array, box(SHAPE)[1])  # fmt: skip
