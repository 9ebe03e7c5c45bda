"""Ranking metrics from two histograms of scores whose edges were fixed before data were seen.

The vector is ``[positives below, per bin, above, negatives below, per bin, above]``. Only the
order of the bins matters, so below and above are bins like the others. Of sites that merged bins
(:mod:`asterion_shared.metrics.merged_bins`) a score lies between two bins, and the metrics are
read off both.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.evaluation_settings import EvaluationSettings
from asterion_shared.metrics.merged_bins import with_all_moved
from asterion_shared.metrics.statistic import Statistic, Values, place

_MOST_LOG_ODDS = 16.0  # beyond it a float32 probability is 0 or 1


def probability_edges(evaluation: EvaluationSettings) -> Values:
    """Edges for probabilities, shape ``(score_bins + 1,)``, from 0 to 1.

    Half of the bins have equal width, half are equal in log-odds: an unsure network crowds its
    scores in the middle, a sure one within 0.001 of 0 and 1, and both must be told apart.
    """
    even = evaluation.score_bins // 2
    log_odds = np.linspace(-_MOST_LOG_ODDS, _MOST_LOG_ODDS, evaluation.score_bins - even + 2)
    inner = 1.0 / (1.0 + np.exp(-log_odds[1:-1]))
    # the cells of the two grids meet in at most one shared edge, the middle
    edges = np.unique(np.concatenate([np.linspace(0.0, 1.0, even + 1), inner]))
    missing = evaluation.score_bins + 1 - edges.size
    between = 0.5 * (edges[1 : 1 + missing] + edges[:missing])
    return np.sort(np.concatenate([edges, between])) if missing > 0 else edges


def anomaly_edges(evaluation: EvaluationSettings) -> Values:
    """Edges for anomaly scores, shape ``(score_bins + 1,)``, equal in their logarithm."""
    low, high = evaluation.anomaly_score_range
    return np.geomspace(low, high, evaluation.score_bins + 1)


def scores_length(evaluation: EvaluationSettings) -> int:
    """Length of the vector."""
    return 2 * (evaluation.score_bins + 2)


def score_histograms(scores: npt.ArrayLike, positive: npt.ArrayLike, edges: Values) -> Statistic:
    """Count positives and negatives per bin.

    Args:
        scores: finite, any shape; higher means more likely positive.
        positive: bool, same shape.
        edges: from :func:`probability_edges` or :func:`anomaly_edges`.

    Raises:
        ValueError: a score is not finite, or the shapes differ.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if values.shape != truth.shape:
        msg = f"scores have shape {values.shape} and truth {truth.shape}; they must agree"
        raise ValueError(msg)
    histograms = [place(values[truth], edges), place(values[~truth], edges)]
    return Statistic("scores", np.concatenate(histograms))


@dataclass(frozen=True, slots=True)
class Ranking:
    """What two histograms say; every number is None without positives or without negatives.

    Attributes:
        auroc: area under the ROC curve, in the middle of what it can be: pairs that are not known
            to be in either order are counted as half. None where no pair's order is known because
            sites merged their bins: 0.5 would then say that there is none.
        auroc_bound: the exact area (ties counted as half) differs by at most this.
        auprc: average precision of the binned scores; compare it with ``prevalence``. Of a score
            between two bins half is counted in each. None where ``auroc`` is.
        prevalence: share of positives, the AUPRC of guessing.
        sensitivity: largest share of positives found at a threshold on a bin edge whose
            false-alarm rate does not pass the given one; never overstated. None where ``auroc`` is.
    """

    auroc: float | None
    auroc_bound: float | None
    auprc: float | None
    prevalence: float | None
    sensitivity: float | None


def rank(statistic: Statistic, false_alarm_rate: float, moved: Statistic | None = None) -> Ranking:
    """Read the ranking metrics off a ``scores`` statistic.

    Args:
        statistic: of one site or summed.
        false_alarm_rate: at which the sensitivity is stated.
        moved: what stands beside it where bins were merged.

    Sources: Hanley and McNeil 1982 (the area as a share of pairs); Davis and Goadrich 2006 (why
    average precision and not the trapezoid).
    """
    positives, negatives = statistic.values.reshape(2, -1)
    last_positives, last_negatives = with_all_moved(statistic, moved).values.reshape(2, -1)
    num_positive, num_negative = positives.sum(), negatives.sum()
    if num_positive == 0 or num_negative == 0:
        return Ranking(None, None, None, None, None)
    pairs = num_positive * num_negative
    certain = float(positives @ (np.cumsum(last_negatives) - last_negatives))
    possible = float(last_positives @ np.cumsum(negatives))
    prevalence = float(num_positive / (num_positive + num_negative))
    if moved is not None and possible - certain >= pairs:
        return Ranking(None, None, None, prevalence, None)
    found = np.cumsum(positives[::-1])
    alarms = np.cumsum(last_negatives[::-1])
    allowed = alarms <= false_alarm_rate * num_negative * (1 + 1e-12)
    return Ranking(
        auroc=(certain + possible) / 2 / float(pairs),
        auroc_bound=(possible - certain) / 2 / float(pairs),
        auprc=_average_precision(positives + last_positives, negatives + last_negatives),
        prevalence=prevalence,
        sensitivity=float(found[allowed].max(initial=0.0) / num_positive),
    )


def _average_precision(positives: Values, negatives: Values) -> float:
    found = np.cumsum(positives[::-1])
    called = found + np.cumsum(negatives[::-1])
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return float(positives[::-1] @ precision / found[-1])


def scores_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    return "counts that are not whole numbers" if (statistic.values % 1).any() else None
