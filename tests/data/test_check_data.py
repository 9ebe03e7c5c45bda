"""The self-check names every problem in one visit, each with its fix, and what is fatal."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from astropy.io import fits

from asterion_client import check_machine
from asterion_client.check import check_site
from asterion_shared.errors import Problem
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


def plan_of(task: str, model: str, **data: Any) -> Plan:
    sections = {"data": {"patch_size": [8, 8]} | data, "model": {"name": model}}
    return validate(Plan, {"name": "t", "task": task} | sections, "plan")


SORTING = plan_of("classification", "residual", classes=["well", "ill"])


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.toml"
    path.write_text(text)
    return path


def arrays(folder: Path, **values: Any) -> Path:
    path = write(folder, 'name = "s"\ntask = "classification"\n[data]\nformat = "npz"\n')
    images = np.random.default_rng(0).normal(size=(20, 8, 8))
    np.savez(folder / "a.npz", **({"images": images, "labels": np.arange(20) % 2} | values))
    return path


def fatal(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.fatal]


def about(problems: list[Problem], words: str) -> Problem:
    (found,) = [p for p in problems if words in str(p)]
    return found


def test_a_good_site_has_only_the_missing_connection(tmp_path: Path) -> None:
    path = arrays(tmp_path)
    for plan in (None, SORTING):
        found = {(problem.where, problem.fatal) for problem in check_site(path, plan)}
        # Each array counts as a patient of its own, which a person should confirm.
        assert found == {("connection", False), ("data", False)}


def test_every_problem_has_a_place_and_a_fix(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'name = "s"\ntask = "classification"\n[data]\nformat = "npz"\nfolder = "none"\n'
        '[compute]\ndevice = "cuda:99"\n[connection]\naddress = "nowhere"\n'
        'root_certificate = "ca.pem"\nprivate_key = "key"\n',
    )
    problems = check_site(path)
    assert all(p.where and p.what and p.fix for p in problems)
    for words in ("no such folder", "cuda:99", "ca.pem does not exist", "key does not exist"):
        assert about(problems, words).fatal


def test_a_plan_for_another_task_or_kind(tmp_path: Path) -> None:
    path = arrays(tmp_path)
    unet = plan_of("segmentation", "unet")
    assert about(check_site(path, unet), "the plan is for segmentation").fatal
    rows = plan_of("classification", "logistic", kind="table", features=["a"])
    assert about(check_site(path, rows), "data.kind is 'table'").fatal


@pytest.mark.parametrize("plan", [None, SORTING], ids=["alone", "with a plan"])
def test_one_class_is_a_warning(tmp_path: Path, plan: Plan | None) -> None:
    problems = check_site(arrays(tmp_path, labels=np.zeros(20, int)), plan)
    words = "no training record is of class ill" if plan else "have the label '0'"
    assert not about(problems, words).fatal
    assert not fatal(problems)


def test_a_label_outside_the_classes_is_said_once(tmp_path: Path) -> None:
    problems = check_site(arrays(tmp_path, labels=np.arange(20) % 2 * 7), SORTING)
    assert about(problems, "label '7'").fatal


def test_a_patient_on_both_sides_hides_nothing_else(tmp_path: Path) -> None:
    path = arrays(
        tmp_path,
        group=np.repeat(["p", "q"], 10),
        split=["train"] * 9 + ["test"] + ["train"] * 10,
        labels=np.arange(20) % 2 * 7,
    )
    problems = check_site(path, SORTING)
    assert about(problems, "'p' is in more than one split").fatal
    assert about(problems, "label '7'").fatal


def volumes(folder: Path, count: int = 12) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for number in range(count):
            values = np.full((8, 8, 8), number % 2, np.uint8)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / part / f"v{number}.nii")
    return write(folder, 'name = "s"\ntask = "segmentation"\n[data]\nformat = "nifti"\n')


CUTTING = plan_of("segmentation", "unet", dimensions=3, patch_size=[8, 8, 8])


@pytest.mark.parametrize("plan", [None, CUTTING], ids=["alone", "with a plan"])
def test_bad_files_are_named_and_counted(tmp_path: Path, plan: Plan | None) -> None:
    path = volumes(tmp_path)
    (tmp_path / "images" / "v3.nii").write_bytes(b"nonsense")
    problems = check_site(path, plan)
    assert about(problems, "v3.nii").where == "v3.nii"
    assert not fatal(problems)
    (tmp_path / "images" / "v4.nii").write_bytes(b"")
    (tmp_path / "labels" / "v5.nii").unlink()
    problems = check_site(path, plan)
    assert {p.where for p in problems} >= {"v3.nii", "v4.nii", "v5.nii"}
    assert about(problems, "3 of 12 records cannot be used").fatal


@pytest.mark.parametrize("plan", [None, CUTTING], ids=["alone", "with a plan"])
def test_a_mask_of_another_shape_is_fatal(tmp_path: Path, plan: Plan | None) -> None:
    path = volumes(tmp_path)
    small = nibabel.Nifti1Image(np.zeros((8, 8, 7), np.uint8), np.eye(4))
    nibabel.save(small, tmp_path / "labels" / "v2.nii")
    assert about(check_site(path, plan), "v2.nii").fatal


def test_a_table_that_lacks_a_column(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "s"\ntask = "classification"\n[data]\nformat = "table"\n')
    (tmp_path / "t.csv").write_text(
        "age,label\n" + "\n".join(f"{40 + i},{i % 2}" for i in range(12)) + "\nold,1\n"
    )
    plan = plan_of("classification", "logistic", kind="table", features=["age", "chol"])
    problems = check_site(path, plan)
    assert not about(problems, "no column 'chol'").fatal
    assert not about(problems, "age of row 13 is not a number").fatal
    assert not fatal(problems)


def test_disk_and_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrays(tmp_path)
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(check_machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(check_machine.os, "access", lambda *_: False)
    problems = check_site(path)
    assert about(problems, "is not writable").fatal
    assert about(problems, "0.0 GiB are free").fatal


def test_a_clock_that_was_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine.time, "time", lambda: 86400.0)
    assert about(check_site(arrays(tmp_path)), "clock").fatal


def test_cuda_asked_for_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrays(tmp_path)
    path.write_text(path.read_text() + '[compute]\ndevice = "cuda:1"\n')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not fatal(check_site(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert about(check_site(path), "torch finds 1 such").fatal


@pytest.mark.parametrize("plan", [None, plan_of("segmentation", "unet")], ids=["alone", "plan"])
def test_a_fits_mask_of_another_shape_is_fatal(tmp_path: Path, plan: Plan | None) -> None:
    path = write(tmp_path, 'name = "s"\ntask = "segmentation"\n[data]\nformat = "fits"\n')
    (tmp_path / "images").mkdir()
    for number in range(3):
        planes = [np.zeros((40, 40), np.float32), np.zeros((40, 41 - number % 2), np.uint8)]
        hdus = [fits.ImageHDU(p, name=n) for p, n in zip(planes, ("SCI", "SEG"), strict=True)]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "images" / f"f{number}.fits")
    problems = check_site(path, plan)
    assert {p.where for p in fatal(problems)} == {"f0.fits", "f2.fits"}
