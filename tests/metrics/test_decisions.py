"""Temperature and thresholds from merged histograms, against the raw scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from asterion_shared.metrics import merge
from asterion_shared.metrics.decisions import Decisions, fit_decisions
from asterion_shared.metrics.merged_bins import beside, merged
from asterion_shared.metrics.scores import anomaly_edges, probability_edges, score_histograms
from asterion_shared.metrics.statistic import Statistic
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


def plan_of(task: str) -> Plan:
    name = "cnn" if task == "classification" else "conv_autoencoder"
    values = {"name": "d", "task": task, "data": {"classes": ["well", "ill"]},
              "model": {"name": name}}  # fmt: skip
    return validate(Plan, values, "plan")


PLAN = plan_of("classification")
EDGES = probability_edges(PLAN.evaluation)


def drawn(seed: int, size: int, hot: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose log-odds are ``hot`` times too large, and the truth."""
    stream = np.random.default_rng(seed)
    odds = stream.normal(0.3, 2.0, size)
    return expit(odds * hot), stream.random(size) < expit(odds)


def fitted(scores: np.ndarray, truth: np.ndarray) -> Decisions:
    found = fit_decisions({"score": score_histograms(scores, truth, EDGES)}, PLAN)
    assert found is not None
    return found


def by_hand(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """The temperature on the scores themselves, and the log loss before and after it."""
    odds = np.where(truth, 1, -1) * logit(scores)

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -odds / temperature).mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    return best, loss(1.0), loss(best)


@pytest.mark.parametrize("hot", [0.5, 1.0, 3.0])
def test_the_temperature_is_that_of_the_scores_themselves(hot: float) -> None:
    scores, truth = drawn(1, 4000, hot)
    found, (best, before, after) = fitted(scores, truth), by_hand(scores, truth)
    assert found.temperature == pytest.approx(best, rel=2e-3)
    assert found.temperature == pytest.approx(hot, rel=0.15)
    assert (found.log_loss, found.log_loss_after) == pytest.approx((before, after), rel=2e-3)
    assert found.num_cases == 4000


def test_sites_merged_are_as_one() -> None:
    scores, truth = drawn(2, 900, 2.0)
    parts = [{"score": score_histograms(scores[i::3], truth[i::3], EDGES)} for i in range(3)]
    assert fit_decisions(merge(parts), PLAN) == fitted(scores, truth)


@with_settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(30, 300))
def test_thresholds_do_what_they_say(seed: int, size: int) -> None:
    scores, truth = drawn(seed, size, 1.5)
    found = fit_decisions({"score": score_histograms(scores, truth, EDGES)}, PLAN)
    if found is None:
        assert truth.all() or not truth.any() or np.unique(np.digitize(scores, EDGES)).size < 10
        return
    table = {e: ((scores[truth] >= e).mean(), (scores[~truth] >= e).mean()) for e in EDGES[:-1]}
    for threshold in found.thresholds.values():
        expected = table[threshold.score]
        assert (threshold.sensitivity, threshold.false_alarm_rate) == pytest.approx(expected)
    best = max(sensitivity - alarms for sensitivity, alarms in table.values())
    youden = found.thresholds["youden"]
    assert youden.sensitivity - youden.false_alarm_rate == pytest.approx(best)
    quiet = min(edge for edge, (_, alarms) in table.items() if alarms <= 0.1)
    assert found.thresholds["false_alarm_rate"].score == quiet


def test_merged_bins_give_thresholds_at_edges_that_all_sites_kept() -> None:
    scores, truth = drawn(3, 2000, 2.0)
    kept = np.zeros(EDGES.size, bool)
    kept[50:-50:50] = True
    whole = score_histograms(scores, truth, EDGES)
    few = merged(whole, kept)
    statistics: dict[str, Statistic] = {"score": few, "score_moved": beside(whole, kept)}
    found = fit_decisions(statistics, PLAN)
    assert found is not None
    assert found.num_bins == np.count_nonzero(few.values.reshape(2, -1).sum(0))
    assert found.num_bins < 25
    assert {t.score for t in found.thresholds.values()} <= set(EDGES[kept])
    assert found.temperature == pytest.approx(by_hand(scores, truth)[0], rel=0.1)
    scarce = np.zeros(EDGES.size, bool)
    scarce[500] = True
    two = {"score": merged(whole, scarce), "score_moved": beside(whole, scarce)}
    assert fit_decisions(two, PLAN) is None


def test_what_has_no_answer_has_none() -> None:
    scores, _ = drawn(4, 100, 1.0)
    one_side = score_histograms(scores, np.ones(100, bool), EDGES)
    assert fit_decisions({"score": one_side}, PLAN) is None
    assert fit_decisions({}, PLAN) is None
    assert fit_decisions({"score/ill": one_side}, PLAN) is None
    perfect = fitted(scores, scores > 0.5)
    assert perfect.temperature is None
    assert perfect.log_loss is None
    assert perfect.thresholds["youden"].sensitivity == 1.0
    assert perfect.thresholds["youden"].false_alarm_rate == 0.0


def test_an_anomaly_detector_has_thresholds_and_no_temperature() -> None:
    plan = plan_of("anomaly")
    stream = np.random.default_rng(5)
    scores = np.concatenate([stream.lognormal(-2, 0.5, 300), stream.lognormal(0, 0.5, 100)])
    truth = np.arange(400) >= 300
    edges = anomaly_edges(plan.evaluation)
    found = fit_decisions({"score": score_histograms(scores, truth, edges)}, plan)
    assert found is not None
    assert found.temperature is None
    quiet = found.thresholds["false_alarm_rate"]
    assert quiet.score in edges
    assert quiet.false_alarm_rate == (scores[~truth] >= quiet.score).mean() <= 0.1
    assert quiet.sensitivity == (scores[truth] >= quiet.score).mean() > 0.9
