"""Subgroups of the test cases: the statistic behind a task's headline, once for each value.

A plan's ``evaluation.subgroups`` names attributes and the values of each that are told apart. The
statistic of the cases of one value is called ``by_ATTRIBUTE/VALUE``, such as ``by_sex/female``; a
case without a listed value counts as ``other``. Over the values of one attribute these statistics
add up to that of the whole (:func:`whole_of`).
"""

from collections.abc import Iterator
from typing import Literal

from asterion_shared.evaluation_settings import OTHER
from asterion_shared.plan import Plan

SUBGROUP = "by_"
"""What the names of the statistics of subgroups start with."""


def is_subgroup(name: str) -> bool:
    """Whether a statistic, without any ``baseline/`` before it, is of a subgroup."""
    return name.startswith(SUBGROUP)


def subgroup_name(attribute: str, value: str) -> str:
    """Name of the statistic of one value of an attribute."""
    return f"{SUBGROUP}{attribute}/{value}"


def values_of(plan: Plan, attribute: str) -> tuple[str, ...]:
    """Values of an attribute that are told apart, in the plan's order, and ``other`` last."""
    return (*plan.evaluation.subgroups[attribute], OTHER)


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
