"""The release gate: what holds a run's model back, each reason with its number."""

from collections.abc import Iterator

from asterion_server.release_settings import GateSettings
from asterion_shared.errors import Problem
from asterion_shared.evaluation_settings import OTHER
from asterion_shared.metrics import BASELINE
from asterion_shared.metrics.subgroups import headline_of, metrics_of, values_of
from asterion_shared.plan import Plan
from asterion_shared.reports.intervals import bounds_95
from asterion_shared.reports.metric_words import headline_metric, label, number
from asterion_shared.reports.report_page import lowest_site, plural
from asterion_shared.reports.usability import trivial_value
from asterion_shared.result import Metrics, Result


def gate_problems(result: Result, plan: Plan, gate: GateSettings) -> list[Problem]:
    """Why a model should not be released; empty when nothing holds it back.

    A number that a threshold asks for and that is not known holds it back too.

    Args:
        result: of the run.
        plan: of the run.
        gate: the thresholds.
    """
    found = [*_of_the_run(result), *_baseline(result)]
    if gate.worst_site_at_least is not None:
        found += _worst_site(result, gate.worst_site_at_least)
    if gate.worst_class_at_least is not None:
        found += _worst_class(result, plan, gate.worst_class_at_least)
    if gate.worst_subgroup_at_least is not None:
        found += _worst_subgroup(result, plan, gate.worst_subgroup_at_least)
    if gate.calibration_error_at_most is not None:
        found += _calibration(result, gate.calibration_error_at_most)
    return found


def _of_the_run(result: Result) -> Iterator[Problem]:
    if result.status != "finished":
        words = result.status.replace("_", " ")
        yield Problem(where="the run", what=f"did not finish ({words})", fix="resume it")
    if result.claim_broken:
        what = "an attack shows more than the claimed epsilon"
        yield Problem(where="privacy", what=what, fix="do not use the model")


def _baseline(result: Result) -> Iterator[Problem]:
    metric = headline_metric(result.task)
    value = result.final_metrics.get(metric)
    where, fix = "trivial baseline", "train longer, or with more data"
    if value is None:
        what = f"no {label(metric)} over all sites was measured"
        yield Problem(where=where, what=what, fix="have the sites hold out test data")
        return
    trivial, called = trivial_value(result.final_metrics, metric)
    measured = result.final_metrics.get(f"{BASELINE}{metric}") is not None
    ends = bounds_95(result.final_metrics, metric)
    low = value if ends is None else min(value, ends[0])
    if low <= trivial:
        spread = "" if ends is None else f" (95 % interval {number(ends[0])} to {number(ends[1])})"
        what = (
            f"{label(metric)} {number(value)}{spread} is not above {number(trivial)}, the "
            f"{called if measured else 'value of guessing'}"
        )
        yield Problem(where=where, what=what, fix=fix)


def _worst_site(result: Result, least: float) -> Iterator[Problem]:
    metric, sites = headline_metric(result.task), result.final_sites
    unknown = [s.name for s in result.sites if sites.get(s.name, {}).get(metric) is None]
    if unknown:
        what = f"{label(metric)} is not known at {', '.join(unknown)}, and {least:g} is asked"
        fix = "measure it there" if not result.secure_sum else "take the threshold out: secure sum"
        yield Problem(where="worst site", what=what, fix=fix)
    lowest = lowest_site(sites, metric)
    if lowest is not None and lowest[1] < least:
        what = f"{label(metric)} is {number(lowest[1])} at {lowest[0]}, and {least:g} is asked"
        yield Problem(where="worst site", what=what, fix="look at that site's data and report")


def _worst_class(result: Result, plan: Plan, least: float) -> Iterator[Problem]:
    """Of two classes there is one number, the headline itself."""
    metric = headline_metric(result.task)
    classes = [
        f"{metric}/{c}" for c in plan.data.classes if f"{metric}/{c}" in result.final_metrics
    ]
    for name in classes or [metric]:
        value = result.final_metrics.get(name)
        if value is None:
            what = f"{label(name)} was not measured, and {least:g} is asked"
            yield Problem(where="worst class", what=what, fix="have test data of that class")
        elif value < least:
            what = f"{label(name)} is {number(value)}, and {least:g} is asked"
            yield Problem(where="worst class", what=what, fix="add data of that class")


def _worst_subgroup(result: Result, plan: Plan, least: float) -> Iterator[Problem]:
    """Each value that the plan lists, and ``other`` where it has cases."""
    where, metric = "worst subgroup", headline_of(plan)
    if not plan.evaluation.subgroups:
        what = f"the plan asks for no subgroups, and {least:g} is asked of each"
        yield Problem(where=where, what=what, fix="name them in evaluation.subgroups of the plan")
    for attribute in sorted(plan.evaluation.subgroups):
        for value in values_of(plan, attribute):
            found = metrics_of(result.final_metrics, f"{attribute}/{value}")
            if value == OTHER and not found.get("num_cases"):
                continue
            yield from _subgroup(label(metric), f"{attribute} {value}", found, metric, least)


def _subgroup(
    shown: str, subgroup: str, found: Metrics, metric: str, least: float
) -> Iterator[Problem]:
    where, value = "worst subgroup", found.get(metric)
    if not found:
        what = f"no site told {shown} of {subgroup}, and {least:g} is asked"
        fix = "ask the sites to name it in consent.subgroups; too few patients are never told"
        yield Problem(where=where, what=what, fix=fix)
    elif value is None:
        cases = plural(round(found.get("num_cases") or 0), "case")
        what = f"{shown} is not defined on the {cases} of {subgroup}, and {least:g} is asked"
        yield Problem(where=where, what=what, fix="have test data of that subgroup")
    elif value < least:
        what = f"{shown} is {number(value)} for {subgroup}, and {least:g} is asked"
        yield Problem(where=where, what=what, fix="add data of that subgroup")


def _calibration(result: Result, most: float) -> Iterator[Problem]:
    value = result.final_metrics.get("calibration_error")
    if value is None:
        what = f"no calibration error was measured, and at most {most:g} is asked"
        yield Problem(where="calibration", what=what, fix="take the threshold out, or measure it")
    elif value > most:
        what = f"the calibration error is {number(value)}, and at most {most:g} is asked"
        yield Problem(where="calibration", what=what, fix="calibrate the model, or train longer")
