import dataclasses
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.linalg import hadamard

from asterion_shared.privacy import encoding as module
from asterion_shared.privacy.encoding import (
    Encoding,
    centre,
    decode_sum,
    noised_share,
    reduce_modulo,
    rotate,
    round_update,
    rounded_l2_bound,
    smallest_block,
    wrap_probability,
)
from asterion_shared.privacy.secret_stream import SecretStream, secret_stream

KEY = b"encoding of updates, a fixed key"
PINNED_SIGNS = "99cc9fed21e4bcd1"


class Tape(SecretStream):
    """A stream that plays chosen words, then goes on with those of a fixed key."""

    def __init__(self, words):
        super().__init__(KEY)
        self.left = [int(word) for word in words]

    def words(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        return np.concatenate([np.array(taken, np.uint64), super().words(count - len(taken))])


def make(dimension, **changes):
    values = {
        "dimension": dimension,
        "clip_norm": 1.0,
        "scale": 1000.0,
        "modulus_bits": 24,
        "rotation_seed": 5,
        "round_": 1,
        "block_size": smallest_block(dimension),
    }
    return Encoding(**(values | changes))


def update(dimension, seed=0, norm=1.0):
    values = np.random.default_rng(seed).normal(size=dimension)
    return values * (norm / np.linalg.norm(values))


def length(rounded):
    return math.isqrt(sum(int(value) ** 2 for value in rounded))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64, 256, 512, 1024])
def test_hadamard_is_the_matrix(size):
    values = update(size)
    expected = hadamard(size) @ values / math.sqrt(size)
    module._hadamard(values)
    assert np.allclose(values, expected, atol=1e-14)


@pytest.mark.parametrize("size", [2**17, 2**21])
def test_hadamard_of_many_tiles(size):
    values = update(size)
    changed = values.copy()
    module._hadamard(changed)
    rows = np.random.default_rng(1).integers(size, size=20)
    for row in rows:
        signs = np.ones(1)
        for bit in range(size.bit_length() - 1):
            signs = np.concatenate([signs, -signs if row >> bit & 1 else signs])
        assert changed[row] == pytest.approx(signs @ values / math.sqrt(size), abs=1e-12)
    module._hadamard(changed)
    assert np.allclose(changed, values, atol=1e-13)


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@settings(max_examples=60)
@given(
    values=arrays.arrays(np.float64, st.integers(1, 300), elements=finite),
    block=st.sampled_from([1, 2, 16, 64, 512]),
    seed=st.integers(0, 2**31),
)
def test_rotation_keeps_lengths_and_inner_products(values, block, seed):
    encoding = make(values.size, block_size=block, rotation_seed=seed, modulus_bits=32, scale=1.0)
    rotated = rotate(values, encoding)
    assert rotated.size % block == 0
    assert 0 <= rotated.size - values.size < block
    other = np.arange(values.size) * 1.0
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=1e-12, abs=1e-12)
    assert rotated @ rotate(other, encoding) == pytest.approx(
        values @ other, rel=1e-9, abs=1e-9 * (1 + np.linalg.norm(values) * np.linalg.norm(other))
    )


def test_the_rotation_is_public_and_differs_by_round_and_seed():
    values = update(200)
    first = rotate(values, make(200))
    assert np.array_equal(first, rotate(values, make(200)))
    for change in ({"round_": 2}, {"rotation_seed": 6}):
        assert not np.allclose(first, rotate(values, make(200, **change)))


def test_signs_are_pinned():
    # Sites of different versions must agree on the signs: 64 of them from the seed's first word.
    ones = rotate(np.ones(64), make(64, block_size=1))
    word = np.packbits(ones < 0).tobytes().hex()
    assert word == PINNED_SIGNS


def test_rotation_spreads_a_single_coordinate():
    values = np.zeros(1000)
    values[3] = 1
    assert np.allclose(np.abs(rotate(values, make(1000))), 1 / 32)
    blocks = rotate(values, make(1000, block_size=64))
    assert np.allclose(np.abs(blocks[:64]), 1 / 8)
    assert not blocks[64:].any()


@pytest.mark.parametrize(("dimension", "block"), [(1, 1), (100, 128), (1000, 64), (70_000, 2**17)])
def test_decoding_an_encoded_update_recovers_it_within_rounding(dimension, block):
    encoding = make(dimension, block_size=block, scale=5000.0)
    values = update(dimension)
    rounded = round_update(values, encoding, SecretStream(KEY))
    assert rounded.dtype == np.int32
    assert np.abs(rounded - encoding.scale * rotate(values, encoding)).max() < 1 + 1e-9
    decoded = decode_sum(reduce_modulo(rounded, encoding.modulus_bits), encoding)
    assert decoded.shape == (dimension,)
    error = np.linalg.norm(decoded - values) * encoding.scale
    # Each coordinate is off by less than one unit, by 1/sqrt(6) in the mean square at random.
    assert error < math.sqrt(encoding.padded_dimension)
    if dimension > 50:
        assert error == pytest.approx(math.sqrt(dimension / 6), rel=0.15)


def test_float32_updates_are_taken():
    values = update(500).astype(np.float32)
    assert np.array_equal(
        round_update(values, make(500), SecretStream(KEY)),
        round_update(values.astype(float), make(500), SecretStream(KEY)),
    )


@settings(max_examples=80)
@given(
    values=arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-2, 2)),
    clip_norm=st.floats(0.01, 5),
    scale=st.floats(0.1, 50),
    beta=st.sampled_from([0.0, 0.1, math.exp(-0.5), 0.99]),
    block=st.sampled_from([1, 4, 64]),
)
def test_the_bound_is_never_exceeded(values, clip_norm, scale, beta, block):
    encoding = make(values.size, clip_norm=clip_norm, scale=scale, beta=beta, block_size=block)
    rounded = round_update(values, encoding, secret_stream())
    square = sum(int(value) ** 2 for value in rounded)
    assert square <= Fraction(encoding.l2_bound) ** 2


def test_the_bound_by_hand():
    # c = 6, d = 16: c + sqrt(d) = 10; 36 + 4 + 1 (6 + 2) = 48.
    assert rounded_l2_bound(3.0, 2.0, 16, math.exp(-0.5)) == pytest.approx(math.sqrt(48))
    assert rounded_l2_bound(3.0, 2.0, 16, 0) == 10
    # A beta so small that only the certain bound is left.
    assert rounded_l2_bound(3.0, 2.0, 16, 1e-100) == 10


@pytest.mark.parametrize("beta", [0.05, math.exp(-0.5)])
def test_one_rounding_exceeds_the_bound_with_probability_at_most_beta(beta):
    encoding = make(64, block_size=1, scale=4.0, beta=beta)
    scaled = encoding.scale * rotate(np.full(64, 1 / 8), encoding)  # every coordinate 1/2
    stream, rounded = SecretStream(KEY), np.empty(64, np.int32)
    squares = [module._round_part(scaled, rounded, stream) for _ in range(2000)]
    assert np.mean(np.array(squares) > encoding.l2_bound**2) <= beta


def test_a_rounding_that_is_too_long_is_drawn_again():
    encoding = make(64, block_size=1, scale=4.0)
    scaled = encoding.scale * rotate(np.full(64, 1 / 8), encoding)
    assert set(np.abs(scaled)) == {0.5}
    # Everything away from 0 gives length 8, the bound is sqrt(16 + 16 + 8) = 6.3.
    outwards = [0 if value > 0 else 2**64 - 1 for value in scaled]
    inwards = [2**64 - 1 if value > 0 else 0 for value in scaled]
    tape = Tape(outwards + outwards + inwards)
    assert not round_update(np.full(64, 1 / 8), encoding, tape).any()
    assert not tape.left
    certain = dataclasses.replace(encoding, beta=0.0)
    assert length(round_update(np.full(64, 1 / 8), certain, Tape(outwards))) == 8


@pytest.mark.parametrize("value", [0.25, -0.25, 0.875, -3.125])
def test_a_coordinate_goes_up_with_its_fractional_part(value):
    below = math.floor(value)
    up = int((value - below) * 2**64)
    values, rounded = np.full(3, value), np.empty(3, np.int32)
    module._round_part(values, rounded, Tape([0, up - 2048, up]))
    assert rounded.tolist() == [below + 1, below + 1, below]


def test_rounding_has_the_right_expectation():
    encoding = make(16, scale=3.0, block_size=16)
    values = update(16, norm=0.9)
    scaled, stream, repeats = encoding.scale * rotate(values, encoding), SecretStream(KEY), 20_000
    for beta, most in ((0.0, 4.5), (math.exp(-0.5), 30.0)):
        rows = np.array(
            [
                round_update(values, dataclasses.replace(encoding, beta=beta), stream)
                for _ in range(repeats)
            ]
        )
        mean, error = rows.mean(axis=0), 0.5 / repeats**0.5
        # Conditional rounding is slightly short, by less than its bound allows; unconditional
        # rounding has no bias at all.
        assert np.abs(mean - scaled).max() < most * error
        assert np.linalg.norm(mean) < np.linalg.norm(scaled) + 4.5 * 4 * error


def test_longer_updates_are_clipped_and_shorter_ones_left():
    long, short = update(300, norm=50.0), update(300, norm=0.2)
    encoding = make(300, scale=1e6, modulus_bits=32)
    for values, norm in ((long, 1.0), (short, 0.2), (np.zeros(300), 0.0), (long * 1e300, 1.0)):
        rounded = round_update(values, encoding, SecretStream(KEY))
        decoded = decode_sum(reduce_modulo(rounded, 32), encoding)
        assert np.linalg.norm(decoded) == pytest.approx(norm, abs=2e-5)


@settings(max_examples=60)
@given(
    rows=arrays.arrays(np.int64, (7, 5), elements=st.integers(-(2**40), 2**40)),
    bits=st.integers(2, 32),
)
def test_sums_of_remainders_are_remainders_of_sums(rows, bits):
    parts = [reduce_modulo(row, bits) for row in rows]
    assert all(part.dtype == np.uint32 and part.max() < 2**bits for part in parts)
    total = np.zeros(5, np.uint32)
    for part in parts:
        total += part
    total &= np.uint32(2**bits - 1)
    assert np.array_equal(total, reduce_modulo(rows.sum(axis=0), bits))
    centred = centre(total, bits).astype(np.int64)
    assert np.all((-(2 ** (bits - 1)) <= centred) & (centred < 2 ** (bits - 1)))
    assert np.all((centred - rows.sum(axis=0)) % 2**bits == 0)


def test_centre_by_hand():
    assert centre(np.array([0, 1, 2, 3], np.uint32), 2).tolist() == [0, 1, -2, -1]
    ends = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    assert centre(ends, 32).tolist() == [0, 2**31 - 1, -(2**31), -1]


def test_the_sum_of_many_shares_is_the_sum_of_the_updates_and_of_the_noise():
    sites, sigma = 12, 20.0
    encoding = make(5000, scale=2000.0, modulus_bits=18, block_size=1024)
    updates = [update(5000, seed) for seed in range(sites)]
    stream = SecretStream(KEY)
    total = np.zeros(encoding.padded_dimension, np.uint32)
    for values in updates:
        total += noised_share(values, encoding, sigma, stream)
    total &= np.uint32(2**18 - 1)
    error = (decode_sum(total, encoding) - sum(updates)) * encoding.scale
    assert error.std() == pytest.approx(math.sqrt(sites * (sigma**2 + 1 / 6)), rel=0.04)
    assert abs(error.mean()) < 5 * error.std() / 5000**0.5
    assert wrap_probability(encoding, sites, sigma) < 1e-6


def test_a_share_says_nothing_of_the_public_seed_alone():
    encoding = make(100)
    first, second = (noised_share(np.zeros(100), encoding, 50.0, secret_stream()) for _ in "ab")
    assert np.mean(first == second) < 0.2


def test_wrapping_is_no_more_frequent_than_its_bound():
    # A modulus so small that sums leave it sometimes.
    sites, sigma, wraps, repeats = 3, 4.0, 0, 400
    encoding = make(32, scale=12.0, modulus_bits=7, block_size=32)
    stream = SecretStream(KEY)
    for repeat in range(repeats):
        again = dataclasses.replace(encoding, round_=repeat)
        values = update(32, seed=repeat)
        rounded = [round_update(values, again, stream).astype(int) for _ in range(sites)]
        noise = np.rint(np.random.default_rng(repeat).normal(size=(sites, 32)) * sigma)
        total = np.sum(rounded, axis=0) + noise.sum(axis=0)
        wraps += bool(np.any((total < -64) | (total > 63)))
    assert wraps / repeats <= wrap_probability(encoding, sites, sigma)
    assert wrap_probability(encoding, sites, sigma) < 1e-3
    assert wrap_probability(dataclasses.replace(encoding, modulus_bits=6), sites, sigma) > 1e-3


def test_the_wrap_bound_by_hand_and_its_order():
    encoding = make(64, scale=16.0, modulus_bits=8, block_size=64)
    # N = 2: length 32, variance 32^2 / 64 + 2 * 9 = 34; 128 d exp(-(128 - 2)^2 / 68).
    expected = 128 * math.exp(-(126**2) / 68)
    assert wrap_probability(encoding, 2, 3.0) == pytest.approx(expected)
    # With beta 0 the rounding counts N / 4 and no factor: better here.
    certain = dataclasses.replace(encoding, beta=0.0)
    assert wrap_probability(certain, 2, 3.0) == pytest.approx(128 * math.exp(-(128**2) / 69))
    assert wrap_probability(encoding, 100, 3.0) == 1
    # Smaller blocks spread less, and the bound knows it.
    blocks = dataclasses.replace(encoding, block_size=8)
    assert wrap_probability(blocks, 2, 3.0) > wrap_probability(encoding, 2, 3.0)
    assert wrap_probability(encoding, 3, 3.0) > wrap_probability(encoding, 2, 3.0)
    assert wrap_probability(encoding, 2, 4.0) > wrap_probability(encoding, 2, 3.0)


def test_memory_is_as_stated():
    encoding = make(1 << 20, scale=2.0**12, modulus_bits=24)
    values = update(1 << 20).astype(np.float32)
    noised_share(values[:8], make(8), 3.0, secret_stream())
    tracemalloc.start()
    noised_share(values, encoding, 3.0, secret_stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * (1 << 20) + 4_000_000


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dimension": 0}, "dimension"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"scale": -1.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"modulus_bits": 33}, "modulus_bits"),
        ({"modulus_bits": 1}, "modulus_bits"),
        ({"block_size": 24}, "block_size"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 2**27}, "block_size"),
        ({"beta": 1.0}, "beta"),
        ({"modulus_bits": 8}, "modulus"),
    ],
)
def test_other_encodings_are_refused(change, name):
    with pytest.raises(ValueError, match=name):
        make(**({"dimension": 100, "block_size": 64} | change))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_updates_that_are_not_finite_are_refused(bad):
    values = update(100)
    values[7] = bad
    with pytest.raises(ValueError, match="not finite"):
        round_update(values, make(100), secret_stream())


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(99,\).*\(100,\)"):
        rotate(np.zeros(99), make(100))
    with pytest.raises(ValueError, match=r"\(100,\).*\(128,\)"):
        decode_sum(np.zeros(100, np.uint32), make(100))
    with pytest.raises(ValueError, match=r"\(10, 10\)"):
        noised_share(np.zeros((10, 10)), make(100), 1.0, secret_stream())
