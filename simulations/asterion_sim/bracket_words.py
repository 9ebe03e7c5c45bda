"""The algorithms and ratios of a bracket as a person reads them."""

from collections.abc import Sequence

from asterion_shared.bracket_result import Estimate
from asterion_shared.reports.metric_words import number
from asterion_sim.plan_values import parse_assignment, split_values

_NAMES = {"fedavg": "FedAvg", "fedprox": "FedProx"}


def algorithm_words(text: str) -> str:
    """An algorithm as a person says it.

    >>> algorithm_words("fedprox:mu=0.01"), algorithm_words("fedavg:rounds.count=9,local.amount=2")
    ('FedProx (mu 0.01)', 'FedAvg (9 rounds of 2)')
    """
    name, _, rest = text.partition(":")
    values = dict(parse_assignment(part) for part in split_values(rest)) if rest else {}
    said = values.pop("flower_strategy", _NAMES.get(name, name))
    parts = []
    if {"rounds.count", "local.amount"} <= set(values):
        parts.append(f"{values.pop('rounds.count')} rounds of {values.pop('local.amount')}")
    for path, value in values.items():
        key = path.rpartition(".")[2].removeprefix("server_").replace("_", " ")
        parts.append(f"{key} {value}")
    return f"{said} ({', '.join(parts)})" if parts else said


def listed(names: Sequence[str]) -> str:
    """Names with commas, and an "and" before the last; at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(one: Estimate, *, interval: bool = True) -> str:
    """A ratio in percent, with its interval unless that is not wanted."""
    if one.value is None:
        return number(None)
    said = f"{100 * one.value:.1f} %"
    return f"{said} ({percent_interval(one)})" if interval and one.low is not None else said


def percent_interval(one: Estimate) -> str:
    """The interval of a ratio in percent, or a dash."""
    if one.low is None or one.high is None:
        return number(None)
    return f"{100 * one.low:.1f} to {100 * one.high:.1f}"
