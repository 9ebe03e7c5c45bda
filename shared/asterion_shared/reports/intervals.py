"""The 95 % interval of a metric, from what stands beside it in the result."""

import math
from collections.abc import Mapping

_NORMAL_95 = 1.959964


def bounds_95(metrics: Mapping[str, float | None], name: str) -> tuple[float, float] | None:
    """Lower and upper end of the 95 % interval of a metric.

    Means over cases bring theirs (``NAME_low``, ``NAME_high``). That of an AUROC is Hanley and
    McNeil's (1982, eq. 2), widened by the error of its histogram (``auroc_bound``) and cut to
    [0, 1]; it needs ``prevalence`` and ``num_cases``, or ``auroc_cases`` where fewer are ranked.

    Returns:
        None where the interval is not defined or not known.
    """
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is not None and high is not None:
        return low, high
    if name.removeprefix("baseline/") != "auroc":
        return None
    before = name.removesuffix("auroc")
    area, share = metrics.get(name), metrics.get(f"{before}prevalence")
    count = metrics.get("auroc_cases", metrics.get("num_cases"))
    if area is None or share is None or count is None:
        return None
    half = _hanley_mcneil_half(area, round(share * count), round((1 - share) * count))
    if half is None:
        return None
    half += metrics.get(f"{name}_bound") or 0.0
    return max(0.0, area - half), min(1.0, area + half)


def _hanley_mcneil_half(area: float, positives: int, negatives: int) -> float | None:
    """Half the width of the normal interval; None where it would be 0 or is undefined.

    At an area of exactly 0 or 1 the formula gives no width, which would claim certainty.
    """
    if positives < 1 or negatives < 1 or not 0 < area < 1:
        return None
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return _NORMAL_95 * math.sqrt(max(0.0, spread) / (positives * negatives))
