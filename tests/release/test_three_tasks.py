"""A real federation of each task, its release, and predictions far from where it was made."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import center_of_mass

from asterion_sim import prepare_chest, prepare_hippocampus

pytestmark = [pytest.mark.nightly, pytest.mark.live]
STUDIES = Path(__file__).parents[2] / "simulations" / "studies"


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("ASTERION_DATA")
    if folder is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    return Path(folder)


def carried_out(*words: object, before: Sequence[str] = (), **how: Path) -> str:
    command = [*before, sys.executable, "-m", "asterion_shared.command_line", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def offline(*words: object, cwd: Path) -> str:
    """In a network namespace of its own, which has no way out."""
    return carried_out(*words, before=("unshare", "--net", "--map-root-user"), cwd=cwd)


def released(root: Path, run: str, *demo: object) -> Path:
    """Train over real processes and release; the release, read-only, in another place."""
    carried_out("demo", "--out", root / "made", *demo)
    center, away = root / "made" / "coordinator", root / "another place" / "of another name"
    carried_out("server", "release", run, "--folder", center)
    away.parent.mkdir()
    shutil.copytree(center / "releases" / run / "1", away)
    shutil.copy(center / "releases" / "release.pem", away.parent / "signer.pem")
    shutil.rmtree(root / "made" / "coordinator")
    for path in away.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    said = offline("verify", away.name, "--key", "signer.pem", cwd=away.parent)
    assert "files are as they were signed" in said
    return away


def study(root: Path, name: str, prepare: Callable[[Path, Path], list[Path]], data: Path) -> Path:
    """The study's sites and its plan, shortened; the sites' folder."""
    folders = prepare(data, root / "sites")
    for folder in folders:  # the sets are public: nobody is hidden by leaving counts out
        with (folder / "site.toml").open("a") as toml:
            toml.write("\n[egress]\nsmallest_group = 1\n")
    text = (STUDIES / f"{name}.toml").read_text()
    short = re.sub(r"count = \d+\nevaluate_every = \d+", "count = 3\nevaluate_every = 3", text)
    assert short != text
    (root / "plan.toml").write_text(short)
    return root / "sites"


def test_segmentation_of_hippocampi(tmp_path: Path, data: Path) -> None:
    sites = study(tmp_path, "hippocampus", prepare_hippocampus.prepare, data)
    release = released(tmp_path, "hippocampus", "--data", sites, "--plan", tmp_path / "plan.toml")
    files = sorted((data / "hippocampus-mr" / "site_c_mid" / "images").glob("*.nii.gz"))[:2]
    (tmp_path / "new").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "new")
    out = tmp_path / "found"
    offline("site", "predict", release, tmp_path / "new", "--out", out, cwd=tmp_path)
    for path in files:
        truth = nibabel.load(path.parents[1] / "labels" / path.name)  # type: ignore[attr-defined]
        found = nibabel.load(out / "masks" / path.name)  # type: ignore[attr-defined]
        np.testing.assert_allclose(found.affine, truth.affine)
        drawn, true = np.asarray(found.dataobj) > 0, np.asarray(truth.dataobj) > 0
        assert 2 * (drawn & true).sum() / (drawn.sum() + true.sum()) > 0.7


def test_classification_of_chest_x_rays(tmp_path: Path, data: Path) -> None:
    sites = study(tmp_path, "chest", prepare_chest.prepare, data)
    release = released(tmp_path, "chest", "--data", sites, "--plan", tmp_path / "plan.toml")
    site, out = sites / "exposure_1", tmp_path / "found"
    (tmp_path / "new").mkdir()
    archive = next(site.glob("*.npz"))
    shutil.copy(archive, tmp_path / "new")
    offline("site", "predict", release, tmp_path / "new", "--site", site / "site.toml",
            "--out", out, "--explain", 2, cwd=tmp_path)  # fmt: skip
    with (out / "predictions.csv").open(newline="") as file:
        calls = [row["call"] for row in csv.DictReader(file)]
    truth = np.load(archive)["labels"]
    right = np.array([call == "pneumonia" for call in calls]) == (truth == 1)
    assert right.mean() > 0.7
    assert len(json.loads((out / "observations.json").read_text())["entry"]) == truth.size
    assert len(list((out / "explanations").rglob("*.png"))) == 2


def test_sources_in_the_sky(tmp_path: Path, data: Path) -> None:
    release = released(tmp_path, "hubble-demo")
    (tmp_path / "new").mkdir()
    shutil.copy(data / "sky-fields" / "sdss_r.fits", tmp_path / "new")
    reference = tmp_path / "reference.csv"
    with fits.open(tmp_path / "new" / "sdss_r.fits") as file:
        segments, sky = file["SEG"].data, WCS(file["SCI"].header, fix=False)
    numbers = np.unique(segments)[1:]
    rows, columns = np.transpose(center_of_mass(segments > 0, segments, numbers))
    at = sky.pixel_to_world(columns, rows)
    lines = [f"{ra},{dec}" for ra, dec in zip(at.ra.deg, at.dec.deg, strict=True)]
    reference.write_text("\n".join(["ra,dec", *lines]) + "\n")
    out = tmp_path / "found"
    said = offline("site", "predict", release, tmp_path / "new", "--out", out, "--reference",
                   reference, "--smallest", 5, cwd=tmp_path)  # fmt: skip
    shares = re.search(r"completeness ([\d.]+)% .* purity ([\d.]+)%", said)
    assert shares is not None
    assert float(shares[1]) > 50
    assert float(shares[2]) > 60
    assert (out / "catalogues" / "sdss_r.fits").is_file()
