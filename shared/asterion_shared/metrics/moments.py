"""A number per case (Dice, a distance), merged as sums and a histogram of fixed edges.

The vector is ``[sum, sum of squares, count, undefined, below, *bins, above]``.
"""

import math
from collections.abc import Iterable

import numpy as np

from asterion_shared.metrics.merged_bins import MOMENTS_HEAD, Kept
from asterion_shared.metrics.statistic import Statistic, Values, place

EDGES: dict[str, Values] = {
    "unit_moments": np.linspace(0.0, 1.0, 51),
    "distance_moments": np.geomspace(0.01, 1000.0, 51),
}
"""Bin edges by kind: shares in [0, 1]; distances (mm or arcsec), ten bins a decade."""

_NORMAL_95 = 1.959964


def moments_length(kind: str) -> int:
    """Length of the vector of a kind."""
    return MOMENTS_HEAD + len(EDGES[kind]) + 1


def moments(kind: str, values: Iterable[float]) -> Statistic:
    """Sum up one number a case; NaN means undefined for that case and is only counted.

    Raises:
        ValueError: a value is infinite.
    """
    every = np.array(list(values), np.float64)
    known = every[~np.isnan(every)]
    head = [known.sum(), np.square(known).sum(), known.size, every.size - known.size]
    return Statistic(kind, np.concatenate([head, place(known, EDGES[kind])]))


def summarise_moments(
    name: str, statistic: Statistic, kept: Kept | None = None
) -> dict[str, float | None]:
    """Mean, the 95 % interval of the mean, and the median.

    Args:
        name: of the mean.
        statistic: with its bins merged between the edges that are kept.
        kept: these edges; None when all are. The median is None unless they are all kept: a
            merged bin says little of it.

    The interval is the normal one, mean +- 1.96 standard errors, cut to the possible range; it
    needs two cases. The median is interpolated inside its bin.

    Returns:
        ``name``, ``name_low``, ``name_high``, ``name_median``; None where undefined.
    """
    total, squares, count, _ = statistic.values[:MOMENTS_HEAD].tolist()
    mean = total / count if count else None
    low = high = None
    if mean is not None and count > 1:
        variance = max(0.0, (squares - count * mean**2) / (count - 1))
        half = _NORMAL_95 * math.sqrt(variance / count)
        most = 1.0 if statistic.kind == "unit_moments" else math.inf
        low, high = max(0.0, mean - half), min(most, mean + half)
    return {
        name: mean,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_median": None if kept is not None and not kept.all() else quantile(statistic, 0.5),
    }


def num_moments(statistic: Statistic) -> float:
    """Number of cases behind a statistic, those with an undefined value included."""
    return float(statistic.values[2] + statistic.values[3])


def quantile(statistic: Statistic, share: float) -> float | None:
    """A quantile from the histogram, off by less than the width of its bin.

    Args:
        statistic: of a kind of :data:`EDGES`.
        share: in [0, 1]; the share of cases with a smaller value.

    Returns:
        The value; the first edge if it lies below it (then "at most"); None if there is no case
        or it lies above the last edge.
    """
    edges, counts = EDGES[statistic.kind], statistic.values[MOMENTS_HEAD:]
    wanted = share * counts.sum()
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        return None
    reached = np.cumsum(counts)
    index = max(int(np.searchsorted(reached, wanted, side="left")), int(filled[0]))
    if index == 0:
        return float(edges[0])
    if index == len(edges):
        return None
    low, high = edges[index - 1], edges[index]
    inside = (wanted - (reached[index] - counts[index])) / counts[index]
    return float(low + inside * (high - low))


def moments_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    total, squares, count, undefined = statistic.values[:MOMENTS_HEAD]
    counts = statistic.values[MOMENTS_HEAD:]
    slack = 1e-9 * (1.0 + count + squares)
    if any(number % 1 for number in (count, undefined, *counts)):
        return "counts that are not whole numbers"
    if counts.sum() != count:
        return f"a histogram of {counts.sum():g} cases beside a count of {count:g}"
    if count * squares + slack * (1.0 + count) < total**2:
        return f"a sum of squares of {squares:g} that is too small for the sum {total:g}"
    if statistic.kind == "unit_moments" and not squares - slack <= total <= count + slack:
        return f"a sum of {total:g} over {count:g} shares"
    return None
