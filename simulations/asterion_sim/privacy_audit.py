"""The attack beside the number: how much of a plan's epsilon an attack on the real code shows.

Each audit runs the functions that protect data in a run, hands an adversary what the proof hands
him (all but the canaries and the secret coins), and turns his guesses into a lower bound. A bound
above the claim says that the code and its proof do not belong together. A bound below it says
nothing of the kind: another attack, or more canaries, may show more.

A canary that is left out contributes nothing and all else stays as it was, numbers of records
included, because that is the neighbouring relation of the claim.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.local_round import make_workspace
from asterion_client.private_round import release_privately
from asterion_server.central_step import central_step_of
from asterion_server.selection import clip_factor, weight_of
from asterion_shared.blocks import length
from asterion_shared.cases import Case
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import TABLE_MODELS, Plan
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.adaptive_clip import split_noise
from asterion_shared.privacy.audit_bounds import game_bound_of_scores
from asterion_shared.privacy.audit_curve import (
    claims_of,
    count_right,
    fewest_right,
    planned_guesses,
    refuted_noise,
)
from asterion_shared.privacy.audited import Mechanism
from asterion_shared.privacy.charges import GaussianCharge
from asterion_shared.privacy.plan_rules import sharing_of
from asterion_shared.privacy.planned import charge_of
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.privacy.summed_vector import SummedVector
from asterion_shared.randomness import stream
from asterion_sim.record_canaries import SITE, draw_canaries, movement, planted, probes

Floats = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
FAR = 100.0
"""Length of a canary's update over the clip norm."""

_CANARY, _COMPANION = SITE, "companion"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What one attack showed.

    Attributes:
        mechanism: what was attacked.
        lower_bound: epsilon that the attack refutes, at least 0; of records and patients that of
            the least noise that it refutes (:func:`asterion_shared.privacy.audit_curve.refuted`).
        confidence: a mechanism that keeps its claim is called broken with probability at most
            ``1 - confidence``.
        claimed_epsilon: what the plan's charge comes to at ``delta``; ``math.inf`` for nothing.
        delta: of both figures.
        num_canaries: guessed at, in all runs together; of a repeated game, the number of games.
        broken: whether the attack refutes the claim.
        blind: whether not even right guesses alone would have refuted it.
    """

    mechanism: Mechanism
    lower_bound: float
    confidence: float
    claimed_epsilon: float
    delta: float
    num_canaries: int
    broken: bool
    blind: bool


def audit_record_level(
    plan: Plan,
    *,
    companions: Sequence[Case] = (),
    num_runs: int = 4,
    confidence: float = 0.95,
    delta: float | None = None,
) -> AuditResult:
    """Attack DP-SGD at a site by canaries among its records or patients.

    See :mod:`asterion_sim.record_canaries` for what they are. The adversary sees the weights
    before and after and scores a canary by how far they moved along the part of its gradient that
    it shares with no other. Runs are independent and a canary is in one of them, so that all of
    them together are as private as one.

    The coins come from the plan's seed, which this adversary does not use; the noise does not.

    Args:
        plan: classification by ``logistic`` or ``mlp`` that protects records or patients, without
            augmentation. Its rounds follow one another at the one site.
        companions: records that are trained with, known to the adversary.
        num_runs: at least 1.
        confidence: in (0, 1).
        delta: in (0, 1); absent: the plan's.

    Raises:
        PlanMismatchError: the plan is none of these.
        ValueError: ``num_runs`` is below 1.
    """
    privacy = _privacy(plan, ("record", "patient"), "site")
    _check_canaries_known(plan)
    if num_runs < 1:
        msg = f"num_runs is {num_runs}; give at least 1"
        raise ValueError(msg)
    delta = privacy.delta if delta is None else delta
    workspace = make_workspace(plan)
    canaries = draw_canaries(workspace, privacy)
    seen = probes(workspace, privacy, canaries)
    scores = np.empty((num_runs, len(canaries)))
    coins = np.empty((num_runs, len(canaries)), np.bool_)
    for run in range(num_runs):
        coins[run] = _coins(plan, run, len(canaries))
        records = [
            record
            for canary, included in zip(canaries, coins[run], strict=True)
            for record in planted(canary, bool(included), privacy)
        ]
        moved = movement(workspace, [*records, *companions])
        scores[run] = -seen.parts(moved)  # a step goes down the gradient
    charge = charge_of(plan, plan.rounds.count)
    assert isinstance(charge, GaussianCharge)  # noqa: S101  # the plan protects records
    deviation = charge.noise_multiplier / (charge.sampling_rate * math.sqrt(charge.times))
    claims = claims_of((charge,))
    guesses = planned_guesses(scores.size, deviation, claims, confidence)
    right = count_right(scores.ravel(), coins.ravel(), guesses)
    factor = refuted_noise(scores.size, guesses, right, charge, confidence)
    shown = charge.model_copy(update={"noise_multiplier": factor * charge.noise_multiplier})
    return AuditResult(
        mechanism="record at site" if privacy.protects == "record" else "patient at site",
        lower_bound=spent((shown,), delta).epsilon if math.isfinite(factor) else 0.0,
        confidence=confidence,
        claimed_epsilon=spent((charge,), delta).epsilon,
        delta=delta,
        num_canaries=scores.size,
        broken=factor <= 1,
        blind=fewest_right(scores.size, guesses, claims, confidence) > guesses,
    )


def audit_site_level_at_site(
    plan: Plan,
    *,
    num_games: int = 20_000,
    confidence: float = 0.99,
    delta: float | None = None,
) -> AuditResult:
    """Attack a site's released update, noised by the site, by a repeated game.

    The canary is an update in a random direction, :data:`FAR` clip norms long; without it the site
    contributes zeros. A game is one release a round; its score is their sum along the direction.

    Args:
        plan: protects sites, with the noise at the site.
        num_games: even, at least 2; half of them have the canary.
        confidence: in (0, 1).
        delta: in (0, 1); absent: the plan's. A small one takes many games: what is seen less often
            than once in the games is not seen.

    Raises:
        PlanMismatchError: the plan is another one.
        ValueError: ``num_games`` is odd or below 2.
    """
    privacy = _privacy(plan, ("site",), "site")
    direction = _direction(plan)
    loud = (FAR * privacy.clip_norm * direction).astype(np.float32)

    def score(with_canary: bool) -> float:
        update = loud if with_canary else np.zeros_like(loud)
        releases = (
            release_privately(update, privacy, secret_stream()) for _ in range(plan.rounds.count)
        )
        return sum(float(release @ direction) for release in releases)

    return _game("site at site", plan, privacy, score, num_games, confidence, delta)


def audit_site_level_at_centre(
    plan: Plan,
    *,
    num_games: int = 20_000,
    confidence: float = 0.99,
    delta: float | None = None,
) -> AuditResult:
    """Attack the global weights that a centre makes with its own noise, by a repeated game.

    As :func:`audit_site_level_at_site`; the canary is one site's update, of more examples than a
    site may weigh, clipped and weighed by the functions of a run. Beside it one site reports zeros.
    The adversary sees the global weights of each round and, where it adapts, the clip norm; he
    weighs both by what they tell (the logarithm of their likelihood ratio).

    Args:
        plan: protects sites, with the noise at the centre.
        num_games: even, at least 2; half of them have the canary.
        confidence: in (0, 1).
        delta: in (0, 1); absent: the plan's.

    Raises:
        PlanMismatchError: the plan is another one.
        ValueError: ``num_games`` is odd or below 2.
    """
    privacy = _privacy(plan, ("site",), "centre")
    assert plan.algorithm.max_weight is not None  # noqa: S101  # a rule of the plan
    direction = _direction(plan)
    zeros, many = np.zeros(direction.size, np.float32), 10 * plan.algorithm.max_weight

    def score(folder: Path, with_canary: bool) -> float:
        step, weights, evidence = central_step_of(plan, folder), zeros, 0.0
        for round_ in range(1, plan.rounds.count + 1):
            adapted = step.clip_norm
            clip = privacy.clip_norm if adapted is None else adapted
            step.begin((_CANARY, _COMPANION), zeros.size)
            num_clipped = 0
            if with_canary:
                loud = (FAR * clip * direction).astype(np.float32)
                factor = clip_factor(plan, length(loud), adapted)
                num_clipped = int(factor < 1)
                shorter = (factor * loud).astype(np.float32)
                step.add(_CANARY, shorter, weight_of(plan, many, 1))
            else:
                step.leave_out(_CANARY)
            step.add(_COMPANION, zeros, weight_of(plan, 1, 1))
            step.count_clipped(1 + int(with_canary) - num_clipped, num_clipped)
            made = step.finish(round_, weights)
            evidence += _evidence(plan, privacy, float((made - weights) @ direction), clip)
            if step.clip_norm is not None:
                evidence += _evidence_of_count(plan, privacy, step.clip_norm / clip)
            weights = made
        return evidence

    with tempfile.TemporaryDirectory() as name:
        of_game = partial(score, Path(name))
        return _game("site at centre", plan, privacy, of_game, num_games, confidence, delta)


def _evidence(plan: Plan, privacy: PrivacySettings, moved: float, clip_norm: float) -> float:
    """For the canary, in how far a round moved the weights along it."""
    asked = plan.rounds.sites_per_round
    assert asked is not None  # noqa: S101  # a rule of the plan
    # Its part of the noised sum, in the most that one site can change: 1 with it, 0 without.
    part = moved * asked / (plan.algorithm.central_learning_rate * clip_norm)
    return part / split_noise(privacy).sum_multiplier ** 2


def _evidence_of_count(plan: Plan, privacy: PrivacySettings, change: float) -> float:
    """For the canary, in the factor by which a round changed the clip norm."""
    adaptive, asked = privacy.adaptive_clip, plan.rounds.sites_per_round
    assert adaptive is not None and asked is not None  # noqa: S101, PT018  # the clip norm adapts
    share = adaptive.quantile - math.log(change) / adaptive.learning_rate
    # The noised count but for the companion, which is within: -1/2 with the canary, 0 without.
    count = (share - 0.5) * asked - 0.5
    return -count / (2 * split_noise(privacy).count_deviation ** 2)


def audit_site_level_shares(
    plan: Plan,
    *,
    num_games: int = 20_000,
    confidence: float = 0.99,
    delta: float | None = None,
) -> AuditResult:
    """Attack the decoded sum of the sites' vectors, each with its share of noise, by a game.

    As :func:`audit_site_level_at_centre`, where the adversary knows all that the proof lets him
    have: as few sites as may be survived, and the vectors of the colluders, which he takes off
    the sum. The others report zeros. The sum is formed as a simulation forms it, without masks.

    Args:
        plan: protects sites, with the noise in shares.
        num_games: even, at least 2; half of them have the canary.
        confidence: in (0, 1).
        delta: in (0, 1); absent: the plan's.

    Raises:
        PlanMismatchError: the plan is another one.
        ValueError: ``num_games`` is odd or below 2.
        PrivacyProofError: the noise does not fit the secure sum's numbers.
    """
    privacy = _privacy(plan, ("site",), "shares")
    assert plan.algorithm.max_weight is not None  # noqa: S101  # a rule of the plan
    direction = _direction(plan)
    loud = (FAR * privacy.clip_norm * direction).astype(np.float32)
    zeros, many = np.zeros_like(loud), 10 * plan.algorithm.max_weight
    forms = [SummedVector(plan, zeros.size, 1 + index) for index in range(plan.rounds.count)]
    honest = num_honest(plan)

    def score(with_canary: bool) -> float:
        seen = 0.0
        for form in forms:
            total = form.encode(loud if with_canary else zeros, many, {}, secret_stream())
            for _ in range(honest - 1):
                total += form.encode(zeros, 1, {}, secret_stream())
            found = form.decode(total)
            seen += float(found.update @ direction) / found.weight
        return seen

    return _game("site in shares", plan, privacy, score, num_games, confidence, delta)


def num_honest(plan: Plan) -> int:
    """Fewest sites in a secure sum whose vectors nobody else knows."""
    sharing = sharing_of(plan)
    return sharing.min_survivors - sharing.max_colluders


def _game(
    mechanism: Mechanism,
    plan: Plan,
    privacy: PrivacySettings,
    score: Callable[[bool], float],
    num_games: int,
    confidence: float,
    delta: float | None,
) -> AuditResult:
    if num_games < 2 or num_games % 2:
        msg = f"num_games is {num_games}; give an even number of at least 2"
        raise ValueError(msg)
    delta = privacy.delta if delta is None else delta
    half = num_games // 2
    without, with_canary = (
        np.array([score(present) for _ in range(half)]) for present in (False, True)
    )
    bound = game_bound_of_scores(without, with_canary, delta, confidence)
    most = game_bound_of_scores(np.zeros(half), np.ones(half), delta, confidence)
    charge = charge_of(plan, plan.rounds.count)
    assert charge is not None  # noqa: S101  # the plan has a [privacy]
    claim = spent((charge,), delta).epsilon
    return AuditResult(
        mechanism=mechanism,
        lower_bound=bound,
        confidence=confidence,
        claimed_epsilon=claim,
        delta=delta,
        num_canaries=num_games,
        broken=bound > claim,
        blind=most <= claim,
    )


def _privacy(plan: Plan, protects: Sequence[str], noise: str) -> PrivacySettings:
    """The plan's section, if it is of this kind."""
    found = plan.privacy
    if found is None or found.protects not in protects or found.noise != noise:
        has = "no [privacy]" if found is None else f"{found.protects!r} at {found.noise!r}"
        whom = " or ".join(repr(one) for one in protects)
        msg = f"the plan has {has}; this audit is for protects = {whom}, noise = {noise!r}"
        raise PlanMismatchError(msg)
    return found


def _check_canaries_known(plan: Plan) -> None:
    if plan.task != "classification" or plan.model.name not in TABLE_MODELS:
        msg = (
            f"the plan trains {plan.model.name!r} for {plan.task}; canaries are known for "
            f"classification by {' or '.join(TABLE_MODELS)}"
        )
        raise PlanMismatchError(msg)
    if plan.local.augment:
        msg = (
            f"local.augment is {plan.local.augment}, which turns one canary into another; remove it"
        )
        raise PlanMismatchError(msg)


def _direction(plan: Plan) -> Floats:
    """Float64 ``(size,)`` of length 1, uniform over the sphere; ``size`` is the network's."""
    size = make_workspace(plan).layout.size
    draw = stream(plan.seed, round_=0, site=_CANARY, purpose="audit_direction")
    direction = draw.standard_normal(size)
    return np.asarray(direction / length(direction))


def _coins(plan: Plan, run: int, count: int) -> Coins:
    draw = stream(plan.seed, round_=run, site=_CANARY, purpose="audit_coins")
    return draw.random(count) < 0.5
