import hashlib
import random

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from asterion_shared.privacy import gaussian_noise
from asterion_shared.privacy.gaussian_noise import add_gaussian, grid_spacing
from asterion_shared.privacy.secret_stream import SecretStream, secret_stream

KEY = b"gaussian noise, a fixed test key"

GOLDEN = "45e57aa4cca0d1317a56377481655109ec6dac146d024f8cd831d29711bf7c45"


class Tape(SecretStream):
    """A stream that plays chosen words and counts them."""

    def __init__(self, words):
        super().__init__()
        self.left = [int(word) for word in words]

    def words(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count, "the tape is at its end"
        return np.array(taken, np.uint64)


def signed(digits, bits=64):
    """The number in [-1, 1) in the middle of those whose first binary digits are these."""
    number = (mpmath.mpf(digits) + 0.5) / 2 ** (bits - 1)
    return number if digits < 2 ** (bits - 1) else number - 2


def normal_pair(radius_digits, angle_digits, bits=64):
    """Box and Muller in 300 binary digits, written on its own as an oracle."""
    uniform, angle = signed(radius_digits, bits), signed(angle_digits, bits)
    radius = mpmath.sign(uniform) * mpmath.sqrt(-2 * mpmath.log(abs(uniform)))
    return radius * mpmath.cos(mpmath.pi * angle / 2), radius * mpmath.sin(mpmath.pi * angle / 2)


def rounded(value, sigma, normal):
    spacing = grid_spacing(sigma)
    cell = mpmath.floor((mpmath.mpf(value) + mpmath.mpf(sigma) * normal) / spacing + 0.5)
    return float(cell * spacing)


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workprec(300):
        yield


def test_distribution():
    count, sigma = 2_000_000, 1.7
    normals = add_gaussian(np.zeros(count), sigma, SecretStream(KEY)) / sigma
    assert stats.kstest(normals, "norm").pvalue > 0.01
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = np.std(normals**power) / count**0.5
        assert abs(np.mean(normals**power) - moment) < 4 * spread
    for edge in (3, 4, 4.5):
        expected = 2 * count * stats.norm.sf(edge)
        assert abs(np.sum(np.abs(normals) > edge) - expected) < 4 * expected**0.5


def test_coordinates_are_independent():
    # Cosine and sine of one pair stand 4096 apart in a block of 8192.
    normals = add_gaussian(np.zeros(1 << 20), 1.0, SecretStream(KEY)).reshape(-1, 2, 4096)
    first, second = normals[:, 0].ravel(), normals[:, 1].ravel()
    for left, right in ((first, second), (first**2, second**2), (first[1:], first[:-1])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / left.size**0.5


@pytest.mark.parametrize("sigma", [1.0, 0.3, 5e-8, 123456.789, 2.0**-900, 2.0**900])
def test_output_lies_on_the_grid_of_sigma(sigma):
    spacing = grid_spacing(sigma)
    assert np.frexp(spacing)[0] == 0.5
    assert 2.0**20 <= sigma / spacing < 2.0**21
    values = np.random.default_rng(0).normal(size=5001) * sigma * 1000
    cells = add_gaussian(values, sigma, SecretStream(KEY)) / spacing
    assert np.array_equal(cells, np.rint(cells))
    assert np.any(cells % 2 == 1)


@pytest.mark.parametrize(("count", "sigma"), [(1, 1.0), (2, 0.7), (601, 3.3), (10_003, 0.01)])
def test_every_output_is_the_ideal_one_exactly_rounded(count, sigma):
    values = np.random.default_rng(count).normal(size=count)
    noised = add_gaussian(values, sigma, SecretStream(KEY))
    stream, start = SecretStream(KEY), 0
    for block in range(0, count, 8192):
        size = min(8192, count - block)
        pairs = (size + 1) // 2
        words = stream.words(2 * pairs).tolist()
        for pair in range(0, pairs, 1 + pairs // 300):
            for row, normal in zip(
                (pair, pair + pairs), normal_pair(words[pair], words[pairs + pair]), strict=True
            ):
                if row < size:
                    expected = rounded(values[start + row], sigma, normal)
                    assert noised[start + row] == expected
        start += size


# Where the double path is least exact: |U| near 1 and near 2^-21.9, angles near their ends.
EDGES = [2**63 - 1 - 2**k for k in range(43, 60)] + [2**k + 3 for k in range(42, 63)]
ANGLES = [0, 1, 2**40, 2**62, 2**62 - 1, 2**63 - 1, 2**63, 2**63 + 1, 3 * 2**62, 2**64 - 1]


def test_error_of_the_double_path_is_within_its_bound():
    dense = SecretStream(KEY).words(4000).tolist()
    radii = np.array([edge for edge in EDGES for _ in ANGLES] + dense[:2000], np.uint64)
    radii[::2] = ~radii[::2]  # negative ones as well
    angles = np.array(ANGLES * len(EDGES) + dense[2000:], np.uint64)
    square = gaussian_noise._minus_two_log(radii)
    inside = (square > gaussian_noise._LEAST_SQUARE) & (square < gaussian_noise._MOST_SQUARE)
    assert inside.mean() > 0.95
    normals = gaussian_noise._normal_pairs(square, radii, angles)[:, inside]
    exact = [
        normal_pair(*words)
        for words in zip(radii[inside].tolist(), angles[inside].tolist(), strict=True)
    ]
    errors = [
        abs(float(mpmath.mpf(float(found)) - wanted))
        for pair, wanteds in zip(normals.T, exact, strict=True)
        for found, wanted in zip(pair, wanteds, strict=True)
    ]
    assert 2**21 * max(errors) < gaussian_noise._CELL_ERROR / 2


@pytest.mark.parametrize(("more", "side"), [(0, 0), (2**64 - 1, 1)])
@pytest.mark.parametrize("radius_word", [2**62 + 12345, 2**64 - 2**61 - 999])
def test_a_value_on_the_edge_of_a_cell_waits_for_more_digits(radius_word, more, side):
    angle_word, sigma = 2**61 + 7, 1.25
    spacing = grid_spacing(sigma)
    middle = mpmath.mpf(sigma) * normal_pair(radius_word, angle_word)[0]
    # A value that puts the middle of what 64 digits leave open on an edge between two cells.
    edge = (mpmath.floor(middle / spacing) + 0.5) * spacing
    value = float(edge - middle)
    assert abs(mpmath.mpf(value) + middle - edge) / spacing < 2**-45
    tape = Tape([radius_word, angle_word, more, more])
    (noised,) = add_gaussian(np.array([value]), sigma, tape)
    assert not tape.left
    digits = [word << 64 | more for word in (radius_word, angle_word)]
    assert noised == rounded(value, sigma, normal_pair(*digits, bits=128)[0])
    # A larger |U| or angle is a smaller |z|: the two endings lie on two sides of the edge.
    other = [word << 64 | (2**64 - 1 - more) for word in (radius_word, angle_word)]
    assert noised != rounded(value, sigma, normal_pair(*other, bits=128)[0])
    assert (noised < float(edge)) == bool(side)


def test_both_members_of_a_pair_share_the_further_digits():
    radius_word, angle_word = 5, 2**61
    more = [3 << 60, 77]
    tape = Tape([radius_word, angle_word, *more])
    noised = add_gaussian(np.array([0.25, -3.0]), 1.0, tape)
    digits = [radius_word << 64 | more[0], angle_word << 64 | more[1]]
    normals = normal_pair(*digits, bits=128)
    assert noised.tolist() == [rounded(0.25, 1.0, normals[0]), rounded(-3.0, 1.0, normals[1])]


@pytest.mark.parametrize(
    ("radius_word", "more", "normal"),
    [
        (2**41, [], 5.523),  # |U| = 2^-22, the first beyond the double path
        (2**37, [], 6.004),
        (2**23, [], 7.447),
        (2**64 - 2**23, [], -7.447),
        (3, [2**63, 0], 9.210),  # 64 digits leave several cells open
        (0, [2**63, 0], 9.419),
        (0, [1, 0], None),
        (2**64 - 1, [2**64 - 2, 0], None),
        (2**63 - 1, [], 0.0),  # |U| next to 1
        (2**63, [], 0.0),
    ],
)
def test_tails_and_centre_follow_from_the_digits(radius_word, more, normal):
    # Angle words of 0 leave z1 = R cos(tiny).
    tape = Tape([radius_word, 0, *more, 12345, 678])
    (noised,) = add_gaussian(np.zeros(1), 1.0, tape)
    spare = [*more, 12345, 678]
    drawn = spare[: len(spare) - len(tape.left)]
    assert len(drawn) >= len(more)
    digits, bits = [radius_word, 0], 64
    for start in range(0, len(drawn), 2):
        digits = [digits[0] << 64 | drawn[start], digits[1] << 64 | drawn[start + 1]]
        bits += 64
    assert noised == rounded(0.0, 1.0, normal_pair(*digits, bits=bits)[0])
    if normal is not None:
        assert noised == pytest.approx(normal, abs=1e-3)
    else:
        assert abs(noised) > 9.4


def test_a_tail_beyond_six_has_its_probability():
    # |z| > 6 needs |U| < exp(-18), and the words just inside and outside say so.
    edge = int(mpmath.floor(mpmath.exp(-18) * 2**63))
    for word, beyond in ((edge - 2**20, True), (edge + 2**20, False)):
        tape = Tape([word, 0])
        (unrounded,) = normal_pair(word, 0)[:1]
        assert (unrounded > 6) == beyond
        assert add_gaussian(np.zeros(1), 1.0, tape)[0] == rounded(0.0, 1.0, unrounded)


def test_the_mathematical_library_has_no_part_in_the_result(monkeypatch):
    values = np.random.default_rng(5).normal(size=100_000)
    expected = add_gaussian(values, 0.8, SecretStream(KEY))
    log, sqrt = np.log, np.sqrt
    wrong = np.random.default_rng(6)

    def careless(function):
        def result(x, out):
            function(x, out=out)
            out *= 1 + wrong.uniform(-1, 1, out.shape) * 2.0**-50
            return out

        return result

    monkeypatch.setattr(gaussian_noise.np, "log", careless(log))
    monkeypatch.setattr(gaussian_noise.np, "sqrt", lambda x: sqrt(x) * (1 + 2.0**-51))
    assert np.array_equal(add_gaussian(values, 0.8, SecretStream(KEY)), expected)


def test_golden_noise():
    noised = add_gaussian(np.arange(20_001) / 7, 2.5, SecretStream(KEY))
    assert hashlib.sha256(noised.astype("<f8").tobytes()).hexdigest() == GOLDEN


def test_seeding_other_generators_changes_nothing():
    outputs = []
    for stream in (secret_stream(), secret_stream(), SecretStream(KEY), SecretStream(KEY)):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        outputs.append(add_gaussian(np.zeros(10), 1.0, stream))
        np.random.seed(len(outputs))
    assert not np.intersect1d(outputs[0], outputs[1]).size
    assert np.array_equal(outputs[2], outputs[3])


def test_large_values_keep_their_exact_sum():
    sigma = 1.0
    value = 2.0**29 * sigma - 1 / 3
    words = [2**62 + 5, 2**60]
    (noised,) = add_gaussian(np.array([value]), sigma, Tape(words))
    assert noised == rounded(value, sigma, normal_pair(*words)[0])


def test_the_input_is_left_alone_and_an_empty_one_gives_an_empty_one():
    values = np.ones(3)
    add_gaussian(values, 1.0, secret_stream())
    assert values.tolist() == [1, 1, 1]
    empty = add_gaussian(np.empty(0), 1.0, Tape([]))
    assert empty.shape == (0,)
    assert empty.dtype == np.float64


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 5e-324])
def test_other_sigmas_are_refused(sigma):
    with pytest.raises(ValueError, match="sigma is"):
        add_gaussian(np.zeros(2), sigma, secret_stream())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**30, -(2.0**30)])
def test_values_that_are_not_finite_or_too_large_are_refused(bad):
    for values in ([bad], [0.0, bad, 1.0], [1.0, 2.0, bad]):
        with pytest.raises(ValueError, match="largest of the values"):
            add_gaussian(np.array(values), 1.0, secret_stream())


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.zeros((2, 2)), np.zeros(3, int)])
def test_other_arrays_are_refused(values):
    with pytest.raises(ValueError, match="float64 vector"):
        add_gaussian(values, 1.0, secret_stream())
