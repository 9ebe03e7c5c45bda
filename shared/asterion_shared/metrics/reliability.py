"""How far a classifier's confidence can be trusted: bins of confidence, as a result tells them."""

import math

import numpy as np

from asterion_shared.metrics.confusion import NUM_CONFIDENCE_BINS
from asterion_shared.metrics.merged_bins import kept_of, merged
from asterion_shared.metrics.statistic import Statistics
from asterion_shared.settings_files import Settings

_NORMAL_95 = 1.959964


class ConfidenceBin(Settings):
    """The calls whose confidence lies in one range."""

    low: float
    """Lower end of the range, in [0, 1]."""

    high: float
    """Upper end; it belongs to the next range, but 1 to the last."""

    num_cases: int
    """Calls in it, at least 1."""

    confidence: float
    """Their mean confidence: the probability of the class that was called."""

    right: float
    """Share of them that was right."""

    @property
    def right_bounds(self) -> tuple[float, float]:
        """95 % interval of ``right``. Source: Wilson 1927."""
        count, z2 = self.num_cases, _NORMAL_95**2
        middle = (self.right + z2 / (2 * count)) / (1 + z2 / count)
        spread = self.right * (1 - self.right) / count + z2 / (4 * count**2)
        half = _NORMAL_95 * math.sqrt(max(spread, 0.0)) / (1 + z2 / count)
        return max(0.0, middle - half), min(1.0, middle + half)


class Reliability(Settings):
    """Confidence against correctness, of one site or over several."""

    bins: tuple[ConfidenceBin, ...]
    """Those that hold a call, rising."""

    num_ranges: int
    """Ranges that [0, 1] is cut into. Fewer than 15 where sites merged some: then a calibration
    error that is read off them is at most that of the 15."""

    @property
    def is_merged(self) -> bool:
        """Whether some site merged bins in which too few patients stood."""
        return self.num_ranges < NUM_CONFIDENCE_BINS


def reliability(statistics: Statistics) -> Reliability | None:
    """What the ``calibration`` statistic says.

    Args:
        statistics: of one site or merged over several.

    Returns:
        None without the statistic, or where it holds no call.
    """
    found = statistics.get("calibration")
    if found is None:
        return None
    kept = kept_of(statistics, "calibration")
    inner = np.ones(NUM_CONFIDENCE_BINS - 1, np.bool_) if kept is None else kept
    table = merged(found, inner).values.reshape(-1, 3)
    starts = np.concatenate([[0], np.flatnonzero(inner) + 1])
    ends = np.append(starts[1:], NUM_CONFIDENCE_BINS)
    bins = tuple(
        ConfidenceBin(
            low=float(start / NUM_CONFIDENCE_BINS),
            high=float(end / NUM_CONFIDENCE_BINS),
            num_cases=round(table[start, 0]),
            confidence=float(table[start, 1] / table[start, 0]),
            right=float(table[start, 2] / table[start, 0]),
        )
        for start, end in zip(starts, ends, strict=True)
        if table[start, 0] > 0
    )
    return Reliability(bins=bins, num_ranges=len(starts)) if bins else None
