"""A clip norm that follows a quantile of the updates' lengths, and what that costs.

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private learning with adaptive clipping",
NeurIPS 2021 (https://arxiv.org/abs/1905.03871). In a round with clip norm C, over the sites that
report, the coordinator forms two sums and noises both:

    S = sum of w_i u_i         w_i <= W the capped weight, |u_i| <= C the clipped update,
    B = sum of (b_i - 1/2)     b_i is 1 where the update was no longer than C, else 0.

With m sites asked, ``1/2 + (B + noise) / m`` is the share of updates within the clip norm, and

    C <- C exp(-learning_rate (share - quantile)).

*Neighbours* are two federations with or without one site, all else known: who is asked, m, and C,
which earlier releases decide. A site that is absent adds to neither sum. So one site changes S by a
vector no longer than W C, and B by 1/2 or -1/2: that is what the centring is for, because a plain
count would change by 1. Neither m nor W depends on who is there.

*Charge.* Let S have noise of deviation ``s W C`` in each number, and B of deviation ``d``, all
independent. Divided by their deviations they are one vector with noise of deviation 1, which one
site moves by at most ``sqrt(s^-2 + (2 d)^-2)``. That is one Gaussian release with the noise
multiplier ``z = (s^-2 + (2 d)^-2)^(-1/2)`` (theorem 1 of the paper). Here z is the plan's
``noise_multiplier``, and ``count_share`` is the part of ``z^-2`` that B takes. C of the next round
is a function of C and the noised B, so stating it costs nothing.

A site that is asked and gives no report pulls the share towards 1/2, so that the clip norm meets
the quantile exactly only at 1/2; :mod:`asterion_shared.privacy.plan_rules` refuses one that could
never be met.
"""

import math
from dataclasses import dataclass

import numpy as np

from asterion_shared.privacy.settings import PrivacySettings

MOST_CHANGE = 2.0**20
"""The clip norm never leaves the plan's by more than this factor, however unlucky the noise."""


@dataclass(frozen=True, slots=True)
class SplitNoise:
    """How much noise the two sums of a round get.

    Attributes:
        sum_multiplier: deviation on the weighted sum over the most that a site can change it.
        count_deviation: deviation on the centred count, in sites; 0 where nothing is counted.
    """

    sum_multiplier: float
    count_deviation: float


def split_noise(privacy: PrivacySettings) -> SplitNoise:
    """Split a plan's noise so that both sums together cost its ``noise_multiplier``."""
    z, adaptive = privacy.noise_multiplier, privacy.adaptive_clip
    if adaptive is None:
        return SplitNoise(z, 0.0)
    assert adaptive.count_share is not None  # noqa: S101  # a rule of the section
    share = adaptive.count_share
    return SplitNoise(z / math.sqrt(1 - share), z / (2 * math.sqrt(share)))


def next_clip(privacy: PrivacySettings, clip_norm: float, noised_mean: float) -> float:
    """The clip norm of the next round.

    Args:
        privacy: has an adaptive clip.
        clip_norm: of this round, above 0.
        noised_mean: the noised centred count over the number of sites asked; any finite number.

    Returns:
        A float32, as a checkpoint keeps it, within :data:`MOST_CHANGE` of the plan's clip norm.
    """
    adaptive = privacy.adaptive_clip
    assert adaptive is not None  # noqa: S101  # the caller's mistake
    too_many = 0.5 + noised_mean - adaptive.quantile
    most = math.log(MOST_CHANGE)
    moved = math.log(clip_norm / privacy.clip_norm) - adaptive.learning_rate * too_many
    return float(np.float32(privacy.clip_norm * math.exp(min(max(moved, -most), most))))
