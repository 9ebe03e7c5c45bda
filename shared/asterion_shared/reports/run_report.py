"""``report.html``: a run's result as one page that a physician can read, with nothing to fetch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import REASON_CODES
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.reports import metric_words
from asterion_shared.reports.charts import Points, Series, site_series
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.report_page import (
    band,
    chart,
    embed,
    interval,
    lowest_site,
    plural,
    write_page,
)
from asterion_shared.result import Metrics, Result, RoundResult, headline, round_words

_CARRIERS = {
    "flower": "a live federation: every site trained on its own machine",
    "simulation": "a simulation: all sites on one machine",
}
_PRIVACY_NOTES = {
    "flower": "Data, file names and pictures stay at the sites. What left each site: the change of "
    "the weights, counts, metrics as sums, and codes. A change of weights in clear can tell "
    "something about the data behind it.",
    "simulation": "All data of a simulation lie on one machine; nothing travelled.",
}


def write_report(
    result: Result,
    path: Path,
    *,
    plan: Plan | None = None,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write the coordinator's or the simulation's report as one self-contained page.

    Args:
        result: what the run did.
        path: the HTML file; replaced atomically.
        plan: shown as TOML, when given.
        pictures: examples; only where the images already are, that is in a simulation.

    Raises:
        ValueError: pictures are given for a live run, whose coordinator must hold none.
        PlanMismatchError: the plan is not the one of the result.
        DiskProblemError: the disk is full or not writable.
    """
    if result.carrier == "flower" and pictures:
        msg = (
            f"{len(pictures)} pictures are given for the report of a live run (carrier 'flower'); "
            "leave them out: the images of a live run stay at the sites"
        )
        raise ValueError(msg)
    if plan is not None and plan.sha256 != result.plan_sha256:
        msg = (
            f"the plan {plan.name!r} has SHA-256 {plan.sha256[:12]}..., the result is of "
            f"{result.plan_sha256[:12]}...; give the plan that the run was started with"
        )
        raise PlanMismatchError(msg)
    write_page(path, "report.html.j2", _page(result, plan, pictures))


def _page(result: Result, plan: Plan | None, pictures: Sequence[Picture]) -> dict[str, Any]:
    metric = metric_words.headline_metric(result.task)
    said = headline(result)
    whole = result.status == "finished" and not any(r.missing for r in result.rounds)
    return {
        "title": f"{result.name}: {said}",
        "kicker": f"{result.task}, {_CARRIERS[result.carrier]}",
        "name": result.name,
        "headline": said,
        "status": result.status.replace("_", " "),
        "status_class": "" if whole else "partial" if result.status == "finished" else "lost",
        "summary": _summary(result, metric),
        "cards": _cards(result, metric),
        "metric_label": metric_words.label(metric),
        "headline_chart": _headline_chart(result, metric),
        "loss_chart": _loss_chart(result),
        "seconds_chart": _seconds_chart(result),
        **_site_table(result, metric),
        "pictures": embed(pictures),
        "round_head": ("round", "asked", "answered", "missing, and why", metric_words.label(metric),
                       "train loss", "update norm", "time", "down", "up"),
        "round_rows": [_round_row(r, metric) for r in result.rounds],
        "faults": _faults(result),
        "privacy": result.privacy[:1].upper() + result.privacy[1:],
        "privacy_note": _PRIVACY_NOTES[result.carrier],
        "facts": _facts(result),
        **_metric_table(result),
        "manifest_rows": [(s.name, s.manifest_sha256 or number(None)) for s in result.sites],
        "plan_toml": plan_to_toml(plan) if plan else "",
    }  # fmt: skip


def _summary(result: Result, metric: str) -> list[str]:
    value = result.final_metrics.get(metric)
    num_test = sum(site.num_test for site in result.sites if site.name in result.final_sites)
    if value is None:
        return [f"No {metric_words.label(metric)} of a final model was measured in this run."]
    bounds = interval(result.final_metrics, metric)
    spread = f" (95 % interval {bounds})" if bounds != number(None) else ""
    label = metric_words.label(metric)
    sentences = [
        f"The final model reaches a pooled {label} of {number(value)}{spread} on {num_test:,} "
        f"held-out examples of {plural(len(result.final_sites), 'site')}."
    ]
    if meaning := metric_words.meaning(metric):
        sentences[0] += f" {label} says {meaning}."
    baseline = result.final_metrics.get(f"baseline/{metric}")
    if baseline is not None:
        sides = "above" if value > baseline else "NOT above"
        sentences.append(
            f"This is {sides} the trivial baseline of {number(baseline)}, which is "
            f"{metric_words.baseline_words(result.task)}."
        )
    unseen = [site.name for site in result.sites if site.name not in result.final_sites]
    if unseen:
        sentences.append(f"Not in these numbers, for want of an answer: {', '.join(unseen)}.")
    lowest = lowest_site(result.final_sites, metric)
    if lowest and len(result.final_sites) > 1:
        sentences.append(f"The site with the lowest {label} is {lowest[0]} ({number(lowest[1])}).")
    return sentences


def _cards(result: Result, metric: str) -> list[dict[str, str]]:
    baseline = result.final_metrics.get(f"baseline/{metric}")
    seconds = sum(r.seconds for r in result.rounds)
    down, up = (sum(getattr(r, f"bytes_{way}") for r in result.rounds) for way in ("down", "up"))
    trained = [r for r in result.rounds if r.round > 0 and r.answered]
    skipped = sum(s.num_bad_files for s in result.sites)
    cards = [
        (f"pooled {metric_words.label(metric)}", number(result.final_metrics.get(metric)),
         f"baseline {number(baseline)}"),
        ("rounds", f"{len(trained)} of {result.rounds_planned}", in_time(seconds))
        if result.kind == "train" else ("time", in_time(seconds), result.kind),
        ("sites", str(len(result.sites)), f"{plural(skipped, 'file')} skipped"),
        ("training examples", f"{sum(s.num_examples for s in result.sites):,}",
         f"{sum(s.num_test for s in result.sites):,} held out for testing"),
    ]  # fmt: skip
    if down or up:
        cards.append(("traffic", in_bytes(down + up), f"{in_bytes(down)} down, {in_bytes(up)} up"))
    return [{"what": what, "value": value, "more": more} for what, value, more in cards]


def _site_names(result: Result) -> list[str]:
    named = {s.name for s in result.sites} | {name for r in result.rounds for name in r.sites}
    return sorted(named)


def _headline_chart(result: Result, metric: str) -> dict[str, Any]:
    measured = [r for r in result.rounds if r.pooled or r.sites]

    def points(name: str) -> Points:
        return [(r.round, r.sites.get(name, {}).get(metric)) for r in measured]

    baseline = result.final_metrics.get(f"baseline/{metric}")
    return chart(
        Series(name="pooled", points=[(r.round, r.pooled.get(metric)) for r in measured]),
        site_series((name, points(name)) for name in _site_names(result)),
        title=f"{metric_words.label(metric)} by round, pooled and by site",
        baseline=baseline,
        baseline_name=f"baseline: {metric_words.baseline_words(result.task)}"
        if baseline is not None
        else "",
        band=band(((r.round, r.pooled) for r in measured), metric),
        floor=0.0,
        ceiling=1.0,
    )


def _by_outcome(result: Result, name: str, what: str) -> Points:
    return [
        (r.round, getattr(r.outcomes[name], what) if name in r.answered else None)
        for r in result.rounds
        if r.round > 0
    ]


def _loss_chart(result: Result) -> dict[str, Any]:
    mean = [(r.round, r.train_loss) for r in result.rounds if r.round > 0]
    names = _site_names(result)
    sites = site_series((name, _by_outcome(result, name, "train_loss")) for name in names)
    return chart(Series(name="all sites", points=mean), sites, title="Training loss by round")


def _seconds_chart(result: Result) -> dict[str, Any]:
    whole = [(r.round, r.seconds) for r in result.rounds if r.round > 0]
    names = _site_names(result)
    sites = site_series((name, _by_outcome(result, name, "seconds")) for name in names)
    title = "Seconds by round: the whole round, and the work at each site"
    pooled = Series(name="whole round", points=whole)
    return (
        chart(pooled, sites, title=title, from_zero=True) if whole else chart(None, [], title=title)
    )


def _site_table(result: Result, metric: str) -> dict[str, Any]:
    final = result.final_sites
    others = [
        name
        for name in metric_words.secondary_metrics(result.task)
        if any(name in m for m in (*final.values(), result.final_metrics))
    ]

    def cells(metrics: Metrics) -> list[str]:
        main = [number(metrics.get(metric)), number(metrics.get(f"baseline/{metric}"))]
        return [*main, interval(metrics, metric), *(number(metrics.get(name)) for name in others)]

    def part(name: str) -> str:
        asked = [r for r in result.rounds if r.round > 0 and name in r.asked]
        return f"{sum(name in r.answered for r in asked)} of {len(asked)}"

    rows = [
        (s.name, f"{s.num_examples:,}", f"{s.num_test:,}", *cells(final.get(s.name, {})),
         part(s.name), str(s.num_bad_files))
        for s in result.sites
    ]  # fmt: skip
    num_test = sum(s.num_test for s in result.sites if s.name in final)
    rows.append((
        "pooled", f"{sum(s.num_examples for s in result.sites):,}",
        f"{num_test:,}", *cells(result.final_metrics),
        "", str(sum(s.num_bad_files for s in result.sites)),
    ))  # fmt: skip
    bound = result.final_metrics.get(f"{metric}_bound")
    note = (
        f"{metric_words.label(metric)} is formed from histograms that add over sites; that moves "
        f"the pooled value by at most {number(bound, digits=4)}."
        if bound is not None
        else ""
    )
    measured = [metric_words.label(metric), "baseline", "95 % interval"]
    measured += [metric_words.label(name) for name in others]
    head = ("site", "training", "test", *measured, "answered", "files skipped")
    return {"site_head": head, "site_rows": rows, "site_total": True, "site_note": note}


def _round_row(round_: RoundResult, metric: str) -> tuple[str, ...]:
    missing = [f"{site} ({reason.replace('_', ' ')})" for site, reason in round_.missing.items()]
    return (
        str(round_.round) if round_.round else "0 (start)",
        str(len(round_.asked)),
        str(len(round_.answered)),
        ", ".join(missing) or ("none" if round_.asked else number(None)),
        number(round_.pooled.get(metric)),
        number(round_.train_loss),
        number(round_.update_norm),
        in_time(round_.seconds),
        in_bytes(round_.bytes_down),
        in_bytes(round_.bytes_up),
    )


def _faults(result: Result) -> list[str]:
    """One sentence for each site and reason, with the rounds; then the skipped files."""
    rounds: dict[tuple[str, str, str, str], list[int]] = {}
    for round_ in result.rounds:
        for site, o in sorted(round_.outcomes.items()):
            if o.outcome != "answered":
                rounds.setdefault((site, o.outcome, o.code, o.stage), []).append(round_.round)
    sentences = []
    for (site, outcome, code, stage), numbers in sorted(rounds.items()):
        while_ = f" while {stage}" if stage else ""
        words = "it had not answered at the deadline" if outcome == "late" else "no reason is known"
        why = REASON_CODES.get(code, words)
        coded = f" [{code}]" if code else ""
        when = round_words(numbers)
        sentences.append(f"Site {site}: {outcome}{while_} {when}: {why}{coded}.")
    return sentences + [
        f"Site {s.name}: {plural(s.num_bad_files, 'file')} could not be read and "
        f"{'was' if s.num_bad_files == 1 else 'were'} skipped; the site's own report names "
        f"{'it' if s.num_bad_files == 1 else 'them'} by hashed id."
        for s in result.sites
        if s.num_bad_files
    ]


def _facts(result: Result) -> list[tuple[str, str]]:
    model = result.final_model
    return [
        ("run", result.run),
        ("plan SHA-256", result.plan_sha256),
        ("final model", f"{model.path}, SHA-256 {model.sha256}" if model else "none"),
        ("started", result.started),
        ("finished", result.finished),
        ("carrier", result.carrier),
        ("versions", ", ".join(f"{name} {v}" for name, v in sorted(result.versions.items()))),
        ("result schema", f"version {result.schema_version}"),
    ]


def _metric_table(result: Result) -> dict[str, Any]:
    final = result.final_sites
    columns = [result.final_metrics, *(final[site] for site in sorted(final))]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(metric_words.label(n), *(number(column.get(n)) for column in columns)) for n in names]
    return {"metric_head": ("metric", "pooled", *sorted(final)), "metric_rows": rows}
