"""A part whose process died between its last chunk and its name."""

from pathlib import Path

import pytest

from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import CHUNK_BYTES, Part

DATA = bytes(range(256)) * (CHUNK_BYTES // 128)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_part_with_all_chunks_and_no_name_is_whole_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    part: Part = BlobStore(tmp_path / "there").add(DATA)
    assert part.num_chunks == 2
    store = BlobStore(tmp_path / "here")

    def die(*_: object) -> None:
        raise KilledError

    for number in range(2):
        store.write(part, number, DATA[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
        if number < num_before:
            store.sync(part)
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "_complete", die)
        with pytest.raises(KilledError):
            store.sync(part)
    after = BlobStore(tmp_path / "here")
    assert not after.holds(part)
    assert after.missing(part) == []
    assert after.holds(part)
    assert bytes(after.view(part)) == DATA
