"""Rounded updates: the error of each weight, the sum over rounds, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from asterion_shared.transport_settings import RoundedKind
from asterion_shared.update_codec import (
    BLOCK,
    LARGEST_SCALE,
    SMALLEST_SCALE,
    EncodedUpdate,
    check,
    decode,
    encode,
)

KINDS: tuple[RoundedKind, ...] = ("bf16", "int8")
HUGE = float(np.finfo(np.float32).max)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
near_zero = st.floats(-(2.0**-100), 2.0**-100, width=32)
vectors = st.one_of(
    arrays.arrays(np.float32, st.integers(0, 40), elements=finite),
    arrays.arrays(np.float32, st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]), elements=near_zero),
)


def largest_error(vector: np.ndarray, encoded: EncodedUpdate) -> np.ndarray:
    """What the docstring promises for each weight, in float64."""
    if encoded.kind == "bf16":
        return np.maximum(2.0**-8 * np.abs(vector.astype(np.float64)), 2.0**-134)
    scales = encoded.scales.astype(np.float64).repeat(BLOCK)[: vector.size]
    return scales * (0.5 + 2.0**-15)


@pytest.mark.parametrize("kind", KINDS)
@given(vector=vectors)
def test_each_weight_is_as_near_as_promised(kind: RoundedKind, vector: np.ndarray) -> None:
    encoded, lost = encode(vector, kind)
    check(encoded, vector.size)
    found = decode(encoded)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    error = np.abs(vector.astype(np.float64) - found)
    assert (error <= largest_error(vector, encoded)).all()
    assert np.array_equal(lost, vector - found)


@pytest.mark.parametrize("kind", KINDS)
@given(vector=vectors)
def test_a_mirrored_update_has_mirrored_codes(kind: RoundedKind, vector: np.ndarray) -> None:
    """Rounding has no direction of its own: it cannot drift."""
    assert np.array_equal(decode(encode(-vector, kind)[0]), -decode(encode(vector, kind)[0]))


def test_bf16_by_hand() -> None:
    # 1 + 2^-8 lies between 1 and 1 + 2^-7: the tie goes to the even one, 1. 1 + 3 * 2^-8 is the
    # tie above it and goes up, to 1 + 2^-6.
    # The largest float32 is nearer to infinity than to the largest bf16, and is cut off there.
    given_ = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1.0, HUGE, -HUGE, 1e-45], np.float32)
    encoded, lost = encode(given_, "bf16")
    assert encoded.codes.tolist() == [0x3F80, 0x3F82, 0xBF80, 0x7F7F, 0xFF7F, 0]
    assert lost[:2].tolist() == [2**-8, -(2**-8)]
    assert encoded.scales.size == 0


@pytest.mark.parametrize("seed", range(3))
def test_bf16_is_what_torch_rounds_to(seed: int) -> None:
    import torch

    bits = np.random.default_rng(seed).integers(0, 2**32, 300_000, dtype=np.uint32)
    vector = bits.view(np.float32)
    vector = vector[np.abs(vector) < 3.3e38]  # no NaN, and nothing that torch makes infinite
    theirs = torch.from_numpy(vector).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(encode(vector, "bf16")[0].codes, theirs)


def test_int8_by_hand() -> None:
    # A scale of 2: 3 / 2 = 1.5 rounds to 2, 5 / 2 = 2.5 to 2 as well, -1 / 2 to -0.
    block = np.zeros(BLOCK + 2, np.float32)
    block[:4] = [254, 3, 5, -1]
    block[BLOCK:] = [0.0, -12.7]
    encoded, lost = encode(block, "int8")
    assert encoded.codes[:5].tolist() == [127, 2, 2, 0, 0]
    assert lost[:5].tolist() == [0, -1, 1, -1, 0]
    assert encoded.codes[BLOCK:].tolist() == [0, -127]
    assert encoded.scales.tolist() == [2.0, pytest.approx(0.1)]


def test_zeros_denormals_and_the_largest_numbers() -> None:
    for value in (0.0, 1e-45, 1e-39, HUGE, -HUGE):
        vector = np.full(3, value, np.float32)
        for kind in KINDS:
            encoded, _ = encode(vector, kind)
            check(encoded, 3)
            assert np.isfinite(decode(encoded)).all()
    assert encode(np.zeros(3, np.float32), "int8")[0].scales.tolist() == [SMALLEST_SCALE]
    found = decode(encode(np.full(1, HUGE, np.float32), "int8")[0])
    assert found[0] == pytest.approx(HUGE, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind: RoundedKind, value: float) -> None:
    vector = np.zeros(70_000, np.float32)
    vector[-1] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(vector, kind)
    two = np.full(1, HUGE, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        encode(two, kind, two)


def test_a_residual_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), the update \(2,\)"):
        encode(np.zeros(2, np.float32), "int8", np.zeros(3, np.float32))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), rounds=st.integers(1, 12), shrink=st.floats(0.3, 1.0))
def test_with_feedback_the_sum_follows_the_updates(
    kind: RoundedKind, seed: int, rounds: int, shrink: float
) -> None:
    """However many rounds: the sums differ by the last residual, so by one step's error."""
    draws = np.random.default_rng(seed)
    residual, total, came = None, np.zeros(1500), np.zeros(1500)
    for number in range(rounds):
        update = (draws.standard_normal(1500) * shrink**number).astype(np.float32)
        wanted = update if residual is None else update + residual
        encoded, residual = encode(update, kind, residual)
        total, came = total + update, came + decode(encoded)
    assert residual is not None
    rounding = rounds * 2.0**-22  # of float32, in each addition of a residual
    assert (np.abs(total - came) <= largest_error(wanted, encoded) + rounding).all()


def test_without_feedback_a_small_weight_never_moves_and_with_it_it_does() -> None:
    update = np.array([127.0, 0.3], np.float32)  # a scale of 1: 0.3 rounds to 0
    alone = sum(decode(encode(update, "int8")[0]).astype(np.float64) for _ in range(10))
    residual, came = None, np.zeros(2)
    for _ in range(10):
        encoded, residual = encode(update, "int8", residual)
        came += decode(encoded)
    assert alone.tolist() == [1270, 0]
    assert came.tolist() == [1270, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 64 * BLOCK - 1, 64 * BLOCK, 64 * BLOCK + 1, 200_000])
def test_slabs_and_blocks_do_not_show(kind: RoundedKind, size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    encoded, _ = encode(vector, kind)
    parts = [encode(vector[i : i + BLOCK], kind)[0] for i in range(0, size, BLOCK)]
    assert encoded.codes.tobytes() == b"".join(part.codes.tobytes() for part in parts)
    assert encoded.scales.tobytes() == b"".join(part.scales.tobytes() for part in parts)
    assert decode(encoded).tobytes() == b"".join(decode(part).tobytes() for part in parts)
    check(encoded, size)


def test_what_encode_cannot_have_given_is_refused() -> None:
    vector = np.linspace(-1, 1, 2000, dtype=np.float32)
    int8, bf16 = (encode(vector, kind)[0] for kind in ("int8", "bf16"))
    wrong = int8.codes.copy()
    wrong[1999] = -128
    infinite = bf16.codes.copy()
    infinite[5] = 0xFF80
    bad = [
        (replace(int8, codes=wrong), "no finite number"),
        (replace(bf16, codes=infinite), "no finite number"),
        (replace(int8, codes=int8.codes.view(np.uint8)), "needed"),
        (replace(int8, scales=int8.scales.astype(np.float64)), "needed"),
        (replace(int8, scales=int8.scales[:1]), "needed"),
        (replace(bf16, scales=int8.scales), "needed"),
    ]
    for scale in (np.nan, np.inf, 0.0, -1.0, 1e-40, float(LARGEST_SCALE) * 1.001):
        scales = np.array([1.0, scale], np.float32)
        bad.append((replace(int8, scales=scales), "a scale"))
    for encoded, words in bad:
        with pytest.raises(ValueError, match=words):
            check(encoded, 2000)
    with pytest.raises(ValueError, match="needed"):
        check(int8, 1999)
