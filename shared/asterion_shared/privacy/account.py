"""What a run may say about privacy: epsilon for each site, in numbers and in words."""

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from asterion_shared.errors import PrivacyProofError
from asterion_shared.plan import Name, Plan
from asterion_shared.privacy.accounting import (
    Spent,
    noise_multiplier_for,
    sentence,
    spent,
    steps_within,
)
from asterion_shared.privacy.charges import RELATION_WORDS, GaussianCharge, Relation
from asterion_shared.privacy.planned import charge_of
from asterion_shared.privacy.settings import Protected
from asterion_shared.settings_files import Positive, Settings

Epsilon = Annotated[float, Field(ge=0)] | None
"""None where no epsilon holds at the delta that was asked for."""

NOTHING_CLAIMED = "none: updates leave the sites in clear; no epsilon is claimed"
SUMS_ALONE = "none: the coordinator sees sums over sites alone; no epsilon is claimed of them"

_OUTSIDE_WITHIN_A_SITE = (
    "how many training examples a site has, and how long it works",
    "the metrics on held-out cases, which are not trained on",
)
_OUTSIDE = {
    ("record", "site"): _OUTSIDE_WITHIN_A_SITE,
    ("patient", "site"): _OUTSIDE_WITHIN_A_SITE,
    ("site", "site"): (
        "how many examples a site has, whether it answers, and how long it works",
        "the metrics on held-out cases",
    ),
    ("site", "centre"): (
        "whatever the coordinator sees, who is trusted with each update in clear",
        "all in this result but the model and the rounds' clip norms: counts, losses, metrics, "
        "lengths of updates",
    ),
    ("site", "shares"): (
        "whether a site answers, and how long it works",
        "the sums over the sites of the metrics on held-out cases",
    ),
}


class PrivacyAccount(Settings):
    """What a run claims: for whom, how much, by which proof, and what lies outside of it."""

    protects: Protected
    relation: Relation
    """Which data sets are neighbours."""

    clip_norm: Positive
    noise_multiplier: Positive
    delta: Positive
    epsilon: Epsilon
    """Of the site that was asked most often."""

    accountant: str
    """How it was composed: ``rdp`` or ``pld``."""

    rounds: dict[Name, Annotated[int, Field(ge=0)]]
    """How often each site was asked to train; a round that was begun again counts again."""

    epsilons: dict[Name, Epsilon]
    """By site."""

    sentence: str
    outside: tuple[str, ...]
    """What left the sites and is not covered."""


def account_of(plan: Plan, asked: Mapping[str, int]) -> PrivacyAccount | None:
    """The account of a run.

    Args:
        plan: the plan.
        asked: how often each site was asked to train, at least; that it answered is not needed,
            because an answer may have been lost on its way. Empty: nothing was spent.

    Returns:
        None when the plan has no ``[privacy]``.
    """
    privacy = plan.privacy
    if privacy is None:
        return None
    by_rounds = {rounds: _spent(plan, rounds) for rounds in {0, *asked.values()}}
    worst = by_rounds[max(by_rounds)]
    return PrivacyAccount(
        protects=privacy.protects,
        relation="add_or_remove_one",
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.noise_multiplier,
        delta=privacy.delta,
        epsilon=_known(worst),
        accountant=worst.accountant,
        rounds=dict(asked),
        epsilons={site: _known(by_rounds[rounds]) for site, rounds in asked.items()},
        sentence=sentence(worst, privacy.protects, "add_or_remove_one"),
        outside=_OUTSIDE[privacy.protects, privacy.noise],
    )


def planned_account(plan: Plan) -> PrivacyAccount | None:
    """The account of a site that is asked in every round of the plan."""
    return account_of(plan, {"every-round": plan.rounds.count})


def rounds_allowed(plan: Plan) -> int | None:
    """How often a site may be asked to train within the plan's limit; None without ``[privacy]``.

    Raises:
        PrivacyProofError: the plan's own rounds come to more than its limit.
    """
    charge, privacy = charge_of(plan, 1), plan.privacy
    if charge is None or privacy is None:
        return None
    allowed = steps_within(privacy.epsilon_limit, privacy.delta, charge)
    if allowed < plan.rounds.count:
        epsilon = _spent(plan, plan.rounds.count).epsilon
        what = (
            f"{plan.rounds.count} rounds come to epsilon {epsilon:.3g} at delta {privacy.delta:g} "
            f"and privacy.epsilon_limit is {privacy.epsilon_limit:g}"
        )
        fewer = f"rounds.count = {allowed}, " if allowed else ""
        enough = noise_within(plan, privacy.epsilon_limit)
        fix = f"set {fewer}privacy.noise_multiplier = {enough:g}, or a higher limit"
        raise PrivacyProofError(what=what, fix=fix)
    return allowed


def noise_within(plan: Plan, epsilon: float) -> float:
    """The smallest noise multiplier, of three digits, that keeps a plan's rounds to epsilon.

    Args:
        plan: with ``[privacy]``; its own noise multiplier and limit are not looked at.
        epsilon: above 0, at the plan's delta.

    Raises:
        PrivacyProofError: no noise does, or the plan has no ``[privacy]``.
    """
    charge, privacy = charge_of(plan, plan.rounds.count), plan.privacy
    if charge is None or privacy is None:
        raise PrivacyProofError(what=f"the plan {plan.name!r} has no [privacy]", fix="give one")
    if isinstance(charge, GaussianCharge):
        return noise_multiplier_for(
            epsilon, privacy.delta, charge.relation, charge.sampling_rate, charge.times
        )
    # A sum of rounded shares needs a little more than one Gaussian.
    enough = noise_multiplier_for(epsilon, privacy.delta, charge.relation, 1.0, charge.times)
    while True:
        noisier = privacy.model_copy(update={"noise_multiplier": enough})
        again = plan.model_copy(update={"privacy": noisier})
        if _spent(again, plan.rounds.count).epsilon <= epsilon:
            return enough
        enough = float(f"{1.01 * enough:.3g}")


def epsilon_words(epsilon: Epsilon) -> str:
    """``epsilon 3.21``, rounded up; ``no epsilon`` where none holds."""
    return "no epsilon" if epsilon is None else f"epsilon {math.ceil(100 * epsilon) / 100:g}"


def in_one_line(account: PrivacyAccount | None, *, secure_sum: bool = False) -> str:
    """For a title: ``epsilon 3.2 at delta 1e-05 for a patient (with or without one of them)``."""
    if account is None:
        return SUMS_ALONE if secure_sum else NOTHING_CLAIMED
    whom = f"for each {account.protects} ({RELATION_WORDS[account.relation]})"
    return f"{epsilon_words(account.epsilon)} at delta {account.delta:g} {whom}"


def _spent(plan: Plan, rounds: int) -> Spent:
    charge = charge_of(plan, rounds) if rounds else None
    assert plan.privacy is not None  # noqa: S101  # account_of looked
    return spent(() if charge is None else (charge,), plan.privacy.delta)


def _known(found: Spent) -> float | None:
    return found.epsilon if math.isfinite(found.epsilon) else None
