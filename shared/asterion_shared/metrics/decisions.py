"""Temperature and thresholds of a classifier or an anomaly detector, from merged histograms.

What one site would fit on scores, a federation fits on counts: the histograms of scores add over
sites, and their edges are known before any data are. Fitted on the held-out cases of the run, so
the metrics of the same run say nothing about how well they do on others.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from asterion_shared.metrics.merged_bins import kept_of, merged
from asterion_shared.metrics.scores import anomaly_edges, probability_edges
from asterion_shared.metrics.statistic import Statistic, Values
from asterion_shared.plan import Plan
from asterion_shared.settings_files import Positive, Settings

SCORE = "score"
FEWEST_BINS = 10
"""Bins with cases below which nothing is fitted: so few say where scores lie, not how they rise."""

COLDEST, HOTTEST = 0.05, 20.0
_MOST_LOG_ODDS = 16.0  # as of probability_edges; what is beyond counts as there

Share = Annotated[float, Field(ge=0, le=1)]


class Threshold(Settings):
    """A score from which on a case is called positive, and what that does to the counted cases."""

    score: float
    """As the model gives it, before any temperature; an edge of a bin."""

    sensitivity: Share
    """Share of the positives at or above it."""

    false_alarm_rate: Share
    """Share of the negatives at or above it."""


class Decisions(Settings):
    """What was fitted on the pooled histograms of a model's scores."""

    temperature: Positive | None = None
    """The log-odds are divided by it; above 1 the model was too sure. None where none was fitted:
    anomaly scores are no probabilities, and a perfect separation has no best one."""

    log_loss: float | None = None
    """Mean log loss of the counted cases before, in nats; None without a temperature."""

    log_loss_after: float | None = None
    """The same with the temperature."""

    thresholds: dict[str, Threshold] = Field(default_factory=dict)
    """``false_alarm_rate``: the lowest that keeps the plan's false-alarm rate; ``youden``: the
    one of the largest sensitivity less false-alarm rate."""

    num_cases: Annotated[int, Field(ge=1)]
    """Cases counted."""

    num_bins: Annotated[int, Field(ge=1)]
    """Bins that hold any; fewer where sites merged some."""


def fit_decisions(statistics: Mapping[str, Statistic], plan: Plan) -> Decisions | None:
    """Fit on the pooled statistics of a model.

    Args:
        statistics: summed over the sites; those of the baseline are not looked at.
        plan: under which they were formed.

    Returns:
        None where the task has no score of two sides (segmentation, more than two classes), one
        side has no case, or fewer than :data:`FEWEST_BINS` bins hold any.

    The temperature is that of Guo et al. 2017, fitted with each case in the middle of its bin: in
    log-odds, where half of the bins are equally wide.
    """
    if plan.task == "segmentation" or SCORE not in statistics:
        return None
    kept, told = kept_of(statistics, SCORE), statistics[SCORE]
    positives, negatives = (told if kept is None else merged(told, kept)).values.reshape(2, -1)
    both = positives + negatives
    if not positives.any() or not negatives.any() or np.count_nonzero(both) < FEWEST_BINS:
        return None
    is_probability = plan.task == "classification"
    edges = (probability_edges if is_probability else anomaly_edges)(plan.evaluation)
    lower = np.concatenate([[-np.inf], edges])  # of each bin; the first is below all edges
    usable = np.ones(lower.size, bool) if kept is None else np.concatenate([[True], kept])
    found: dict[str, float | None] = {}
    if is_probability:
        middles = _middles(lower, usable)
        found = _temperature(middles, positives, negatives)
    return Decisions(
        thresholds=_thresholds(lower, usable, positives, negatives, plan),
        num_cases=round(float(both.sum())),
        num_bins=int(np.count_nonzero(both)),
        **found,
    )


def _middles(lower: Values, usable: npt.NDArray[np.bool_]) -> Values:
    """Log-odds in the middle of each bin; merged bins share the middle of all of them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.clip(lower, 0.0, 1.0)
        at = np.clip(np.log(inner) - np.log1p(-inner), -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    begins = np.flatnonzero(usable)
    ends = np.append(at[begins[1:]], _MOST_LOG_ODDS)
    return np.repeat((at[begins] + ends) / 2, np.diff(np.append(begins, lower.size)))


def _temperature(at: Values, positives: Values, negatives: Values) -> dict[str, float | None]:
    from scipy.optimize import minimize_scalar  # late: whoever reads a result needs it not

    total = float(positives.sum() + negatives.sum())

    def loss(log_temperature: float) -> float:
        scaled = at / np.exp(log_temperature)
        # log(1 + exp(-x)) for positives and of +x for negatives, without overflow
        return float(
            (positives @ np.logaddexp(0, -scaled) + negatives @ np.logaddexp(0, scaled)) / total
        )

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded")
    best = float(found.x)
    at_an_end = min(best - bounds[0], bounds[1] - best) < 0.01
    if at_an_end:
        return {}
    return {
        "temperature": float(np.exp(best)),
        "log_loss": loss(0.0),
        "log_loss_after": min(loss(best), loss(0.0)),
    }


def _thresholds(
    lower: Values,
    usable: npt.NDArray[np.bool_],
    positives: Values,
    negatives: Values,
    plan: Plan,
) -> dict[str, Threshold]:
    """At the lower edges of bins that no site merged with the bin below."""
    found = np.cumsum(positives[::-1])[::-1] / positives.sum()
    alarms = np.cumsum(negatives[::-1])[::-1] / negatives.sum()
    places = np.flatnonzero(usable & np.isfinite(lower))
    if places.size == 0:
        return {}
    chosen = {"youden": places[int(np.argmax((found - alarms)[places]))]}
    quiet = places[alarms[places] <= plan.evaluation.false_alarm_rate * (1 + 1e-12)]
    if quiet.size:
        chosen["false_alarm_rate"] = quiet[0]
    return {
        name: Threshold(
            score=float(lower[place]),
            sensitivity=float(found[place]),
            false_alarm_rate=float(alarms[place]),
        )
        for name, place in sorted(chosen.items())
    }
