"""Bounds from guesses against published figures, slow sums and mechanisms of known epsilon."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.audit_bounds import (
    count_right,
    game_bound,
    game_bound_of_scores,
    one_run_bound,
    one_run_p_value,
    planned_guesses,
    rate_limit,
)
from asterion_shared.privacy.charges import GaussianCharge


def binomial(n: int, k: int, chance: Fraction) -> Fraction:
    return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    charge = GaussianCharge(relation="add_or_remove_one", noise_multiplier=noise_multiplier)
    return spent((charge,), delta).epsilon


@pytest.mark.parametrize(
    ("counts", "delta", "published"),
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_the_papers_own_figures(
    counts: tuple[int, int, int], delta: float, published: float
) -> None:
    # Steinke, Nasr and Jagielski 2023: appendix D, and section 7, the latter cut, not rounded.
    assert one_run_bound(*counts, delta, 0.95) == pytest.approx(published, abs=1e-3)


@given(st.data())
def test_the_p_value_is_the_theorems_sum(data: st.DataObject) -> None:
    canaries = data.draw(st.integers(1, 25))
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(0, guesses))
    epsilon, delta = data.draw(st.floats(0, 8)), data.draw(st.floats(0, 0.02))
    chance = 1 / (1 + Fraction(math.exp(-epsilon)))
    at_least = sum(binomial(guesses, k, chance) for k in range(right, guesses + 1))
    shares = [
        sum(binomial(guesses, k, chance) for k in range(max(0, right - i), right)) / i
        for i in range(1, canaries + 1)
    ]
    expected = min(1, at_least + 2 * canaries * Fraction(delta) * max(shares))
    found = one_run_p_value(canaries, guesses, right, epsilon, delta)
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


@given(st.integers(2, 400), st.floats(0, 1), st.floats(0, 1e-3), st.floats(0.5, 0.999))
def test_a_bound_is_where_the_p_value_crosses_the_level(
    guesses: int, share: float, delta: float, confidence: float
) -> None:
    right = round(share * guesses)
    bound = one_run_bound(guesses, guesses, right, delta, confidence)
    level = 1 - confidence
    if bound > 0:
        assert one_run_p_value(guesses, guesses, right, bound, delta) < level * (1 + 1e-9)
    assert one_run_p_value(guesses, guesses, right, bound + 1e-6, delta) >= level * (1 - 1e-9)
    if right < guesses:  # a better attack never shows less
        assert one_run_bound(guesses, guesses, right + 1, delta, confidence) >= bound
    assert one_run_bound(guesses, guesses, right, 2 * delta, confidence) <= bound


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("num", [1, 10, 200, 2000])
def test_one_run_of_randomised_response_is_refuted_no_more_often_than_said(
    epsilon: float, num: int
) -> None:
    # Each coin is told truly with probability e^epsilon / (1 + e^epsilon): exactly epsilon-private,
    # and the attacker can do no better than believe it. The chance of each count is known.
    chance = 1 / (1 + math.exp(-epsilon))
    draws = np.random.default_rng(0).binomial(num, chance, size=20_000)
    bounds = {int(v): one_run_bound(num, num, int(v), 0.0, 0.9) for v in np.unique(draws)}
    too_large = np.mean([bounds[int(v)] > epsilon for v in draws])
    assert too_large <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / draws.size)
    if num == 2000:  # not vacuous: nearly as often as it may, and never far off
        assert too_large > 0.07
        assert np.mean([bounds[int(v)] for v in draws]) > 0.85 * epsilon


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 2.0])
def test_one_run_of_a_gaussian_stays_below_its_epsilon(noise_multiplier: float) -> None:
    generator, delta, num = np.random.default_rng(1), 1e-5, 2000
    guesses = planned_guesses(num, noise_multiplier, delta, 0.95)
    bounds = []
    for _ in range(200):
        coins = generator.random(num) < 0.5
        scores = coins + noise_multiplier * generator.standard_normal(num)
        right = count_right(scores, coins, guesses)
        bounds.append(one_run_bound(num, guesses, right, delta, 0.95))
    claimed = gaussian_epsilon(noise_multiplier, delta)
    assert max(bounds) < claimed
    assert np.mean(bounds) > 0.3 * claimed


def test_planned_guesses_are_better_than_guessing_at_all_or_at_few() -> None:
    generator, num = np.random.default_rng(2), 2000
    coins = generator.random(num) < 0.5
    scores = coins + generator.standard_normal(num)
    planned = planned_guesses(num, 1.0, 1e-5, 0.95)
    bounds = {
        guesses: one_run_bound(num, guesses, count_right(scores, coins, guesses), 1e-5, 0.95)
        for guesses in (planned, num, 10)
    }
    assert bounds[planned] > 1.3 * bounds[num]
    assert bounds[planned] > 1.3 * bounds[10]


def test_right_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8])
    coins = np.array([False, True, True, True, False])
    assert [count_right(scores, coins, number) for number in (0, 2, 4)] == [0, 2, 2]


@given(st.integers(1, 40), st.data())
def test_a_rate_limit_is_clopper_and_pearsons(games: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, games - 1))
    limit = Fraction(rate_limit(wrong, games, 0.97))
    tail = sum(binomial(games, k, limit) for k in range(wrong + 1))
    assert float(tail) == pytest.approx(0.03, rel=1e-6)
    assert rate_limit(games, games, 0.97) == 1.0


def test_a_game_by_hand() -> None:
    # No wrong guess in 100 games of each kind: both rates are below 1 - 0.025^(1/100).
    limit = 1 - 0.025**0.01
    assert game_bound(0, 100, 0, 100, 0.01, 0.95) == pytest.approx(
        math.log((0.99 - limit) / limit), rel=1e-9
    )
    assert game_bound(50, 100, 50, 100, 0.0, 0.95) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_games_of_randomised_response(epsilon: float) -> None:
    generator, num = np.random.default_rng(3), 4000
    chance = 1 / (1 + math.exp(-epsilon))
    bounds = []
    for _ in range(300):
        without = (generator.random(num) > chance).astype(np.float64)
        with_canary = (generator.random(num) < chance).astype(np.float64)
        bounds.append(game_bound_of_scores(without, with_canary, 0.0, 0.9))
    assert np.mean(np.array(bounds) > epsilon) <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 300)
    assert np.mean(bounds) >= 0.85 * epsilon


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.5])
def test_games_of_a_gaussian(noise_multiplier: float) -> None:
    generator, delta = np.random.default_rng(4), 0.01
    claimed = gaussian_epsilon(noise_multiplier, delta)

    def bound(games: int) -> float:
        without = noise_multiplier * generator.standard_normal(games)
        with_canary = 1 + noise_multiplier * generator.standard_normal(games)
        return game_bound_of_scores(without, with_canary, delta, 0.9)

    # Also where the best threshold lies far out and few games reach it.
    assert np.mean([bound(1000) > claimed for _ in range(200)]) <= 0.1
    many = bound(1_000_000)
    assert 0.9 * claimed < many < claimed


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0, 0.5))
def test_a_game_of_few_rounds_says_little_and_does_not_fail(
    num: int, other: int, delta: float
) -> None:
    bound = game_bound_of_scores(np.zeros(num), np.ones(other), delta, 0.95)
    assert 0 <= bound < math.log(30)


@pytest.mark.parametrize("guesses", [0, 1])
def test_nothing_guessed_is_nothing_shown(guesses: int) -> None:
    assert one_run_bound(guesses, guesses, guesses, 0.0, 0.95) == 0.0
    assert planned_guesses(guesses, 1.0, 0.0, 0.95) == 0
    assert rate_limit(0, 0, 0.95) == 1.0
    assert game_bound(0, 0, 0, 0, 0.0, 0.95) == 0.0
    assert count_right(np.zeros(0), np.zeros(0, bool), 0) == 0


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        (one_run_bound, (10, 11, 5, 0.0, 0.9), "11 guesses about 10"),
        (one_run_bound, (10, 5, 6, 0.0, 0.9), "6 of 5"),
        (one_run_bound, (10, 5, 5, 1.0, 0.9), "delta is 1.0"),
        (one_run_bound, (10, 5, 5, 0.0, 1.0), "confidence is 1.0"),
        (one_run_p_value, (10, 5, 5, -1.0, 0.0), "epsilon is -1.0"),
        (one_run_p_value, (10, 5, 5, math.inf, 0.0), "epsilon is inf"),
        (planned_guesses, (10, 0.0, 0.0, 0.9), "deviation is 0.0"),
        (rate_limit, (5, 4, 0.9), "5 of 4"),
        (game_bound, (0, 5, 0, 5, -0.1, 0.9), "delta is -0.1"),
        (game_bound_of_scores, (np.array([np.nan]), np.ones(1), 0.0, 0.9), "not finite"),
        (count_right, (np.zeros(3), np.zeros(2, bool), 2), "one coin a score"),
        (count_right, (np.zeros(3), np.zeros(3, bool), 3), "an even number"),
    ],
)
def test_arguments_outside_their_range(
    call: Callable[..., Any], arguments: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        call(*arguments)
