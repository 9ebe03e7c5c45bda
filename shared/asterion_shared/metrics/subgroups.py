"""Subgroups of the test cases: the statistic behind a task's headline, once for each value.

A plan's ``evaluation.subgroups`` names attributes and the values of each that are told apart. The
statistic of the cases of one value is called ``by_ATTRIBUTE/VALUE``, such as ``by_sex/female``; a
case without a listed value counts as ``other``. Over the values of one attribute these statistics
add up to that of the whole (:func:`whole_of`).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from asterion_shared.evaluation_settings import OTHER, EvaluationSettings
from asterion_shared.metrics.merged_bins import BESIDE, name_beside
from asterion_shared.metrics.statistic import Statistic, Statistics
from asterion_shared.plan import Plan

SUBGROUP = "by_"
"""What the names of the statistics of subgroups start with."""

CASES = "cases"
"""The metric that says how many cases a subgroup has: ``cases_by_sex/female``."""


def is_subgroup(name: str) -> bool:
    """Whether a statistic, without any ``baseline/`` before it, is of a subgroup."""
    return name.startswith(SUBGROUP)


def subgroup_name(attribute: str, value: str) -> str:
    """Name of the statistic of one value of an attribute."""
    return f"{SUBGROUP}{attribute}/{value}"


def values_of(plan: Plan, attribute: str) -> tuple[str, ...]:
    """Values of an attribute that are told apart, in the plan's order, and ``other`` last."""
    return (*plan.evaluation.subgroups[attribute], OTHER)


def value_told(
    text: str, attribute: str, evaluation: EvaluationSettings, words: Mapping[str, str]
) -> str:
    """What is told of a case whose data say ``text``: a value of the plan, or ``other``.

    Args:
        text: as the data have it; blanks around it and upper case do not matter.
        attribute: one of ``evaluation.subgroups``.
        evaluation: of the plan.
        words: the data's own words to the plan's; without upper case, or with.
    """
    plain = text.strip().lower()
    own = {word.strip().lower(): wanted for word, wanted in words.items()}.get(plain, plain)
    return own if own in evaluation.subgroups[attribute] else OTHER


def subgroup_names(plan: Plan) -> Iterator[str]:
    """Names of all statistics of subgroups that a plan asks for; nothing when it asks for none."""
    for attribute in sorted(plan.evaluation.subgroups):
        for value in values_of(plan, attribute):
            yield subgroup_name(attribute, value)


def whole_of(plan: Plan) -> str:
    """Name of the statistic that those of an attribute's values add up to.

    ``dice`` of a segmentation; ``score`` of an anomaly and of a classification with two classes;
    ``confusion`` of one with more.
    """
    if plan.task == "segmentation":
        return "dice"
    return "score" if len(plan.data.classes) == 2 else "confusion"


def headline_of(plan: Plan) -> Literal["dice", "auroc", "balanced_accuracy"]:
    """The metric that is read off the statistic of a subgroup."""
    match whole_of(plan):
        case "dice":
            return "dice"
        case "score":
            return "auroc"
        case _:
            return "balanced_accuracy"


def by_subgroup(
    statistics: Statistics, subgroups: Mapping[str, str], plan: Plan, *, first: bool
) -> dict[str, Statistic]:
    """What one case adds to the statistics of its subgroups.

    Args:
        statistics: of this case alone.
        subgroups: its value, or ``other``, of each attribute that is told; empty: nothing is.
        plan: under which they were formed.
        first: whether it is the first case: it brings zeros for the subgroups it is not in, so
            that those without a case have a statistic too.
    """
    whole = statistics[whole_of(plan)]
    nothing = Statistic(whole.kind, np.zeros_like(whole.values))
    found = {}
    for attribute, own in subgroups.items():
        for value in values_of(plan, attribute) if first else (own,):
            found[subgroup_name(attribute, value)] = whole if value == own else nothing
    return found


def split_off(statistics: Statistics) -> tuple[dict[str, Statistic], dict[str, Statistic]]:
    """The statistics of the whole, and those of subgroups with what is beside."""
    whole: dict[str, Statistic] = {}
    parts: dict[str, Statistic] = {}
    for name, statistic in statistics.items():
        (parts if is_subgroup(name) else whole)[name] = statistic
    return whole, parts


def as_wholes(statistics: Statistics, plan: Plan) -> Iterator[tuple[str, dict[str, Statistic]]]:
    """Each subgroup's statistic, and what is beside it, under the name that the whole's has.

    Args:
        statistics: of one site, or merged over several.
        plan: under which they were formed.

    Yields:
        ``ATTRIBUTE/VALUE`` and the statistics, for those that are there.
    """
    whole = whole_of(plan)
    for name in subgroup_names(plan):
        if name not in statistics:
            continue
        kind = statistics[name].kind
        found = {whole: statistics[name]}
        if kind in BESIDE and name_beside(name, kind) in statistics:
            found[name_beside(whole, kind)] = statistics[name_beside(name, kind)]
        yield name.removeprefix(SUBGROUP), found


def metric_name(metric: str, subgroup: str) -> str:
    """Name of a metric of a subgroup: ``auroc_by_sex/female`` of ``auroc`` and ``sex/female``."""
    return f"{metric}_{SUBGROUP}{subgroup}"


def subgroup_of(name: str) -> tuple[str, str]:
    """The metric and the subgroup, ``ATTRIBUTE/VALUE``, of a metric's name.

    The subgroup is empty where the name is of no subgroup.
    """
    base, _, value = name.partition("/")
    metric, of, attribute = base.partition(f"_{SUBGROUP}")
    return (metric, f"{attribute}/{value}") if of and value else (name, "")


def metrics_of(metrics: Mapping[str, float | None], subgroup: str) -> dict[str, float | None]:
    """What is known of a subgroup, under the names that the whole's metrics have.

    Args:
        metrics: of a model, by flat name.
        subgroup: ``ATTRIBUTE/VALUE``.

    Returns:
        With ``num_cases``; empty when nobody told it.
    """
    found = {metric: value for name, value in metrics.items()
             for metric, of in [subgroup_of(name)] if of == subgroup}  # fmt: skip
    return {"num_cases" if metric == CASES else metric: value for metric, value in found.items()}
