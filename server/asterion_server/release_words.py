"""Words and Markdown that the model card and the CLAIM report share."""

from collections.abc import Iterable, Sequence

from asterion_server.release_run import TrainedRun
from asterion_shared.absences import absences
from asterion_shared.metrics import BASELINE
from asterion_shared.plan import Plan
from asterion_shared.reports.metric_words import (
    baseline_words,
    headline_metric,
    label,
    meaning,
    number,
    secondary_metrics,
)
from asterion_shared.reports.report_page import interval, num_tested, plural
from asterion_shared.reports.subgroup_tables import NOT_TOLD, subgroup_tables
from asterion_shared.reports.usability import not_usable
from asterion_shared.result import Metrics

NOT_RECORDED = "not recorded"
FEW_TESTED = 30
"""Test examples in all below which the card says that they are few."""

_TASKS = {
    "segmentation": "marks, in {what}, each point as one of: {classes}",
    "classification": "names, for {what}, one of: {classes}",
    "anomaly": "scores how unusual {what} is (trained on: {classes})",
}


def task_sentence(plan: Plan) -> str:
    """What the model does, in one sentence."""
    data = plan.data
    classes = ", ".join(data.classes if plan.task != "anomaly" else data.classes[:1])
    if data.kind == "table":
        what = f"a row of {plural(len(data.features), 'column')}"
    else:
        channels = ", ".join(data.channels)
        what = f"a {data.dimensions}D image ({channels})"
    return f"A neural network that {_TASKS[plan.task].format(what=what, classes=classes)}."


def input_sentence(plan: Plan) -> str:
    """How what it is given is prepared, in one sentence."""
    data = plan.data
    if data.kind == "table":
        return (
            f"Columns, in order: {', '.join(data.features)}. Numbers are standardised, by the "
            "plan's published figures where it has them and else by the site's own rows; a missing "
            "value is told to the network as missing."
        )
    grid = "keep their stored grid"
    if data.spacing_mm is not None:
        grid = f"are resampled to {' x '.join(f'{mm:g}' for mm in data.spacing_mm)} mm"
    elif data.pixel_scale_arcsec is not None:
        grid = f"are resampled to {data.pixel_scale_arcsec:g} arcsec a pixel"
    window = " x ".join(str(size) for size in data.patch_size)
    return (
        f"Images {grid}, are normalised each by itself ({data.normalisation}), and are seen in "
        f"windows of {window}."
    )


def performance_sentences(run: TrainedRun) -> list[str]:
    """What the model reaches over all sites, and whether that is more than nothing."""
    result = run.result
    metric = headline_metric(result.task)
    value = result.final_metrics.get(metric)
    if value is None:
        return [f"No {label(metric)} of the final model was measured."]
    ends = interval(result.final_metrics, metric)
    spread = f" (95 % interval {ends})" if ends != number(None) else " (no interval is known)"
    sentences = [f"Over all sites its {label(metric)} is {number(value)}{spread}."]
    if meaning(metric):
        sentences.append(f"{label(metric)} says {meaning(metric)}.")
    baseline = result.final_metrics.get(f"{BASELINE}{metric}")
    if baseline is not None:
        sentences.append(
            f"The trivial baseline, {baseline_words(result.task)}, reaches {number(baseline)}."
        )
    return [*sentences, *filter(None, [not_usable(result)])]


def metric_rows(metrics: Metrics, plan: Plan) -> list[tuple[str, ...]]:
    """Metric, value, 95 % interval, baseline: the headline, those beside it, and its classes."""
    headline = headline_metric(plan.task)
    classes = [f"{headline}/{name}" for name in plan.data.classes]
    names = [n for n in (headline, *secondary_metrics(plan.task), *classes) if n in metrics]
    return [
        (
            label(n),
            _measured(metrics[n]),
            interval(metrics, n),
            number(metrics.get(f"{BASELINE}{n}")),
        )
        for n in names
    ]


def _measured(value: float | None) -> str:
    return "not defined" if value is None else number(value)


def site_rows(run: TrainedRun) -> list[tuple[str, ...]]:
    """Site, training examples, test examples, skipped files, headline metric, 95 % interval."""
    result, metric = run.result, headline_metric(run.plan.task)
    hidden = result.secure_sum
    rows = []
    for site in result.sites:
        measured = result.final_sites.get(site.name, {})
        counts = (site.num_examples, site.num_test, site.num_bad_files)
        told = ["not told"] * 3 if hidden else [f"{count:,}" for count in counts]
        rows.append((site.name, *told, number(measured.get(metric)), interval(measured, metric)))
    return rows


def limits(run: TrainedRun, own: str) -> list[str]:
    """What the numbers do not show, one sentence each."""
    result = run.result
    found = [own] if own else []
    found.append(
        "Every number comes from test data of the sites that trained it; how it does elsewhere is "
        "not known from this run."
    )
    if (count := num_tested(result)) < FEW_TESTED:
        found.append(f"{plural(count, 'test example')} in all are few: expect other numbers.")
    if run.chosen == "best":
        found.append(
            "It was chosen among the models of all rounds by the same test data that its numbers "
            "come from, so they are a little too good. docs/report.html tells of the whole run, "
            "whose last model is another."
        )
    if result.secure_sum:
        found.append("How it does at each single site is known to that site alone (secure sum).")
    found.append(_subgroup_limit(run))
    unseen = [s.name for s in result.sites if s.name not in run.sites]
    if unseen:
        found.append(f"No report of {', '.join(unseen)} is in the model.")
    if not result.is_live:
        found.append("The federation was simulated on one machine.")
    if any(r.missing for r in result.rounds):
        found += [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in absences(result)]
    return found


def _subgroup_limit(run: TrainedRun) -> str:
    """How it does by age, sex, scanner or instrument: what of it is known."""
    tables = subgroup_tables(run.result, run.plan)
    if not tables:
        return "How it does by age, sex, scanner or instrument was not asked for, and is not known."
    asked = " and ".join(one.head[0] for one in tables)
    silent = [one.head[0] for one in tables if all(row[1] == NOT_TOLD for row in one.rows[:-1])]
    hidden = f" No site told anything by {' or '.join(silent)}." if silent else ""
    return f"Its subgroups were asked for by {asked}, and by nothing else.{hidden}"


def subgroup_parts(run: TrainedRun) -> list[str]:
    """A table for each attribute that the plan tells cases apart by, with its notes; Markdown."""
    parts: list[str] = []
    for one in subgroup_tables(run.result, run.plan):
        parts += [f"By {one.head[0]}:", table(one.head, one.rows), *one.notes]
    return parts


def calibration_sentences(run: TrainedRun) -> list[str]:
    """Whether its probabilities can be taken at their word, and what was fitted."""
    if run.plan.task == "segmentation":
        return []
    error, fitted = run.result.final_metrics.get("calibration_error"), run.result.decisions
    found = []
    if error is not None:
        found.append(
            f"Its stated confidence and its share of right calls differ by {number(error)} on "
            "average (expected calibration error)."
        )
    if fitted is None:
        return [*found, "No temperature and no threshold was fitted."]
    if fitted.temperature is not None:
        side = "too sure" if fitted.temperature > 1 else "not sure enough"
        found.append(
            f"It was {side}: dividing its logits by {number(fitted.temperature)} makes up for it."
        )
    for name, point in fitted.thresholds.items():
        found.append(
            f"At the threshold {point.score:.3g} ({name.replace('_', ' ')}) it finds "
            f"{100 * point.sensitivity:.0f} % of the positive cases and calls "
            f"{100 * point.false_alarm_rate:.0f} % of the others."
        )
    return [*found, "Fitted and counted on the same test data, so a little too good."]


def privacy_sentences(run: TrainedRun) -> list[str]:
    """What is claimed, and what an attack showed."""
    result = run.result
    account, audit = result.privacy_account, result.privacy_audit
    found = [f"{result.privacy[:1].upper()}{result.privacy[1:]}."]
    if account is not None:
        found.append(account.sentence)
    if audit is not None:
        found.append(f"{audit.verdict[:1].upper()}{audit.verdict[1:]}.")
    elif account is not None:
        found.append("No attack on this claim was part of the run.")
    if account is None:
        found.append(
            "A model can hold traces of the data it was trained on; here nothing bounds what could "
            "be learnt from it about a single case."
        )
    return found


def approval_sentence(run: TrainedRun) -> str:
    """Who signed the plan, and what is known of it."""
    signature = run.signature
    if signature is None:
        return "Nobody signed the plan."
    if run.signature_holds:
        return (
            f"Operator {signature.operator} signed the plan for this run; the signature holds under"
            " the key that the coordinator has of that operator."
        )
    return (
        f"The plan carries a signature of operator {signature.operator}, which could not be "
        "verified: the coordinator has no such key, or the signature is of another."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells lose what would break it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def said(text: str) -> str:
    """What somebody wrote, as one paragraph; else that it is not recorded."""
    return " ".join(text.split()) or f"*{NOT_RECORDED.capitalize()}.*"
