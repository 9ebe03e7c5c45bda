import copy
import pickle
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from asterion_shared.privacy.secret_stream import SecretStream, poisson_sample, secret_stream


class Tape(SecretStream):
    """A stream that plays chosen words."""

    def __init__(self, words):
        super().__init__()
        self.left = [int(word) for word in words]

    def words(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count, "the tape is at its end"
        return np.array(taken, np.uint64)


def test_words_are_the_key_stream_of_aes_256():
    # AES-256 with a zero key of a zero block: NIST's known answer tests.
    assert SecretStream(bytes(32)).words(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("counts", [[20_011], [1, 0, 3, 8_191, 11_816], [8_192, 8_192, 3_627]])
def test_words_do_not_depend_on_how_they_are_asked_for(counts):
    whole = SecretStream(b"k" * 32).words(20_011)
    stream = SecretStream(b"k" * 32)
    parts = np.concatenate([stream.words(count) for count in counts])
    assert parts.dtype == np.uint64
    assert np.array_equal(parts, whole)
    assert np.unique(whole).size == whole.size


def test_words_are_uniform_bits():
    bits = np.unpackbits(SecretStream(b"u" * 32).words(100_000).view(np.uint8)).reshape(-1, 64)
    # 64 frequencies of 1 in 100,000: five standard errors are 0.0079.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.0079


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_seeding_other_generators_changes_nothing():
    seed_everything(7)
    first, sample = secret_stream().words(4), poisson_sample(256, 0.5, secret_stream())
    seed_everything(7)
    second, again = secret_stream().words(4), poisson_sample(256, 0.5, secret_stream())
    assert not np.intersect1d(first, second).size
    assert not np.array_equal(sample, again)

    seed_everything(1)
    fixed = SecretStream(b"k" * 32).words(4)
    seed_everything(2)
    assert np.array_equal(SecretStream(b"k" * 32).words(4), fixed)


def test_drawing_leaves_other_generators_alone():
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: S311
    seed_everything(3)
    poisson_sample(100, 0.5, secret_stream())
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: S311


FORK = """
import os
from asterion_shared.privacy.secret_stream import secret_stream
stream = secret_stream()
stream.words(1)
if os.fork() == 0:
    try:
        stream.words(1)
    except RuntimeError as error:
        print("refused:", error, flush=True)
    print("new:", secret_stream().words(1)[0], flush=True)
    os._exit(0)
os.wait()
print("parent:", stream.words(1)[0], "new:", secret_stream().words(1)[0])
"""


def test_a_fork_cannot_repeat_its_parents_words():
    command = [sys.executable, "-c", FORK]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert answer[0] == "refused:"
    assert "fork" in answer
    numbers = [word for word in answer if word.isdigit() and len(word) > 9]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_cannot_be_copied(how):
    with pytest.raises(TypeError, match="copied or pickled"):
        how(secret_stream())


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_a_key_of_another_length_is_refused(key):
    with pytest.raises(ValueError, match=f"{len(key)} bytes"):
        SecretStream(key)


def test_no_words():
    assert SecretStream().words(0).shape == (0,)
    with pytest.raises(ValueError, match="-1 words"):
        SecretStream().words(-1)


@pytest.mark.parametrize("rate", [0.25, 0.1, 1e-3, Fraction(1, 3), 2.0**-60])
def test_poisson_compares_whole_numbers(rate):
    edge = int(Fraction(rate) * 2**64)
    words = [0, edge - 1, edge, edge + 1, 2**64 - 1]
    assert poisson_sample(5, rate, Tape(words)).tolist() == [0, 1]
    # The probability is edge / 2^64 exactly.
    assert 0 <= Fraction(rate) - Fraction(edge, 2**64) < Fraction(1, 2**64)


def test_floats_from_2_to_the_minus_11_are_exact():
    for rate in (2.0**-11, np.nextafter(2.0**-11, 1), 0.1, 1 / 3, np.nextafter(1.0, 0.0)):
        assert (Fraction(float(rate)) * 2**64).denominator == 1


def test_a_rate_below_the_last_digit_takes_nobody():
    assert poisson_sample(3, 2.0**-70, Tape([0, 1, 2])).size == 0


def test_poisson_takes_each_example_equally_often_and_independently():
    stream, rounds, count, rate = SecretStream(b"p" * 32), 4000, 50, 0.3
    taken = np.zeros((rounds, count))
    for row in taken:
        rows = poisson_sample(count, rate, stream)
        assert np.all(np.diff(rows) > 0)
        row[rows] = 1
    deviation = (rate * (1 - rate) / rounds) ** 0.5
    assert np.abs(taken.mean(axis=0) - rate).max() < 4.5 * deviation
    sizes = taken.sum(axis=1)
    # A binomial size, not a fixed one: variance n q (1 - q).
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.1)
    assert np.abs(np.corrcoef(taken.T) - np.eye(count)).max() < 5 / rounds**0.5


def test_rate_one_takes_all_and_no_examples_give_none():
    assert poisson_sample(4, 1, Tape([0, 1, 2**63, 2**64 - 1])).tolist() == [0, 1, 2, 3]
    assert poisson_sample(0, 0.5, secret_stream()).shape == (0,)
    assert poisson_sample(0, 0.5, secret_stream()).dtype == np.int64


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, 1.0000001, float("nan"), float("inf")])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(3, rate, secret_stream())
