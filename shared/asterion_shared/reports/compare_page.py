"""``compare.html``: runs side by side as one page, with nothing to fetch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asterion_shared.reports import compare_tables, metric_words
from asterion_shared.reports.charts import NUM_COLOURS, Series
from asterion_shared.reports.compared_runs import ComparedRun, paired_sites
from asterion_shared.reports.report_page import chart, plural, write_page

MOST_SITE_ROWS = 30


def write_comparison(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write runs side by side as one self-contained page.

    Args:
        runs: from :func:`asterion_shared.reports.compared_runs.read_runs`.
        path: the HTML file; replaced atomically.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    write_page(path, "compare.html.j2", _page(runs))


def _page(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    task = runs[0].result.task
    metric = metric_words.headline_metric(task)
    sites = paired_sites(runs)
    site_head, site_rows, groups, hidden = compare_tables.site_rows(runs, sites, MOST_SITE_ROWS)
    against_head, against_rows, against_notes = compare_tables.against_rows(runs, sites)
    plan_head, plan_rows, plan_note = compare_tables.plan_rows(runs)
    return {
        "title": f"{plural(len(runs), 'run')} side by side: {', '.join(r.label for r in runs)}",
        "kicker": f"{task}, {plural(len(runs), 'run')}",
        "labels": [run.label for run in runs],
        "first": runs[0].label,
        "metric_label": metric_words.label(metric),
        "meaning": metric_words.meaning(metric),
        "results": compare_tables.result_rows(runs),
        "chart": _chart(runs, metric),
        "against": (against_head, against_rows),
        "against_notes": against_notes,
        "sites": (site_head, site_rows),
        "site_groups": groups,
        "hidden_sites": f"{plural(hidden, 'more site')}, in the results." if hidden else "",
        "starred": any("*" in cell for row in site_rows for cell in row[1:]),
        "other_records": compare_tables.OTHER_RECORDS,
        "costs": compare_tables.cost_rows(runs),
        "simulated": any(not run.result.is_live for run in runs),
        "missing": compare_tables.missing_rows(runs),
        "plans": (plan_head, plan_rows),
        "plan_note": plan_note,
        "metrics": compare_tables.metric_rows(runs),
        "runs": [
            (run.label, run.result.run, run.result.started, run.result.plan_sha256,
             run.result.final_model.sha256 if run.result.final_model else "none")
            for run in runs
        ],
    }  # fmt: skip


def _chart(runs: Sequence[ComparedRun], metric: str) -> dict[str, Any]:
    series = [
        Series(
            name=run.label,
            points=[(r.round, r.pooled.get(metric)) for r in run.result.rounds if r.pooled],
            style=f"site{index % NUM_COLOURS}" + (" dashed" if index >= NUM_COLOURS else ""),
        )
        for index, run in enumerate(runs)
    ]
    title = f"Pooled {metric_words.label(metric)} by round, a curve for each run"
    return chart(None, series, title=title, floor=0.0, ceiling=1.0)
