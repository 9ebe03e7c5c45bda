"""Sums of one number a case: by hand, against numpy, and merged over any partition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.metrics import Statistic, merge
from asterion_shared.metrics.moments import (
    EDGES,
    moments,
    moments_length,
    moments_problem,
    quantile,
    summarise_moments,
)

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_by_hand() -> None:
    got = moments("unit_moments", [0.5, 1.0, float("nan")])
    assert got.values.size == moments_length("unit_moments") == 4 + 52
    assert got.values[:4].tolist() == [1.5, 1.25, 2, 1]
    bins = got.values[4:]
    assert np.flatnonzero(bins).tolist() == [26, 50]  # 0.5 opens the 26th bin, 1 closes the 50th


def test_interval_by_hand() -> None:
    # mean 0.5, variance ((0.1)^2 * 2) / (3 - 1) = 0.01, half width 1.96 * sqrt(0.01 / 3) = 0.1132
    summary = summarise_moments("dice", moments("unit_moments", [0.4, 0.5, 0.6]))
    assert summary["dice"] == pytest.approx(0.5)
    assert summary["dice_low"] == pytest.approx(0.5 - 0.11316, abs=1e-5)
    assert summary["dice_high"] == pytest.approx(0.5 + 0.11316, abs=1e-5)


def test_interval_stays_possible_and_needs_two_cases() -> None:
    wide = summarise_moments("dice", moments("unit_moments", [0.0, 1.0]))
    assert (wide["dice_low"], wide["dice_high"]) == (0.0, 1.0)
    one = summarise_moments("dice", moments("unit_moments", [0.7]))
    assert one["dice"] == 0.7
    assert one["dice_low"] is None
    assert one["dice_high"] is None


def test_no_known_case_is_undefined() -> None:
    empty = moments("distance_moments", [float("nan")] * 3)
    assert empty.values[3] == 3
    assert set(summarise_moments("hd95_mm", empty).values()) == {None}


def test_infinite_value_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        moments("distance_moments", [float("inf")])


@given(SHARES, st.floats(0.01, 1))
def test_quantile_is_off_by_less_than_a_bin(values: list[float], share: float) -> None:
    got = quantile(moments("unit_moments", values), share)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert got is not None
    assert abs(got - exact) <= 0.02 + 1e-9


def test_quantile_beyond_the_edges() -> None:
    assert (
        quantile(moments("distance_moments", [0.0, 0.0, 5.0]), 0.5) == EDGES["distance_moments"][0]
    )
    assert quantile(moments("distance_moments", [5000.0]), 0.5) is None


@given(st.lists(st.tuples(st.floats(0, 500) | st.just(float("nan")), st.integers(0, 3))))
def test_any_partition_merges_to_the_whole(cases: list[tuple[float, int]]) -> None:
    whole = moments("distance_moments", [value for value, _ in cases])
    parts = [
        {"x": moments("distance_moments", [value for value, site in cases if site == wanted])}
        for wanted in range(4)
    ]
    merged = merge(parts)["x"]
    assert np.allclose(merged.values, whole.values, rtol=1e-12)
    assert moments_problem(merged) is None


def _changed(index: int, value: float) -> Statistic:
    values = moments("unit_moments", [0.5, 0.7]).values.copy()
    values[index] = value
    return Statistic("unit_moments", values)


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, 2.5, "a sum"),  # more than the two cases could give
        (0, 0.2, "a sum of"),  # less than the sum of squares
        (1, 0.1, "sum of squares"),
        (2, 3.0, "histogram"),
        (3, 0.5, "whole"),
        (10, 1.0, "histogram"),
    ],
)
def test_contradictions_are_named(index: int, value: float, words: str) -> None:
    problem = moments_problem(_changed(index, value))
    assert problem is not None
    assert words in problem


@given(SHARES)
def test_honest_moments_have_no_problem(values: list[float]) -> None:
    assert moments_problem(moments("unit_moments", values)) is None
