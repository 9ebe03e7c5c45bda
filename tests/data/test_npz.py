"""npz: rows of images, labels and masks, without pickles."""

from pathlib import Path

import numpy as np
import pytest

from asterion_client.data.npz import read_index, read_npz, row_sha256
from asterion_client.data.raw_image import UnreadableFileError

IMAGES = np.random.default_rng(1).integers(0, 65535, (4, 6, 5)).astype(np.uint16)


def store(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_uint16_keeps_its_values(tmp_path: Path) -> None:
    raw = read_npz(store(tmp_path / "a.npz", images=IMAGES), 2, 2)
    assert raw.image.dtype == np.float32
    np.testing.assert_array_equal(raw.image[0], IMAGES[2])
    assert (raw.unit, raw.mask) == ("", None)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, labels=np.array([Trap()] * 4, object))
    with pytest.raises(UnreadableFileError, match="without pickles"):
        read_index(path)
    with pytest.raises(UnreadableFileError, match="without pickles"):
        read_npz(path, 0, 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["labels", "masks", "group", "split"])
def test_arrays_of_another_length_are_refused(tmp_path: Path, name: str) -> None:
    path = store(tmp_path / "a.npz", images=IMAGES, **{name: np.zeros(3)})
    with pytest.raises(UnreadableFileError, match=f"{name} has shape"):
        read_index(path)


def test_other_arrays_are_not_looked_at(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npz", images=IMAGES, labels=np.arange(4), version=np.array(3))
    assert read_index(path).count == 4


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1, 0], np.uint8),
        np.array([[0], [1], [1], [0]]),
        np.array([0.0, 1.0, 1.0, 0.0]),
        np.array(["0", "1", "1", "0"]),
        np.array([b"0", b"1", b"1", b"0"]),
    ],
)
def test_labels_of_every_kind_are_the_same_texts(tmp_path: Path, labels: np.ndarray) -> None:
    index = read_index(store(tmp_path / "a.npz", images=IMAGES, labels=labels))
    assert index.labels == ("0", "1", "1", "0")


def test_several_labels_a_row_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npz", images=IMAGES, labels=np.zeros((4, 3)))
    with pytest.raises(UnreadableFileError, match="one class"):
        read_index(path)


def test_groups_and_splits_by_row(tmp_path: Path) -> None:
    path = store(
        tmp_path / "a.npz",
        images=IMAGES,
        group=np.array(["p1", "p1", "p2", "p3"]),
        split=np.array(["train", "train", "test", ""]),
    )
    index = read_index(path)
    assert index.groups == ("p1", "p1", "p2", "p3")
    assert index.splits == ("train", "train", "test", "")


def test_masks_go_with_their_row(tmp_path: Path) -> None:
    masks = (IMAGES > 30000).astype(np.float32)
    raw = read_npz(store(tmp_path / "a.npz", images=IMAGES, masks=masks), 1, 2)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, masks[1])
    with pytest.raises(UnreadableFileError, match="whole numbers"):
        read_npz(store(tmp_path / "b.npz", images=IMAGES, masks=masks + 0.5), 1, 2)


def test_colours_first_and_last_are_channels(tmp_path: Path) -> None:
    first = np.random.default_rng(2).random((2, 3, 8, 9), np.float32)
    expected = read_npz(store(tmp_path / "a.npz", images=first), 1, 2).image
    np.testing.assert_array_equal(expected, first[1])
    last = np.moveaxis(first, 1, -1)
    np.testing.assert_array_equal(
        read_npz(store(tmp_path / "b.npz", images=last), 1, 2).image, expected
    )
    grey = store(tmp_path / "c.npz", images=first[:, 0, :, :, np.newaxis])
    np.testing.assert_array_equal(read_npz(grey, 1, 2).image, first[1, :1])


def test_volumes_need_a_plan_of_three_dimensions(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npz", images=np.zeros((2, 1, 5, 6, 7)))
    assert read_npz(path, 0, 3).image.shape == (1, 5, 6, 7)
    with pytest.raises(UnreadableFileError, match="2 spatial dimensions"):
        read_npz(store(tmp_path / "b.npz", images=np.zeros((2, 4, 5, 6, 7))), 0, 2)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(3000)])
def test_other_files_are_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    for read in (lambda: read_index(path), lambda: read_npz(path, 0, 2)):
        with pytest.raises(UnreadableFileError):
            read()


def test_a_plain_array_damage_and_words_are_unreadable(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(UnreadableFileError):
        read_index(tmp_path / "a.npz")
    whole = store(tmp_path / "b.npz", images=IMAGES).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"x" * 20 + whole[120:]):
        (tmp_path / "c.npz").write_bytes(damaged)
        with pytest.raises(UnreadableFileError):
            read_index(tmp_path / "c.npz")
    words = store(tmp_path / "d.npz", images=np.full((2, 3, 3), "dog"))
    with pytest.raises(UnreadableFileError):
        read_npz(words, 0, 2)
    with pytest.raises(UnreadableFileError, match="images"):
        read_index(store(tmp_path / "e.npz", pictures=IMAGES))
    with pytest.raises(UnreadableFileError):
        read_index(tmp_path / "missing.npz")


def test_the_hash_of_a_row_is_its_contents_alone(tmp_path: Path) -> None:
    masks = np.zeros(IMAGES.shape, np.uint8)
    path = store(tmp_path / "a.npz", images=IMAGES, masks=masks)
    longer = store(
        tmp_path / "b.npz",
        images=np.concatenate([IMAGES[:1], IMAGES]),
        masks=np.concatenate([masks[:1], masks]),
    )
    assert row_sha256(path, 2) == row_sha256(longer, 3)
    assert row_sha256(path, 2) != row_sha256(path, 3)
    masks[2, 0, 0] = 1
    changed = store(tmp_path / "c.npz", images=IMAGES, masks=masks)
    assert row_sha256(path, 2) != row_sha256(changed, 2)
