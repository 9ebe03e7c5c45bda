"""The ``[privacy]`` and ``[secure_sum]`` sections of a plan."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from asterion_shared.settings_files import Positive, Rule, Settings, rule

Protected = Literal["record", "patient", "site"]


class AdaptiveClip(Settings):
    """A clip norm that follows a quantile of the updates' lengths.

    :mod:`asterion_shared.privacy.adaptive_clip` has the rule, its source and its charge.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a round's updates that shall be no longer than its clip norm."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """How fast the clip norm follows: where all updates are longer than it, a round multiplies it
    by exp(learning_rate * quantile)."""

    count_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the privacy budget that pays for counting the updates within the clip norm; must be
    given, such as 0.02. The count's noise has the deviation noise_multiplier / (2 sqrt(share)),
    which must be well below sites_per_round. The rest of the budget is the update's."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda a: a.count_share is not None,
            lambda a: (
                "count_share is missing; the count of updates within the clip norm is released in "
                "each round and must be paid for: give it a share of the budget, such as 0.02"
            ),
        ),
    )


class PrivacySettings(Settings):
    """Differential privacy for records, patients or sites.

    The sensitivity follows from the clip that is really applied; there is no setting for it, nor
    for what counts as a neighbouring data set.
    """

    protects: Protected
    """What one of the guarantee is about: a record (an image, a volume or field, a row; never a
    patch of one), a patient or field with all of its records, or a site with all of its data."""

    noise: Literal["site", "centre", "shares"]
    """Who adds the noise. ``site``: every site, before anything leaves. ``centre``: the
    coordinator, who is then trusted with each site's update. ``shares``: every site a part of
    it, under a secure sum, so that the coordinator sees the noised sum alone. The last two
    protect sites only."""

    clip_norm: Positive
    """Longest contribution: of a record's or patient's gradient in a step, or a site's update.
    With an adaptive clip, of the first round."""

    noise_multiplier: Positive
    """Standard deviation of the noise over the most that one of them can change the sum. It is
    what is charged: with an adaptive clip the sum and the count share it."""

    adaptive_clip: AdaptiveClip | None = None
    """Noise at the centre: the clip norm follows the updates' lengths; absent: it stays."""

    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Records and patients: the probability with which each takes part in a step, drawn in
    secret at the site. A pass over the data is 1 / sampling_rate steps, rounded up."""

    delta: Annotated[float, Field(gt=0, le=0.01)] = 1e-5
    """Probability for which epsilon need not hold; well below 1 over the number of protected."""

    epsilon_limit: Positive
    """Most epsilon that the whole run may come to; a plan that would exceed it is refused."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda p: p.adaptive_clip is None or p.noise == "centre",
            lambda p: (
                f"adaptive_clip is given and noise is {p.noise!r}; only the coordinator counts the "
                "updates within the clip norm: remove it, or set noise = 'centre'"
            ),
        ),
        rule(
            lambda p: p.noise == "site" or p.protects == "site",
            lambda p: (
                f"noise is {p.noise!r} and protects is {p.protects!r}; only the site sees a "
                f"{p.protects}, so set noise = 'site', or protects = 'site'"
            ),
        ),
        rule(
            lambda p: (p.protects == "site") == (p.sampling_rate is None),
            lambda p: (
                "sampling_rate is given and protects is 'site'; remove it: no amplification is "
                "claimed for a selection that the coordinator knows"
                if p.protects == "site"
                else f"protects is {p.protects!r} and sampling_rate is missing; give the "
                "probability of one to take part in a step, such as 0.05"
            ),
        ),
    )


class SecureSumSettings(Settings):
    """Secure sums: the coordinator learns sums over the sites, and nothing of one site alone.

    The thresholds follow from the two assumptions and from ``rounds.sites_per_round``.
    """

    max_colluders: Annotated[int, Field(ge=0)]
    """Most sites that may work together with the coordinator against another site. 0: the
    coordinator may be curious, and no site helps it."""

    max_dropouts: Annotated[int, Field(ge=0)]
    """Most of the asked sites that may be lost in a round with the sum still formed."""
