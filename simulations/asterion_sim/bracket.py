"""The bracket: does federation help each site, against its own model and against pooled data?

With equal local work each site trains alone, all data are trained pooled, and each algorithm
trains federated, over several seeds; every model is measured on every site's held-out cases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterion_client.bootstrap import (
    CONFIDENCE,
    Draws,
    Sampled,
    at_site,
    difference,
    draw,
    mean_of,
    ratio,
    together,
)
from asterion_client.held_out_scores import HeldOut, held_out_of
from asterion_shared.bracket_result import (
    BRACKET_FILE,
    ArmFacts,
    Bracket,
    Comparison,
    CurvePoint,
    Estimate,
    MetricName,
    Over,
    Overall,
    SiteBracket,
    write_bracket,
)
from asterion_shared.errors import UserInputError
from asterion_shared.plan import Plan, TaskName
from asterion_sim.bracket_arms import Arm, Piece, arms_of, train_piece
from asterion_sim.bracket_report import write_bracket_report
from asterion_sim.engines.choice import EngineWish
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualSites

NUM_RESAMPLES = 2000
OVERS: tuple[Over, ...] = ("mean of sites", "all cases together")
METRICS: dict[TaskName, tuple[MetricName, ...]] = {
    "segmentation": ("dice",),
    "classification": ("auroc", "accuracy"),
    "anomaly": ("auroc",),
}
"""The metrics that a task's bracket can be formed of; the first is the headline."""

Say = Callable[[str], None]
Pieces = Mapping[str, Sequence[Piece]]
"""One piece a seed, by arm."""


def run_bracket(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    *,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    leave_one_site_out: bool = False,
    metric: MetricName | None = None,
    over: Over | None = None,
    num_resamples: int = NUM_RESAMPLES,
    wish: EngineWish = SEQUENTIAL,
    plan_folder: Path = Path(),
    say: Say = lambda line: None,
) -> Bracket:
    """Train every arm with every seed, and write ``bracket.json`` and ``report.html``.

    Args:
        plan: the federation's plan. Only its seed varies, so that the split of the data, made
            when ``sites`` were read, is the same in all runs.
        sites: the virtual sites; those that refuse the plan are named in the result.
        out: folder of the bracket. What is finished in it (an arm with a seed) is not repeated.
        algorithms: see :func:`asterion_sim.bracket_arms.arms_of`.
        seeds: see :func:`seeds_of`.
        leave_one_site_out: whether to train each algorithm without each site as well.
        metric: absent: the task's headline metric.
        over: absent: the mean of the sites for Dice, all cases together otherwise.
        num_resamples: of the bootstrap.
        wish: which engine; another than the default changes the numbers in their last digits.
        plan_folder: where the plan's ``init.file`` is looked up.
        say: is told each arm as it begins, a line each.

    Returns:
        The bracket, as written.

    Raises:
        SettingsError: the plan or an algorithm does not allow a bracket; all problems.
        UserInputError: no seed or one twice, a metric that the task does not have, no test case.
        PlanMismatchError: the folder holds pieces of another plan or other data.
        QuorumLostError, DiskProblemError: as ``simulate``.
    """
    chosen = _metric(plan, metric)
    if not seeds or len(set(seeds)) < len(seeds):
        msg = f"seeds are {list(seeds)}; give at least one, each once"
        raise UserInputError(msg)
    arms = arms_of(plan, tuple(sites.data), algorithms, leave_one_site_out=leave_one_site_out)
    held_out = {name: held_out_of(data, plan) for name, data in sorted(sites.data.items())}
    held_out = {name: units for name, units in held_out.items() if units.case_ids}
    if not held_out:
        msg = "no site has a held-out case that can be judged; raise data.test_fraction"
        raise UserInputError(msg)
    pieces: dict[str, list[Piece]] = {arm.name: [] for arm in arms}
    # Seed by seed, so that an interrupted bracket has whole seeds.
    for number, seed in enumerate(seeds, start=1):
        for arm in arms:
            say(f"seed {number} of {len(seeds)}: {arm.name}")
            folder = out / "pieces" / arm.name / f"seed-{seed}"
            piece = train_piece(
                arm, seed, sites.data, held_out, folder, wish=wish, plan_folder=plan_folder
            )
            pieces[arm.name].append(piece)
    draws = draw(held_out, len(seeds), num_resamples, plan.seed)
    work = _Work(plan, chosen, over or _usual_over(chosen), arms, pieces, held_out, draws)
    bracket = _bracket(work, sites, tuple(seeds), num_resamples)
    write_bracket(bracket, out / BRACKET_FILE)
    write_bracket_report(bracket, plan, out / "report.html")
    return bracket


def seeds_of(plan: Plan, count: int) -> tuple[int, ...]:
    """The plan's seed and those that follow it."""
    return tuple(range(plan.seed, plan.seed + count))


def verdict_of(sampled: Sampled) -> Comparison:
    """Helps, neutral or hurts, from the interval of a paired difference."""
    interval = sampled.interval
    if interval is None:
        return Comparison(difference=estimate(sampled), verdict="undefined")
    low, high = interval
    verdict: Any = "helps" if low > 0 else "hurts" if high < 0 else "neutral"
    return Comparison(difference=estimate(sampled), verdict=verdict)


def estimate(sampled: Sampled) -> Estimate:
    """A resampled number as it is written, to 6 digits."""
    low, high = sampled.interval or (None, None)
    return Estimate(
        value=_rounded(sampled.value),
        low=_rounded(low),
        high=_rounded(high),
        num_undefined=sampled.num_undefined,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What the numbers are formed of."""

    plan: Plan
    metric: MetricName
    over: Over
    arms: Sequence[Arm]
    pieces: Pieces
    held_out: Mapping[str, HeldOut]
    draws: Draws

    def at(self, arm: str, site: str) -> Sampled:
        """An arm's metric at a site."""
        scores = [piece.scores[site] for piece in self.pieces[arm]]
        return at_site(self.metric, self.held_out[site], scores, self.draws)

    def overall(self, arm: str, over: Over) -> Sampled:
        """An arm's metric over all sites."""
        if over == "mean of sites":
            return mean_of([self.at(arm, site) for site in self.held_out])
        scores = [[piece.scores[site] for site in self.held_out] for piece in self.pieces[arm]]
        return together(self.metric, list(self.held_out.values()), scores, self.draws)

    def named(self, kind: str, site: str = "") -> dict[str, str]:
        """Algorithm to arm, of the arms of one kind (and site)."""
        return {a.algorithm: a.name for a in self.arms if a.kind == kind and a.site == site}


def _metric(plan: Plan, metric: MetricName | None) -> MetricName:
    known = METRICS[plan.task]
    if metric is not None and metric not in known:
        msg = f"metric is {metric!r}; a bracket of {plan.task} has {' or '.join(known)}"
        raise UserInputError(msg)
    return known[0] if metric is None else metric


def _usual_over(metric: MetricName) -> Over:
    return "mean of sites" if metric == "dice" else "all cases together"


def _bracket(
    work: _Work, sites: VirtualSites, seeds: tuple[int, ...], num_resamples: int
) -> Bracket:
    plan = work.plan
    algorithms = work.named("federated")
    measured = {
        arm.name: {site: work.at(arm.name, site) for site in work.held_out} for arm in work.arms
    }
    return Bracket(
        name=plan.name,
        task=plan.task,
        plan_sha256=plan.sha256,
        metric=work.metric,
        over=work.over,
        seeds=seeds,
        algorithms=tuple(algorithms),
        num_resamples=num_resamples,
        confidence=CONFIDENCE,
        equal_work=equal_work_words(plan, len(sites.data)),
        resampled=resampled_words(work.held_out, len(seeds)),
        sites=tuple(_site(work, sites, measured, site) for site in work.held_out),
        overall=_overall(work, measured),
        heat_map={
            arm.name: {site: _rounded(one.value) for site, one in measured[arm.name].items()}
            for arm in work.arms
            if arm.kind != "left out"
        },
        arms={arm.name: _facts(work, arm, seeds[0]) for arm in work.arms},
        refused={name: refusal.code for name, refusal in sorted(sites.refused.items())},
    )


def _site(
    work: _Work,
    sites: VirtualSites,
    measured: Mapping[str, Mapping[str, Sampled]],
    site: str,
) -> SiteBracket:
    units, data = work.held_out[site], sites.data[site]
    own, pooled = measured[f"alone-{site}"][site], measured["pooled"][site]
    federated = {text: measured[arm][site] for text, arm in work.named("federated").items()}
    left_out = {text: measured[arm][site] for text, arm in work.named("left out", site).items()}
    return SiteBracket(
        name=site,
        num_train=len(data.train),
        num_test=len(units.case_ids),
        manifest_sha256=data.manifest_sha256,
        num_units=units.num_groups,
        resampled=units.resampled,
        own=estimate(own),
        pooled=estimate(pooled),
        federated={text: estimate(one) for text, one in federated.items()},
        versus_own={t: verdict_of(difference(one, own)) for t, one in federated.items()},
        versus_pooled={t: verdict_of(difference(one, pooled)) for t, one in federated.items()},
        left_out={text: estimate(one) for text, one in left_out.items()},
        left_out_versus_own={t: verdict_of(difference(one, own)) for t, one in left_out.items()},
    )


def _overall(work: _Work, measured: Mapping[str, Mapping[str, Sampled]]) -> Overall:
    own = mean_of([measured[f"alone-{site}"][site] for site in work.held_out])
    pooled: dict[Over, Sampled] = {over: work.overall("pooled", over) for over in OVERS}
    federated: dict[str, dict[Over, Sampled]] = {
        text: {over: work.overall(arm, over) for over in OVERS}
        for text, arm in work.named("federated").items()
    }
    return Overall(
        own=estimate(own),
        pooled={over: estimate(one) for over, one in pooled.items()},
        federated={t: {o: estimate(one) for o, one in f.items()} for t, f in federated.items()},
        share_of_pooled={
            t: estimate(ratio(f[work.over], pooled[work.over])) for t, f in federated.items()
        },
        gain_over_own={
            t: verdict_of(difference(f["mean of sites"], own)) for t, f in federated.items()
        },
    )


def _facts(work: _Work, arm: Arm, first_seed: int) -> ArmFacts:
    pieces = work.pieces[arm.name]
    plan = arm.plan.model_copy(update={"seed": first_seed})
    points = [
        CurvePoint(
            work=rows[0].work,
            **_spread([row.pooled.get(work.metric) for row in rows]),
            sites={
                site: _mean([row.sites[site].get(work.metric) for row in rows])
                for site in rows[0].sites
                if site in work.held_out
            },
        )
        for rows in zip(*(piece.curve for piece in pieces), strict=True)
    ]
    return ArmFacts(
        kind=arm.kind,
        algorithm=arm.algorithm,
        plan_sha256=plan.sha256,
        changes=_changes(work.plan.model_dump(mode="json"), arm.plan.model_dump(mode="json")),
        rounds=arm.plan.rounds.count,
        steps=dict(pieces[0].steps),
        curve=tuple(points),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and key != "flower_arguments":
            changes |= _changes(old, value, f"{path}{key}.")
        elif value != old:
            changes[f"{path}{key}"] = value
    return changes


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "low": None, "high": None}
    return {"mean": _mean(known), "low": _rounded(min(known)), "high": _rounded(max(known))}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(known)) if len(known) == len(values) and known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def equal_work_words(plan: Plan, num_sites: int) -> str:
    """What a bracket holds equal, as a sentence."""
    local, rounds = plan.local, plan.rounds.count
    total = rounds * local.amount
    if local.unit == "steps":
        return (
            f"In each way of training a site's data are used for {total:,} optimiser steps of "
            f"{local.batch_size} examples in all: alone, {rounds} times {local.amount} steps; "
            f"federated, the same number of steps at each site, in the algorithm's own number of "
            f"rounds; pooled, {total * num_sites:,} steps ({num_sites} sites times {total:,}) on "
            f"all data together. The optimiser's state begins anew after each round, also alone "
            f"and pooled. The network, the initial weights of a seed, the batch size, the "
            f"training cases and the held-out cases are the same."
        )
    return (
        f"In each way of training an example is seen {total:,} times: alone and pooled, {rounds} "
        f"times {local.amount} passes; federated, the same number of passes at each site. The "
        f"network, the initial weights of a seed, the batch size, the training cases and the "
        f"held-out cases are the same."
    )


def resampled_words(held_out: Mapping[str, HeldOut], num_seeds: int) -> str:
    """What the intervals are over, as a sentence."""
    blocks = [name for name, units in held_out.items() if units.resampled == "blocks"]
    words = (
        "95 % percentile intervals of a bootstrap that draws, within each site, whole groups of "
        "held-out cases (patients, fields, or single images where nothing says which belong "
        f"together), and the {num_seeds} seeds; the same draws for every model, so that "
        "differences are paired."
    )
    if blocks:
        words += (
            f" {', '.join(blocks)} hold out one region of one field each: blocks of it, of the "
            "size of a training patch, are drawn instead, which says nothing of other fields."
        )
    if num_seeds == 1:
        words += " With one seed the intervals do not contain the chance of training."
    return words
