"""A bracket as one page that a physician can read, with nothing to fetch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterion_shared.bracket_result import Bracket, Over, SiteBracket, Verdict
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.reports import metric_words
from asterion_shared.reports.bracket_charts import (
    Band,
    Dumbbell,
    Spot,
    band_chart,
    dumbbell_chart,
    heat_cells,
)
from asterion_shared.reports.charts import Series
from asterion_shared.reports.estimate_words import (
    VERDICT_WORDS,
    difference,
    interval,
    with_interval,
)
from asterion_shared.reports.metric_words import number, signed
from asterion_shared.reports.report_page import plural, write_page
from asterion_sim.bracket_words import algorithm_words, listed, percent, percent_interval

_OWN, _TOGETHER, _POOLED = "site1", "site0", "site2"
"""Styles of the three models, the same in all charts."""

_OTHERS = ("site3", "site4", "site5")
"""Styles of the further algorithms' curves."""

_COLOURS: dict[Verdict, str] = {
    "helps": "good", "neutral": "muted", "hurts": "bad", "undefined": "muted",
}  # fmt: skip
_FEW_UNITS = 20


def write_bracket_report(bracket: Bracket, plan: Plan, path: Path) -> None:
    """Write the page, with nothing to fetch from elsewhere.

    Args:
        bracket: what is shown; its first algorithm is the one the sentences are about.
        plan: shown as TOML.
        path: the HTML file; replaced atomically.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    write_page(path, "bracket.html.j2", _page(bracket, plan))


def _page(bracket: Bracket, plan: Plan) -> dict[str, Any]:
    main, label = bracket.algorithms[0], metric_words.label(bracket.metric)
    verdicts = _by_verdict(bracket, main)
    return {
        "title": f"{bracket.name}: does federation help?",
        "kicker": f"{bracket.task}, does training together help each site? A simulation",
        "name": bracket.name,
        "headline": _headline(bracket, main),
        "status": "helps" if verdicts["helps"] and not verdicts["hurts"]
        else "hurts" if verdicts["hurts"] and not verdicts["helps"]
        else "mixed" if verdicts["helps"] else "no clear difference",
        "status_class": "lost" if verdicts["hurts"] and not verdicts["helps"]
        else "" if verdicts["helps"] and not verdicts["hurts"] else "partial",
        "summary": _summary(bracket, main),
        "cards": _cards(bracket, main),
        "metric_label": label,
        "dumbbell_note": f"{label} on each site's held-out cases, {algorithm_words(main)}. Lines "
        "are 95 % intervals; the thick bar leads from the site's own model to the model trained "
        "together. Further right is better. At the right: whether training together helps, from "
        "the interval of the paired difference (the lines of two models may overlap and the "
        "difference still be clear).",
        "dumbbell_legend": [
            Series(name="own: the site trained alone", points=(), style=_OWN),
            Series(name="trained together (federated)", points=(), style=_TOGETHER),
            Series(name="pooled: all data in one place", points=(), style=_POOLED),
        ],
        "dumbbells": _dumbbells(bracket, main, label),
        "site_head": ("site", "training together", "cases: training, held out", "own model",
                      "together", "difference (95 % interval)", "pooled"),
        "site_rows": _site_rows(bracket, main),
        "site_caption": f"{label} with {algorithm_words(main)}: the model trained together minus "
        "the site's own",
        "verdict_note": "helps: the whole 95 % interval of the difference lies above 0; hurts: "
        "below 0; no clear difference: 0 is inside, which is not a proof that there is none.",
        "other_algorithms": [
            {"name": algorithm_words(text), "rows": _site_rows(bracket, text),
             "caption": f"{label} with {algorithm_words(text)}"}
            for text in bracket.algorithms[1:]
        ],
        **_overall_table(bracket, label),
        **_left_out_table(bracket, label),
        **_curves(bracket, label, plan.local.unit),
        **_heat(bracket),
        "equal_work": bracket.equal_work,
        "arm_rows": _arm_rows(bracket),
        "resampled": bracket.resampled,
        "cautions": _cautions(bracket),
        "facts": _facts(bracket),
        "plan_toml": plan_to_toml(plan),
    }  # fmt: skip


def _by_verdict(bracket: Bracket, text: str) -> dict[Verdict, list[str]]:
    found: dict[Verdict, list[str]] = {verdict: [] for verdict in VERDICT_WORDS}
    for site in bracket.sites:
        found[site.versus_own[text].verdict].append(site.name)
    return found


def _headline(bracket: Bracket, text: str) -> str:
    found, total = _by_verdict(bracket, text), len(bracket.sites)
    parts = [f"training together helps {len(found['helps'])} of {plural(total, 'site')}"]
    parts.append(f"hurts {len(found['hurts']) or 'none'}")
    if found["neutral"]:
        parts.append(f"makes no clear difference at {len(found['neutral'])}")
    if found["undefined"]:
        parts.append(f"cannot be judged at {len(found['undefined'])}")
    return ", ".join(parts)


def _summary(bracket: Bracket, text: str) -> list[str]:
    label, overall = metric_words.label(bracket.metric), bracket.overall
    found = _by_verdict(bracket, text)
    sentences = [
        f"Each site could train alone, or all sites could train one model together without "
        f"moving their data. Both were done here with the same amount of local work, "
        f"{plural(len(bracket.seeds), 'time')}, each from another random start."
    ]
    said: dict[Verdict, str] = {
        "helps": "is better than the site's own model at",
        "hurts": "is worse than the site's own model at",
        "neutral": "cannot be told from the site's own model at",
        "undefined": "cannot be compared at",
    }
    parts = [f"{words} {listed(found[verdict])}" for verdict, words in said.items()
             if found[verdict]]  # fmt: skip
    sentences.append(f"The model trained together, {algorithm_words(text)}, {'; it '.join(parts)}.")
    share = overall.share_of_pooled[text]
    sentences.append(
        f"It reaches {percent(share)} of what one model trained on all data in one place "
        f"reaches ({number(overall.federated[text][bracket.over].value)} against "
        f"{number(overall.pooled[bracket.over].value)}, {bracket.over}), which hospitals or "
        "observatories that cannot share data could not train."
    )
    enough = [
        site.name
        for site in bracket.sites
        if site.own.value is not None
        and site.pooled.value is not None
        and site.own.value >= site.pooled.value
    ]
    if enough:
        sentences.append(
            f"At {listed(enough)} the pooled model is not above the site's own either: one common "
            "model, however it is trained, has little to give there."
        )
    if meaning := metric_words.meaning(bracket.metric):
        sentences.append(f"{label} says {meaning}.")
    if bracket.refused:
        refused = ", ".join(f"{name} ({code})" for name, code in bracket.refused.items())
        sentences.append(f"Not in these numbers: {refused}.")
    return sentences


def _cards(bracket: Bracket, text: str) -> list[dict[str, str]]:
    overall, label = bracket.overall, metric_words.label(bracket.metric)
    together, pooled = overall.federated[text][bracket.over], overall.pooled[bracket.over]
    gain = overall.gain_over_own[text]
    cards = [
        (f"together, {label}", number(together.value), f"{interval(together)}, {bracket.over}"),
        (f"pooled, {label}", number(pooled.value), f"{interval(pooled)}, {bracket.over}"),
        ("together over pooled", percent(overall.share_of_pooled[text], interval=False),
         percent_interval(overall.share_of_pooled[text])),
        ("gain over own models", signed(gain.difference.value),
         f"{signed(gain.difference.low)} to {signed(gain.difference.high)}, mean of sites"),
        ("repetitions", str(len(bracket.seeds)), f"{len(bracket.sites)} sites, "
         f"{sum(site.num_test for site in bracket.sites):,} held-out cases"),
    ]  # fmt: skip
    return [{"what": what, "value": value, "more": more} for what, value, more in cards]


def _dumbbells(bracket: Bracket, text: str, label: str) -> Any:
    rows = []
    for site in bracket.sites:
        spots = [
            (style, Spot(value=one.value, low=one.low, high=one.high))
            for style, one in ((_OWN, site.own), (_TOGETHER, site.federated[text]),
                               (_POOLED, site.pooled))
            if one.value is not None
        ]  # fmt: skip
        verdict = site.versus_own[text].verdict
        rows.append(
            Dumbbell(
                name=site.name,
                spots=spots,
                verdict={"neutral": "unclear", "undefined": "unknown"}.get(verdict, verdict),
                verdict_class=_COLOURS[verdict],
            )
        )
    return dumbbell_chart(rows, title=f"{label} at each site by way of training", x_label=label)


def _site_rows(bracket: Bracket, text: str) -> list[tuple[str, ...]]:
    return [_site_row(site, text) for site in bracket.sites]


def _site_row(site: SiteBracket, text: str) -> tuple[str, ...]:
    comparison = site.versus_own[text]
    return (
        site.name,
        VERDICT_WORDS[comparison.verdict],
        f"{site.num_train:,}, {site.num_test:,}",
        with_interval(site.own),
        with_interval(site.federated[text]),
        difference(comparison),
        number(site.pooled.value),
    )


def _overall_table(bracket: Bracket, label: str) -> dict[str, Any]:
    overall, dash = bracket.overall, number(None)
    shown: tuple[Over, ...] = ("mean of sites",)
    if bracket.over not in shown:
        shown = (*shown, bracket.over)
    rows: list[tuple[str, ...]] = []
    for text in bracket.algorithms:
        found = _by_verdict(bracket, text)
        rows.append(
            (
                algorithm_words(text),
                *(with_interval(overall.federated[text][over]) for over in shown),
                percent(overall.share_of_pooled[text]).replace(" %", "").replace(" to ", "\u2013"),
                difference(overall.gain_over_own[text]),
                " / ".join(str(len(found[verdict])) for verdict in ("helps", "neutral", "hurts")),
            )
        )
    pooled = (with_interval(overall.pooled[over]) for over in shown)
    rows.append(("pooled", *pooled, "100", dash, dash))
    blanks = (dash,) * (len(shown) + 2)
    rows.append(("each site's own model", with_interval(overall.own), *blanks))
    return {
        "overall_head": ("way of training", *shown, f"% of pooled ({bracket.over})",
                         "gain over own models", "helps / neutral / hurts"),
        "overall_rows": rows,
        "overall_caption": f"{label} on held-out cases, mean over the repetitions (95 % interval)",
    }  # fmt: skip


def _left_out_table(bracket: Bracket, label: str) -> dict[str, Any]:
    rows = [
        (
            site.name,
            f"{algorithm_words(text)}: {VERDICT_WORDS[comparison.verdict]}",
            with_interval(site.own),
            with_interval(site.left_out[text]),
            difference(comparison),
            with_interval(site.federated[text]),
        )
        for text in bracket.algorithms
        for site in bracket.sites
        for comparison in [site.left_out_versus_own.get(text)]
        if comparison is not None
    ]
    return {
        "left_out_head": ("site left out", "the others' model, for it", "own model",
                          "the others' model", "difference (95 % interval)", "with it"),
        "left_out_rows": rows,
        "left_out_caption": f"{label} of the model that the other sites train together, at the "
        "site that took no part, minus that site's own model",
    }  # fmt: skip


def _curves(bracket: Bracket, label: str, unit: str) -> dict[str, Any]:
    federated = [(name, arm) for name, arm in bracket.arms.items() if arm.kind == "federated"]
    styles = (_TOGETHER, *_OTHERS)
    shown = [("pooled", _POOLED, "pooled data")]
    # strict is False: beyond four algorithms the curves would be a tangle
    shown += [(name, style, algorithm_words(arm.algorithm))
              for (name, arm), style in zip(federated, styles, strict=False)]  # fmt: skip
    bands = [
        Band(
            name=said,
            style=style,
            points=[
                (point.work, point.mean, point.low, point.high)
                for point in bracket.arms[name].curve
                if point.mean is not None and point.low is not None and point.high is not None
            ],
        )
        for name, style, said in shown
    ]
    bands = [band for band in bands if band.points]
    return {
        "curves": band_chart(
            bands,
            title=f"{label} over the work done, by way of training",
            x_label=f"{'optimiser steps' if unit == 'steps' else 'passes'} that each site has done",
        ),
        "curve_legend": [band.series for band in bands],
        "curve_note": "Over all held-out cases together. Lines are means over the repetitions, "
        "bands reach from the lowest repetition to the highest. The pooled model has done, at "
        "each point, the steps of all sites together.",
    }


def _heat(bracket: Bracket) -> dict[str, Any]:
    names = {"pooled": "pooled"}
    for name, arm in bracket.arms.items():
        if arm.kind == "federated":
            names[name] = algorithm_words(arm.algorithm)
        elif arm.kind == "alone":
            names[name] = f"{name.removeprefix('alone-')} alone"
    ordered = sorted(bracket.heat_map, key=lambda name: name.startswith("alone-"), reverse=True)
    columns = [site.name for site in bracket.sites]
    rows: Sequence[tuple[str, Mapping[str, float | None], str]] = [
        (names[name], bracket.heat_map[name], name.removeprefix("alone-")) for name in ordered
    ]
    return {
        "heat_columns": columns,
        "heat_rows": heat_cells(rows, columns),
        "heat_note": "Down a column: which model serves that site best. Along a row of a site "
        "alone: how far its model carries elsewhere. Framed: a site's own model at home.",
    }


def _arm_rows(bracket: Bracket) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, arm in bracket.arms.items():
        if arm.kind in ("federated", "pooled") or name == f"alone-{bracket.sites[0].name}":
            said = {"pooled": "pooled", "alone": "each site alone"}.get(
                arm.kind, algorithm_words(arm.algorithm)
            )
            changes = ", ".join(f"{path} = {json.dumps(v)}" for path, v in arm.changes.items())
            steps = sorted(set(arm.steps.values()))
            each = " to ".join(f"{s:,}" for s in (steps[:1] + steps[1:][-1:]))
            where = (
                "" if arm.kind == "pooled" else " at each site" if len(steps) == 1 else " a site"
            )
            rows.append((said, changes or "nothing", str(arm.rounds), each + where))
    return rows


def _cautions(bracket: Bracket) -> list[str]:
    cautions = []
    few = [f"{site.name} ({site.num_units})" for site in bracket.sites
           if site.num_units < _FEW_UNITS]  # fmt: skip
    if few:
        cautions.append(
            f"Few groups are held out at {', '.join(few)}; with so few an interval of this kind "
            "is somewhat too narrow."
        )
    undefined = [f"{site.name} ({count:,})" for site in bracket.sites
                 if (count := max(site.own.num_undefined, site.pooled.num_undefined))]  # fmt: skip
    if undefined:
        cautions.append(
            f"Resamples of {bracket.num_resamples:,} without both classes, where the metric is "
            f"undefined and which the interval leaves out: {', '.join(undefined)}."
        )
    if len(bracket.algorithms) > 1:
        cautions.append(
            f"{len(bracket.algorithms)} algorithms at {len(bracket.sites)} sites are "
            f"{len(bracket.algorithms) * len(bracket.sites)} comparisons, each with its own 95 %: "
            "one in twenty would look clear by chance."
        )
    return cautions


def _facts(bracket: Bracket) -> list[tuple[str, str]]:
    algorithms = " ".join(f"--algorithm {text}" for text in bracket.algorithms)
    left_out = any(arm.kind == "left out" for arm in bracket.arms.values())
    command = (
        f"asterion simulate bracket plan.toml --sites DIR --seeds {len(bracket.seeds)} "
        f"{algorithms}{' --leave-one-site-out' if left_out else ''} --out DIR"
    )
    return [
        ("command", command),
        ("plan SHA-256", bracket.plan_sha256),
        ("seeds", ", ".join(str(seed) for seed in bracket.seeds)),
        ("resamples", f"{bracket.num_resamples:,}"),
        ("bracket schema", f"version {bracket.schema_version}"),
    ]
