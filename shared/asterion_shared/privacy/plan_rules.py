"""Which plans a privacy proof holds for: the others are refused before any data are touched."""

from typing import Any

from asterion_shared.settings_files import Rule, rule


def numeric_features(data: Any) -> set[str]:
    """The features of a data contract that are not codes."""
    return set(data.features) - {text.partition("=")[0] for text in data.categorical}


def _protects_within_a_site(plan: Any) -> bool:
    return plan.privacy is not None and plan.privacy.protects != "site"


def _noise_at_the_centre(plan: Any) -> bool:
    return plan.privacy is not None and plan.privacy.noise == "centre"


PRIVACY_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: p.privacy is None or p.kind == "train",
        lambda p: f"privacy is given and kind is {p.kind!r}; it is about training: remove it",
    ),
    rule(
        lambda p: p.privacy is None or p.algorithm.clip_norm is None,
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
)
"""Rules of :class:`asterion_shared.plan.Plan`, which imports them."""
