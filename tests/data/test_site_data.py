"""A site's folder as training sees it: found, read, counted, refused with a code."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from astropy.io import fits

from asterion_client.data.site_data import check_frozen, load_site_data
from asterion_client.settings import SiteSettings
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, FileProblemError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

MODELS = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}
DRAWS = np.random.default_rng(0)


def plan_of(task: str, *, kind: str = "train", model: str = "", **data: Any) -> Plan:
    values: dict[str, Any] = {"patch_size": [8] * data.get("dimensions", 2)} | data
    init = {"init": {"file": "m", "sha256": "0" * 64}} if kind == "evaluate" else {}
    sections = {"data": values, "model": {"name": model or MODELS[task]}, "kind": kind} | init
    return validate(Plan, {"name": "t", "task": task, "seed": 3} | sections, "plan")


def site(task: str, format_: str, **data: Any) -> SiteSettings:
    values = {"name": "site", "task": task, "data": {"format": format_} | data}
    return validate(SiteSettings, values, "site")


def volumes(folder: Path, count: int, *, masks: bool = True) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = DRAWS.normal(size=(8, 9, 10)).astype(np.float32)
        mask = (image > 1).astype(np.float32)
        for part, values in (("images", image), ("labels", mask)):
            if masks or part == "images":
                name = folder / part / f"patient_{number}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1])), name)
    return folder


VOLUMES = plan_of("segmentation", dimensions=3)


def codes(folder: Path, settings: SiteSettings, plan: Plan) -> str:
    with pytest.raises(DataProblemError) as caught:
        load_site_data(settings, folder, plan)
    return caught.value.code


def test_volumes_by_layout(tmp_path: Path) -> None:
    settings = site("segmentation", "nifti")
    data = load_site_data(settings, volumes(tmp_path, 8), VOLUMES)
    assert (len(data.train), len(data.test), data.num_bad_files) == (6, 2, 0)
    case = data.train[0]
    assert case.image.shape == (1, 8, 9, 10)
    assert case.native_spacing == pytest.approx((1, 1, 2))
    assert case.native_shape == (8, 9, 10)
    assert case.mask is not None
    assert case.mask.dtype == np.int16
    assert case.image.mean() == pytest.approx(0, abs=1e-5)
    assert case.image.std() == pytest.approx(1, abs=1e-4)


def test_the_same_folder_gives_the_same_cases(tmp_path: Path) -> None:
    settings = site("segmentation", "nifti")
    volumes(tmp_path, 6)
    first, second = (load_site_data(settings, tmp_path, VOLUMES) for _ in range(2))
    assert [c.id for c in first.train] == [c.id for c in second.train]
    assert first.manifest_sha256 == second.manifest_sha256
    assert len({c.id for c in (*first.train, *first.test)}) == 6


def test_no_id_or_reason_holds_a_path(tmp_path: Path) -> None:
    volumes(tmp_path, 12)
    (tmp_path / "images" / "patient_3.nii.gz").write_bytes(b"nonsense")
    data = load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert all(set(case.id) <= set("0123456789abcdef") for case in (*data.train, *data.test))
    assert all(len(case.id) == 12 for case in (*data.train, *data.test))
    assert all("patient" not in key for key in data.bad_files)


def test_unreadable_files_are_skipped_and_counted(tmp_path: Path) -> None:
    volumes(tmp_path, 12)
    cut = tmp_path / "images" / "patient_7.nii.gz"
    cut.write_bytes(cut.read_bytes()[:100])
    data = load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert data.num_bad_files == len(data.bad_files) == 1
    assert len(data.train) + len(data.test) == 11
    (reason,) = data.bad_files.values()
    assert "not a readable NIfTI file" in reason


def test_too_many_bad_files_refuse_the_order(tmp_path: Path) -> None:
    volumes(tmp_path, 12)
    for number in range(2):
        (tmp_path / "images" / f"patient_{number}.nii.gz").write_bytes(b"")
    settings = site("segmentation", "nifti")
    assert codes(tmp_path, settings, VOLUMES) == "too_many_bad_files"
    tolerant = site("segmentation", "nifti", max_bad_fraction=0.2)
    assert load_site_data(tolerant, tmp_path, VOLUMES).num_bad_files == 2


def test_an_image_without_a_mask_counts_as_bad(tmp_path: Path) -> None:
    volumes(tmp_path, 12)
    (tmp_path / "labels" / "patient_5.nii.gz").unlink()
    data = load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert data.num_bad_files == 1


def test_a_mask_of_another_shape_is_fatal(tmp_path: Path) -> None:
    volumes(tmp_path, 4)
    small = nibabel.Nifti1Image(np.zeros((8, 9, 9), np.uint8), np.eye(4))
    nibabel.save(small, tmp_path / "labels" / "patient_2.nii.gz")
    with pytest.raises(DataProblemError, match="patient_2") as caught:
        load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert caught.value.code == "mask_shape_mismatch"


@pytest.mark.parametrize("value", [2, -1])
def test_a_mask_value_outside_the_classes_is_fatal(tmp_path: Path, value: int) -> None:
    volumes(tmp_path, 4)
    mask = np.zeros((8, 9, 10), np.int16)
    mask[0, 0, 0] = value
    path = tmp_path / "labels" / "patient_2.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([1, 1, 2, 1])), path)
    with pytest.raises(DataProblemError, match=f"patient_2.* {value}") as caught:
        load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert caught.value.code == "label_outside_classes"


def test_local_label_numbers_are_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    np.savez(
        tmp_path / "a.npz", images=np.ones((4, 8, 8)), masks=np.tile([[[7, 9, 0, 4]]], (4, 8, 2))
    )
    plan = plan_of("segmentation", classes=["sky", "star", "galaxy"])
    mapped = site("segmentation", "npz", labels={"7": "galaxy", "9": "star", "4": "sky"})
    mask = load_site_data(mapped, tmp_path, plan).train[0].mask
    assert mask is not None
    assert mask[0, :4].tolist() == [2, 1, 0, 0]
    partly = site("segmentation", "npz", labels={"7": "galaxy", "9": "star"})
    assert codes(tmp_path, partly, plan) == "label_outside_classes"


def test_an_empty_site_and_one_without_training_data(tmp_path: Path) -> None:
    assert codes(tmp_path, site("segmentation", "nifti"), VOLUMES) == "no_data"
    np.savez(tmp_path / "a.npz", images=np.ones((3, 8, 8)), labels=[0, 1, 0], split=["test"] * 3)
    settings = site("classification", "npz")
    assert codes(tmp_path, settings, plan_of("classification")) == "no_data"
    evaluated = load_site_data(settings, tmp_path, plan_of("classification", kind="evaluate"))
    assert (len(evaluated.train), len(evaluated.test)) == (0, 3)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match=r"data\.folder"):
        load_site_data(site("segmentation", "nifti", folder="nowhere"), tmp_path, VOLUMES)


def test_one_folder_a_class(tmp_path: Path) -> None:
    for label, value in (("well", 0.0), ("ill", 5.0)):
        (tmp_path / label).mkdir()
        for number in range(4):
            image = DRAWS.normal(value, size=(8, 8)).astype(np.float32)
            fits.PrimaryHDU(image).writeto(tmp_path / label / f"{label}{number}.fits")
    plan = plan_of("classification", classes=["well", "ill"])
    data = load_site_data(site("classification", "fits"), tmp_path, plan)
    assert sorted(case.label for case in data.train) == [0] * 3 + [1] * 3
    assert sorted(case.label for case in data.test) == [0, 1]
    other = plan_of("classification", classes=["well", "sick"])
    assert codes(tmp_path, site("classification", "fits"), other) == "label_outside_classes"
    mapped = site("classification", "fits", labels={"well": "well", "ill": "sick"})
    assert len(load_site_data(mapped, tmp_path, other).train) == 6


def test_anomaly_trains_on_normals_and_tests_on_all(tmp_path: Path) -> None:
    labels, split = np.array([0, 0, 1, 0, 1, 1]), ["train"] * 3 + ["test"] * 3
    np.savez(tmp_path / "a.npz", images=DRAWS.normal(size=(6, 8, 8)), labels=labels, split=split)
    data = load_site_data(site("anomaly", "npz"), tmp_path, plan_of("anomaly"))
    assert [case.label for case in data.train] == [0, 0]
    assert [case.label for case in data.test] == [0, 1, 1]


def manifest(folder: Path, *lines: str) -> None:
    (folder / "list.csv").write_text("\n".join(["path,label,group,split", *lines]) + "\n")


def test_the_manifest_says_what_belongs_together(tmp_path: Path) -> None:
    volumes(tmp_path, 4)
    manifest(
        tmp_path,
        *(
            f"images/patient_{n}.nii.gz,labels/patient_{n}.nii.gz,p{n // 2},{side}"
            for n, side in enumerate(["train", "train", "test", "test"])
        ),
    )
    settings = site("segmentation", "nifti", manifest="list.csv")
    data = load_site_data(settings, tmp_path, VOLUMES)
    assert (len(data.train), len(data.test)) == (2, 2)
    manifest(
        tmp_path,
        "images/patient_0.nii.gz,labels/patient_0.nii.gz,p,train",
        "images/patient_1.nii.gz,labels/patient_1.nii.gz,p,test",
    )
    assert codes(tmp_path, settings, VOLUMES) == "settings_invalid"


def test_a_listed_file_that_is_missing_is_a_bad_file(tmp_path: Path) -> None:
    volumes(tmp_path, 11)
    lines = [f"images/patient_{n}.nii.gz,labels/patient_{n}.nii.gz,," for n in range(12)]
    manifest(tmp_path, *lines)
    settings = site("segmentation", "nifti", manifest="list.csv")
    data = load_site_data(settings, tmp_path, VOLUMES)
    assert data.num_bad_files == 1
    assert "line 13" in next(iter(data.bad_files.values()))


def test_a_manifest_with_a_strange_split_or_a_double_line(tmp_path: Path) -> None:
    volumes(tmp_path, 2)
    line = "images/patient_0.nii.gz,labels/patient_0.nii.gz,p,"
    settings = site("segmentation", "nifti", manifest="list.csv")
    manifest(tmp_path, line + "validation")
    with pytest.raises(FileProblemError, match="validation"):
        load_site_data(settings, tmp_path, VOLUMES)
    manifest(tmp_path, line, line)
    with pytest.raises(FileProblemError, match="again"):
        load_site_data(settings, tmp_path, VOLUMES)


def field(path: Path, height: int, width: int) -> np.ndarray:
    """A field whose pixel values are their own numbers."""
    image = np.arange(height * width, dtype=np.float32).reshape(height, width)
    path.parent.mkdir(exist_ok=True)
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(image, name="SCI"),
        fits.CompImageHDU((image % 7 == 0).astype(np.int32) * 5, name="SEG"),
    ]
    fits.HDUList(hdus).writeto(path)
    return image


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_one_field_becomes_two_regions_that_share_no_pixel(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    field(tmp_path / "images" / "sky.fits", *shape)
    plan = plan_of("segmentation", patch_size=[16, 16], normalisation="none")
    data = load_site_data(site("segmentation", "fits"), tmp_path, plan)
    assert (len(data.train), len(data.test)) == (1, 1)
    train, test = data.train[0], data.test[0]
    assert not set(train.image.ravel()) & set(test.image.ravel())
    longer = shape.index(max(shape)) + 1
    unused = max(shape) - train.image.shape[longer] - test.image.shape[longer]
    assert unused == 16
    assert test.image.shape[longer] == round(0.25 * 90)
    for case in (train, test):
        assert case.mask is not None
        np.testing.assert_array_equal(case.mask, case.image[0] % 7 == 0)
    assert train.id != test.id


def test_a_frozen_run_ignores_new_files_and_misses_gone_ones(tmp_path: Path) -> None:
    volumes(tmp_path, 5)
    settings = site("segmentation", "nifti")

    def load() -> SiteData:
        return load_site_data(settings, tmp_path, VOLUMES, run="r1")

    first = load()
    assert (tmp_path / "state" / "runs" / "r1" / "manifest.json").exists()
    volumes(tmp_path / "more", 30)
    for part in ("images", "labels"):
        for path in (tmp_path / "more" / part).iterdir():
            path.rename(tmp_path / part / f"new_{path.name}")
    second = load()
    assert [c.id for c in second.train] == [c.id for c in first.train]
    assert [c.id for c in second.test] == [c.id for c in first.test]
    check_frozen(settings, tmp_path, VOLUMES, "r1", "")
    assert len(load_site_data(settings, tmp_path, VOLUMES, run="r2").train) > 4
    (tmp_path / "labels" / "patient_1.nii.gz").unlink()
    with pytest.raises(DataProblemError) as caught:
        check_frozen(settings, tmp_path, VOLUMES, "r1", "")
    assert caught.value.code == "data_withdrawn"


def test_a_listed_file_that_goes_ends_the_run(tmp_path: Path) -> None:
    volumes(tmp_path, 4)
    lines = [f"images/patient_{n}.nii.gz,labels/patient_{n}.nii.gz,," for n in range(4)]
    manifest(tmp_path, *lines)
    settings = site("segmentation", "nifti", manifest="list.csv")
    load_site_data(settings, tmp_path, VOLUMES, run="r")
    (tmp_path / "images" / "patient_2.nii.gz").unlink()
    with pytest.raises(DataProblemError) as caught:
        load_site_data(settings, tmp_path, VOLUMES, run="r")
    assert caught.value.code == "data_withdrawn"


def test_all_files_gone_ends_the_run_with_the_same_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.ones((4, 8, 8)), labels=[0, 1, 0, 1])
    settings, plan = site("classification", "npz"), plan_of("classification")
    load_site_data(settings, tmp_path, plan, run="r")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DataProblemError) as caught:
        load_site_data(settings, tmp_path, plan, run="r")
    assert caught.value.code == "data_withdrawn"


def test_arrays_with_patients_on_one_side(tmp_path: Path) -> None:
    groups = np.repeat(["a", "b", "c", "d"], 3)
    images = DRAWS.integers(0, 60000, (12, 8, 8)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(12) % 2, groups=groups)
    plan = plan_of("classification", normalisation="none")
    data = load_site_data(site("classification", "npz"), tmp_path, plan)
    number = {images[i].tobytes(): i for i in range(12)}
    sides = [
        {groups[number[case.image[0].astype(np.uint16).tobytes()]] for case in part}
        for part in (data.train, data.test)
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert data.train[0].image.dtype == np.float32


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", images=np.ones((20, 8, 8)), labels=np.arange(20) % 2)
    objects = np.array([{"a": 1}] * 3, dtype=object)
    np.savez(tmp_path / "bad.npz", images=objects, labels=[0, 1, 0])
    data = load_site_data(site("classification", "npz"), tmp_path, plan_of("classification"))
    assert data.num_bad_files == 1
    assert "without pickles" in next(iter(data.bad_files.values()))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_site_of_one_broken_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert codes(tmp_path, site("classification", "npz"), plan_of("classification")) == (
        "too_many_bad_files"
    )


def test_what_does_not_fit_the_memory_is_read_again(tmp_path: Path) -> None:
    volumes(tmp_path, 4)
    data = load_site_data(site("segmentation", "nifti", memory_bytes=0), tmp_path, VOLUMES)
    assert data.train[0] is not data.train[0]
    np.testing.assert_array_equal(data.train[0].image, data.train[0].image)
    kept = load_site_data(site("segmentation", "nifti"), tmp_path, VOLUMES)
    assert kept.train[0] is kept.train[0]
