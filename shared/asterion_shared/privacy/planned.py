"""What a plan would cost in privacy, from the plan alone."""

import math
from functools import lru_cache

from asterion_shared.plan import Plan, parse_plan
from asterion_shared.privacy.charges import Charge, GaussianCharge


def private_steps(plan: Plan) -> int:
    """Optimiser steps of a round in which records or patients are protected.

    ``local.amount`` steps, or as many passes of ``ceil(1 / sampling_rate)`` steps.

    Raises:
        ValueError: the plan does not protect records or patients.
    """
    if plan.privacy is None or plan.privacy.sampling_rate is None:
        msg = "the plan protects no records or patients"
        raise ValueError(msg)
    one_pass = math.ceil(1 / plan.privacy.sampling_rate)
    return plan.local.amount * (one_pass if plan.local.unit == "epochs" else 1)


def charge_of(plan: Plan, rounds: int) -> Charge | None:
    """What ``rounds`` >= 1 rounds of training charge to a site that is asked in each of them.

    Neighbours are data sets with or without one of the protected, all else known: how many there
    are, and which sites are asked. Records and patients: each step is a Gaussian release of a
    Poisson sample. Sites: each round is one Gaussian release, and the noise at the centre has
    ``noise_multiplier * clip_norm * max_weight`` as its standard deviation, the latter two being
    the most that one site can change the weighted sum. With an adaptive clip a round releases a
    count too; sum and count together are such a release
    (:mod:`asterion_shared.privacy.adaptive_clip`). Noise in shares is a sum of discrete Gaussians;
    the number of weights of the plan's network is part of its charge.

    Returns:
        None when the plan has no ``[privacy]``.

    Raises:
        PrivacyProofError: noise in shares does not fit the secure sum's numbers.
        PlanMismatchError: noise in shares, and the plan's network cannot be built.
    """
    privacy = plan.privacy
    if privacy is None:
        return None
    if privacy.noise == "shares":
        from asterion_shared.privacy.summed_vector import noise_in_shares

        return noise_in_shares(plan, _num_weights(plan.canonical())).charge(rounds)
    within = privacy.protects != "site"
    return GaussianCharge(
        relation="add_or_remove_one",
        noise_multiplier=privacy.noise_multiplier,
        sampling_rate=privacy.sampling_rate or 1.0,
        times=rounds * (private_steps(plan) if within else 1),
    )


@lru_cache(maxsize=16)
def _num_weights(canonical_plan: str) -> int:
    """Numbers in an update of the plan's network."""
    # Imported here because the networks take seconds, and only noise in shares asks for them.
    from asterion_shared.parameters import layout_of
    from asterion_shared.tasks import initial_model

    plan = parse_plan(canonical_plan)
    return layout_of(initial_model(plan), plan.parameters).size
