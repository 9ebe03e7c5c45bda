"""The charts of a run's report: the metric, the training loss and the seconds, by round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asterion_shared.reports import metric_words
from asterion_shared.reports.charts import Series, site_series, spread_series
from asterion_shared.reports.report_page import band, chart
from asterion_shared.result import Result

MOST_LINES = 30
"""Sites that have a curve each; of more, their median and the middle 80 % are drawn."""

SiteValues = Sequence[tuple[int, Mapping[str, float | None]]]
"""A round, and the value of each site that has one there."""


def headline_chart(result: Result, metric: str) -> dict[str, Any]:
    """The metric by round: pooled, with its interval, and at the sites."""
    measured = [r for r in result.rounds if r.pooled or r.sites]
    baseline = result.final_metrics.get(f"baseline/{metric}")
    values = [(r.round, {site: m.get(metric) for site, m in r.sites.items()}) for r in measured]
    return chart(
        Series(name="pooled", points=[(r.round, r.pooled.get(metric)) for r in measured]),
        _of_sites(_site_names(result), values),
        title=f"{metric_words.label(metric)} by round, pooled and by site",
        baseline=baseline,
        baseline_name=f"baseline: {metric_words.baseline_words(result.task)}"
        if baseline is not None
        else "",
        band=band(((r.round, r.pooled) for r in measured), metric),
        floor=0.0,
        ceiling=1.0,
    ) | {"note": _measured_where(result)}


def _measured_where(result: Result) -> str:
    """That the rounds were measured at fewer sites than the last one; empty when they were not."""
    counts = [len(r.sites) for r in result.rounds if r.sites]
    if len(counts) < 2 or (typical := int(np.median(counts[:-1]))) >= counts[-1]:
        return ""
    return (
        f"A round is measured at the sites that are asked next, here at about {typical:,}; the "
        f"last one at {counts[-1]:,}. Rounds therefore also differ because other sites measured "
        "them."
    )


def loss_chart(result: Result) -> dict[str, Any]:
    """The training loss by round: the mean, and at the sites."""
    mean = [(r.round, r.train_loss) for r in result.rounds if r.round > 0]
    sites = _of_sites(_site_names(result), _by_outcome(result, "train_loss"))
    return chart(Series(name="all sites", points=mean), sites, title="Training loss by round")


def seconds_chart(result: Result) -> dict[str, Any]:
    """The seconds by round: of the whole round, and of the work at the sites."""
    whole = [(r.round, r.seconds) for r in result.rounds if r.round > 0]
    title = "Seconds by round: the whole round, and the work at each site"
    if not whole:
        return chart(None, [], title=title)
    sites = _of_sites(_site_names(result), _by_outcome(result, "seconds"))
    return chart(Series(name="whole round", points=whole), sites, title=title, from_zero=True)


def _site_names(result: Result) -> list[str]:
    named = {s.name for s in result.sites} | {name for r in result.rounds for name in r.sites}
    return sorted(named)


def _by_outcome(result: Result, what: str) -> SiteValues:
    return [
        (r.round, {s: getattr(r.outcomes[s], what) for s in r.answered})
        for r in result.rounds
        if r.round > 0
    ]


def _of_sites(names: Sequence[str], values: SiteValues) -> list[Series]:
    if len(names) > MOST_LINES:
        return spread_series(
            (number, [v for v in sites.values() if v is not None]) for number, sites in values
        )
    return site_series(
        (name, [(number, sites.get(name)) for number, sites in values]) for name in names
    )
