"""The section of a run's report that sets its model beside each site's own and a pooled one."""

from typing import Any

from asterion_shared.bracket_result import Bracket, Comparison, SiteBracket
from asterion_shared.errors import PlanMismatchError, UserInputError
from asterion_shared.reports import metric_words
from asterion_shared.reports.estimate_words import VERDICT_WORDS, difference, with_interval
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.report_page import plural
from asterion_shared.result import Metrics, Result

_FIX = "run asterion simulate bracket with the plan and the sites of this run"


def otherwise_section(result: Result, bracket: Bracket | None) -> dict[str, Any]:
    """Each site's own model and the pooled one beside this run's, by site and in the mean.

    Args:
        result: what the run did; its final model is the one that is compared.
        bracket: of the same plan and the same records; None leaves the section out.

    Raises:
        UserInputError: the run has no metrics by site, as under a secure sum.
        PlanMismatchError: the bracket is of another plan, other sites or other records.
    """
    if bracket is None:
        return {"otherwise_rows": []}
    _check_same(result, bracket)
    final, label = result.final_sites, metric_words.label(bracket.metric)
    same = _same_algorithm(bracket)
    rows = [_row(site, final[site.name], bracket, same) for site in bracket.sites]
    known = [v for site in bracket.sites if (v := final[site.name].get(bracket.metric)) is not None]
    mean = sum(known) / len(known) if len(known) == len(bracket.sites) else None
    overall = bracket.overall
    gains = () if same is None else _told(overall.gain_over_own[same])
    rows.append((
        "mean of the sites", number(mean), with_interval(overall.own),
        with_interval(overall.pooled["mean of sites"]), *gains,
    ))  # fmt: skip
    head = ("site", "this run", "the site's own model", "pooled",
            *(() if same is None else ("together minus own", "training together")))  # fmt: skip
    times = plural(len(bracket.seeds), "repetition")
    return {
        "otherwise_head": head,
        "otherwise_rows": rows,
        "otherwise_words": _summary(bracket, mean, label),
        "otherwise_caption": f"{label} on each site's held-out data; all but this run: means over "
        f"{times}, with 95 % intervals",
        "otherwise_notes": _notes(bracket, same, times),
    }


def _check_same(result: Result, bracket: Bracket) -> None:
    if not result.final_sites:
        msg = (
            f"the run {result.run!r} has no metrics by site, which a bracket could stand beside; "
            "leave --bracket out"
        )
        raise UserInputError(msg)
    if bracket.plan_sha256 != result.plan_sha256:
        msg = (
            f"the bracket is of the plan with SHA-256 {bracket.plan_sha256[:12]}..., the run of "
            f"{result.plan_sha256[:12]}...; {_FIX}"
        )
        raise PlanMismatchError(msg)
    there, metric = {site.name for site in bracket.sites}, bracket.metric
    here = {name for name, m in result.final_sites.items() if m.get(metric) is not None}
    if alone := sorted((there - result.final_sites.keys()) | (here - there)):
        where = "bracket" if alone[0] in there else "run"
        msg = f"the model was measured at the site {alone[0]} in the {where} alone; {_FIX}"
        raise PlanMismatchError(msg)
    records = {site.name: (site.manifest_sha256, site.num_examples) for site in result.sites}
    for site in bracket.sites:
        if records[site.name] != (site.manifest_sha256, site.num_train):
            msg = f"the bracket trained on other records of the site {site.name}; {_FIX}"
            raise PlanMismatchError(msg)


def _same_algorithm(bracket: Bracket) -> str | None:
    """The algorithm whose plan is the bracket's own; None where it tried others alone."""
    found = [
        arm.algorithm
        for arm in bracket.arms.values()
        if arm.kind == "federated" and not arm.changes
    ]
    return found[0] if found else None


def _row(
    site: SiteBracket, metrics: Metrics, bracket: Bracket, same: str | None
) -> tuple[str, ...]:
    gains = () if same is None else _told(site.versus_own[same])
    value = number(metrics.get(bracket.metric))
    return (site.name, value, with_interval(site.own), with_interval(site.pooled), *gains)


def _told(one: Comparison) -> tuple[str, str]:
    return difference(one), VERDICT_WORDS[one.verdict]


def _summary(bracket: Bracket, mean: float | None, label: str) -> str:
    pooled = bracket.overall.pooled["mean of sites"].value
    return (
        f"{label}, mean of the sites: {number(mean)} in this run, "
        f"{number(bracket.overall.own.value)} with the models that the sites trained alone, "
        f"{number(pooled)} with one model trained on all data in one place, which sites that "
        "cannot share data could not train."
    )


def _notes(bracket: Bracket, same: str | None, times: str) -> list[str]:
    notes = [bracket.equal_work]
    if same is None:
        notes.append(
            "The bracket did not repeat this plan's own algorithm, so that no difference with an "
            "interval can be told; its own report has those of the algorithms that it tried."
        )
        return notes
    notes.append(
        f"Together minus own is the mean over {times} of training together by this plan. Training "
        "together helps where the whole interval lies above 0 and hurts where it lies below; no "
        "clear difference is no proof that there is none."
    )
    return notes
