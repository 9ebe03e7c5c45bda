"""How a model does in each subgroup: by sex, scanner or instrument, as the sites told it."""

from collections.abc import Mapping
from dataclasses import dataclass

from asterion_shared.metrics.subgroups import metrics_of, subgroup_of, values_of
from asterion_shared.plan import Plan, TaskName
from asterion_shared.reports import metric_words
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.report_page import interval, plural
from asterion_shared.result import Metrics, Result

NOT_TOLD = "not told"
ALL = "all held-out cases"
_HEADLINES = ("dice", "auroc", "balanced_accuracy")


@dataclass(frozen=True, slots=True)
class SubgroupTable:
    """The subgroups of one attribute.

    Attributes:
        attribute: what the cases are told apart by.
        head: of the columns.
        rows: one for each value, ``other``, and last all held-out cases.
        notes: sentences on what is not in the rows.
    """

    attribute: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def subgroup_tables(result: Result, plan: Plan | None) -> list[SubgroupTable]:
    """One table for each attribute; none where no subgroup was asked for.

    Args:
        result: of the run; its final model is looked at.
        plan: of the run; None: only what was told is known.
    """
    if plan is not None:
        asked = {a: values_of(plan, a) for a in sorted(plan.evaluation.subgroups)}
    else:
        asked = _told_by_attribute(result.final_metrics)
    return [_table(result, attribute, values) for attribute, values in asked.items()]


def own_subgroup_tables(metrics: Metrics, plan: Plan) -> list[SubgroupTable]:
    """The same of one site's own cases, for its own report; of the attributes that it measures.

    Args:
        metrics: that the site measured itself, small groups included; empty when it measured none.
        plan: of the run.
    """
    tables = []
    for attribute in sorted(plan.evaluation.subgroups):
        parts = _parts(metrics, attribute, values_of(plan, attribute))
        if any(parts.values()):
            metric = _metric_of(parts, plan.task)
            rows = _rows({**parts, ALL: metrics}, metric)
            tables.append(SubgroupTable(attribute, _head(attribute, metric), rows, []))
    return tables


def subgroup_headline(metrics: Metrics) -> str | None:
    """The headline metric among those of a subgroup, or of a whole; None without one."""
    return next((name for name in _HEADLINES if name in metrics), None)


def _told_by_attribute(metrics: Metrics) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in metrics:
        attribute, _, value = subgroup_of(name)[1].partition("/")
        if value and value not in found.get(attribute, ()):
            found[attribute] = (*found.get(attribute, ()), value)
    return found


def _table(result: Result, attribute: str, values: tuple[str, ...]) -> SubgroupTable:
    parts = _parts(result.final_metrics, attribute, values)
    metric = _metric_of(parts, result.task)
    final = result.final_sites
    told = [sum(bool(metrics_of(m, f"{attribute}/{value}")) for m in final.values())
            for value in values]  # fmt: skip
    who = [number(None) if result.secure_sum else f"{sites:,} of {len(final):,}" for sites in told]
    rows = _rows({**parts, ALL: result.final_metrics}, metric)
    rows = [(*row, last) for row, last in zip(rows, [*who, ""], strict=True)]
    head = (*_head(attribute, metric), "told by sites")
    return SubgroupTable(attribute, head, rows, _notes(result, metric, parts))


def _parts(metrics: Metrics, attribute: str, values: tuple[str, ...]) -> dict[str, Metrics]:
    return {value: metrics_of(metrics, f"{attribute}/{value}") for value in values}


def _metric_of(parts: Mapping[str, Metrics], task: TaskName) -> str:
    known = [metric for part in parts.values() if (metric := subgroup_headline(part))]
    return known[0] if known else metric_words.headline_metric(task)


def _head(attribute: str, metric: str) -> tuple[str, ...]:
    return (attribute.replace("_", " "), "cases", metric_words.label(metric), "95 % interval")


def _rows(parts: Mapping[str, Metrics], metric: str) -> list[tuple[str, ...]]:
    return [(value, *_cells(part, metric)) for value, part in parts.items()]


def _cells(metrics: Metrics, metric: str) -> tuple[str, str, str]:
    if not metrics:
        return NOT_TOLD, number(None), number(None)
    cases = f"{round(metrics.get('num_cases') or 0):,}"
    return cases, number(metrics.get(metric)), interval(metrics, metric)


def _notes(result: Result, metric: str, parts: dict[str, Metrics]) -> list[str]:
    told = sum(round(part.get("num_cases") or 0) for part in parts.values())
    absent = round(result.final_metrics.get("num_cases") or 0) - told
    notes = []
    if absent > 0:
        notes.append(
            f"{plural(absent, 'held-out case')} {'is' if absent == 1 else 'are'} in no row: a site "
            "tells its subgroups only where its consent names them, and never one that too few "
            "patients stand behind."
        )
    undefined = [value for value, part in parts.items()
                 if part.get("num_cases") and part.get(metric) is None]  # fmt: skip
    if undefined:
        label = metric_words.label(metric)
        notes.append(f"{label} is not defined on the cases of {', '.join(undefined)}.")
    bounds = [bound for part in parts.values()
              if (bound := part.get(f"{metric}_bound")) is not None]  # fmt: skip
    if (most := max(bounds, default=0.0)) >= 0.00005:
        notes.append(
            f"{metric_words.label(metric)} is formed from histograms that add over sites; that "
            f"moves a value here by at most {number(most, digits=4)}."
        )
    return notes
