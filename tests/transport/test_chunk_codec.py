"""Packed chunks: back to the byte, worth it or not at all, and no bomb goes off."""

import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.chunk_codec import WIDTHS, WORTH, pack, unpack
from asterion_shared.update_codec import encode

MEBIBYTE = 2**20


def updates() -> dict[str, bytes]:
    draws = np.random.default_rng(1)
    noise = (draws.standard_normal(MEBIBYTE // 4) * 1e-3).astype(np.float32)
    sparse = np.where(draws.random(noise.size) < 0.02, noise, 0).astype(np.float32)
    return {
        "noise": noise.tobytes(),
        "sparse": sparse.tobytes(),
        "zeros": bytes(MEBIBYTE),
        "bf16": encode(noise, "bf16")[0].codes.tobytes(),
        "int8": encode(noise, "int8")[0].codes.tobytes(),
    }


@given(st.binary(max_size=200), st.sampled_from(WIDTHS), st.integers(1, 300))
def test_what_is_packed_comes_back(some: bytes, width: int, times: int) -> None:
    chunk = some * times
    packed = pack(chunk, width)
    if packed is not None:
        assert len(packed) <= WORTH * len(chunk)
        assert unpack(packed, len(chunk)) == chunk


@pytest.mark.parametrize(
    ("name", "at_most"),
    [("noise", 0.9), ("sparse", 0.1), ("zeros", 0.01), ("bf16", 0.75), ("int8", 0.95)],
)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_updates_get_smaller_and_come_back(name: str, at_most: float, cut: int) -> None:
    chunk = updates()[name]
    chunk = chunk[: len(chunk) - cut]
    for given_ in (chunk, bytearray(chunk), memoryview(chunk)):
        packed = pack(given_)
        assert packed is not None
        assert len(packed) <= at_most * len(chunk)
        assert unpack(memoryview(packed), len(chunk)) == chunk


def test_what_is_random_or_tiny_is_not_packed() -> None:
    draws = np.random.default_rng(2)
    assert pack(draws.bytes(MEBIBYTE)) is None
    for size in range(20):
        assert pack(bytes(size)) is None
    with pytest.raises(ValueError, match="width is 3"):
        pack(bytes(100), 3)


def good() -> tuple[bytes, int]:
    chunk = updates()["noise"][:40_002]
    packed = pack(chunk)
    assert packed is not None
    return packed, len(chunk)


def test_a_chunk_of_another_size_is_refused() -> None:
    packed, size = good()
    for wrong in (-1, 0, size - 1, size + 1, size - 4, size + 4, 2**40):
        with pytest.raises(ValueError, match="packed"):
            unpack(packed, wrong)


@given(st.binary(max_size=300), st.integers(-5, 5000))
def test_whatever_comes_ends_in_the_size_or_in_value_error(packed: bytes, size: int) -> None:
    try:
        found = unpack(packed, size)
    except ValueError:
        return
    assert len(found) == size


@given(st.integers(0, 40_000), st.integers(1, 255))
def test_a_flipped_byte_never_gives_another_size(place: int, flip: int) -> None:
    packed, size = good()
    broken = bytearray(packed)
    broken[place % len(packed)] ^= flip
    with suppress(ValueError):
        assert len(unpack(broken, size)) == size


def framed(*planes: bytes) -> bytes:
    head = struct.pack(f"<B{len(planes)}I", len(planes), *map(len, planes))
    return head + b"".join(planes)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def test_a_bomb_costs_no_more_than_the_chunk_it_claims_to_be() -> None:
    bomb = framed(deflated(bytes(200 * MEBIBYTE)))
    assert len(bomb) < MEBIBYTE // 4
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not give 1048576 bytes"):
        unpack(bomb, MEBIBYTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * MEBIBYTE


@pytest.mark.parametrize(
    "plane",
    [
        deflated(bytes(99)),
        deflated(bytes(101)),
        deflated(bytes(100))[:-1],
        deflated(bytes(100)) + b"x",
        b"\xff" * 30,
    ],
)
def test_a_plane_that_is_short_long_cut_or_broken_is_refused(plane: bytes) -> None:
    assert unpack(framed(deflated(bytes(100))), 100) == bytes(100)
    with pytest.raises(ValueError, match="plane"):
        unpack(framed(plane), 100)
