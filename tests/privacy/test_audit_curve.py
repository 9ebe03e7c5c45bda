"""Guesses about one run against a claimed curve: linear programs, published figures, coins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.audit_curve import (
    Claims,
    claims_of,
    count_right,
    expected_accuracy,
    fewest_right,
    planned_guesses,
    refuted,
    refuted_noise,
)
from asterion_shared.privacy.charges import GaussianCharge


def gaussian(noise_multiplier: float, **others: float) -> GaussianCharge:
    values = {"relation": "add_or_remove_one", "noise_multiplier": noise_multiplier, **others}
    return GaussianCharge.model_validate(values)


def claims(*pairs: tuple[float, float]) -> Claims:
    epsilons, deltas = zip(*pairs, strict=True)
    return Claims(np.array(epsilons), np.array(deltas))


def greatest_tail(canaries: int, guesses: int, right: int, claimed: Claims) -> float:
    """The largest chance of so many right guesses, by a linear program over their distribution."""
    counts = np.arange(guesses + 1)
    rows, limits = [], []
    for least in range(1, guesses + 1):
        rightly = np.where(counts >= least, counts, 0) / canaries
        wrongly = np.where(counts >= least - 1, guesses - counts, 0) / canaries
        for epsilon, delta in zip(claimed.epsilons, claimed.deltas, strict=True):
            rows.append(rightly - math.exp(epsilon) * wrongly)
            limits.append(delta)
            rows.append(math.exp(epsilon) * rightly - wrongly)
            limits.append(math.exp(epsilon) - 1 + delta)
    found = optimize.linprog(
        -(counts >= right).astype(float), rows, limits, np.ones((1, guesses + 1)), [1.0]
    )
    assert found.status == 0
    return float(-found.fun)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_refuted_is_where_the_linear_program_says(data: st.DataObject) -> None:
    canaries = data.draw(st.integers(1, 14))
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(0, guesses))
    pairs = data.draw(
        st.lists(st.tuples(st.floats(0, 4), st.floats(1e-4, 0.3)), min_size=1, max_size=3)
    )
    tail = greatest_tail(canaries, guesses, right, claims(*pairs)) if guesses else 1.0
    for level in (0.5 * tail, 0.99 * tail, 1.01 * tail, 2 * tail):
        if 1e-6 < level < 0.999:
            found = refuted(canaries, guesses, right, claims(*pairs), 1 - level)
            assert found == (level > tail)


@pytest.mark.parametrize(
    ("counts", "delta", "published"),
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_published_figures_for_one_delta_are_reached(
    counts: tuple[int, int, int], delta: float, published: float
) -> None:
    # Steinke, Nasr and Jagielski 2023, appendix D and section 7, by another argument.
    assert refuted(*counts, claims((published, delta)), 0.95)
    assert not refuted(*counts, claims((1.2 * published, delta)), 0.95)


@given(st.floats(0, 1), st.floats(0, 3), st.floats(0, 0.5))
def test_least_is_the_inverse_of_what_the_claim_allows(
    other: float, epsilon: float, delta: float
) -> None:
    allowed = min(math.exp(epsilon) * other + delta,
                  1 - math.exp(-epsilon) * (1 - delta - other), 1.0)  # fmt: skip
    claimed = claims((epsilon, delta))
    assert claimed.least(allowed) <= other + 1e-9
    assert claimed.least(min(1.0, allowed + 1e-6)) >= other - 1e-9 or allowed > 1 - 1e-6


def test_the_curve_of_a_gaussian_is_below_its_exact_one() -> None:
    # Dong, Roth and Su 2022: least(chance) = Phi(Phi^-1(chance) - 1 / noise).
    for noise in (0.5, 1.0, 3.0):
        claimed = claims_of((gaussian(noise),))
        chances = np.array([1e-4, 0.01, 0.2, 0.5, 0.8, 0.99, 0.9999])
        exact = special.ndtr(special.ndtri(chances) - 1 / noise)
        found = np.array([claimed.least(chance) for chance in chances.tolist()])
        assert (found <= exact + 1e-9).all()
        assert np.allclose(found, exact, atol=0.012)


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0])
def test_a_gaussian_is_refuted_no_more_often_than_said_and_half_its_noise_is(noise: float) -> None:
    draw, num, claimed = np.random.default_rng(7), 4000, claims_of((gaussian(noise),))
    guesses = planned_guesses(num, noise, claimed, 0.9)
    needed = fewest_right(num, guesses, claimed, 0.9)
    assert needed <= guesses

    def share_refuted(deviation: float) -> float:
        right = []
        for _ in range(100):
            coins = draw.random(num) < 0.5
            right.append(count_right(coins + deviation * draw.standard_normal(num), coins, guesses))
        return float(np.mean(np.array(right) >= needed))

    assert share_refuted(noise) <= 0.1
    assert share_refuted(noise / 2) >= 0.9


def test_exact_coins_are_refuted_nearly_as_often_as_said() -> None:
    # Randomised response at epsilon 1 does what is claimed and no less.
    num, claimed = 2000, claims((1.0, 0.0))
    draws = np.random.default_rng(0).binomial(num, 1 / (1 + math.exp(-1)), size=20_000)
    share = float(np.mean(draws >= fewest_right(num, num, claimed, 0.9)))
    assert 0.07 < share <= 0.1 + 4 * math.sqrt(0.09 / draws.size)


def test_the_noise_that_is_refuted() -> None:
    num, guesses, charge = 4000, 800, gaussian(1.0)
    right = round(guesses * expected_accuracy(guesses / 2 / num, 1.0))
    factor = refuted_noise(num, guesses, right, charge, 0.99)
    assert 1 < factor < 2.5
    bound = spent((gaussian(factor),), 1e-5).epsilon
    assert 0.35 < bound / spent((charge,), 1e-5).epsilon < 1
    assert refuted_noise(num, guesses, guesses, charge, 0.99) < 1
    assert refuted_noise(num, guesses, guesses // 2, charge, 0.99) == math.inf
    factors = [refuted_noise(num, guesses, v, charge, 0.99) for v in range(500, 801, 50)]
    assert factors == sorted(factors, reverse=True)


def test_right_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8])
    coins = np.array([False, True, True, True, False])
    assert [count_right(scores, coins, number) for number in (0, 2, 4)] == [0, 2, 2]


def test_the_expected_accuracy_is_that_of_draws() -> None:
    draw, num = np.random.default_rng(3), 400_000
    coins = draw.random(num) < 0.5
    scores = coins + 0.8 * draw.standard_normal(num)
    for share in (0.01, 0.1, 0.5):
        guesses = 2 * round(share * num)
        found = count_right(scores, coins, guesses) / guesses
        assert found == pytest.approx(expected_accuracy(share, 0.8), abs=5 / math.sqrt(guesses))


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_guessed_is_nothing_shown(num: int) -> None:
    claimed = claims((1.0, 1e-5))
    assert planned_guesses(num, 1.0, claimed, 0.95) == 0
    assert not refuted(num, num, num, claimed, 0.95)
    assert fewest_right(num, num, claimed, 0.95) == num + 1
    assert count_right(np.zeros(0), np.zeros(0, bool), 0) == 0


def test_arguments_outside_their_range() -> None:
    claimed = claims((1.0, 1e-5))
    for canaries, guesses, right in ((10, 11, 5), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(ValueError, match=f"{right} of {guesses} guesses about {canaries}"):
            refuted(canaries, guesses, right, claimed, 0.9)
    with pytest.raises(ValueError, match=r"confidence is 1\.0"):
        refuted(10, 5, 5, claimed, 1.0)
    with pytest.raises(ValueError, match=r"deviation is 0\.0"):
        planned_guesses(10, 0.0, claimed, 0.9)
    with pytest.raises(ValueError, match="one coin a score"):
        count_right(np.zeros(3), np.zeros(2, bool), 2)
    with pytest.raises(ValueError, match="an even number"):
        count_right(np.zeros(3), np.zeros(3, bool), 3)
