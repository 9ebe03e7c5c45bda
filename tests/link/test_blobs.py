"""Parts on disk: what is durable when, what is asked for again, what a full disk leaves."""

import hashlib
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore, read_chunk
from asterion_shared.link.parcels import (
    CHUNK_BYTES,
    INLINE_BYTES,
    MOST_PART_BYTES,
    MOST_PARTS,
    Parcel,
    Part,
    from_wire,
    num_chunks,
    pairs,
    to_wire,
)

SIZE = 4 * CHUNK_BYTES + 1234


def content(seed: int = 0, size: int = SIZE) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def part_of(data: bytes) -> Part:
    """Without the code under test: SHA-256 of each MiB."""
    cut = [data[i : i + 2**20] for i in range(0, len(data), 2**20)]
    return Part(len(data), None, b"".join(hashlib.sha256(piece).digest() for piece in cut))


def piece(data: bytes, number: int) -> bytes:
    return data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def test_what_is_added_is_there_also_after_reopening(tmp_path: Path) -> None:
    store, data = BlobStore(tmp_path), content()
    part = store.add(data)
    assert part == part_of(data)
    assert (part.num_chunks, part.size_of(0), part.size_of(4)) == (5, CHUNK_BYTES, 1234)
    for found in (store, BlobStore(tmp_path)):
        assert found.holds(part)
        assert found.missing(part) == []
        assert bytes(found.view(part)) == data
        assert [found.read(part, n) for n in range(5)] == [piece(data, n) for n in range(5)]
        assert found.sync(part)
    assert store.add(data) == part
    assert {path.name for path in tmp_path.iterdir()} == {part.id, f"{part.id}.chunks"}
    assert read_chunk(tmp_path, part, 4) == piece(data, 4)
    with pytest.raises(FileNotFoundError):
        store.read(part_of(content(1)), 0)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, CHUNK_BYTES])
def test_few_bytes_travel_inside(tmp_path: Path, size: int) -> None:
    store, data = BlobStore(tmp_path), content(size=size)
    part = store.add(data)
    assert (part.inline is not None) == (size <= INLINE_BYTES)
    assert bytes(store.view(part)) == data
    assert part.num_chunks == (0 if size <= INLINE_BYTES else 1)
    assert store.missing(part) == []


def test_a_chunk_that_was_synced_survives_and_one_that_was_not_is_asked_again(
    tmp_path: Path,
) -> None:
    data = content()
    part = part_of(data)
    store = BlobStore(tmp_path)
    assert store.missing(part) == [0, 1, 2, 3, 4]
    for number in (1, 3):
        store.write(part, number, piece(data, number))
    assert store.sync(part) is False
    store.write(part, 0, piece(data, 0))  # and then it dies
    assert store.missing(part) == [2, 4]
    store = BlobStore(tmp_path)
    assert store.missing(part) == [0, 2, 4]
    for number in (0, 2, 4):
        assert not store.holds(part)
        store.write(part, number, piece(data, number))
    assert store.sync(part) is True
    assert bytes(BlobStore(tmp_path).view(part)) == data


def test_a_death_between_the_last_chunk_and_the_rename_costs_nothing(tmp_path: Path) -> None:
    data = content()
    part = part_of(data)
    store = BlobStore(tmp_path)
    for number in range(4):
        store.write(part, number, piece(data, number))
    store.sync(part)
    with (tmp_path / f"{part.id}.part").open("r+b") as file:
        file.seek(4 * CHUNK_BYTES)
        file.write(piece(data, 4))
    (tmp_path / f"{part.id}.have").write_bytes(bytes([1] * 5))
    store = BlobStore(tmp_path)
    assert store.missing(part) == []
    assert store.holds(part)
    assert bytes(store.view(part)) == data


def test_notes_of_chunks_without_their_bytes_are_not_believed(tmp_path: Path) -> None:
    data = content()
    part = part_of(data)
    (tmp_path / f"{part.id}.have").write_bytes(bytes([1] * 5))  # of an earlier time
    store = BlobStore(tmp_path)
    assert store.missing(part) == [0, 1, 2, 3, 4]
    store = BlobStore(tmp_path)
    assert store.missing(part) == [0, 1, 2, 3, 4]


def test_adding_what_is_arriving_leaves_no_notes_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content()
    part = part_of(data)
    store = BlobStore(tmp_path)
    store.write(part, 2, piece(data, 2))
    store.sync(part)
    # It dies while it writes: what was noted of the arriving part must still be true.
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "died")))
    with pytest.raises(DiskProblemError):
        store.add(data)
    monkeypatch.setattr(Path, "replace", real)
    store = BlobStore(tmp_path)
    assert store.missing(part) == [0, 1, 3, 4]
    with (tmp_path / f"{part.id}.part").open("rb") as file:
        file.seek(2 * CHUNK_BYTES)
        assert file.read(CHUNK_BYTES) == piece(data, 2)
    assert store.add(data) == part
    assert {path.name for path in tmp_path.iterdir()} == {part.id, f"{part.id}.chunks"}


def test_chunks_that_another_part_has_are_copied(tmp_path: Path) -> None:
    store, first = BlobStore(tmp_path), content()
    store.add(first)
    second = bytearray(first)
    second[2 * CHUNK_BYTES] ^= 1
    second += bytes(CHUNK_BYTES)
    part = part_of(bytes(second))
    for found in (store, BlobStore(tmp_path)):
        assert found.missing(part) == [2, 4, 5]
        found.remove([part])
    assert store.missing(part) == [2, 4, 5]
    # A part that is the beginning of another is whole at once.
    short = part_of(first[: 2 * CHUNK_BYTES])
    assert store.missing(short) == []
    assert bytes(store.view(short)) == first[: 2 * CHUNK_BYTES]
    # What is gone, or was spoilt, is not copied.
    store.keep_only([part])
    assert store.missing(part_of(first)) == [0, 1, 2, 3, 4]
    whole = store.add(content(3))
    (tmp_path / whole.id).write_bytes(bytes(SIZE))
    like = part_of(content(3)[: 3 * CHUNK_BYTES])
    assert store.missing(like) == [0, 1, 2]


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (0, lambda d: bytes([d[0] ^ 1]) + d[1:], "another hash"),
        (0, lambda d: d[:-1], "has 1048575 bytes"),
        (4, lambda d: d + b"x", "has 1235 bytes"),
        (5, lambda d: d, "chunk 5 of 5"),
        (-1, lambda d: d, "chunk -1 of 5"),
    ],
)
def test_a_wrong_chunk_is_refused_and_leaves_nothing(tmp_path, number, change, words) -> None:
    store, data = BlobStore(tmp_path), content()
    part = part_of(data)
    with pytest.raises(ValueError, match=words):
        store.write(part, number, change(piece(data, max(number, 0))))
    assert list(tmp_path.iterdir()) == []


def test_keep_only_and_remove(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    whole = [store.add(content(seed)) for seed in range(3)]
    arriving = [part_of(content(seed)) for seed in (7, 8)]
    for part, seed in zip(arriving, (7, 8), strict=True):
        store.write(part, 0, piece(content(seed), 0))
        store.sync(part)
    view = store.view(whole[0])
    store.keep_only([whole[1], arriving[0]])
    assert [store.holds(part) for part in whole] == [False, True, False]
    assert bytes(view) == content(0)  # a view that is open stays good
    assert store.missing(arriving[0]) == [1, 2, 3, 4]
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {whole[1].id, arriving[0].id}
    assert store.sync(arriving[1]) is False  # it is gone, and no file is made for it
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == names
    store.remove([arriving[0], whole[1], whole[2]])
    assert list(tmp_path.iterdir()) == []
    assert store.missing(arriving[0]) == [0, 1, 2, 3, 4]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    store, before = BlobStore(tmp_path), open_files()
    for seed in range(20):
        data = content(seed)
        part = part_of(data)
        for number in range(5 if seed % 2 else 3):
            store.write(part, number, piece(data, number))
        store.sync(part)
    store.keep_only([])
    assert open_files() == before


def test_many_threads_fill_and_clear_one_store(tmp_path: Path) -> None:
    store, failed = BlobStore(tmp_path), []
    kept = [content(seed, 3 * CHUNK_BYTES) for seed in range(3)]
    parts = [part_of(data) for data in kept]

    def fill(seed: int) -> None:
        try:
            data, part = kept[seed % 3], parts[seed % 3]
            while missing := store.missing(part):
                for number in missing[:2]:
                    store.write(part, number, piece(data, number))
                store.sync(part)
            assert bytes(store.view(part)) == data
            store.add(content(100 + seed, 2 * CHUNK_BYTES))
            store.keep_only(parts)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fill, args=(seed,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store.keep_only(parts)
    assert len(list(tmp_path.iterdir())) == 6


@contextmanager
def full_disk_after(num_bytes: int) -> Iterator[None]:
    """No file of this process may become larger: the kernel says EFBIG, as ENOSPC would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    store, data = BlobStore(tmp_path), content()
    part = part_of(data)
    with full_disk_after(CHUNK_BYTES):
        before = open_files()
        with pytest.raises(DiskProblemError, match="File too large"):
            store.add(data)
        with pytest.raises(DiskProblemError):
            store.missing(part)  # the room for it cannot be had
        assert open_files() == before
    assert not store.holds(part)
    store.write(part, 0, piece(data, 0))
    assert store.sync(part) is False
    with full_disk_after(2 * CHUNK_BYTES), pytest.raises(DiskProblemError):
        store.write(part, 3, piece(data, 3))
    assert store.missing(part) == [1, 2, 3, 4]
    for number in range(1, 5):
        store.write(part, number, piece(data, number))
    assert store.sync(part)
    assert bytes(store.view(part)) == data


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskProblemError, match="file"):
        BlobStore(tmp_path / "file" / "blobs")


# Parcels on the wire.

PARTS = st.one_of(
    st.binary(max_size=200).map(lambda data: Part(len(data), data)),
    st.integers(INLINE_BYTES + 1, 5 * CHUNK_BYTES).map(
        lambda size: Part(size, None, bytes(32 * num_chunks(size)))
    ),
)


@given(st.lists(PARTS, min_size=1, max_size=MOST_PARTS), st.booleans())
def test_parcels_come_back(parts: list[Part], lossless: bool) -> None:
    parcel = Parcel(tuple(parts), lossless)
    sent = wire.Parcel.FromString(to_wire(parcel).SerializeToString())
    assert from_wire(sent, most_bytes=parcel.num_bytes) == parcel
    assert pairs(parcel.stored) == [
        (part, number) for part in parcel.stored for number in range(part.num_chunks)
    ]
    if parcel.num_bytes:
        with pytest.raises(ValueError, match="are allowed"):
            from_wire(sent, most_bytes=parcel.num_bytes - 1)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [wire.Part()] * (MOST_PARTS + 1),
        [wire.Part(size=1)],
        [wire.Part(size=0, inline=b"x")],
        [wire.Part(size=3, inline=b"abc", chunks=bytes(32))],
        [wire.Part(size=INLINE_BYTES + 1, inline=bytes(INLINE_BYTES + 1))],
        [wire.Part(size=CHUNK_BYTES, chunks=bytes(31))],
        [wire.Part(size=CHUNK_BYTES, chunks=bytes(64))],
        [wire.Part(size=CHUNK_BYTES + 1, chunks=bytes(32))],
        [wire.Part(size=CHUNK_BYTES, chunks=bytes(32), inline=b"x")],
        [wire.Part(size=MOST_PART_BYTES + 1)],
        [wire.Part(size=2**64 - 1, chunks=bytes(32))],
    ],
)
def test_what_is_no_parcel_is_refused(parts: list[wire.Part]) -> None:
    with pytest.raises(ValueError, match="part"):
        from_wire(wire.Parcel(parts=parts))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["write", "sync", "reopen"]), st.integers(0, 4)), max_size=25
    )
)
def test_any_order_of_writes_syncs_and_deaths(tmp_path_factory, steps) -> None:
    """The model: chunks that were written, and those of them that were synced."""
    folder, data = tmp_path_factory.mktemp("any"), content()
    part, store = part_of(data), BlobStore(folder)
    written: set[int] = set()
    synced: set[int] = set()
    for step, number in steps:
        if step == "write":
            store.write(part, number, piece(data, number))
            written.add(number)
        elif step == "sync":
            synced = set(written)
            assert store.sync(part) == (len(synced) == 5)
        else:
            store, written = BlobStore(folder), set(synced)
        assert store.holds(part) == (len(synced) == 5)
        if len(synced) < 5 and len(written) < 5:
            assert store.missing(part) == sorted(set(range(5)) - written)
