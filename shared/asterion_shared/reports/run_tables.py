"""The tables of a run's report: sites, rounds, absences, all metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from asterion_shared.absences import MOST_NAMED_SITES, quarantine_sentences, round_words
from asterion_shared.messages import REASON_CODES
from asterion_shared.metrics.subgroups import subgroup_of
from asterion_shared.plan import Plan
from asterion_shared.reports import metric_words
from asterion_shared.reports.many_sites import (
    Part,
    evenly,
    late_words,
    missing_words,
    name_few,
    parts_of_sites,
    pick_sites,
    round_span,
)
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.reports.report_page import interval, num_tested, plural, told
from asterion_shared.result import Metrics, Result, RoundResult, SiteOutcome, SiteSummary

MOST_SITE_ROWS = 30
MOST_ROUND_ROWS = 200
MOST_SENTENCES = 10
"""Absences that are told in sentences; more of them stand in a table."""

_GROUPS = {
    "lowest": "lowest {}",
    "median": "around the median {}",
    "highest": "highest {}",
    "measured": "sites where {} is defined",
    "by name": "the first by name: no site has a value of {}",
}

Absence = tuple[str, str, str]
"""Outcome, code and stage of a site that did not report."""


def site_table(result: Result, metric: str, plan: Plan | None) -> dict[str, Any]:
    """The final model at the sites; of many, at the lowest, the middle and the highest."""
    final, parts = result.final_sites, parts_of_sites(result.rounds)
    others = [
        name
        for name in metric_words.secondary_metrics(result.task)
        if any(name in m for m in (*final.values(), result.final_metrics))
    ]
    clips, label = clip_words(result, plan) != "", metric_words.label(metric)
    groups = pick_sites(
        [s.name for s in result.sites],
        {site: m.get(metric) for site, m in final.items()},
        MOST_SITE_ROWS,
    )

    def row(site: SiteSummary) -> tuple[str, ...]:
        part = parts.get(site.name, Part())
        answered = f"{part.answered} of {part.asked}"
        cells = _metric_cells(final.get(site.name, {}), metric, others)
        return (site.name, told(result, site.num_examples), told(result, site.num_test), *cells,
                answered, told(result, site.num_bad_files),
                *([str(part.clipped)] if clips else []))  # fmt: skip

    by_name = {s.name: s for s in result.sites}
    rows: list[tuple[str, ...]] = []
    words: dict[int, str] = {}
    for group in groups:
        if group.words:
            words[len(rows)] = _GROUPS[group.words].format(label)
        rows += [row(by_name[name]) for name in group.sites]
    hidden = len(result.sites) - len(rows)
    clipped = f"{sum(part.clipped for part in parts.values()):,}"
    rows.append((
        "pooled", told(result, sum(s.num_examples for s in result.sites)),
        f"{num_tested(result):,}", *_metric_cells(result.final_metrics, metric, others),
        "", told(result, sum(s.num_bad_files for s in result.sites)), *([clipped] if clips else []),
    ))  # fmt: skip
    if hidden:
        words[len(rows) - 1] = f"all {len(result.sites):,} sites"
    measured = [label, "baseline", "95 % interval"]
    measured += [metric_words.label(name) for name in others]
    head = ("site", "training", "test", *measured, "answered", "files skipped",
            *(["rounds clipped"] if clips else []))  # fmt: skip
    return {
        "site_head": head,
        "site_rows": rows,
        "site_groups": words,
        "site_notes": _site_notes(result, metric, hidden),
    }


def _metric_cells(metrics: Metrics, metric: str, others: Sequence[str]) -> list[str]:
    main = [number(metrics.get(metric)), number(metrics.get(f"baseline/{metric}"))]
    return [
        *main,
        interval(metrics, metric),
        *(metric_words.value(metrics, name) for name in others),
    ]


def _site_notes(result: Result, metric: str, hidden: int) -> list[str]:
    final, label = result.final_sites, metric_words.label(metric)
    notes = []
    if hidden:
        notes.append(f"{plural(hidden, 'more site')}, in result.json.")
    tests = [s.num_test for s in result.sites if s.name in final]
    if hidden and tests:
        notes.append(
            f"The median site has {plural(int(np.median(tests)), 'test example')}; the fewer a "
            "site has, the more its values scatter."
        )
    without = sum(m.get(metric) is None for m in final.values())
    if hidden and 0 < without < len(final):
        notes.append(
            f"{plural(without, 'site')} measured the model, but {label} is undefined on so few or "
            "so uniform examples."
        )
    # The headline is always named; what stands beside it is there only when it was sent.
    sent = {f"{metric}_bound", f"{metric}_low"}
    lacking = sum(m.get(metric) is None and not sent & m.keys() for m in final.values())
    if 0 < lacking < len(final):
        notes.append(
            f"{plural(lacking, 'site')} sent nothing for {label}, because too few patients stand "
            "behind it there; the pooled value is over the others."
        )
    bound = result.final_metrics.get(f"{metric}_bound")
    if bound is not None:
        notes.append(
            f"{label} is formed from histograms that add over sites; that moves the pooled value "
            f"by at most {number(bound, digits=4)}."
        )
    bins = result.final_metrics.get(f"{metric}_bins")
    if bins is not None:
        notes.append(
            f"Sites merged bins in which too few patients stood; {bins:,.0f} are left, and the "
            "error above holds for them."
        )
    return notes


def clip_words(result: Result, plan: Plan | None) -> str:
    """How many updates were shortened, of how many; empty when the run set no clip norm.

    Without the plan a run that shortened none cannot be told from one without a clip norm.
    """
    trained = [o for r in result.rounds if r.round > 0 for o in r.outcomes.values()]
    clipped = sum(o.clipped for o in trained)
    norm = None if plan is None else plan.algorithm.clip_norm
    if norm is None and not clipped:
        return ""
    count = sum(o.outcome in ("answered", "carried") for o in trained)
    share = f" ({clipped / count:.0%})" if count else ""
    length = "the plan's clip norm" if norm is None else f"a Euclidean length of {norm:g}"
    if any(r.clip_norm is not None for r in result.rounds):
        length = "the clip norm of their round"
    return f"{clipped:,} of {count:,} updates{share} were shortened to {length}"


def round_table(result: Result, metric: str) -> dict[str, Any]:
    """A row a round; of very many rounds, evenly spread ones."""
    shown = evenly(len(result.rounds), MOST_ROUND_ROWS)
    notes = []
    if hidden := len(result.rounds) - len(shown):
        notes.append(f"{plural(hidden, 'more round')}, in result.json.")
    traffic = any(r.bytes_down or r.bytes_up for r in result.rounds)
    adapts = any(r.clip_norm is not None for r in result.rounds)
    late = any(late_words(r) for r in result.rounds)
    head = ("round", "asked", "answered", "missing, and why",
            *(("waited for, carried over",) if late else ()), metric_words.label(metric),
            "train loss", *(("clip norm",) if adapts else ()), "update norm", "time", "deadline",
            *(("down", "up") if traffic else ()))  # fmt: skip
    rows = [
        _round_row(result.rounds[index], metric, adapts=adapts, late=late)[: len(head)]
        for index in shown
    ]
    return {"round_head": head, "round_rows": rows, "round_notes": notes}


def _round_row(round_: RoundResult, metric: str, *, adapts: bool, late: bool) -> tuple[str, ...]:
    """The bytes stand last: a simulation, where nothing travels, leaves them out."""
    return (
        str(round_.round) if round_.round else "0 (start)",
        f"{len(round_.asked):,}",
        f"{len(round_.answered):,}",
        missing_words(round_.missing) or ("none" if round_.asked else number(None)),
        *((late_words(round_) or "none",) if late else ()),
        number(round_.pooled.get(metric)),
        number(round_.train_loss),
        *((_clip_cell(round_.clip_norm),) if adapts else ()),
        number(round_.update_norm),
        in_time(round_.seconds),
        number(None) if round_.deadline_seconds is None else in_time(round_.deadline_seconds),
        in_bytes(round_.bytes_down),
        in_bytes(round_.bytes_up),
    )


def _clip_cell(clip_norm: float | None) -> str:
    return number(None) if clip_norm is None else f"{clip_norm:.3g}"


def absences(result: Result) -> dict[str, Any]:
    """A sentence for each site and reason, or a row for each reason; then the skipped files."""
    rounds: dict[tuple[str, Absence], list[int]] = {}
    for round_ in result.rounds:
        missing = round_.missing
        for site, outcome in round_.outcomes.items():
            if site in missing:
                rounds.setdefault((site, _absence(outcome)), []).append(round_.round)
    told = [f"{s[0].upper()}{s[1:]}." for s in quarantine_sentences(result.rounds)]
    told += _skipped(result)
    if len(rounds) > MOST_SENTENCES:
        return {"faults": told, "absence_rows": _absence_rows(rounds)}
    sentences = []
    for (site, absence), numbers in sorted(rounds.items()):
        what, why = _absence_words(absence)
        sentences.append(f"Site {site}: {what} {round_words(numbers)}: {why}.")
    return {"faults": sentences + told, "absence_rows": []}


def _absence(outcome: SiteOutcome) -> Absence:
    return (outcome.outcome, outcome.code, outcome.stage)


def _absence_words(absence: Absence) -> tuple[str, str]:
    outcome, code, stage = absence
    words = {
        "late": "it had not answered at the deadline",
        "quarantined": "its update was unlike those of the other sites",
    }.get(outcome, "no reason is known")
    coded = f" [{code}]" if code else ""
    return outcome + (f" while {stage}" if stage else ""), REASON_CODES.get(code, words) + coded


def _absence_rows(rounds: dict[tuple[str, Absence], list[int]]) -> list[tuple[str, ...]]:
    """What, times, sites, in which rounds, why, which sites; the most frequent first."""
    sites: dict[Absence, list[str]] = {}
    numbers: dict[Absence, list[int]] = {}
    for (site, absence), when in sorted(rounds.items()):
        sites.setdefault(absence, []).append(site)
        numbers.setdefault(absence, []).extend(when)
    rows: list[tuple[str, ...]] = []
    for absence in sorted(sites, key=lambda a: (-len(numbers[a]), a)):
        what, why = _absence_words(absence)
        rows.append((
            what, f"{len(numbers[absence]):,}", f"{len(sites[absence]):,}",
            round_span(numbers[absence]), why, name_few(sites[absence]),
        ))  # fmt: skip
    return rows


def _skipped(result: Result) -> list[str]:
    with_bad = [s for s in result.sites if s.num_bad_files]
    if len(with_bad) <= MOST_NAMED_SITES:
        return [
            f"Site {s.name}: {plural(s.num_bad_files, 'file')} could not be read and "
            f"{'was' if s.num_bad_files == 1 else 'were'} skipped; the site's own report names "
            f"{'it' if s.num_bad_files == 1 else 'them'} by hashed id."
            for s in with_bad
        ]
    most = sorted(with_bad, key=lambda s: (-s.num_bad_files, s.name))
    total = sum(s.num_bad_files for s in with_bad)
    return [
        f"{total:,} files of {len(with_bad):,} sites could not be read and were skipped, most at "
        f"{name_few([f'{s.name} ({s.num_bad_files:,})' for s in most])}; each site's own report "
        "names them by hashed id."
    ]


def metric_table(result: Result) -> dict[str, Any]:
    """Every metric of the final model: at each site, or of many sites their quantiles."""
    final = result.final_sites
    every = dict.fromkeys(n for m in (result.final_metrics, *final.values()) for n in m)
    names = [name for name in every if not subgroup_of(name)[1]]  # they have tables of their own
    head: tuple[str, ...] = ("metric", "pooled", *sorted(final))
    cells = [[metric_words.value(final[site], n) for site in sorted(final)] for n in names]
    note = "Pooled over all sites, and at each site"
    if len(final) > MOST_SITE_ROWS:
        head = ("metric", "pooled", "lowest", "10 %", "median", "90 %", "highest", "sites with it")
        cells = [_quantiles(n, [m.get(n) for m in final.values()]) for n in names]
        note = f"Pooled over all sites, and quantiles over {len(final):,} sites"
    rows = [
        (metric_words.label(n), metric_words.value(result.final_metrics, n), *site_cells)
        for n, site_cells in zip(names, cells, strict=True)
    ]
    return {"metric_head": head, "metric_rows": rows, "metric_caption": note}


def _quantiles(name: str, values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return [number(None)] * 5 + ["0"]
    ends = np.quantile(known, (0, 0.1, 0.5, 0.9, 1)).tolist()
    return [*(metric_words.value({name: end}, name) for end in ends), f"{len(known):,}"]


def manifest_table(result: Result) -> dict[str, Any]:
    """Hashes of the frozen data sets; of many sites, of the first ones."""
    told = [s for s in result.sites if s.manifest_sha256]
    shown = result.sites if len(result.sites) <= MOST_SITE_ROWS else told[:MOST_SITE_ROWS]
    hidden = len(result.sites) - len(shown)
    rows = [(s.name, s.manifest_sha256 or number(None)) for s in shown] if told else []
    note = f"{plural(hidden, 'more site')}, in result.json." if hidden else ""
    return {"manifest_rows": rows, "manifest_note": note}
