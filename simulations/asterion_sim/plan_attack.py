"""The attack that fits a plan: which one, on which network, and how long it goes on.

Clip norm, noise multiplier, sampling rate, steps, rounds and the algorithm are the plan's. The
network and its input are too where canaries are known for them, else a logistic regression stands
in: the functions that clip and add noise know no network.
"""

import math
from dataclasses import dataclass
from typing import Any

from asterion_client.local_round import make_workspace
from asterion_shared.errors import PlanMismatchError
from asterion_shared.parameters import layout_of
from asterion_shared.plan import TABLE_MODELS, DataContract, ModelSettings, ParameterPolicy, Plan
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.privacy.planned import private_steps
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.tasks import initial_model
from asterion_sim.privacy_audit import (
    AuditResult,
    audit_record_level,
    audit_site_level_at_centre,
    audit_site_level_at_site,
    audit_site_level_shares,
    num_honest,
)
from asterion_sim.record_canaries import input_shape, loudness, num_canaries

CONFIDENCE = 0.99
"""A sound plan is called broken in at most one attack of a hundred."""

FEWEST_INPUTS, MOST_INPUTS = 256, 4096
"""Numbers of one record: with fewer there are too few canaries, with more the attack is slow."""

MOST_WEIGHTS = 1024
"""Of a network that a game is played on; it draws noise for each of them in every game."""

RECORD_INPUT, SITE_INPUT = (32, 32), (8, 8)
"""Pixels of the stand-in's input where the plan's own will not do."""

MOST_SHARES = 8
"""Honest sites whose vectors are formed in a game."""

ENOUGH_CANARIES = 8192
MOST_STEPS = 40_000
"""Steps of all runs together, unless one run alone has more."""

GAME_DELTA = 0.01
"""Delta at which a game's claim and bound are stated, if the plan's is smaller. What happens less
often than once in the games is not seen in them; the claim follows from the same noise."""

GAME_ROUNDS = 200_000
FEWEST_GAMES, MOST_GAMES = 4_000, 40_000


@dataclass(frozen=True, slots=True)
class Attacked:
    """What is attacked in a plan's place.

    Attributes:
        plan: with the ``[privacy]``, the steps and the rounds of the true one.
        network: its network and input, in words.
        differs: what is otherwise than in the true plan, and why.
    """

    plan: Plan
    network: str
    differs: tuple[str, ...]


def audit_plan(plan: Plan) -> PrivacyAudit:
    """Attack the code that protects data with this plan's own ``[privacy]``.

    Takes seconds for a plan of a few hundred steps, minutes for one of many thousands.

    Raises:
        PlanMismatchError: the plan has no ``[privacy]``.
    """
    privacy = privacy_of(plan)
    target = attacked(plan)
    match privacy.protects, privacy.noise:
        case "site", "centre":
            found = audit_site_level_at_centre(target.plan, **_game(privacy, plan.rounds.count))
        case "site", "shares":
            games = _game(privacy, plan.rounds.count * num_honest(target.plan))
            found = audit_site_level_shares(target.plan, **games)
        case "site", "site":
            found = audit_site_level_at_site(target.plan, **_game(privacy, plan.rounds.count))
        case _:
            runs = _num_runs(target.plan)
            found = audit_record_level(target.plan, num_runs=runs, confidence=CONFIDENCE)
    return _outcome(found, target, within=privacy.protects != "site")


def privacy_of(plan: Plan) -> PrivacySettings:
    """The plan's ``[privacy]``.

    Raises:
        PlanMismatchError: it has none.
    """
    if plan.privacy is None:
        msg = f"plan {plan.name!r} has no [privacy], so there is no claim to attack; add one"
        raise PlanMismatchError(msg)
    return plan.privacy


def attacked(plan: Plan) -> Attacked:
    """The plan with what the attack needs; see :class:`Attacked`.

    Raises:
        PlanMismatchError: the plan has no ``[privacy]``, or its network and it do not fit.
    """
    differs: list[str] = []
    if privacy_of(plan).protects == "site":
        found, why = (plan, "") if _few_weights(plan) else (_stand_in(plan, SITE_INPUT), _LARGE)
        if privacy_of(plan).noise == "shares":
            found, differs = _few_shares(found)
    else:
        why = _why_no_canaries(plan)
        found = _stand_in(plan, _own_shape(plan) or RECORD_INPUT) if why else plan
    if why:
        differs.insert(0, f"{_network(found)} in place of {_network(plan)}: {why}")
    if privacy_of(plan).protects != "site":
        found, words = _slow_descent(found)
        differs += words
    return Attacked(found, _network(found), tuple(differs))


_LARGE = "noise for so many weights in thousands of games would take hours"


def _few_weights(plan: Plan) -> bool:
    return layout_of(initial_model(plan), plan.parameters).size <= MOST_WEIGHTS


def _why_no_canaries(plan: Plan) -> str:
    """Why records of the plan itself cannot be canaries; empty where they can."""
    if plan.task != "classification" or plan.model.name not in TABLE_MODELS:
        return f"canaries are known for classification by {' or '.join(TABLE_MODELS)}"
    if plan.local.augment:
        return "augmentation turns one canary into another"
    inputs = math.prod(input_shape(plan))
    if inputs < FEWEST_INPUTS:
        return f"{inputs} inputs make too few canaries"
    size = make_workspace(plan).layout.size
    if inputs > MOST_INPUTS or num_canaries(plan, size) < FEWEST_INPUTS:
        return "so many weights would take hours"
    return ""


def _own_shape(plan: Plan) -> tuple[int, ...] | None:
    """The plan's patch, if a stand-in can have its shape."""
    if plan.data.kind != "image":
        return None
    fits = FEWEST_INPUTS <= math.prod(input_shape(plan)) <= MOST_INPUTS
    return plan.data.patch_size if fits else None


def _stand_in(plan: Plan, shape: tuple[int, ...]) -> Plan:
    own = _own_shape(plan) == shape
    data = DataContract(
        dimensions=3 if len(shape) == 3 else 2,
        channels=plan.data.channels if own else ("canary",),
        patch_size=shape,
    )
    local = {"augment": (), "patches_per_image": 1, "seconds_limit": None}
    return _changed(
        plan,
        task="classification",
        data=data.model_dump(),
        model=ModelSettings(name="logistic").model_dump(),
        parameters=ParameterPolicy().model_dump(),
        init=None,
        local=plan.local.model_dump() | local,
    )


def _slow_descent(plan: Plan) -> tuple[Plan, list[str]]:
    """Plain SGD, so slow that no canary is learnt and each step's noised gradient can be read.

    A canary's two logits part by ``1.5 * loud * clip_norm / n`` in each step that it is in, times
    the learning rate, and by the noise; both shall come to 1 at most.
    """
    privacy, local = privacy_of(plan), plan.local
    steps, rate = private_steps(plan) * plan.rounds.count, privacy.sampling_rate or 1.0
    canaries = num_canaries(plan, make_workspace(plan).layout.size)
    drift = max(steps, privacy.noise_multiplier * math.sqrt(steps) / rate)
    most = canaries / (1.5 * loudness(privacy) * privacy.clip_norm * drift)
    slow = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0,
            "learning_rate": min(local.learning_rate, most),
            "batch_size": max(local.batch_size, 128)}  # fmt: skip
    changed = _changed(plan, local=local.model_dump() | slow)
    if changed.local.model_copy(update={"batch_size": local.batch_size}) == local:
        return changed, []
    return changed, [
        f"plain SGD with learning rate {changed.local.learning_rate:.2g} in place of "
        f"{local.optimiser} with {local.learning_rate:.2g}: an attacker reads the noised gradients "
        "best where no optimiser works on them, and that costs no privacy"
    ]


def _few_shares(plan: Plan) -> tuple[Plan, list[str]]:
    """No more sites than a game can form vectors for, and no bins of metrics, which it has not."""
    values = plan.evaluation.model_dump() | {"score_bins": 10}
    plan, honest = _changed(plan, evaluation=values), num_honest(plan)
    if honest <= MOST_SHARES:
        return plan, []
    rounds = {"sites_per_round": MOST_SHARES, "quorum": min(plan.rounds.quorum, MOST_SHARES)}
    fewer = _changed(
        plan,
        rounds=plan.rounds.model_dump() | rounds,
        secure_sum={"max_colluders": 0, "max_dropouts": 0},
    )
    return fewer, [
        f"{MOST_SHARES} honest sites in place of {honest}, with as much noise in their sum: "
        "vectors of so many sites in thousands of games would take hours"
    ]


def _changed(plan: Plan, **sections: Any) -> Plan:
    return Plan.model_validate(plan.model_dump() | sections)


def _network(plan: Plan) -> str:
    shape = input_shape(plan)
    return f"{plan.model.name} on {' x '.join(str(size) for size in shape)} inputs"


def _num_runs(plan: Plan) -> int:
    canaries = num_canaries(plan, make_workspace(plan).layout.size)
    steps = private_steps(plan) * plan.rounds.count
    return min(math.ceil(ENOUGH_CANARIES / canaries), max(1, MOST_STEPS // steps))


def _game(privacy: PrivacySettings, rounds: int) -> dict[str, Any]:
    games = min(max(GAME_ROUNDS // rounds // 2 * 2, FEWEST_GAMES), MOST_GAMES)
    delta = max(privacy.delta, GAME_DELTA)
    return {"num_games": games, "confidence": CONFIDENCE, "delta": delta}


def _outcome(found: AuditResult, target: Attacked, *, within: bool) -> PrivacyAudit:
    claim = found.claimed_epsilon
    return PrivacyAudit(
        mechanism=found.mechanism,
        method="one_run" if within else "repeated_game",
        network=target.network,
        differs=target.differs,
        claimed_epsilon=claim if math.isfinite(claim) else None,
        lower_bound=found.lower_bound,
        confidence=found.confidence,
        delta=found.delta,
        num_canaries=found.num_canaries,
        broken=found.broken,
        blind=found.blind,
    )
