"""Pictures of what was predicted: which cases, where from, and with the site's own mask."""

import csv
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.predict.releases import CUBE, PLANE, Bright, Half, Mean, box, plan_of, predict, released

from asterion_shared.reports.drawing import (
    BOTH,
    PREDICTION,
    TRUTH,
    fullest_window,
)


def shown(out: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO((out / "pictures.csv").read_text()))
    return {row["file"]: row for row in rows}


def has_colour(path: Path, colour: str) -> bool:
    """Whether some pixel is near a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.int16)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels - wanted).sum(axis=-1) < 40).any())


def store(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), path)


@pytest.mark.parametrize("shape", [(6, 7, 9), (8, 9)])
def test_a_mask_of_the_site_makes_a_map_of_errors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = box(shape)
    for name in ("right", "half", "none", "wrong"):
        store(tmp_path / f"in/images/{name}.nii", image)
    store(tmp_path / "in/labels/right.nii.gz", (image > 0).astype(np.uint8))
    places = np.flatnonzero(image)
    half = np.zeros(image.size, np.uint8)
    half[places[: len(places) // 2]] = 1
    store(tmp_path / "in/labels/half.nii", half.reshape(shape))
    store(tmp_path / "in/labels/wrong.nii", np.ones((3, 3, 3), np.uint8))
    plan = plan_of("segmentation", CUBE if len(shape) == 3 else PLANE)
    found = predict(released(tmp_path / "r", plan, Bright()), tmp_path / "in", tmp_path / "out",
                    pictures=9)  # fmt: skip
    assert not found.skipped
    rows = shown(tmp_path / "out")
    assert {name: row["reference"] for name, row in rows.items()} == {
        "images/right.nii": "yes", "images/half.nii": "yes",
        "images/none.nii": "no", "images/wrong.nii": "no",
    }  # fmt: skip
    right, none = (tmp_path / "out" / rows[f"images/{n}.nii"]["picture"] for n in ("right", "none"))
    assert has_colour(right, PREDICTION)
    assert has_colour(right, TRUTH)
    assert has_colour(right, BOTH)
    assert has_colour(none, PREDICTION)
    assert not has_colour(none, TRUTH)
    # Twice what both mark, over what each marks: 2 (n / 2) / (n + n / 2).
    for name, dice in (("right", 1.0), ("half", 2 * half.sum() / (len(places) + half.sum()))):
        words = rows[f"images/{name}.nii"]["shown"]
        assert f"(Dice of the whole file: {plan.data.classes[1]} {dice:.3f})" in words
    assert "Dice" not in rows["images/none.nii"]["shown"]
    assert ("slice" in rows["images/none.nii"]["shown"]) == (len(shape) == 3)


def test_the_least_certain_are_drawn(tmp_path: Path) -> None:
    for name, brightness in (("sure", 9.0), ("unsure", 0.1), ("middle", 1.0)):
        store(tmp_path / f"in/{name}.nii", np.full((8, 8), brightness, np.float32))
    model = released(tmp_path / "r", plan_of("classification", PLANE), Mean())
    predict(model, tmp_path / "in", tmp_path / "out", pictures=2)
    assert list(shown(tmp_path / "out")) == ["unsure.nii", "middle.nii"]
    assert sorted(p.name for p in (tmp_path / "out/pictures").iterdir()) == [
        "middle.png", "unsure.png",
    ]  # fmt: skip
    assert not has_colour(tmp_path / "out/pictures/unsure.png", TRUTH)
    predict(model, tmp_path / "in", tmp_path / "none")
    assert not (tmp_path / "none/pictures.csv").exists()


def test_an_anomaly_shows_the_worst_slice(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 8), np.float32)
    image[1:3, 1:3, 6] = 1
    store(tmp_path / "in/a.nii", image)
    plan = plan_of("anomaly", CUBE | {"patch_size": [4, 4, 8]})
    predict(released(tmp_path / "r", plan, Half()), tmp_path / "in", tmp_path / "out", pictures=1)
    assert shown(tmp_path / "out")["a.nii"]["shown"].endswith("slice 7 of 8")


def test_a_large_image_is_drawn_where_most_was_found() -> None:
    mask = np.zeros((70, 33), np.int16)
    assert fullest_window(mask, 70) == ((), "")
    mask[64:, 20:] = 1
    cut, words = fullest_window(mask, 20)
    assert cut == (slice(50, 70), slice(13, 33))
    assert words == "rows 50-70, columns 13-33"
    mask[0:4, 0:10] = 1
    assert fullest_window(mask, 20)[0] == cut
    mask[0:9, 0:20] = 1
    assert fullest_window(mask, 20)[0] == (slice(0, 20), slice(0, 20))
