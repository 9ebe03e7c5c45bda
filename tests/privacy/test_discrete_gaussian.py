import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from asterion_shared.privacy import discrete_gaussian as module
from asterion_shared.privacy.discrete_gaussian import discrete_gaussian
from asterion_shared.privacy.secret_stream import SecretStream, secret_stream

KEY = b"discrete gaussian, one fixed key"


class Tape(SecretStream):
    """A stream that plays chosen words, then goes on with those of a fixed key."""

    def __init__(self, words):
        super().__init__(KEY)
        self.left = [int(word) for word in words]

    def words(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        return np.concatenate([np.array(taken, np.uint64), super().words(count - len(taken))])


def probabilities(sigma, reach):
    """P(-reach), ..., P(reach): from the definition, normalised over sixty sigma or more."""
    far = max(reach, int(60 * sigma) + 10)
    weights = np.exp(-(np.arange(-far, far + 1.0) ** 2) / (2 * float(sigma) ** 2))
    return (weights / weights.sum())[far - reach : far + reach + 1]


def chi_square(samples, sigma):
    """p-value of the samples under the exact probabilities; cells of at least ten expected."""
    reach = int(8 * sigma) + 2
    expected = len(samples) * probabilities(sigma, reach)
    width = max(1, int(sigma / 20))
    observed = np.bincount(np.clip(samples, -reach, reach) + reach, minlength=2 * reach + 1)
    starts = np.arange(0, 2 * reach + 1, width)
    observed, expected = np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize(
    "sigma", [0.2, Fraction(1, 2), 1.0, Fraction(7, 3), 10.0, 1000.0, Fraction(100_001, 10)]
)
def test_frequencies_are_the_exact_probabilities(sigma):
    samples = discrete_gaussian(sigma, 400_000, SecretStream(KEY))
    assert samples.dtype == np.int64
    assert samples.shape == (400_000,)
    assert chi_square(samples, sigma) > 0.01


def test_the_check_itself_can_fail():
    samples = discrete_gaussian(1.0, 400_000, SecretStream(KEY))
    assert chi_square(samples, 1.01) < 1e-6
    rounded = np.rint(np.random.default_rng(0).normal(size=400_000)).astype(int)
    assert chi_square(rounded, 1.0) < 1e-6


@pytest.mark.parametrize("sigma", [1e6, 2.0**31 + 0.5])
def test_large_scales(sigma):
    count = 300_000 if sigma < 2**30 else 20_000
    samples = discrete_gaussian(sigma, count, SecretStream(KEY))
    assert stats.kstest(samples / sigma, "norm").pvalue > 0.01
    digits = np.bincount(samples % 8, minlength=8)
    assert stats.chisquare(digits).pvalue > 0.01


def test_signs_and_neighbours_are_independent():
    samples = discrete_gaussian(3.0, 400_000, SecretStream(KEY)).astype(float)
    assert abs(samples.mean()) < 4 * 3 / 400_000**0.5
    for left, right in (
        (samples[1:], samples[:-1]),
        (np.sign(samples), np.abs(samples)),
        (np.abs(samples[1:]), np.abs(samples[:-1])),
    ):
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / 400_000**0.5


class Published:
    """The algorithms of Canonne, Kamath and Steinke as printed: one sample, whole numbers only."""

    def __init__(self, stream):
        self.pool, self.stream = [], stream

    def below(self, bound):
        while True:
            if not self.pool:
                self.pool = self.stream.words(4096).tolist()
            word = self.pool.pop()
            if word < 2**64 - 2**64 % bound:
                return word % bound

    def bernoulli(self, chance):
        return self.below(chance.denominator) < chance.numerator

    def bernoulli_exp(self, gamma):
        while gamma > 1:
            if not self.bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while self.bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    def laplace(self, t):
        while True:
            u = self.below(t)
            if not self.bernoulli_exp(Fraction(u, t)):
                continue
            v = 0
            while self.bernoulli_exp(Fraction(1)):
                v += 1
            size, negative = u + t * v, self.below(2)
            if size or not negative:
                return -size if negative else size

    def gaussian(self, sigma):
        t = int(sigma) + 1
        while True:
            y = self.laplace(t)
            gap = abs(y) - sigma**2 / t
            if self.bernoulli_exp(gap**2 / (2 * sigma**2)):
                return y


@pytest.mark.parametrize("sigma", [Fraction(2, 3), Fraction(5, 2)])
def test_the_published_algorithm_gives_the_same_distribution(sigma):
    published = Published(SecretStream(b"p" * 32))
    slow = np.array([published.gaussian(sigma) for _ in range(15_000)])
    assert chi_square(slow, sigma) > 0.01
    fast = discrete_gaussian(sigma, 150_000, SecretStream(KEY))
    inner = int(2 * sigma)
    counts = [
        np.bincount(np.clip(samples, -inner, inner) + inner, minlength=2 * inner + 1)
        for samples in (slow, fast)
    ]
    assert stats.chi2_contingency(counts).pvalue > 0.01


def fill(sizes, chances, candidates):
    """Words of a first block whose first candidates are chosen and whose others are rejected."""
    rejected = 2**63 - 1  # the largest chance number: never accepted
    blank = candidates - len(sizes)
    return [*sizes, *[2**63] * blank, *chances, *[rejected] * blank]


ACCEPTED = 0  # positive, and below every probability


@pytest.mark.parametrize(("more", "size"), [(2**64 - 1, 2), (0, 3)])
@pytest.mark.parametrize("sigma", [3.5, 2.0**20 + 0.5])
def test_a_size_on_an_edge_waits_for_more_digits(sigma, more, size):
    # floor(-t ln V) = 3 begins at V = exp(-3/t): the word in which that lies, and what follows it.
    with mpmath.workprec(200):
        word = int(mpmath.floor(mpmath.exp(mpmath.mpf(-3) / (int(sigma) + 1)) * 2**64))
    tape = Tape([*fill([word], [ACCEPTED], 18), more])
    assert discrete_gaussian(sigma, 1, tape).tolist() == [size]
    assert not tape.left


def test_sizes_of_the_far_tail_are_found_exactly():
    words = np.array([0, 2, 2**20, 2**41, 2**42, 2**64 - 1], np.uint64)
    # V = 2^-65 for the word 0: 1/2 follows; 64 digits of the others may be enough.
    more = [2**63, 2**63, 2**63]
    target = module._Target(Fraction(10**4), 101)
    sizes = module._laplace_sizes(target, words, Tape(more))
    with mpmath.workprec(200):
        exact = [-101 * mpmath.log((mpmath.mpf(word) + 0.5) / 2**64) for word in words.tolist()]
    assert sizes.tolist() == [int(size) for size in exact]
    assert sizes[0] == 4550


@pytest.mark.parametrize(("more", "accepted"), [(0, True), (2**64 - 1, False)])
@pytest.mark.parametrize("negative", [0, 2**63])
def test_an_acceptance_on_an_edge_waits_for_more_digits(more, accepted, negative):
    # sigma 3, t 4, size 7: accepted below exp(-(7 - 9/4)^2 / 18).
    with mpmath.workprec(200):
        chance = mpmath.exp(-((mpmath.mpf(7) - mpmath.mpf(9) / 4) ** 2) / 18)
        digits = int(mpmath.floor(chance * 2**63))
        word = int(mpmath.exp(mpmath.mpf(-7.5) / 4) * 2**64)
    tape = Tape([*fill([word], [digits | negative], 18), more])
    (sample,) = discrete_gaussian(3, 1, tape)
    assert not tape.left
    assert (sample == (-7 if negative else 7)) == accepted


def test_minus_zero_is_rejected():
    word = 2**64 - 1  # size 0
    tape = Tape(fill([word, word, word], [2**63, 2**63, 0], 18))
    (sample,) = discrete_gaussian(2.0, 1, tape)
    assert sample == 0
    with_minus = Tape(fill([word], [2**63], 18))
    without = Tape(fill([], [], 18))
    assert discrete_gaussian(2.0, 1, with_minus) == discrete_gaussian(2.0, 1, without)


def test_a_float_is_the_fraction_that_it_is():
    exact = Fraction(0.1) * 50
    assert np.array_equal(
        discrete_gaussian(exact, 1000, SecretStream(KEY)),
        discrete_gaussian(Fraction(0.1) * 50, 1000, SecretStream(KEY)),
    )
    assert np.array_equal(
        discrete_gaussian(2.75, 1000, SecretStream(KEY)),
        discrete_gaussian(Fraction(11, 4), 1000, SecretStream(KEY)),
    )


def test_seeding_other_generators_changes_nothing():
    outputs = []
    for stream in (secret_stream(), secret_stream(), SecretStream(KEY), SecretStream(KEY)):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        outputs.append(discrete_gaussian(1e6, 20, stream))
        np.random.seed(len(outputs))
    assert np.intersect1d(outputs[0], outputs[1]).size < 3
    assert np.array_equal(outputs[2], outputs[3])


@pytest.mark.parametrize("sigma", [0, 0.0, -1, float("nan"), float("inf"), 2.0**-21, 2.0**33])
def test_other_sigmas_are_refused(sigma):
    with pytest.raises(ValueError, match="sigma is"):
        discrete_gaussian(sigma, 3, secret_stream())


def test_no_samples_and_fewer():
    assert discrete_gaussian(1.0, 0, secret_stream()).shape == (0,)
    assert discrete_gaussian(1.0, 0, secret_stream()).dtype == np.int64
    with pytest.raises(ValueError, match="-1 samples"):
        discrete_gaussian(1.0, -1, secret_stream())
