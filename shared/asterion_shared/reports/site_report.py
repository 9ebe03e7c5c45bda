"""The report that a site writes for itself: with pictures, for the eyes of the site only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterion_shared.plan import Plan
from asterion_shared.reports import metric_words
from asterion_shared.reports.charts import Series
from asterion_shared.reports.metric_words import in_time, number
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.report_page import band, chart, embed, interval, plural, write_page
from asterion_shared.reports.subgroup_tables import own_subgroup_tables
from asterion_shared.result import Metrics
from asterion_shared.site_rounds import SiteRound


def write_site_report(
    path: Path,
    site: str,
    plan: Plan,
    history: Sequence[SiteRound],
    pictures: Sequence[Picture],
    bad_files: Mapping[str, str],
) -> None:
    """Write a site's own ``report.html``; it may be written anew after every round.

    Args:
        path: the HTML file; replaced atomically.
        site: the site's name.
        plan: the plan of the run.
        history: the rounds the site took part in, in order; may be empty.
        pictures: from :func:`asterion_shared.reports.pictures.draw_examples`.
        bad_files: hashed id of each skipped file to the reason.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    metric = metric_words.headline_metric(plan.task)
    label = metric_words.label(metric)
    trained = [r for r in history if r.num_steps > 0]
    measured = [r for r in history if r.metrics]
    final: Metrics = measured[-1].metrics if measured else {}
    values: dict[str, Any] = {
        "title": f"Site {site}, {plan.name}: {label} {number(final.get(metric))}",
        "kicker": f"{plan.name}, {plan.task}",
        "site": site,
        "headline": f"Took part in {len(trained)} of {plan.rounds.count} rounds of training.",
        "summary": _summary(plan, measured, metric),
        "cards": _cards(plan, history, final, len(bad_files)),
        "metric_label": label,
        "headline_chart": _headline_chart(plan, measured, metric),
        "loss_chart": chart(
            Series(name="this site", points=[(r.round, r.train_loss) for r in trained]),
            [],
            title="Training loss by round",
        ),
        "pictures": embed(pictures),
        **_round_table(plan, history),
        "subgroup_tables": own_subgroup_tables(final, plan),
        "bad_rows": sorted(bad_files.items()),
        "facts": [
            ("plan", plan.name),
            ("plan SHA-256", plan.sha256),
            ("pictures", f"{len(pictures)}, drawn from held-out examples of this site"),
        ],
    }
    write_page(path, "site.html.j2", values)


def _summary(plan: Plan, measured: Sequence[SiteRound], metric: str) -> list[str]:
    label = metric_words.label(metric)
    final = measured[-1] if measured else None
    value = final.metrics.get(metric) if final else None
    if final is None or value is None:
        return [f"No {label} was measured at this site yet."]
    bounds = interval(final.metrics, metric)
    spread = f" (95 % interval {bounds})" if bounds != number(None) else ""
    sentences = [
        f"After round {final.round} the shared model's {label} is {number(value)}{spread} "
        f"on {plural(final.num_test, 'held-out example')} of this site."
    ]
    if meaning := metric_words.meaning(metric):
        sentences[0] += f" {label} says {meaning}."
    baseline = final.metrics.get(f"baseline/{metric}")
    if baseline is not None:
        side = "above" if value > baseline else "NOT above"
        sentences.append(
            f"This is {side} the trivial baseline of {number(baseline)}, which is "
            f"{metric_words.baseline_words(plan.task)}."
        )
    return sentences


def _cards(
    plan: Plan, history: Sequence[SiteRound], final: Metrics, num_bad: int
) -> list[dict[str, str]]:
    metric = metric_words.headline_metric(plan.task)
    examples = max((r.num_examples for r in history), default=0)
    tests = max((r.num_test for r in history), default=0)
    cards = [
        (metric_words.label(metric), number(final.get(metric)),
         f"baseline {number(final.get(f'baseline/{metric}'))}"),
        ("training examples", f"{examples:,}", f"{tests:,} held out for testing"),
        ("files skipped", str(num_bad), "could not be read"),
        ("time", in_time(sum(r.seconds for r in history)), "of work at this site"),
    ]  # fmt: skip
    return [{"what": what, "value": value, "more": more} for what, value, more in cards]


def _headline_chart(plan: Plan, measured: Sequence[SiteRound], metric: str) -> dict[str, Any]:
    baseline = measured[-1].metrics.get(f"baseline/{metric}") if measured else None
    words = f"baseline: {metric_words.baseline_words(plan.task)}" if baseline is not None else ""
    return chart(
        Series(name="this site", points=[(r.round, r.metrics.get(metric)) for r in measured]),
        [],
        title=f"{metric_words.label(metric)} at this site by round",
        baseline=baseline,
        baseline_name=words,
        band=band(((r.round, r.metrics) for r in measured), metric),
        floor=0.0,
        ceiling=1.0,
    )


def _round_table(plan: Plan, history: Sequence[SiteRound]) -> dict[str, Any]:
    metric = metric_words.headline_metric(plan.task)
    names = [metric, *metric_words.secondary_metrics(plan.task)]
    names = [name for name in names if any(name in r.metrics for r in history)]
    head = ("round", *(metric_words.label(n) for n in names), "steps", "train loss", "time")
    rows = [
        (str(r.round), *(metric_words.value(r.metrics, n) for n in names), str(r.num_steps),
         number(r.train_loss), in_time(r.seconds))
        for r in history
    ]  # fmt: skip
    return {"round_head": head, "round_rows": rows}
