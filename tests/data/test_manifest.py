"""The frozen data set of a run: new files wait, gone ones end it, names are not in the hash."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from asterion_client.data.admission import admission_of
from asterion_client.data.manifest import Divide, Frozen, content_sha256
from asterion_client.data.manifest import freeze as freeze_admitted
from asterion_client.data.records import Record
from asterion_client.data.splits import split_field, split_records
from asterion_client.settings import SiteSettings
from asterion_shared.errors import DataProblemError, FileProblemError
from asterion_shared.settings_files import validate

EVERYBODY = admission_of(
    validate(SiteSettings, {"name": "s", "task": "anomaly", "data": {"format": "nifti"}}, "s"),
    Path("absent"),
    [],
)


def freeze(records: Sequence[Record], divide: Divide, path: Path | None) -> Frozen:
    return freeze_admitted(records, divide, path, EVERYBODY)


def divide(records: Sequence[Record]) -> list[Record]:
    return split_records(records, 0.4, 1)


def found(folder: Path) -> list[Record]:
    return [Record(path=path, group=path.stem) for path in sorted(folder.glob("*.bin"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    for name in "abcdefgh":
        (place / f"{name}.bin").write_text(name)
    return place


def test_new_files_wait_for_the_next_run(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "state" / "manifest.json"
    first = freeze(found(folder), divide, store)
    # Many new files: without the stored sides they would push old ones to the other side.
    for number in range(40):
        (folder / f"new{number}.bin").write_text(str(number))
    assert freeze(found(folder), divide, store) == first
    assert len(freeze(found(folder), divide, None).records) == 48


@pytest.mark.parametrize("deed", ["remove", "change"])
def test_a_withdrawn_record_ends_the_run(folder: Path, tmp_path: Path, deed: str) -> None:
    store = tmp_path / "manifest.json"
    freeze(found(folder), divide, store)
    if deed == "remove":
        (folder / "c.bin").unlink()
    else:
        (folder / "c.bin").write_text("something else")
    with pytest.raises(DataProblemError, match="1 records") as caught:
        freeze(found(folder), divide, store)
    assert caught.value.code == "data_withdrawn"
    assert "c.bin" not in str(caught.value)


def test_one_of_two_equal_files_is_missed(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "manifest.json"
    records = [Record(path=folder / f"{name}.bin", group="one") for name in "ab"]
    (folder / "b.bin").write_text("a")
    ids = freeze(records, lambda r: split_records(r, 0.0, 1), store).ids
    assert len(set(ids)) == 2
    with pytest.raises(DataProblemError):
        freeze(records[:1], divide, store)


def test_a_renamed_folder_changes_nothing(folder: Path, tmp_path: Path) -> None:
    first = freeze(found(folder), divide, None)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    second = freeze(found(moved), divide, None)
    assert (first.sha256, first.ids) == (second.sha256, second.ids)


def test_the_stored_manifest_names_no_file(folder: Path, tmp_path: Path) -> None:
    (folder / "jane_doe.bin").write_text("x")
    store = tmp_path / "manifest.json"
    freeze(found(folder), divide, store)
    assert "jane" not in store.read_text()


def test_sides_and_regions_are_in_the_hash(folder: Path) -> None:
    records = found(folder)
    whole = freeze(records, lambda r: split_records(r, 0.0, 1), None)
    held_out = freeze(records, lambda r: split_records(r, 1.0, 1), None)
    assert whole.sha256 != held_out.sha256


def test_regions_of_a_field_stay_when_a_second_field_comes(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "manifest.json"

    def cut(records: Sequence[Record]) -> list[Record]:
        if len(records) == 1:
            return list(split_field(records[0], (100, 60), (10, 10), 0.25))
        return divide(records)

    first = freeze(found(folder)[:1], cut, store)
    assert len(set(first.ids)) == 2
    assert freeze(found(folder), cut, store) == first


@pytest.mark.parametrize("deed", ["broken", "edited"])
def test_a_manifest_that_was_touched_is_refused(folder: Path, tmp_path: Path, deed: str) -> None:
    store = tmp_path / "manifest.json"
    freeze(found(folder), divide, store)
    if deed == "broken":
        store.write_text(store.read_text()[:-20])
    else:
        stored = json.loads(store.read_text())
        stored["records"][0]["split"] = (
            "test" if stored["records"][0]["split"] == "train" else "train"
        )
        store.write_text(json.dumps(stored))
    with pytest.raises(FileProblemError, match="next run"):
        freeze(found(folder), divide, store)


def test_a_file_is_hashed_again_only_when_it_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.bin"
    first = content_sha256(path)
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k)
    )
    assert content_sha256(path) == first
    assert opened == []
    path.write_text("longer than before")
    opened.clear()
    assert content_sha256(path) != first
    assert opened == [path]


def test_a_file_that_cannot_be_read_has_a_hash_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "z.bin").write_text("never hashed before")
    good = content_sha256(folder / "a.bin")

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert content_sha256(folder / "z.bin") not in ("", good)
