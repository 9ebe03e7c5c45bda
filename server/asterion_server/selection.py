"""Which sites are asked in a round, and how often each counts."""

from collections import Counter
from collections.abc import Collection, Mapping

from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import CarryingCohort, Cohort
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream

ROUNDING_MARGIN = 2**-10
"""More than rounding can lengthen a clipped update: its norm and its numbers are float32."""


def select(plan: Plan, round_: int, num_examples: Mapping[str, int]) -> dict[str, int]:
    """Choose the sites of a round.

    With ``weighting = "examples"`` sites are drawn uniformly without replacement. With
    ``"uniform"`` they are drawn by size *with* replacement, as in the FedProx paper (Li et al.,
    MLSys 2020, algorithm 2), and a site drawn twice counts twice. When ``sites_per_round`` is
    absent, or not below the number of sites and weighting is ``"examples"``, all are asked.

    Args:
        plan: names the scheme, the number of sites and the seed.
        round_: from 1; addresses the draw, so a resumed run chooses the same sites.
        num_examples: examples of every site that can be asked; unknown sizes are 0.

    Returns:
        Site name to how often it was drawn, sorted by name. Empty when there is no site.
    """
    names, number = sorted(num_examples), plan.rounds.sites_per_round
    if number is None or not names:
        return dict.fromkeys(names, 1)
    draw = stream(plan.seed, round_=round_, site="", purpose="selection")
    if plan.algorithm.weighting == "examples":
        chosen = draw.choice(len(names), size=min(number, len(names)), replace=False)
        return dict.fromkeys(sorted(names[i] for i in chosen), 1)
    sizes = [num_examples[name] for name in names]
    total = sum(sizes)
    shares = [size / total for size in sizes] if total else None
    times = Counter(names[i] for i in draw.choice(len(names), size=number, p=shares))
    return dict(sorted(times.items()))


def selected(
    plan: Plan, round_: int, num_examples: Mapping[str, int], busy: Mapping[str, int]
) -> dict[str, int]:
    """The sites of a round: those that are chosen, and those whose open order it may close.

    Args:
        plan: as for :func:`select`.
        round_: likewise.
        num_examples: likewise.
        busy: sites with an open order, with the round that it was made for.

    Returns:
        As :func:`select`; a site with an open order counts as in its own round.
    """
    times = select(plan, round_, num_examples)
    for site, made_for in busy.items():
        times[site] = select(plan, made_for, num_examples).get(site, 1)
    return dict(sorted(times.items()))


def open_orders(
    plan: Plan, cohort: Cohort, round_: int, names: Collection[str]
) -> Mapping[str, int]:
    """Sites that still work for an earlier round whose report can be folded, with that round.

    Of ``names`` alone: what a site was asked before it withdrew is not folded after it.

    Raises:
        PlanMismatchError: the plan carries late reports over and the cohort cannot.
    """
    if plan.rounds.late != "carry_over":
        return {}
    if not isinstance(cohort, CarryingCohort):
        msg = (
            "rounds.late is 'carry_over' and this cohort keeps no order open; set it to "
            "'quorum' or 'wait'"
        )
        raise PlanMismatchError(msg)
    found = cohort.open_orders(round_, plan.rounds.most_stale)
    return {site: made_for for site, made_for in found.items() if site in names}


def weight_of(plan: Plan, num_examples: int, times: int) -> float:
    """The weight of a site's update in the mean: its capped examples, or how often it was drawn."""
    if plan.algorithm.weighting == "uniform":
        return float(times)
    cap = plan.algorithm.max_weight
    return float(num_examples if cap is None else min(num_examples, cap))


def staleness_factor(plan: Plan, staleness: int) -> float:
    """What the weight of a report that is carried over is multiplied by, in (0, 1].

    Xie, Koyejo and Gupta 2019 (arXiv:1903.03934), section 5.2, the polynomial ``(1 + s) ** -a``.
    There it mixes a site's model into the global one. Here the update is a difference from the
    weights that the site started from, and it is added as it is to the present ones.

    Args:
        plan: names a, ``rounds.staleness_exponent``.
        staleness: s, rounds between the one that it was made for and the one that folds it, >= 0.
    """
    return float((1 + staleness) ** -plan.rounds.staleness_exponent)


def clip_factor(plan: Plan, norm: float, clip_norm: float | None = None) -> float:
    """What an update of this Euclidean length is multiplied by, in (0, 1].

    McMahan et al., ICLR 2018, section 2: ``min(1, clip_norm / norm)``; 1 without a clip norm.
    Where the noise of the centre rests on it, the clip is shorter than the plan's, or the round's,
    by :data:`ROUNDING_MARGIN`.

    Args:
        plan: names the clip norm.
        norm: of the update, >= 0.
        clip_norm: the round's, where it adapts (:attr:`Order.clip_norm`); None: the plan's.

    Raises:
        ValueError: the plan's clip norm adapts and the round's is missing, or the reverse.
    """
    privacy = plan.privacy
    if (clip_norm is not None) != (privacy is not None and privacy.adaptive_clip is not None):
        msg = f"the round's clip norm is {clip_norm}; it must be given exactly where it adapts"
        raise ValueError(msg)
    clip = plan.algorithm.clip_norm
    if privacy is not None and privacy.noise == "centre":
        clip = (privacy.clip_norm if clip_norm is None else clip_norm) * (1 - ROUNDING_MARGIN)
    return 1.0 if clip is None or norm <= clip else clip / norm
