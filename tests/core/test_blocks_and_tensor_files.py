"""Long vectors by blocks and tensor files, against the safetensors package and numpy."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.blocks import (
    BLOCK,
    all_finite,
    distance,
    is_mapped,
    length,
    let_go,
    map_numbers,
    through,
)
from asterion_shared.errors import FileProblemError, PlanMismatchError
from asterion_shared.link.records import content_sha256
from asterion_shared.messages import Order, order_sha256
from asterion_shared.plan import ModelSettings, Plan
from asterion_shared.privacy import gaussian_noise
from asterion_shared.tensor_files import map_tensors, write_tensors
from asterion_shared.vector_records import vector_record

TYPES = [np.float32, np.float64, np.uint8, np.int64, np.int32, np.bool_, np.float16]
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@given(
    entries=st.dictionaries(
        names.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    ),
    text=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_the_bytes_are_the_packages(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[str, tuple[type[np.generic], list[int]]],
    text: str | None,
) -> None:
    draws = np.random.default_rng(len(entries))
    arrays = {
        name: draws.integers(0, 2, size=shape).astype(kind)
        for name, (kind, shape) in entries.items()
    }
    metadata = None if text is None else {"facts": text}
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    digest = write_tensors(path, arrays, metadata)
    written = path.read_bytes()
    assert written == safetensors.numpy.save(arrays, metadata=metadata)
    assert digest == hashlib.sha256(written).hexdigest()
    assert list(path.parent.iterdir()) == [path]
    found = map_tensors(path)
    assert found.metadata == (metadata or {})
    assert found.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found.tensors[name].dtype == array.dtype
        assert np.array_equal(found.tensors[name], array)


def test_a_file_of_many_blocks_is_written_whole_and_can_be_written_from_its_own_map(
    tmp_path: Path,
) -> None:
    vector = np.random.default_rng(1).standard_normal(2 * BLOCK + 5, np.float32)
    arrays = {"w": vector.reshape(1, -1), "b": vector[:3]}
    write_tensors(tmp_path / "a", arrays)
    assert (tmp_path / "a").read_bytes() == safetensors.numpy.save(arrays)
    mapped = map_tensors(tmp_path / "a").tensors
    assert is_mapped(mapped["w"])
    write_tensors(tmp_path / "a", mapped)  # the map shows the old file until it is gone
    assert (tmp_path / "a").read_bytes() == safetensors.numpy.save(arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "lie where"),
        (lambda data: data + b"x", "beyond"),
        (lambda data: b"\xff" * 8 + data[8:], "header cannot"),
        (lambda data: b"", "header cannot"),
        (lambda data: data[:8] + b"[" + data[9:], "JSON"),
        (lambda data: data.replace(b'"F32"', b'"F33"'), "describe"),
        (lambda data: data.replace(b'"shape":[3]', b'"shape":[4]'), "lie where"),
        (lambda data: data.replace(b"[0,12]", b"[4,16]"), "lie where"),
    ],
)
def test_a_torn_or_forged_file_is_refused(tmp_path: Path, change: object, words: str) -> None:
    path = tmp_path / "a"
    write_tensors(path, {"w": np.array([1, 2, 3], np.float32)})
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    if not path.stat().st_size:
        path.write_bytes(b"\0")
    with pytest.raises(PlanMismatchError, match=words):
        map_tensors(path)
    with pytest.raises(FileProblemError):
        map_tensors(tmp_path / "nothing")


def test_a_type_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="complex64"):
        write_tensors(tmp_path / "a", {"w": np.zeros(2, np.complex64)})
    with pytest.raises(ValueError, match="strides"):
        write_tensors(tmp_path / "a", {"w": np.zeros(4, np.float32)[::2]})
    assert list(tmp_path.iterdir()) == []


@given(size=st.integers(0, 20), block=st.integers(1, 7))
def test_blocks_cover_a_vector_once_in_order(size: int, block: int) -> None:
    seen = [i for part in through(size, block=block) for i in range(size)[part]]
    assert seen == list(range(size))


def _resident_bytes() -> int:
    fields = Path("/proc/self/status").read_text().split()
    return 1024 * int(fields[fields.index("RssFile:") + 1])


def test_pages_that_were_read_are_let_go_and_can_be_read_again(tmp_path: Path) -> None:
    numbers = np.random.default_rng(2).standard_normal(2**23, np.float32)
    numbers.tofile(tmp_path / "a")
    mapped = map_numbers(tmp_path / "a", numbers.size)
    before = _resident_bytes()
    total = float(mapped.sum(dtype=np.float64))
    grown = _resident_bytes() - before
    assert grown > 0.9 * numbers.nbytes
    let_go(mapped, slice(0, numbers.size))
    assert _resident_bytes() - before < 0.1 * numbers.nbytes
    assert length(mapped[5:]) > 0
    assert _resident_bytes() - before < 0.1 * numbers.nbytes
    assert float(mapped.sum(dtype=np.float64)) == total
    (tmp_path / "a").unlink()
    let_go(mapped, slice(0, numbers.size))
    assert np.array_equal(mapped, numbers)


def test_what_is_hashed_does_not_stay_in_memory(tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).standard_normal(2**24, np.float32)
    numbers.tofile(tmp_path / "a")
    mapped = map_numbers(tmp_path / "a", numbers.size)
    plan = Plan(name="p", task="segmentation", model=ModelSettings(name="unet"))
    order = Order(run="r", plan=plan, round=1, phase="train", weights=mapped)
    update = RecordDict({"update": vector_record(mapped, copied=False)})
    before = _resident_bytes()
    asked = order_sha256(order)
    assert _resident_bytes() - before < 0.5 * numbers.nbytes
    told = content_sha256(update)
    assert _resident_bytes() - before < 0.5 * numbers.nbytes
    assert asked == order_sha256(replace(order, weights=numbers))
    assert told == content_sha256(RecordDict({"update": vector_record(numbers)}))


def test_only_maps_that_cannot_change_are_let_go(tmp_path: Path) -> None:
    np.zeros(5000, np.float32).tofile(tmp_path / "a")
    private = np.memmap(tmp_path / "a", np.float32, "c")
    private[:] = 7
    let_go(private, slice(0, 5000))
    assert (private == 7).all()
    memory = np.ones(5000, np.float32)
    memory.flags.writeable = False
    let_go(memory, slice(0, 5000))
    assert (memory == 1).all()
    assert not is_mapped(memory)
    assert not is_mapped(private)


def test_lengths_by_blocks_are_those_of_the_whole() -> None:
    draws = np.random.default_rng(3)
    one, other = draws.standard_normal((2, BLOCK + 77), np.float32)
    assert length(one) == pytest.approx(np.linalg.norm(one.astype(float)), rel=1e-14)
    apart = np.linalg.norm(one.astype(float) - other)
    assert distance(one, other) == pytest.approx(apart, rel=1e-14)
    assert distance(one[:9], other[:9]) == length(one[:9].astype(np.float64) - other[:9])
    assert (length(one[:0]), distance(one[:0], one[:0])) == (0, 0)


def test_a_number_that_is_not_finite_is_found_in_any_block() -> None:
    vector = np.zeros(2 * BLOCK, np.float32)
    assert all_finite(vector)
    for place in (0, BLOCK - 1, BLOCK, 2 * BLOCK - 1):
        vector[place] = np.inf
        assert not all_finite(vector)
        vector[place] = 0


def test_noise_is_drawn_for_whole_blocks() -> None:
    # or noise by blocks would not be the noise of the whole
    assert BLOCK % (2 * gaussian_noise._PAIRS_PER_BLOCK) == 0
