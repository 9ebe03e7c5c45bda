"""``report.html``: a run's result as one page that a physician can read, with nothing to fetch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asterion_shared.bracket_result import Bracket
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import PrivacyAccount, epsilon_words
from asterion_shared.reports import metric_words
from asterion_shared.reports.audit_section import audit_section
from asterion_shared.reports.decision_table import decision_section
from asterion_shared.reports.many_sites import name_few
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.reliability_chart import calibration_section
from asterion_shared.reports.report_page import (
    embed,
    interval,
    lowest_site,
    num_tested,
    plural,
    told,
    write_page,
)
from asterion_shared.reports.run_charts import (
    MOST_LINES,
    headline_chart,
    loss_chart,
    seconds_chart,
)
from asterion_shared.reports.run_tables import (
    absences,
    clip_words,
    manifest_table,
    metric_table,
    round_table,
    site_table,
)
from asterion_shared.reports.simulation_words import how_simulated
from asterion_shared.reports.subgroup_tables import subgroup_tables
from asterion_shared.reports.trained_otherwise import otherwise_section
from asterion_shared.reports.usability import not_usable
from asterion_shared.result import BestModel, Metrics, Result, headline

_CARRIERS = {
    "link": "a live federation: every site trained on its own machine",
    "flower": "a live federation over stock Flower: every site trained on its own machine",
    "simulation": "a simulation: all sites on one machine",
}
BROKEN = (
    "Do not trust this model with anything private: an attack on the code that should protect the "
    "data shows more than the epsilon that is claimed. See Privacy below."
)
_PRIVACY_NOTES = {
    "live": "Data, file names and pictures stay at the sites. What left each site: the change of "
    "the weights, counts, metrics as sums, and codes. A change of weights that is not noised can "
    "tell something about the data behind it.",
    "secure sum": "Data, file names and pictures stay at the sites. What left each site: a masked "
    "vector, of which the coordinator learns the sum over the sites alone, and codes.",
    "simulation": "All data of a simulation lie on one machine; nothing travelled.",
}


def write_report(
    result: Result,
    path: Path,
    *,
    plan: Plan | None = None,
    pictures: Sequence[Picture] = (),
    bracket: Bracket | None = None,
) -> None:
    """Write the coordinator's or the simulation's report as one self-contained page.

    Args:
        result: what the run did.
        path: the HTML file; replaced atomically.
        plan: shown as TOML, when given.
        pictures: examples; only where the images already are, that is in a simulation.
        bracket: the same plan trained alone and pooled; its numbers stand beside the run's.

    Raises:
        ValueError: pictures are given for a live run, whose coordinator must hold none.
        PlanMismatchError: the plan is not the one of the result, or the bracket is of another plan
            or of other records.
        UserInputError: a bracket is given for a run without metrics by site.
        DiskProblemError: the disk is full or not writable.
    """
    if result.is_live and pictures:
        msg = (
            f"{len(pictures)} pictures are given for the report of a live run (carrier "
            f"{result.carrier!r}); "
            "leave them out: the images of a live run stay at the sites"
        )
        raise ValueError(msg)
    if plan is not None and plan.sha256 != result.plan_sha256:
        msg = (
            f"the plan {plan.name!r} has SHA-256 {plan.sha256[:12]}..., the result is of "
            f"{result.plan_sha256[:12]}...; give the plan that the run was started with"
        )
        raise PlanMismatchError(msg)
    write_page(path, "report.html.j2", _page(result, plan, pictures, bracket))


def _page(
    result: Result, plan: Plan | None, pictures: Sequence[Picture], bracket: Bracket | None
) -> dict[str, Any]:
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
        "headline_chart": headline_chart(result, metric),
        "loss_chart": loss_chart(result),
        "seconds_chart": seconds_chart(result),
        **site_table(result, metric, plan),
        "subgroup_tables": subgroup_tables(result, plan),
        **otherwise_section(result, bracket),
        **calibration_section(result),
        **decision_section(result),
        "pictures": embed(pictures),
        **round_table(result, metric),
        **absences(result),
        "simulated": how_simulated(result, clip_words(result, plan)),
        "privacy": result.privacy[:1].upper() + result.privacy[1:],
        "privacy_note": _PRIVACY_NOTES[
            "simulation" if not result.is_live else "secure sum" if result.secure_sum else "live"
        ],
        "nobody_asked": result.status != "finished" and not result.rounds,
        "secure_sum": result.secure_sum,
        "account": result.privacy_account,
        "account_rows": _account_rows(result.privacy_account),
        **audit_section(result),
        "facts": _facts(result),
        **metric_table(result),
        **manifest_table(result),
        "plan_toml": plan_to_toml(plan) if plan else "",
    }


def _summary(result: Result, metric: str) -> list[str]:
    if result.claim_broken:
        return [BROKEN, *_measured_summary(result, metric)]
    return _measured_summary(result, metric)


def _measured_summary(result: Result, metric: str) -> list[str]:
    value, final = result.final_metrics.get(metric), result.final_sites
    if value is None:
        return [f"No {metric_words.label(metric)} of a final model was measured in this run."]
    bounds = interval(result.final_metrics, metric)
    spread = f" (95 % interval {bounds})" if bounds != number(None) else ""
    label = metric_words.label(metric)
    who = "the sites of the last sum" if result.secure_sum else plural(len(final), "site")
    sentences = [
        f"The final model reaches a pooled {label} of {number(value)}{spread} on "
        f"{plural(num_tested(result), 'held-out example')} of {who}."
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
    if warning := not_usable(result):
        sentences.append(warning)
    if result.secure_sum:
        sentences.append("What it reaches at each site is known to that site alone: secure sum.")
    unseen = [site.name for site in result.sites if site.name not in final]
    if unseen and not result.secure_sum:
        sentences.append(f"Not in these numbers, for want of an answer: {name_few(unseen)}.")
    return sentences + _site_sentences(final, metric)


def _site_sentences(final: Mapping[str, Metrics], metric: str) -> list[str]:
    """Where the sites lie: the lowest; of many, the quantiles."""
    label, lowest = metric_words.label(metric), lowest_site(final, metric)
    if lowest is None or len(final) < 2:
        return []
    if len(final) <= MOST_LINES:
        return [f"The site with the lowest {label} is {lowest[0]} ({number(lowest[1])})."]
    known = [value for m in final.values() if (value := m.get(metric)) is not None]
    tenth, median = (number(q) for q in np.quantile(known, (0.1, 0.5)).tolist())
    return [
        f"Over the {len(known):,} sites with a value the median {label} is {median}; one in ten "
        f"is at {tenth} or below, and the lowest is {lowest[0]} ({number(lowest[1])})."
    ]


def _cards(result: Result, metric: str) -> list[dict[str, str]]:
    baseline = result.final_metrics.get(f"baseline/{metric}")
    seconds = sum(r.seconds for r in result.rounds)
    down, up = (sum(getattr(r, f"bytes_{way}") for r in result.rounds) for way in ("down", "up"))
    skipped = sum(s.num_bad_files for s in result.sites)
    cards = [
        (f"pooled {metric_words.label(metric)}", number(result.final_metrics.get(metric)),
         f"baseline {number(baseline)}"),
        ("rounds", f"{result.num_finished} of {result.rounds_planned}", in_time(seconds))
        if result.kind == "train" else ("time", in_time(seconds), result.kind),
        ("sites", f"{len(result.sites):,}", "sums alone are known" if result.secure_sum
         else f"{plural(skipped, 'file')} skipped"),
        ("training examples", told(result, sum(s.num_examples for s in result.sites)),
         f"{num_tested(result):,} in the last sum" if result.secure_sum
         else f"{sum(s.num_test for s in result.sites):,} held out for testing"),
    ]  # fmt: skip
    if down or up:
        cards.append(("traffic", in_bytes(down + up), f"{in_bytes(down)} down, {in_bytes(up)} up"))
    return [{"what": what, "value": value, "more": more} for what, value, more in cards]


def _account_rows(account: PrivacyAccount | None) -> list[tuple[str, ...]]:
    if account is None:
        return []
    return [
        (site, str(times), epsilon_words(account.epsilons[site]))
        for site, times in account.rounds.items()
    ]


def _facts(result: Result) -> list[tuple[str, str]]:
    return [
        ("run", result.run),
        ("plan SHA-256", result.plan_sha256),
        ("final model", _model_words(result)),
        *([("best model", _best_words(result, result.best_model))] if result.best_model else []),
        ("started", result.started),
        ("finished", result.finished),
        ("carrier", result.carrier),
        ("versions", ", ".join(f"{name} {v}" for name, v in sorted(result.versions.items()))),
        ("result schema", f"version {result.schema_version}"),
    ]


def _model_words(result: Result) -> str:
    model = result.final_model
    if model is None:
        return "none"
    words = f"{model.path}, SHA-256 {model.sha256}"
    return f"{words}; kept, but not to be trusted" if result.claim_broken else words


def _best_words(result: Result, best: BestModel) -> str:
    value = f"pooled {metric_words.label(best.metric)} {number(best.value)}"
    if result.final_model is not None and best.path == result.final_model.path:
        return f"the final one, {value}"
    when = f"after round {best.round}" if best.round else "the untrained start"
    return f"{best.path}, {when}, {value}, SHA-256 {best.sha256}"
