"""Metrics as sufficient statistics: arrays of numbers that add over sites.

A federated metric therefore equals the pooled one, and can itself go through a secure sum. Which
statistics a plan has, whether a set of them holds, and the metrics read off them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from asterion_shared.metrics.confusion import (
    NUM_CONFIDENCE_BINS,
    accuracy,
    balanced_accuracy,
    calibration_error,
    calibration_problem,
    confusion_problem,
)
from asterion_shared.metrics.merged_bins import (
    BESIDE,
    edges_problem,
    kept_of,
    length_beside,
    misplaced,
    moved_problem,
    name_beside,
    read_merged,
)
from asterion_shared.metrics.moments import (
    moments_length,
    moments_problem,
    num_moments,
    summarise_moments,
)
from asterion_shared.metrics.scores import Ranking, rank, scores_length, scores_problem
from asterion_shared.metrics.statistic import Statistic, Statistics, decode, encode, merge
from asterion_shared.metrics.subgroups import (
    CASES,
    SUBGROUP,
    as_wholes,
    headline_of,
    is_subgroup,
    metric_name,
    split_off,
    subgroup_names,
    whole_of,
)
from asterion_shared.plan import Plan, TaskName

__all__ = [
    "BASELINE",
    "HEADLINE",
    "KINDS",
    "Statistic",
    "Statistics",
    "check_statistics",
    "decode",
    "distance_name",
    "encode",
    "expected_statistics",
    "merge",
    "summarise",
]

HEADLINE: dict[TaskName, Literal["dice", "auroc"]] = {
    "segmentation": "dice",
    "classification": "auroc",
    "anomaly": "auroc",
}
"""The metric a task is judged by."""

BASELINE = "baseline/"
"""What the names of the trivial baseline's statistics and metrics start with."""

KINDS: dict[str, Callable[[Statistic], str | None]] = {
    "unit_moments": moments_problem,
    "distance_moments": moments_problem,
    "scores": scores_problem,
    "confusion": confusion_problem,
    "calibration": calibration_problem,
    "edges": edges_problem,
    "moved": moved_problem,
}
"""The kinds of statistic, each with the check that its numbers do not contradict themselves."""

Summary = dict[str, float | None]


def distance_name(plan: Plan) -> str:
    """Name of the Hausdorff distance: ``hd95_arcsec`` for sky images, else ``hd95_mm``.

    A plan is for the sky when it states a pixel scale, or normalises as only sky images are.
    """
    data = plan.data
    sky = data.pixel_scale_arcsec is not None or data.normalisation in ("asinh", "zscale")
    return "hd95_arcsec" if sky and data.spacing_mm is None else "hd95_mm"


def expected_statistics(plan: Plan) -> dict[str, tuple[str, int]]:
    """Kind and length of every statistic that a report under a plan may hold, by name.

    A report may lack some (no test case, no mask to compare pixels with, too few patients) and hold
    no other but what stands beside merged bins. The same names with ``baseline/`` before them are
    those of the trivial baseline, which has none of subgroups.
    """
    own = {name: (kind, _length(kind, plan)) for name, kind in _KINDS_BY_TASK[plan.task](plan)}
    beside = {f"{BASELINE}{name}": fact for name, fact in own.items()}
    return own | beside | dict.fromkeys(subgroup_names(plan), own[whole_of(plan)])


def _expected_beside(plan: Plan) -> dict[str, tuple[str, int]]:
    """The same of what stands beside merged bins; nothing is merged before a secure sum."""
    if plan.secure_sum is not None:
        return {}
    return {
        f"{prefix}{name_beside(name.removeprefix(prefix), kind)}": (
            BESIDE[kind],
            length_beside(kind, length),
        )
        for name, (kind, length) in expected_statistics(plan).items()
        for prefix in [BASELINE if name.startswith(BASELINE) else ""]
        if kind in BESIDE
    }


def check_statistics(statistics: Statistics, plan: Plan, *, num_cases: int | None = None) -> None:
    """Check a report's statistics against the plan, before they are merged.

    Args:
        statistics: as they came from a site.
        plan: says what they must be.
        num_cases: the test cases the site reports; no statistic may be of more. None: not checked.

    Raises:
        ValueError: an unknown name, another kind or length, a number that is not finite or is
            negative, counts that contradict themselves or are of too many cases.
    """
    if not statistics:
        return
    expected = expected_statistics(plan)
    known = expected | _expected_beside(plan)
    for name, statistic in statistics.items():
        if name not in known:
            msg = f"statistic {name!r} is unknown; the plan has {', '.join(expected)}"
            raise ValueError(msg)
        problem = _problem(statistic, *known[name])
        counted = None if problem else _num_cases(name.removeprefix(BASELINE), statistic)
        if num_cases is not None and counted is not None and counted > num_cases:
            problem = f"{counted:g} cases and the report {num_cases}"
        if problem:
            msg = f"statistic {name} has {problem}; the site must form it anew"
            raise ValueError(msg)
    for part in _halves(statistics):
        if wrong := misplaced(part):
            msg = f"{wrong}; the site must form it anew"
            raise ValueError(msg)
    for attribute, counted in _cases_by_attribute(statistics).items():
        if num_cases is not None and counted > num_cases:
            msg = f"subgroups by {attribute} have {counted:g} cases and the report {num_cases}"
            raise ValueError(msg)


def summarise(statistics: Statistics, plan: Plan) -> Summary:
    """The metrics as flat names and numbers.

    Args:
        statistics: of one site, or merged over several; empty when there was no test case.
        plan: under which they were formed.

    Returns:
        ``num_cases`` and the task's headline metric always; the others where their statistic is
        there, and again under ``baseline/``. None where a metric is undefined (an AUROC without
        positives, an HD95 without an object). A metric over several classes is the mean over those
        where it is defined. Of each subgroup that is told its cases, and the metric that
        :func:`asterion_shared.metrics.subgroups.headline_of` names: ``auroc_by_sex/female``.
    """
    halves = _halves(statistics)
    (own, parts), beside = split_off(halves[0]), halves[1]
    headline: Summary = {HEADLINE[plan.task]: None}
    counts = {name: _num_cases(name, statistic) or 0.0 for name, statistic in own.items()}
    trivial = {f"{BASELINE}{name}": value for name, value in _metrics(beside, plan).items()}
    most = {"num_cases": max(counts.values(), default=0.0)}
    whole = headline | _metrics(own, plan) | most | _fewer_ranked(counts, own)
    return whole | trivial | _by_subgroup(parts, plan)


def _by_subgroup(parts: Statistics, plan: Plan) -> Summary:
    metric = headline_of(plan)
    wanted = (metric, f"{metric}_low", f"{metric}_high", f"{metric}_bound", "prevalence")
    summary: Summary = {}
    for subgroup, statistics in as_wholes(parts, plan):
        found = _metrics(statistics, plan)
        cases = _num_cases(whole_of(plan), statistics[whole_of(plan)])
        summary |= {metric_name(m, subgroup): found[m] for m in wanted if m in found}
        summary[metric_name(CASES, subgroup)] = cases
    return summary


def _cases_by_attribute(statistics: Statistics) -> dict[str, float]:
    """Cases of all told subgroups of an attribute together; a case is in one of them."""
    counted: dict[str, float] = {}
    for name, statistic in statistics.items():
        if is_subgroup(name) and statistic.kind not in BESIDE.values():
            attribute = name.removeprefix(SUBGROUP).partition("/")[0]
            counted[attribute] = counted.get(attribute, 0.0) + (_num_cases(name, statistic) or 0.0)
    return counted


def _fewer_ranked(counts: Mapping[str, float], own: Statistics) -> Summary:
    """``auroc_cases`` where fewer cases are ranked than are known: some sites' were too few."""
    ranked = [counts[name] for name, statistic in own.items()
              if statistic.kind == "scores" and not name.startswith("pixel_")]  # fmt: skip
    if not ranked or min(ranked) == max(counts.values()):
        return {}
    return {"auroc_cases": min(ranked)}


def _halves(statistics: Statistics) -> tuple[Statistics, Statistics]:
    """The statistics of the model, and those of the baseline without its prefix."""
    own = {name: part for name, part in statistics.items() if not name.startswith(BASELINE)}
    beside = {
        name.removeprefix(BASELINE): part
        for name, part in statistics.items()
        if name.startswith(BASELINE)
    }
    return own, beside


def _metrics(given: Statistics, plan: Plan) -> Summary:
    summary: Summary = {}
    rankings: dict[str, Ranking] = {}
    statistics = read_merged(given)
    for name, statistic in statistics.items():
        base, _, part = name.partition("/")
        ending = f"/{part}" if part else ""
        match statistic.kind:
            case "unit_moments" | "distance_moments":
                found = summarise_moments(base, statistic, kept_of(given, name))
                summary |= {f"{metric}{ending}": value for metric, value in found.items()}
            case "confusion":
                summary["accuracy"] = accuracy(statistic)
                summary["balanced_accuracy"] = balanced_accuracy(statistic)
            case "calibration":
                summary["calibration_error"] = calibration_error(statistic)
            case "scores":
                moved = given.get(name_beside(name, "scores"))
                rankings[name] = rank(statistic, plan.evaluation.false_alarm_rate, moved)
    return summary | _rankings(rankings)


def _rankings(rankings: dict[str, Ranking]) -> Summary:
    """One ranking as it is; several classes each, and their mean."""
    summary: Summary = {}
    for name, ranking in rankings.items():
        base, _, part = name.partition("/")
        before = base.removesuffix("score")
        for metric in ("auroc", "auroc_bound", "auprc", "prevalence", "sensitivity"):
            value: float | None = getattr(ranking, metric)
            summary[f"{before}{metric}" + (f"/{part}" if part else "")] = value
    for metric in ("auroc", "auroc_bound", "auprc", "sensitivity"):
        parts = [value for name, value in summary.items() if name.startswith(f"{metric}/")]
        if parts:
            known = [value for value in parts if value is not None]
            summary[metric] = float(np.mean(known)) if known else None
    return summary


def _segmentation_kinds(plan: Plan) -> list[tuple[str, str]]:
    distance = distance_name(plan)
    kinds = [("dice", "unit_moments"), ("iou", "unit_moments"), (distance, "distance_moments")]
    objects = plan.data.classes[1:]
    parts = objects if len(objects) > 1 else ()
    return kinds + [(f"{name}/{part}", kind) for name, kind in kinds for part in parts]


def _classification_kinds(plan: Plan) -> list[tuple[str, str]]:
    classes = plan.data.classes
    scores = ["score"] if len(classes) == 2 else [f"score/{name}" for name in classes]
    kinds = [("confusion", "confusion"), ("calibration", "calibration")]
    return kinds + [(name, "scores") for name in scores]


def _anomaly_kinds(plan: Plan) -> list[tuple[str, str]]:
    return [("score", "scores"), ("pixel_score", "scores")]


_KINDS_BY_TASK: dict[TaskName, Callable[[Plan], list[tuple[str, str]]]] = {
    "segmentation": _segmentation_kinds,
    "classification": _classification_kinds,
    "anomaly": _anomaly_kinds,
}


def _length(kind: str, plan: Plan) -> int:
    match kind:
        case "confusion":
            return len(plan.data.classes) ** 2
        case "calibration":
            return 3 * NUM_CONFIDENCE_BINS
        case "scores":
            return scores_length(plan.evaluation)
        case _:
            return moments_length(kind)


def _problem(statistic: Statistic, kind: str, length: int) -> str | None:
    if statistic.kind != kind:
        return f"kind {statistic.kind!r}, not {kind!r}"
    if statistic.values.shape != (length,):
        return f"shape {statistic.values.shape}, not ({length},)"
    if not np.isfinite(statistic.values).all():
        return "a number that is not finite"
    if (statistic.values < 0).any():
        return "a negative number"
    return KINDS[kind](statistic)


def _num_cases(name: str, statistic: Statistic) -> float | None:
    """Cases behind a statistic; None where it counts something else (pixels)."""
    if name.startswith("pixel_"):
        return None
    match statistic.kind:
        case "edges" | "moved":
            return None
        case "unit_moments" | "distance_moments":
            return num_moments(statistic)
        case "calibration":
            return float(statistic.values[::3].sum())
        case _:
            return float(statistic.values.sum())
