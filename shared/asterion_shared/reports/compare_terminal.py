"""Runs side by side in the terminal, or as one JSON object for programs."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asterion_shared.reports import compare_tables
from asterion_shared.reports.compared_runs import (
    ComparedRun,
    PairedSite,
    mean_difference,
    paired_sites,
    plan_differences,
)
from asterion_shared.reports.intervals import bounds_95
from asterion_shared.reports.metric_words import headline_metric
from asterion_shared.reports.report_page import plural

MOST_ROWS = 21
"""Sites in the table; of more, those with the largest differences and some in the middle."""


def print_comparison(runs: Sequence[ComparedRun], console: Console) -> None:
    """Print what the page says, shorter."""
    sites = paired_sites(runs)
    _table(console, "", *compare_tables.result_rows(runs))
    for label, words in compare_tables.missing_rows(runs):
        console.print(f"{escape(label)}: {escape(words)}", soft_wrap=True)
    _table(console, "Time, traffic and privacy", *compare_tables.cost_rows(runs))
    head, rows, notes = compare_tables.against_rows(runs, sites)
    _table(console, f"Against {runs[0].label}, over sites that both have", head, rows)
    head, rows, above, hidden = compare_tables.site_rows(runs, sites, MOST_ROWS)
    _table(console, "Sites, paired by name", head, rows, above)
    if hidden:
        console.print(f"{plural(hidden, 'more site')}, in the results")
    for note in notes:
        console.print(f"* {escape(note)}", soft_wrap=True)
    head, rows, note = compare_tables.plan_rows(runs)
    if rows:
        _table(console, "What differs in the plans", head, rows)
    console.print(escape(note), soft_wrap=True)


def _table(
    console: Console,
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    above: dict[int, str] | None = None,
) -> None:
    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    for index, name in enumerate(head):
        table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(rows):
        if above and index in above:
            table.add_row(f"[dim]{escape(above[index])}:[/]")
        table.add_row(*map(escape, row))
    console.print(table)


def comparison_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """The comparison as plain values, for programs."""
    metric, sites = headline_metric(runs[0].result.task), paired_sites(runs)
    return {
        "task": runs[0].result.task,
        "metric": metric,
        "runs": [_run_json(run, metric) for run in runs],
        "against_first": [
            _against_json(run, index, sites) for index, run in enumerate(runs[1:], 1)
        ],
        "sites": [
            {"site": s.name, "values": s.values, "same_records": s.same_records} for s in sites
        ],
        "plan_differences": dict(plan_differences([run.plan for run in runs])),
    }


def _run_json(run: ComparedRun, metric: str) -> dict[str, Any]:
    result = run.result
    bounds = bounds_95(result.final_metrics, metric)
    return {
        "label": run.label,
        "run": result.run,
        "status": result.status,
        "headline": result.headline,
        "value": result.final_metrics.get(metric),
        "interval_95": bounds,
        "baseline": result.final_metrics.get(f"baseline/{metric}"),
        "rounds": result.num_finished,
        "rounds_planned": result.rounds_planned,
        "seconds": sum(r.seconds for r in result.rounds),
        "bytes_down": sum(r.bytes_down for r in result.rounds),
        "bytes_up": sum(r.bytes_up for r in result.rounds),
        "epsilon": run.epsilon,
        "plan_sha256": result.plan_sha256,
        "plan_known": run.plan is not None,
    }


def _against_json(run: ComparedRun, index: int, sites: Sequence[PairedSite]) -> dict[str, Any]:
    found = mean_difference(sites, index)
    return {
        "label": run.label,
        "num_sites": found.num_sites,
        "mean": found.mean,
        "interval_95": None if found.low is None else (found.low, found.high),
        "num_higher": found.num_higher,
        "num_lower": found.num_lower,
        "num_other_records": found.num_other_records,
    }
