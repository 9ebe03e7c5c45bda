import csv
import os
from pathlib import Path

import numpy as np
import pytest

from asterion_client.settings import read_site_settings
from asterion_shared.errors import FileProblemError
from asterion_shared.randomness import stream
from asterion_sim import (
    prepare_chest,
    prepare_chest_anomaly,
    prepare_heart,
    prepare_hippocampus,
    prepare_nuclei,
    prepare_radio,
    prepare_sky,
    prepare_sky_anomaly,
)
from asterion_sim.prepare_common import read_arrays, write_site
from asterion_sim.prepare_sky_anomaly import TILE, cut_tiles, draw_track
from asterion_sim.studies import STUDIES


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("ASTERION_DATA")
    if folder is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    return Path(folder)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_missing_data_set_is_named(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileProblemError, match="no such file; give the folder of the data sets"):
        study.prepare(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_preparing_twice_gives_equal_files(study, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folders = study.prepare(data, tmp_path)
    first = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert study.prepare(data, tmp_path) == folders
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == first
    for folder in folders:
        assert read_site_settings(folder / "site.toml").name == folder.name


def test_site_toml_survives_odd_names(tmp_path: Path) -> None:
    labels = {'a "b"': "ö", "2": "posterior"}
    write_site(
        tmp_path,
        name="a",
        task="segmentation",
        data={"format": "npz", "labels": labels, "test_fraction": 0.5},
    )
    settings = read_site_settings(tmp_path / "site.toml")
    assert settings.data.labels == labels
    assert settings.data.test_fraction == 0.5


def test_hippocampus_keeps_the_sets_own_split(data: Path, tmp_path: Path) -> None:
    for folder in prepare_hippocampus.prepare(data, tmp_path):
        rows = read_rows(folder / "manifest.csv")
        assert [r["split"] for r in rows].count("train") == 24
        assert [r["split"] for r in rows].count("test") == 6
        assert all((folder / r["path"]).exists() and (folder / r["label"]).exists() for r in rows)


def test_heart_holds_out_a_quarter_of_each_class(data: Path, tmp_path: Path) -> None:
    counts = {}
    for folder in prepare_heart.prepare(data, tmp_path):
        rows = read_rows(folder / "patients.csv")
        counts[folder.name] = len(rows)
        for ill in ("0", "1"):
            splits = [r["split"] for r in rows if r["disease"] == ill]
            assert splits.count("test") == round(len(splits) / 4)
        assert not any(r["chol"] == "0" for r in rows)
    assert counts == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}


def test_nuclei_keep_source_images_on_one_side(data: Path, tmp_path: Path) -> None:
    num_groups = {}
    for folder in prepare_nuclei.prepare(data, tmp_path):
        arrays = read_arrays(folder / "images.npz")
        assert arrays["images"].shape == arrays["masks"].shape == (64, 128, 128)
        assert set(np.unique(arrays["masks"])) == {0, 1}
        test = arrays["split"] == "test"
        assert 13 <= test.sum() <= 14
        assert not set(arrays["group"][test]) & set(arrays["group"][~test])
        num_groups[folder.name] = len(set(arrays["group"][test]))
    # brightfield crops are five of one image
    assert num_groups == {"brightfield": 3, "fluo_360": 13, "fluo_520": 13, "fluo_small": 13,
                          "histology": 13}  # fmt: skip


def test_halve_by_hand() -> None:
    stack = np.array([[[0, 1, 4, 4], [1, 1, 4, 6]]], np.uint8)
    assert prepare_nuclei.halve(stack).tolist() == [[[0.75, 4.5]]]


def test_chest_sites_are_equal_groups_of_exposure(data: Path, tmp_path: Path) -> None:
    folders = prepare_chest.prepare(data, tmp_path)
    brightest = -1.0
    totals = {"train": 0, "test": 0}
    for folder in folders:
        arrays = read_arrays(folder / "images.npz")
        levels = arrays["images"].mean(axis=(1, 2))
        assert levels.min() >= brightest
        brightest = levels.max()
        for part in totals:
            totals[part] += int((arrays["split"] == part).sum())
        assert abs((arrays["split"] == "train").sum() - 4708 / 5) <= 2
    assert totals == {"train": 4708, "test": 624}


def test_chest_anomaly_learns_from_normals_only(data: Path, tmp_path: Path) -> None:
    for folder in prepare_chest_anomaly.prepare(data, tmp_path):
        arrays = read_arrays(folder / "images.npz")
        assert not arrays["labels"][arrays["split"] == "train"].any()
        assert set(arrays["labels"][arrays["split"] == "test"]) == {0, 1}


def test_radio_bands_hold_no_hybrid(data: Path, tmp_path: Path) -> None:
    total = 0
    shares = []
    for folder in prepare_radio.prepare(data, tmp_path):
        arrays = read_arrays(folder / "images.npz")
        assert arrays["images"].shape[1:] == (64, 64)
        assert set(arrays["labels"]) == {1, 2}
        total += len(arrays["labels"])
        shares.append(float((arrays["labels"] == 2).mean()))
        assert np.mean(arrays["split"] == "test") == pytest.approx(0.2, abs=0.01)
    assert total == 1221
    # class II over both classes, counted from the codes
    assert shares == pytest.approx([89 / 257, 136 / 286, 153 / 293, 252 / 385])


def test_shrink_by_hand() -> None:
    images = np.zeros((1, 130, 130), np.uint8)
    images[0, 1:3, 1:3] = [[10, 20], [30, 41]]  # the first averaged pixel: 101 / 4 = 25.25
    images[0, 0, 0] = 255  # cut away
    small = prepare_radio.shrink(images)
    assert small.shape == (1, 64, 64)
    assert small[0, 0, 0] == 25
    assert small.sum() == 25


def test_sky_noise_has_the_stated_size(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("astropy", reason="FITS needs astropy")
    from asterion_sim.sky_field import read_sky_field

    for folder in prepare_sky.prepare(data, tmp_path):
        noisy = read_sky_field(folder / "images" / "field.fits")
        clean = read_sky_field(data / "sky-fields" / f"{folder.name}.fits")
        added = noisy.image - clean.image
        assert added.std() == pytest.approx(2 * clean.sky_rms, rel=0.01)
        assert np.array_equal(noisy.segments, clean.segments)
        assert noisy.header == clean.header


def test_sky_tiles_of_train_and_test_share_no_pixel(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("astropy", reason="FITS needs astropy")
    for folder in prepare_sky_anomaly.prepare(data, tmp_path):
        arrays = read_arrays(folder / "tiles.npz")
        test = arrays["split"] == "test"
        labels = arrays["labels"]
        assert not labels[~test].any()
        assert labels[test].sum() == test.sum() // 2
        assert np.array_equal(labels == 1, arrays["masks"].any(axis=(1, 2)))


def test_cut_tiles_by_hand() -> None:
    image = np.arange(40 * 96, dtype=np.float32).reshape(40, 96)
    tiles = cut_tiles(image, TILE)
    assert tiles.shape == (3, TILE, TILE)
    assert np.array_equal(tiles[1], image[:32, 32:64])
    assert cut_tiles(image, 16).shape == (5, TILE, TILE)


def test_tracks_are_short_bright_and_inside() -> None:
    for number in range(200):
        draws = stream(1, round_=0, site=str(number), purpose="test")
        track = draw_track(draws, sky_rms=2.0)
        assert track.min() == 0
        assert 0.5 * 80 * 2 < track.max() <= 400 * 2
        rows, columns = np.nonzero(track > 0.3 * track.max())
        assert max(np.ptp(rows), np.ptp(columns)) <= 18
        assert 5 <= len(rows) <= 60
        for edge in (track[0], track[-1], track[:, 0], track[:, -1]):
            assert edge.max() < 0.2 * track.max()
