"""A curve over epsilon as one page with nothing to fetch, and its chart as a file."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.reports.metric_words import baseline_words, label, number
from asterion_shared.reports.report_page import plural, write_page
from asterion_sim.privacy_curve import PLACEMENT_WORDS, Curve
from asterion_sim.privacy_sweep_chart import sweep_chart
from asterion_sim.privacy_sweep_table import row_of


def write_sweep_page(curve: Curve, plan: Plan, out: Path) -> None:
    """Write ``report.html`` and ``curve.svg``.

    Args:
        curve: what is shown.
        plan: shown as TOML.
        out: folder of the sweep.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    chart = sweep_chart(curve)
    write_atomically(out / "curve.svg", (chart + "\n").encode())
    write_page(out / "report.html", "privacy_sweep.html.j2", _page(curve, plan, chart))


def _page(curve: Curve, plan: Plan, chart: str) -> dict[str, Any]:
    name = label(curve.metric)
    others = list(curve.without.secondary)
    head = ("privacy", "epsilon", "noise multiplier", name, "relative loss, %",
            "trivial baseline", "verdict", *(label(other) for other in others))  # fmt: skip
    rows = [
        (*row_of(curve, point), point.verdict, *(number(point.secondary.get(o)) for o in others))
        for point in (curve.without, *curve.points)
    ]
    return {
        "title": f"{curve.name}: {name} against epsilon",
        "kicker": f"{curve.task}, what privacy costs in quality. A simulation",
        "name": curve.name,
        "headline": f"{name} at {plural(len(curve.points), 'noise level')}, "
        f"{plural(len(curve.seeds), 'seed')}, {plural(curve.num_sites, 'site')}",
        "summary": _summary(curve),
        "metric_label": name,
        "chart": Markup(chart),  # noqa: S704  # every text in it is escaped where it is put in
        "chart_note": "The smaller epsilon, the stronger the protection. Bars and the grey band "
        f"are the {curve.interval}. Hollow markers: not usable.",
        "head": head,
        "rows": rows,
        "caption": f"In brackets: {curve.interval}",
        "notes": _notes(curve, plan),
        "facts": [
            ("plan SHA-256", curve.plan_sha256),
            ("seeds", ", ".join(map(str, curve.seeds))),
        ],
        "plan_toml": plan_to_toml(plan),
    }


def _summary(curve: Curve) -> list[str]:
    name = label(curve.metric)
    sentences = [
        f"Without privacy the model reaches {name} {number(curve.without.headline.value)}; the "
        f"trivial baseline, {baseline_words(curve.task)}, {number(curve.baseline)}."
    ]
    for placement, words in PLACEMENT_WORDS.items():
        points = [point for point in curve.points if point.placement == placement]
        if not points:
            continue
        bad = [f"{p.epsilon:g}" for p in points if p.verdict == "not usable"]
        verdict = (
            "every model is above what needs no learning"
            if not bad
            else "no model is usable"
            if len(bad) == len(points)
            else f"the models at epsilon {', '.join(bad)} are not usable"
        )
        sentences.append(f"Protection {words}: {verdict}.")
    return sentences


def _notes(curve: Curve, plan: Plan) -> list[str]:
    """What a verdict means and what was held equal."""
    bar = "the trivial baseline"
    if curve.untrained is not None:
        bar += f" and the untrained network ({number(curve.untrained)})"
    delta = plan.privacy.delta if plan.privacy is not None else None
    return [
        f"Not usable: the interval does not lie above {bar}, or a run came to no model.",
        "The noise of each row was found by the accountant for epsilon over all rounds of the plan "
        f"at delta {delta:g}; without privacy neither is there noise nor a clip.",
    ]
