"""The tables of a comparison, as texts: for the page and for the terminal."""

from collections.abc import Sequence

import numpy as np

from asterion_shared.absences import absences
from asterion_shared.privacy.account import epsilon_words
from asterion_shared.reports import metric_words
from asterion_shared.reports.compared_runs import (
    ComparedRun,
    MeanDifference,
    PairedSite,
    mean_difference,
    plan_differences,
)
from asterion_shared.reports.many_sites import pick_sites
from asterion_shared.reports.metric_words import in_bytes, in_time, number, signed
from asterion_shared.reports.report_page import interval, plural

Row = tuple[str, ...]

OTHER_RECORDS = (
    "Their records, or which of them are for testing, are not those of the first run; or one of "
    "the two runs is private, whose hashes of records compare with nothing."
)


def result_rows(runs: Sequence[ComparedRun]) -> tuple[Row, list[Row]]:
    """Head and a row a run: how far it came, the headline metric, and against the first run."""
    metric = metric_words.headline_metric(runs[0].result.task)
    first = runs[0].result.final_metrics.get(metric)
    head = ("run", "status", "rounds", metric_words.label(metric), "95 % interval", "baseline",
            "to the first")  # fmt: skip
    rows: list[Row] = []
    for index, run in enumerate(runs):
        final = run.result.final_metrics
        value = final.get(metric)
        against = None if value is None or first is None else value - first
        rows.append((
            run.label, run.result.status.replace("_", " "),
            f"{run.result.num_finished} of {run.result.rounds_planned}", number(value),
            interval(final, metric), number(final.get(f"baseline/{metric}")),
            signed(against) if index else "",
        ))  # fmt: skip
    return head, rows


def cost_rows(runs: Sequence[ComparedRun]) -> tuple[Row, list[Row]]:
    """Head and a row a run: time, traffic and privacy."""
    head = ("run", "time", "median round", "down", "up", "sites", "training examples", "privacy")
    rows: list[Row] = []
    for run in runs:
        result = run.result
        times = [r.seconds for r in result.rounds if r.round > 0]
        down, up = (sum(getattr(r, f"bytes_{w}") for r in result.rounds) for w in ("down", "up"))
        count = sum(site.num_examples for site in result.sites)
        rows.append((
            run.label, in_time(sum(r.seconds for r in result.rounds)),
            in_time(float(np.median(times))) if times else number(None),
            in_bytes(down) if result.is_live else number(None),
            in_bytes(up) if result.is_live else number(None),
            f"{len(result.sites):,}", number(None) if result.secure_sum else f"{count:,}",
            privacy_words(run),
        ))  # fmt: skip
    return head, rows


def privacy_words(run: ComparedRun) -> str:
    """``epsilon 3.21 at delta 1e-05 for each patient``, or that nothing is claimed."""
    account = run.result.privacy_account
    if account is None:
        return "nothing is claimed"
    words = f"{epsilon_words(account.epsilon)} at delta {account.delta:g}"
    broken = "; BROKEN by the attack" if run.result.claim_broken else ""
    return f"{words} for each {account.protects}{broken}"


def against_rows(
    runs: Sequence[ComparedRun], sites: Sequence[PairedSite]
) -> tuple[Row, list[Row], list[str]]:
    """Head, a row for each run but the first over the sites that both have, and notes."""
    head = ("run", "sites in both", "mean difference", "95 % interval", "higher", "lower")
    found = [mean_difference(sites, index) for index in range(1, len(runs))]
    rows: list[Row] = [
        (run.label, f"{one.num_sites:,}", signed(one.mean), _bounds(one), f"{one.num_higher:,}",
         f"{one.num_lower:,}")
        for run, one in zip(runs[1:], found, strict=True)
    ]  # fmt: skip
    notes = [
        f"{run.label}: {plural(one.num_other_records, 'site')} of these cannot be compared case by "
        f"case. {OTHER_RECORDS}"
        for run, one in zip(runs[1:], found, strict=True)
        if one.num_other_records
    ]
    return head, rows, notes


def _bounds(one: MeanDifference) -> str:
    if one.low is None or one.high is None:
        return number(None)
    return f"{signed(one.low)} to {signed(one.high)}"


def site_rows(
    runs: Sequence[ComparedRun], sites: Sequence[PairedSite], most: int
) -> tuple[Row, list[Row], dict[int, str], int]:
    """Head, a row a site, what stands above groups of rows, and how many sites are left out.

    Of more than ``most`` sites those where the second run differs from the first the most
    downwards, in the middle, and upwards are shown.
    """
    head = ("site", *(run.label for run in runs))
    groups = pick_sites(
        [site.name for site in sites], {site.name: site.difference(1) for site in sites}, most
    )
    by_name = {site.name: site for site in sites}
    above, rows = dict[int, str](), list[Row]()
    words = {
        "lowest": f"largest drop from {runs[0].label} to {runs[1].label}",
        "median": "around the median difference",
        "highest": f"largest gain from {runs[0].label} to {runs[1].label}",
        "measured": "sites in both of the first two runs",
        "by name": "the first by name: no site is in both of the first two runs",
    }
    for group in groups:
        if group.words:
            above[len(rows)] = words[group.words]
        rows += [_site_row(by_name[name]) for name in group.sites]
    return head, rows, above, len(sites) - len(rows)


def _site_row(site: PairedSite) -> Row:
    cells = [number(site.values[0])]
    for index, value in enumerate(site.values[1:], start=1):
        against = site.difference(index)
        mark = " *" if site.same_records[index] is False and against is not None else ""
        cells.append(
            number(value) if against is None else f"{number(value)} ({signed(against)}){mark}"
        )
    return (site.name, *cells)


def missing_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """A row a run: who was missing or late, when and why."""
    return [(run.label, "; ".join(absences(run.result))) for run in runs]


def plan_rows(runs: Sequence[ComparedRun]) -> tuple[Row, list[Row], str]:
    """Head, a row for each setting that differs, and a note."""
    head = ("setting", *(run.label for run in runs))
    rows = [(path, *values) for path, values in plan_differences([run.plan for run in runs])]
    rows += _outside_rows(runs)
    unknown = [run.label for run in runs if run.plan is None]
    if unknown:
        note = (
            f"The plan of {', '.join(unknown)} is not known: no plan.json lies beside the result."
        )
    elif len({run.result.plan_sha256 for run in runs}) == 1:
        note = f"All runs have one plan, SHA-256 {runs[0].result.plan_sha256}."
    else:
        note = "Every other setting of the plans is the same."
    return head, rows, note


def _outside_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """What differs beside the plan: the carrier, and versions of programs."""
    facts = [
        {"carrier": run.result.carrier}
        | {f"version of {name}": v for name, v in run.result.versions.items()}
        for run in runs
    ]
    names = dict.fromkeys(name for one in facts for name in one)
    rows = [(name, *(one.get(name, number(None)) for one in facts)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def metric_rows(runs: Sequence[ComparedRun]) -> tuple[Row, list[Row]]:
    """Head and a row a metric: every pooled metric of the final models."""
    names = dict.fromkeys(name for run in runs for name in run.result.final_metrics)
    rows = [
        (metric_words.label(n), *(metric_words.value(run.result.final_metrics, n) for run in runs))
        for n in names
    ]
    return ("metric", *(run.label for run in runs)), rows
