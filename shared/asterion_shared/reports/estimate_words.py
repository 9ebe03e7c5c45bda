"""The numbers of a bracket with their intervals, as a person reads them."""

from asterion_shared.bracket_result import Comparison, Estimate, Verdict
from asterion_shared.reports.metric_words import number, signed

VERDICT_WORDS: dict[Verdict, str] = {
    "helps": "helps",
    "neutral": "no clear difference",
    "hurts": "hurts",
    "undefined": "cannot be said",
}
"""Whether training together helps a site."""


def interval(one: Estimate) -> str:
    """The interval alone, or a dash."""
    return number(None) if one.low is None else f"{number(one.low)} to {number(one.high)}"


def with_interval(one: Estimate) -> str:
    """The number, and its interval to two digits where there is one."""
    if one.low is None:
        return number(one.value)
    return f"{number(one.value)} ({number(one.low, digits=2)}\u2013{number(one.high, digits=2)})"


def difference(comparison: Comparison) -> str:
    """A difference with its sign and its interval."""
    one = comparison.difference
    if one.low is None:
        return signed(one.value)
    return f"{signed(one.value)} ({signed(one.low)} to {signed(one.high)})"
