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
    game_bound,
    game_bound_of_scores,
    rate_limit,
)
from asterion_shared.privacy.charges import GaussianCharge


def binomial(n: int, k: int, chance: Fraction) -> Fraction:
    return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    charge = GaussianCharge(relation="add_or_remove_one", noise_multiplier=noise_multiplier)
    return spent((charge,), delta).epsilon


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


def test_no_game_is_nothing_shown() -> None:
    assert rate_limit(0, 0, 0.95) == 1.0
    assert game_bound(0, 0, 0, 0, 0.0, 0.95) == 0.0


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        (rate_limit, (5, 4, 0.9), "5 of 4"),
        (rate_limit, (4, 5, 1.0), "confidence is 1.0"),
        (game_bound, (0, 5, 0, 5, -0.1, 0.9), "delta is -0.1"),
        (game_bound_of_scores, (np.array([np.nan]), np.ones(1), 0.0, 0.9), "not finite"),
    ],
)
def test_arguments_outside_their_range(
    call: Callable[..., Any], arguments: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        call(*arguments)
