"""Utility against epsilon: one plan without noise and at several epsilons, over seeds.

Epsilon is what a person asks for; the noise that keeps to it is found by the accountant from the
plan's own rounds, steps and sampling, and is never typed in.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from asterion_shared.errors import Problem, QuorumLostError, SettingsError, UserInputError
from asterion_shared.metrics import HEADLINE
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import noise_within, planned_account
from asterion_shared.reports.intervals import bounds_95
from asterion_shared.reports.metric_words import secondary_metrics
from asterion_shared.reports.usability import trivial_value
from asterion_shared.result import Result, read_result
from asterion_sim.engines.choice import EngineWish
from asterion_sim.plan_values import Values, changed
from asterion_sim.privacy_curve import (
    ONE_SEED,
    SEVERAL_SEEDS,
    Curve,
    CurvePoint,
    Estimate,
    Placement,
    over_seeds,
    verdict_of,
    write_curve,
)
from asterion_sim.privacy_sweep_page import write_sweep_page
from asterion_sim.privacy_sweep_table import curve_table
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualSites

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
_SOURCE = "the privacy sweep"
_AT_SITE: Values = {
    "privacy.noise": "site", "privacy.adaptive_clip": None, "secure_sum": None,
}  # fmt: skip
_CHANGES: dict[Placement, Values] = {
    "record": {**_AT_SITE, "privacy.protects": "record"},
    "patient": {**_AT_SITE, "privacy.protects": "patient"},
    "site": _AT_SITE,
    "shares": {"privacy.noise": "shares", "privacy.adaptive_clip": None},
    "centre": {"privacy.noise": "centre", "secure_sum": None},
}
_FOR_SITES: Values = {"privacy.protects": "site", "privacy.sampling_rate": None}
_NO_COLLUDERS: Values = {"secure_sum.max_colluders": 0, "secure_sum.max_dropouts": 0}
"""What noise in shares assumes where the plan has no ``[secure_sum]``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the curve before it is run.

    Attributes:
        placement: None without privacy.
        epsilon: None without privacy.
        plan: with the noise that keeps to epsilon, and the plan's own seed.
    """

    placement: Placement | None
    epsilon: float | None
    plan: Plan

    @property
    def folder(self) -> str:
        """Its folder's name below the sweep's; the runs by seed are below that."""
        return f"{self.placement}-epsilon-{self.epsilon:g}" if self.epsilon else "without-privacy"


def run_privacy_sweep(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    *,
    epsilons: Sequence[float] = EPSILONS,
    placements: Sequence[Placement] = (),
    seeds: Sequence[int],
    wish: EngineWish = SEQUENTIAL,
    plan_folder: Path = Path(),
    console: Console | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Curve:
    """Run every point with every seed; write ``curve.json``, ``curve.svg`` and ``report.html``.

    They are written after each seed, so that an interrupted sweep has whole seeds. A run that is
    finished is not repeated; one that was interrupted begins anew, because rounds that are
    repeated are charged again. Sites are the same in all runs; only the plan's seed varies.

    Args:
        plan: with ``[privacy]``; its ``noise_multiplier`` and ``epsilon_limit`` are replaced.
        sites: the virtual sites.
        out: folder of the sweep.
        epsilons: of the whole run, at the plan's delta; each above 0, each once.
        placements: absent: the plan's own.
        seeds: at least one, each once.
        wish: which engine; noise at the sites needs the sequential one, for the runs without
            noise too, so that like is compared with like.
        plan_folder: where the plan's ``init.file`` is looked up.
        console: where the table is printed; absent: nowhere.
        say: is told of each run as it begins.

    Returns:
        The curve, as written.

    Raises:
        UserInputError: no epsilon or seed, or one twice; the plan has no ``[privacy]``; a run
            without privacy measured no headline metric.
        SettingsError: a placement does not fit the plan.
        PrivacyProofError: no noise keeps to an epsilon.
        PlanMismatchError, DiskProblemError: as ``simulate``.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        msg = f"seeds are {list(seeds)}; give at least one, each once"
        raise UserInputError(msg)
    settings = settings_of(plan, epsilons, placements)
    num_runs = len(settings) * len(seeds)
    results: list[list[Result]] = [[] for _ in settings]
    curve: Curve | None = None
    for count, seed in enumerate(seeds):
        for index, setting in enumerate(settings):
            folder = out / setting.folder / f"seed-{seed}"
            say(f"run {count * len(settings) + index + 1} of {num_runs}: {setting.folder}, {seed}")
            results[index].append(_result(setting, seed, sites, folder, wish, plan_folder))
        curve = curve_of(plan, len(sites.data), seeds[: count + 1], settings, results)
        write_curve(curve, out / "curve.json")
        write_sweep_page(curve, plan, out)
    assert curve is not None  # noqa: S101  # there is a seed
    if console is not None:
        console.print(curve_table(curve))
    return curve


def settings_of(
    plan: Plan, epsilons: Sequence[float], placements: Sequence[Placement] = ()
) -> list[Setting]:
    """The points of a sweep, first the one without privacy, all of them checked.

    Raises:
        UserInputError, SettingsError, PrivacyProofError: as :func:`run_privacy_sweep`.
    """
    if plan.privacy is None:
        msg = (
            f"the plan {plan.name!r} has no [privacy]; give protects, noise, clip_norm and, for "
            "records and patients, sampling_rate: the noise is found for each epsilon"
        )
        raise UserInputError(msg)
    if not epsilons or len(set(epsilons)) < len(epsilons) or min(epsilons) <= 0:
        msg = f"epsilons are {list(epsilons)}; give at least one above 0, each once"
        raise UserInputError(msg)
    if len(set(placements)) < len(placements):
        msg = f"placements are {', '.join(placements)}; list each once"
        raise UserInputError(msg)
    wanted = placements or (placement_of(plan),)
    placed: dict[Placement, Plan] = {}
    problems: list[Problem] = []
    for placement in wanted:
        try:
            placed[placement] = placed_plan(plan, placement)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(_SOURCE, problems)
    without = changed(plan, {"privacy": None, "secure_sum": None}, _SOURCE)
    return [Setting(None, None, without)] + [
        Setting(placement, epsilon, plan_within(one, epsilon))
        for placement, one in placed.items()
        for epsilon in sorted(epsilons)
    ]


def placement_of(plan: Plan) -> Placement:
    """Where the plan's own noise is added.

    Raises:
        UserInputError: the plan has no ``[privacy]``.
    """
    if plan.privacy is None:
        msg = f"the plan {plan.name!r} has no [privacy]"
        raise UserInputError(msg)
    noise = plan.privacy.noise
    return plan.privacy.protects if noise == "site" else noise


def placed_plan(plan: Plan, placement: Placement) -> Plan:
    """The plan with its noise in another place; what the place needs beside is the plan's own.

    Noise in shares without ``[secure_sum]`` in the plan assumes a coordinator whom no site helps,
    and that every site answers. An adaptive clip stays at the centre, the only place that has one.

    Raises:
        SettingsError: the plan lacks what the placement needs.
    """
    values = dict(_CHANGES[placement])
    if placement in ("site", "shares", "centre"):
        values |= _FOR_SITES
    if placement == "shares" and plan.secure_sum is None:
        values |= _NO_COLLUDERS
    return changed(plan, values, f"{_SOURCE}, {placement}")


def plan_within(plan: Plan, epsilon: float) -> Plan:
    """The plan with the smallest noise, of three digits, that keeps all its rounds to epsilon.

    Args:
        plan: with ``[privacy]``.
        epsilon: above 0; becomes the plan's limit.

    Raises:
        PrivacyProofError: no noise keeps to it, or the plan has no ``[privacy]``.
    """
    values = {
        "privacy.noise_multiplier": noise_within(plan, epsilon),
        "privacy.epsilon_limit": epsilon,
    }
    return changed(plan, values, _SOURCE)


def curve_of(
    plan: Plan,
    num_sites: int,
    seeds: Sequence[int],
    settings: Sequence[Setting],
    results: Sequence[Sequence[Result]],
) -> Curve:
    """What the runs amount to.

    Args:
        plan: the sweep's.
        num_sites: virtual sites.
        seeds: those that were run.
        settings: the points; the first is the one without privacy.
        results: of every setting, one a seed.

    Raises:
        UserInputError: a run without privacy measured no headline metric.
    """
    metric = HEADLINE[plan.task]
    (plain, plain_results), *private = zip(settings, results, strict=True)
    without = [_known(result, metric) for result in plain_results]
    trivial = [trivial_value(result.final_metrics, metric)[0] for result in plain_results]
    baseline = sum(trivial) / len(trivial)
    untrained = over_seeds([_at_the_start(result, metric) for result in plain_results]).value
    if plan.init is not None:
        untrained = None  # a start from elsewhere has learnt something
    bar = max(baseline, baseline if untrained is None else untrained)
    return Curve(
        name=plan.name,
        task=plan.task,
        plan_sha256=plan.sha256,
        metric=metric,
        num_sites=num_sites,
        seeds=tuple(seeds),
        interval=SEVERAL_SEEDS if len(seeds) > 1 else ONE_SEED,
        baseline=baseline,
        untrained=untrained,
        without=_point(plain, plain_results, metric, bar, None),
        points=tuple(_point(s, found, metric, bar, without) for s, found in private),
    )


def _result(
    setting: Setting,
    seed: int,
    sites: VirtualSites,
    folder: Path,
    wish: EngineWish,
    plan_folder: Path,
) -> Result:
    plan = changed(setting.plan, {"seed": seed}, _SOURCE)
    path = folder / "result.json"
    if path.exists():
        found = read_result(path)
        if found.plan_sha256 == plan.sha256 and found.status in ("finished", "quorum_lost"):
            return found
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return simulate(plan, sites, folder, wish=wish, plan_folder=plan_folder, report=False)
    except QuorumLostError:
        return read_result(path)  # the loop wrote it, with what happened


def _point(
    setting: Setting,
    results: Sequence[Result],
    metric: str,
    bar: float,
    without: Sequence[float] | None,
) -> CurvePoint:
    values = tuple(result.final_metrics.get(metric) for result in results)
    headline = over_seeds(values, in_unit=True)
    ends = bounds_95(results[0].final_metrics, metric) if len(results) == 1 else None
    if ends is not None:
        headline = Estimate(value=headline.value, low=ends[0], high=ends[1])
    loss = None
    if without is not None:
        pairs = zip(values, without, strict=True)
        loss = over_seeds(
            [None if value is None or plain == 0 else 1 - value / plain for value, plain in pairs]
        )
    account = planned_account(setting.plan)
    names = [
        name
        for name in secondary_metrics(setting.plan.task)
        if any(name in result.final_metrics for result in results)
    ]
    privacy = setting.plan.privacy
    return CurvePoint(
        placement=setting.placement,
        epsilon=setting.epsilon,
        spent=account.epsilon if account else None,
        delta=privacy.delta if privacy else None,
        noise_multiplier=privacy.noise_multiplier if privacy else None,
        plan_sha256=changed(setting.plan, {"seed": setting.plan.seed}, _SOURCE).sha256,
        values=values,
        headline=headline,
        relative_loss=loss,
        secondary={
            name: over_seeds([result.final_metrics.get(name) for result in results]).value
            for name in names
        },
        verdict=verdict_of(headline, values, bar),
    )


def _at_the_start(result: Result, metric: str) -> float | None:
    """The metric of the first weights, before any training."""
    return next((r.pooled.get(metric) for r in result.rounds if r.round == 0), None)


def _known(result: Result, metric: str) -> float:
    value = result.final_metrics.get(metric)
    if value is None:
        msg = (
            f"the run without privacy of {result.name!r} ended as {result.status!r} and measured "
            f"no {metric}; without it there is nothing to compare with"
        )
        raise UserInputError(msg)
    return value
