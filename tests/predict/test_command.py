"""``asterion site predict`` as a process of its own: no socket, nothing lost by one bad file."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.predict.releases import CUBE, plan_of, store_release

from asterion_client.closed_network import BY_INTERPRETER, BY_KERNEL
from asterion_client.predict.asked import Asked, carry_out
from asterion_client.predict.inputs import choose_settings, find_members
from asterion_client.settings import SiteDataSettings
from asterion_shared.audit_key import public_pem
from asterion_shared.errors import AsterionError, FileProblemError, UserInputError
from asterion_shared.tasks import initial_model

LISTENING = """
import os, sys, traceback
def hear(event, _):
    if not event.startswith("socket."):
        return
    # urllib3 asks the kernel, when it is imported, whether there is IPv6 at all.
    if "_has_ipv6" not in [frame.name for frame in traceback.extract_stack()]:
        with open(os.environ["HEARD"], "a") as file:
            file.write(event + chr(10))
sys.addaudithook(hear)
"""
"""Run by every Python process of the command before anything else."""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    plan = plan_of("segmentation", CUBE, model={"name": "unet", "widths": [2, 4]})
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_text(public_pem(key))
    return store_release(tmp_path / "release", initial_model(plan), plan, key)


def store_volumes(folder: Path) -> Path:
    folder.mkdir()
    values = np.random.default_rng(5).normal(size=(6, 6, 6)).astype(np.float32)
    for name in ("a.nii", "b.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name)
    (folder / "broken.nii").write_bytes(b"no volume")
    return folder


def test_the_command_opens_no_socket_and_goes_on_after_a_bad_file(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(LISTENING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"), prepend=":")
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    ran = subprocess.run(
        [sys.executable, "-m", "asterion_shared.command_line", "site", "predict", release,
         store_volumes(tmp_path / "in"), "--out", tmp_path / "out",
         "--key", tmp_path / "key.pem"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 12, ran.stderr
    assert ran.stderr == ""
    assert not (tmp_path / "heard").exists()
    assert "predicted 2 of 3 with seen version 3" in ran.stdout
    assert "skipped 1, the first because broken.nii is not a readable NIfTI file" in ran.stdout
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["network"] in (BY_KERNEL, BY_INTERPRETER)
    assert (summary["temperature"], summary["predicted"]) == (1.5, 2)
    assert [s["file"] for s in summary["skipped"]] == ["broken.nii"]
    assert summary["files"][0] == {
        "file": "a.nii", "results": ["masks/a.nii.gz", "uncertainty/a.nii.gz"]
    }  # fmt: skip
    assert summary["signer_checked"] is True
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    # The hook does hear: otherwise the silence above would say nothing.
    subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], check=True)
    assert "socket.__new__" in (tmp_path / "heard").read_text()


def test_results_are_never_written_over(tmp_path: Path, release: Path) -> None:
    folder = store_volumes(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").write_text("{}")
    with pytest.raises(FileProblemError, match="is there already"):
        carry_out(Asked(release=release, folder=folder, out=tmp_path / "out"), "")
    assert (tmp_path / "out/summary.json").read_text() == "{}"
    with pytest.raises(FileProblemError, match="taken for images"):
        carry_out(Asked(release=release, folder=folder, out=folder / "out"), "")


def test_a_release_of_another_signer_predicts_nothing(tmp_path: Path, release: Path) -> None:
    (tmp_path / "other.pem").write_text(public_pem(Ed25519PrivateKey.generate()))
    asked = Asked(
        release=release, folder=store_volumes(tmp_path / "in"), out=tmp_path / "out",
        key=tmp_path / "other.pem",
    )  # fmt: skip
    with pytest.raises(AsterionError, match="signed with the key"):
        carry_out(asked, "")
    assert not (tmp_path / "out").exists()


def test_equal_names_have_files_of_their_own(tmp_path: Path) -> None:
    values = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("images/a.nii", "images/a.nii.gz", "images/b.nii", "labels/b.nii"):
        nibabel.save(values, tmp_path / name)
    plan = plan_of("segmentation", CUBE)
    members = find_members(tmp_path, SiteDataSettings(format="nifti"), plan)
    assert [m.id for m in members] == ["images/a.nii", "images/a.nii.gz", "images/b.nii"]
    assert [m.stem for m in members] == ["images/a.nii", "images/a.nii.gz", "images/b"]


def test_a_folder_of_several_formats_asks_which(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"")
    (tmp_path / "b.fits").write_bytes(b"")
    plan = plan_of("segmentation", CUBE)
    with pytest.raises(UserInputError, match="holds nifti and fits; say which with --format"):
        choose_settings(tmp_path, plan, None, None)
    assert choose_settings(tmp_path, plan, None, "fits").format == "fits"
