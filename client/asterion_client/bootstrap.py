"""Bootstrap intervals over patients (or fields) and over seeds, paired between models.

Groups are drawn with replacement within each site, and seeds over all of it; each draw is used for
every model, so that a difference of two models is one of the same patients and the same seeds.
The interval is the percentile one (Efron and Tibshirani 1993, chapter 13). The sites themselves
are not drawn: they are the federation's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asterion_client.held_out_scores import Floats, HeldOut, Ints
from asterion_shared.randomness import stream

MetricName = Literal["dice", "auroc", "accuracy"]
CONFIDENCE = 0.95
_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn, the same for every model.

    Attributes:
        groups: how often each group of a site is drawn, (1 + resamples, groups) by site. The
            first row is of ones: the sample itself.
        seeds: share of each seed, (1 + resamples, seeds); the first row is of equal shares.
    """

    groups: Mapping[str, Floats]
    seeds: Floats


@dataclass(frozen=True, slots=True)
class Sampled:
    """A number and its resampled values.

    Attributes:
        values: of the sample itself, then of each resample, (1 + resamples,); NaN where the
            metric is undefined, such as an AUROC without a positive case.
    """

    values: Floats

    @property
    def value(self) -> float | None:
        """Of the sample itself; None where undefined."""
        first = float(self.values[0])
        return None if np.isnan(first) else first

    @property
    def num_undefined(self) -> int:
        """Resamples in which it is undefined; the interval is over the others."""
        return int(np.isnan(self.values[1:]).sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval; None when it is undefined in the sample or everywhere."""
        known = self.values[1:][~np.isnan(self.values[1:])]
        if known.size == 0 or self.value is None:
            return None
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return float(low), float(high)


def draw(held_out: Mapping[str, HeldOut], num_seeds: int, num_resamples: int, seed: int) -> Draws:
    """Draw groups within sites, and seeds.

    Args:
        held_out: the units, by site.
        num_seeds: how many seeds were run, >= 1.
        num_resamples: how many resamples.
        seed: of the streams that draw; equal arguments, equal draws.
    """
    groups = {
        name: _counts(units.num_groups, num_resamples, stream_site=name, seed=seed)
        for name, units in sorted(held_out.items())
    }
    seeds = _counts(num_seeds, num_resamples, stream_site="", seed=seed) / num_seeds
    return Draws(groups, seeds)


def at_site(metric: MetricName, units: HeldOut, scores: Sequence[Floats], draws: Draws) -> Sampled:
    """A model's metric at one site, its mean over the seeds.

    Args:
        metric: which.
        units: the site's held-out units.
        scores: of :func:`asterion_client.held_out_scores.score_units`, one a seed.
        draws: from :func:`draw`.
    """
    return together(metric, [units], [[one] for one in scores], draws)


def together(
    metric: MetricName,
    units: Sequence[HeldOut],
    scores: Sequence[Sequence[Floats]],
    draws: Draws,
) -> Sampled:
    """A model's metric over the cases of several sites together, its mean over the seeds.

    Args:
        metric: which.
        units: the sites' held-out units.
        scores: for each seed those of each site.
        draws: from :func:`draw`.
    """
    weights = [draws.groups[one.site][:, one.unit_groups] for one in units]
    by_seed = np.array([_values(metric, units, found, weights) for found in scores])
    return Sampled((draws.seeds.T * by_seed).sum(axis=0))


def mean_of(parts: Sequence[Sampled]) -> Sampled:
    """The plain mean of some numbers, such as one a site; those undefined themselves left out."""
    known = [part.values for part in parts if part.value is not None]
    return Sampled(np.mean(known, axis=0)) if known else Sampled(np.array([np.nan]))


def difference(one: Sampled, other: Sampled) -> Sampled:
    """One number minus another, draw by draw."""
    return Sampled(one.values - other.values)


def ratio(one: Sampled, other: Sampled) -> Sampled:
    """One number over another, draw by draw; undefined where the other is 0."""
    safe = np.where(other.values == 0, np.nan, other.values)
    return Sampled(one.values / safe)


def area_under_roc(scores: Floats, positive: Ints, weights: Floats) -> Floats:
    """The share of pairs of a positive and a negative that are ranked right; ties count as half.

    Source: Hanley and McNeil 1982, with a weight for each case.

    Args:
        scores: higher means more likely positive, shape (U,).
        positive: 1 or 0, shape (U,).
        weights: how often each case counts, shape (B, U).

    Returns:
        Shape (B,); NaN where no positive or no negative has a weight.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    result = np.full(len(weights), np.nan)
    if order.size == 0:
        return result
    rows = max(1, _NUMBERS_AT_ONCE // order.size)
    for first in range(0, len(weights), rows):
        some = weights[first : first + rows, order]
        up = np.add.reduceat(some * positive[order], starts, axis=1)
        down = np.add.reduceat(some * (1 - positive[order]), starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        pairs = up.sum(axis=1) * down.sum(axis=1)
        right = (up * (below + down / 2)).sum(axis=1)
        np.divide(right, pairs, out=result[first : first + rows], where=pairs > 0)
    return result


def _counts(num: int, num_resamples: int, *, stream_site: str, seed: int) -> Floats:
    """A row of ones, then how often each of ``num`` is drawn in each resample."""
    draws = stream(seed, round_=0, site=stream_site, purpose="bootstrap")
    drawn = np.zeros((num_resamples, num))
    if num:
        drawn = draws.multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(float)
    return np.concatenate([np.ones((1, num)), drawn])


def _values(
    metric: MetricName,
    units: Sequence[HeldOut],
    scores: Sequence[Floats],
    weights: Sequence[Floats],
) -> Floats:
    """One model's metric in each draw, shape (1 + resamples,)."""
    if metric == "auroc":
        labels = np.concatenate([one.labels for one in units])
        return _mean_auroc(np.concatenate(scores), labels, np.concatenate(weights, axis=1))
    parts = [
        _dice_sums(one, found, drawn)
        if metric == "dice"
        else (drawn @ (found.argmax(axis=1) == one.labels), drawn.sum(axis=1))
        for one, found, drawn in zip(units, scores, weights, strict=True)
    ]
    total, count = (np.sum([part[index] for part in parts], axis=0) for index in (0, 1))
    return _over(total, count)


def _mean_auroc(scores: Floats, labels: Ints, weights: Floats) -> Floats:
    """Of two classes the area of the second; of more the mean of each against the rest."""
    num_columns = scores.shape[1]
    if num_columns <= 2:
        return area_under_roc(scores[:, -1], (labels > 0).astype(np.int64), weights)
    areas = np.array([
        area_under_roc(scores[:, column], (labels == column).astype(np.int64), weights)
        for column in range(num_columns)
    ])  # fmt: skip
    known = ~np.isnan(areas)
    total = np.where(known, areas, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return _over(total, count)


def _over(total: Floats, count: Floats) -> Floats:
    """One over the other; NaN where there is nothing to count."""
    result = np.full(len(total), np.nan)
    np.divide(total, count, out=result, where=count > 0)
    return result


def _dice_sums(units: HeldOut, counts: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sum of the cases' Dice and number of cases in each draw."""
    if units.resampled == "groups":
        return weights @ _dice(counts), weights.sum(axis=1)
    total = np.zeros(len(weights))
    num_cases = len(units.case_ids)
    for number in range(num_cases):
        inside = units.unit_cases == number
        drawn = np.einsum("bu,ukc->bkc", weights[:, inside], counts[inside])
        total += _dice(drawn)
    return total, np.full(len(weights), float(num_cases))


def _dice(counts: Floats) -> Floats:
    """Mean Dice of the classes from (..., K - 1, 2); 1 where truth and prediction are empty."""
    both, sizes = counts[..., 0], counts[..., 1]
    dice = np.divide(2 * both, sizes, out=np.ones_like(both), where=sizes > 0)
    mean: Floats = dice.mean(axis=-1)
    return mean
