"""Which plans a privacy proof holds for: the others are refused before any data are touched."""

from dataclasses import replace
from typing import Any

from asterion_shared.errors import UserInputError
from asterion_shared.privacy.secure_sum_graph import Sharing, choose_sharing
from asterion_shared.settings_files import Rule, rule


def numeric_features(data: Any) -> set[str]:
    """The features of a data contract that are not codes."""
    return set(data.features) - {text.partition("=")[0] for text in data.categorical}


def _protects_within_a_site(plan: Any) -> bool:
    return plan.privacy is not None and plan.privacy.protects != "site"


def _noise_at_the_centre(plan: Any) -> bool:
    return plan.privacy is not None and plan.privacy.noise == "centre"


def _reachable(plan: Any) -> bool:
    """Whether the count can come to the quantile when no more than the quorum answer.

    A site that gives no report counts as half a site within the clip norm, so the counted share
    lies between 1/2 - p/2 and 1/2 + p/2 where a share p of the sites answer.
    """
    adaptive = None if plan.privacy is None else plan.privacy.adaptive_clip
    asked = plan.rounds.sites_per_round
    if adaptive is None or asked is None:
        return True
    return bool(abs(adaptive.quantile - 0.5) < plan.rounds.quorum / asked / 2)


PRIVACY_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: p.privacy is None or p.kind == "train",
        lambda p: f"privacy is given and kind is {p.kind!r}; it is about training: remove it",
    ),
    rule(
        lambda p: (
            p.privacy is None or p.privacy.protects != "site" or p.algorithm.clip_norm is None
        ),
        lambda p: "algorithm.clip_norm is given beside privacy.clip_norm; keep the latter",
    ),
    rule(
        lambda p: p.privacy is None or p.parameters.batch_norm_statistics != "share",
        lambda p: (
            "parameters.batch_norm_statistics is 'share' and privacy is given; averages of the "
            "data would leave beside the clipped update: set 'keep' or 'forbid'"
        ),
    ),
    rule(
        lambda p: not _protects_within_a_site(p) or p.local.patches_per_image == 1,
        lambda p: (
            f"local.patches_per_image is {p.local.patches_per_image} and privacy.protects is "
            f"{p.privacy.protects!r}; an image takes part in a step with one patch: set it to 1"
        ),
    ),
    rule(
        lambda p: (
            not _protects_within_a_site(p)
            or p.data.kind == "image"
            or set(p.data.scale) == numeric_features(p.data)
        ),
        lambda p: (
            "data.scale lacks features and privacy.protects is "
            f"{p.privacy.protects!r}; standardised by the site's own rows each row would change "
            "all others: give a published mean and deviation of each numeric feature"
        ),
    ),
    rule(
        lambda p: not _protects_within_a_site(p) or p.local.seconds_limit is None,
        lambda p: (
            f"local.seconds_limit is {p.local.seconds_limit} and epsilon is stated before the "
            "run; remove it and set local.amount"
        ),
    ),
    rule(
        lambda p: not _protects_within_a_site(p) or not p.parameters.keep,
        lambda p: (
            "parameters.keep is given and privacy.protects is "
            f"{p.privacy.protects!r}; weights that stay are not noised and would show in later "
            "updates: remove parameters.keep"
        ),
    ),
    rule(
        lambda p: (
            not _noise_at_the_centre(p)
            or (p.algorithm.weighting == "examples" and p.algorithm.max_weight is not None)
        ),
        lambda p: (
            "privacy.noise is 'centre' and no site's weight has a bound; set algorithm.weighting "
            "= 'examples' and algorithm.max_weight (1: every site weighs the same)"
        ),
    ),
    rule(
        lambda p: not _noise_at_the_centre(p) or p.rounds.sites_per_round is not None,
        lambda p: (
            "privacy.noise is 'centre' and rounds.sites_per_round is missing; the noised sum is "
            "divided by sites_per_round x max_weight, which must be a constant of the plan"
        ),
    ),
    rule(
        lambda p: not _noise_at_the_centre(p) or p.algorithm.flower_strategy is None,
        lambda p: (
            f"algorithm.flower_strategy is {p.algorithm.flower_strategy!r} and privacy.noise is "
            "'centre'; a stock strategy weighs updates as it likes, so no sensitivity is known: "
            "remove it, or set privacy.noise = 'site'"
        ),
    ),
    rule(
        _reachable,
        lambda p: (
            f"privacy.adaptive_clip.quantile is {p.privacy.adaptive_clip.quantile} and "
            f"rounds.quorum is {p.rounds.quorum} of {p.rounds.sites_per_round} sites; a site that "
            "gives no report counts as half within, so that with so few the clip norm could grow "
            "or shrink without end: raise the quorum above "
            f"{2 * abs(p.privacy.adaptive_clip.quantile - 0.5) * p.rounds.sites_per_round:g}, or "
            "set the quantile to 0.5"
        ),
    ),
)
"""Rules of :class:`asterion_shared.plan.Plan`, which imports them."""


def sharing_problem(plan: Any) -> str:
    """Why the thresholds of a plan's secure sum cannot hold; empty when they do."""
    try:
        sharing_of(plan)
    except UserInputError as error:
        return str(error)
    return ""


def sharing_of(plan: Any) -> Sharing:
    """The thresholds of a plan with ``[secure_sum]``, for all sites that a round asks.

    The fewest survivors are those that the plan allows, ``sites_per_round - max_dropouts``, and
    not the fewer that the protocol could do with: shares of noise are sized for them.

    Raises:
        UserInputError: no thresholds hold for so many colluders and drop-outs.
    """
    sites, assumed = plan.rounds.sites_per_round, plan.secure_sum
    sharing = choose_sharing(
        sites, max_colluders=assumed.max_colluders, max_dropouts=assumed.max_dropouts
    )
    return replace(sharing, min_survivors=sites - assumed.max_dropouts)


def _secure(plan: Any) -> bool:
    return plan.secure_sum is not None


SECURE_SUM_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: p.privacy is None or p.privacy.noise != "shares" or _secure(p),
        lambda p: (
            "privacy.noise is 'shares' and [secure_sum] is missing; a share alone hides little: "
            "give secure_sum.max_colluders and secure_sum.max_dropouts"
        ),
    ),
    rule(
        lambda p: not _secure(p) or p.kind == "train",
        lambda p: f"secure_sum is given and kind is {p.kind!r}; it is about training: remove it",
    ),
    rule(
        lambda p: not _secure(p) or p.rounds.sites_per_round is not None,
        lambda p: (
            "secure_sum is given and rounds.sites_per_round is missing; sites compute the "
            "thresholds from it"
        ),
    ),
    rule(
        lambda p: not _secure(p) or p.rounds.sites_per_round is None or not sharing_problem(p),
        lambda p: f"secure_sum: {sharing_problem(p)}",
    ),
    rule(
        lambda p: (
            not _secure(p)
            or (p.algorithm.weighting == "examples" and p.algorithm.max_weight is not None)
        ),
        lambda p: (
            "secure_sum is given and no site's weight has a bound; weights are inside the sum, so "
            "set algorithm.weighting = 'examples' and algorithm.max_weight (1: every site weighs "
            "the same)"
        ),
    ),
    rule(
        lambda p: (
            not _secure(p)
            or (p.privacy is not None and p.privacy.noise == "shares")
            or p.algorithm.clip_norm is not None
        ),
        lambda p: (
            "secure_sum is given and algorithm.clip_norm is missing; the range of the sum follows "
            "from it: set one that updates do not reach, such as 100"
        ),
    ),
    rule(
        lambda p: not _secure(p) or p.algorithm.flower_strategy is None,
        lambda p: (
            f"algorithm.flower_strategy is {p.algorithm.flower_strategy!r} and secure_sum is "
            "given; a strategy wants each update by itself, and nobody sees one: remove either"
        ),
    ),
    rule(
        lambda p: not _secure(p) or p.privacy is None or p.privacy.noise != "centre",
        lambda p: (
            "privacy.noise is 'centre' and secure_sum is given; set privacy.noise = 'shares': "
            "then the coordinator need not be trusted with the noise either"
        ),
    ),
)
"""Rules of :class:`asterion_shared.plan.Plan`: what a secure sum cannot serve, and its bounds."""
