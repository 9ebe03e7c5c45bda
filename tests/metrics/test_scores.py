"""Ranking metrics from histograms against the exact ones of all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from asterion_shared.evaluation_settings import EvaluationSettings
from asterion_shared.metrics import Statistic, merge
from asterion_shared.metrics.scores import (
    anomaly_edges,
    probability_edges,
    rank,
    score_histograms,
)

Cases = list[tuple[float, bool]]
COARSE = EvaluationSettings(score_bins=12)
EDGES = {"probability": probability_edges(COARSE), "anomaly": anomaly_edges(COARSE)}
SCORES = {
    "probability": st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0, 1e-9]),
    "anomaly": st.floats(0, 1e4) | st.sampled_from([0.0, 1e-4, 100.0, 1e4]),
}


def _cases(kind: str) -> st.SearchStrategy[Cases]:
    pairs = st.lists(st.tuples(SCORES[kind], st.booleans()), min_size=2, max_size=60)
    return pairs.filter(lambda cases: len({truth for _, truth in cases}) == 2)


ANY_CASES = st.sampled_from(sorted(EDGES)).flatmap(
    lambda kind: st.tuples(st.just(kind), _cases(kind))
)


def _histograms(kind: str, cases: Cases) -> Statistic:
    return score_histograms([s for s, _ in cases], [t for _, t in cases], EDGES[kind])


def _exact_auroc(cases: Cases) -> float:
    """The slow twin: every pair of a positive and a negative, ties as half."""
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, positive in cases
        for low, other in cases
        if positive and not other
    ]
    return sum(wins) / len(wins)


def test_by_hand() -> None:
    # bins: negatives 0.1 0.1 | 0.6, positives 0.6 | 0.9: pairs 0.6>0.1 x2, 0.6~0.6, 0.9> x3
    edges = np.array([0.0, 0.5, 0.8, 1.0])
    got = rank(score_histograms([0.1, 0.1, 0.6, 0.6, 0.9], [0, 0, 0, 1, 1], edges), 0.1)
    assert got.auroc == pytest.approx(5.5 / 6)
    assert got.auroc_bound == pytest.approx(0.5 / 6)
    assert got.prevalence == pytest.approx(2 / 5)
    # called down to 0.9: precision 1, recall 1/2; down to 0.6: precision 2/3, recall 1
    assert got.auprc == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert got.sensitivity == pytest.approx(0.5)  # the next edge would raise one false alarm of 3
    assert rank(score_histograms([0.1, 0.1, 0.6, 0.6, 0.9], [0, 0, 0, 1, 1], edges), 0.34) == (
        type(got)(got.auroc, got.auroc_bound, got.auprc, got.prevalence, 1.0)
    )


@given(ANY_CASES)
def test_exact_auroc_is_within_the_bound(drawn: tuple[str, Cases]) -> None:
    kind, cases = drawn
    got = rank(_histograms(kind, cases), 0.1)
    assert got.auroc is not None
    assert got.auroc_bound is not None
    assert abs(got.auroc - _exact_auroc(cases)) <= got.auroc_bound + 1e-12


@given(ANY_CASES)
def test_bound_is_zero_when_no_pair_shares_a_bin(drawn: tuple[str, Cases]) -> None:
    kind, cases = drawn
    histograms = _histograms(kind, cases)
    positives, negatives = histograms.values.reshape(2, -1)
    got = rank(histograms, 0.1)
    assert (got.auroc_bound == 0) == (not np.any((positives > 0) & (negatives > 0)))


@given(ANY_CASES)
def test_auprc_is_the_average_precision_of_the_bins(drawn: tuple[str, Cases]) -> None:
    kind, cases = drawn
    bins = np.searchsorted(EDGES[kind], [score for score, _ in cases], side="right")
    bins[np.array([score for score, _ in cases]) == EDGES[kind][-1]] = len(EDGES[kind]) - 1
    oracle = average_precision_score([truth for _, truth in cases], bins)
    assert rank(_histograms(kind, cases), 0.1).auprc == pytest.approx(oracle)


@given(ANY_CASES, st.floats(0.01, 0.99))
def test_sensitivity_is_never_overstated(drawn: tuple[str, Cases], rate: float) -> None:
    kind, cases = drawn
    positives = np.array([score for score, truth in cases if truth])
    negatives = np.array([score for score, truth in cases if not truth])
    thresholds = [*positives, *negatives, np.inf]
    best = max(
        float(np.mean(positives >= t)) for t in thresholds if np.mean(negatives >= t) <= rate
    )
    got = rank(_histograms(kind, cases), rate).sensitivity
    assert got is not None
    assert got <= best + 1e-12


@given(ANY_CASES, st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_any_partition_merges_to_the_whole(drawn: tuple[str, Cases], sites: list[int]) -> None:
    kind, cases = drawn
    parts = [
        {"s": _histograms(kind, [c for c, s in zip(cases, sites, strict=False) if s == site])}
        for site in range(3)
    ]
    assert np.array_equal(merge(parts)["s"].values, _histograms(kind, cases).values)


@pytest.mark.parametrize("truth", [[], [True], [False, False]])
def test_undefined_without_both_kinds(truth: list[bool]) -> None:
    got = rank(score_histograms([0.5] * len(truth), truth, EDGES["probability"]), 0.1)
    assert got == type(got)(None, None, None, None, None)


def test_a_constant_predictor_knows_nothing() -> None:
    got = rank(score_histograms([0.0] * 10, [True] * 4 + [False] * 6, EDGES["probability"]), 0.1)
    assert (got.auroc, got.auroc_bound, got.auprc, got.sensitivity) == (0.5, 0.5, 0.4, 0.0)


@pytest.mark.parametrize("bins", [10, 11, 12, 13, 999, 1000, 1001])
def test_edges_rise_and_are_as_many_as_the_plan_says(bins: int) -> None:
    evaluation = EvaluationSettings(score_bins=bins, anomaly_score_range=(1e-3, 10.0))
    for edges, first, last in (
        (probability_edges(evaluation), 0.0, 1.0),
        (anomaly_edges(evaluation), 1e-3, 10.0),
    ):
        assert edges.shape == (bins + 1,)
        assert (np.diff(edges) > 0).all()
        assert (edges[0], edges[-1]) == (pytest.approx(first), pytest.approx(last))


def test_probability_edges_tell_sure_and_unsure_scores_apart() -> None:
    edges = probability_edges(EvaluationSettings())
    unsure = np.histogram(np.linspace(0.45, 0.55, 1000), edges)[0]
    sure = np.histogram(1 - np.geomspace(1e-6, 1e-3, 1000), edges)[0]
    assert np.count_nonzero(unsure) >= 50
    assert np.count_nonzero(sure) >= 50


def test_shapes_must_agree_and_scores_be_finite() -> None:
    with pytest.raises(ValueError, match="shape"):
        score_histograms([0.1, 0.2], [True], EDGES["anomaly"])
    with pytest.raises(ValueError, match="not finite"):
        score_histograms([np.nan], [True], EDGES["anomaly"])
