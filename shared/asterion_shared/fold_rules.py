"""Folds that hold when a site is wrong, and quarantine: which plans may ask for them."""

from typing import Any, Literal

from asterion_shared.algorithm_settings import KRUM
from asterion_shared.settings_files import Positive, Rule, Settings, rule

FEWEST_JUDGED = 4
"""Reports of a round below which none can be told apart from the others."""

OnSuspicion = Literal["hold", "drop", "report"]


class QuarantineSettings(Settings):
    """Which reports are suspicious: compared with the round's others, layer by layer."""

    norm_z: Positive = 6.0
    """Robust z-score from which on the length of a layer's update is suspicious: its distance from
    the sites' median, over 1.4826 times the median of these distances."""

    cosine_z: Positive = 6.0
    """The same for a layer's direction: how far its cosine to the sites' median update lies below
    the others' cosines."""

    on_suspicion: OnSuspicion = "hold"
    """Leave a suspicious report out and keep it until a person releases or drops it (hold); leave
    it out for good (drop); or fold it and say so (report)."""


def fewest_for_krum(num_malicious: int) -> int:
    """Updates that Krum needs: 2 f + 3 (Blanchard et al., NeurIPS 2017: 2 f + 2 < n)."""
    return 2 * num_malicious + 3


def _robust(plan: Any) -> bool:
    return bool(plan.algorithm.fold != "mean")


def _noised_together(plan: Any) -> bool:
    return plan.privacy is not None and plan.privacy.noise in ("centre", "shares")


FOLD_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: not _robust(p) or p.secure_sum is None,
        lambda p: (
            f"algorithm.fold is {p.algorithm.fold!r} and secure_sum is given; the coordinator "
            "then sees sums alone, and this fold wants each update: set fold = 'mean'; "
            "algorithm.clip_norm bounds what one site can do"
        ),
    ),
    rule(
        lambda p: not _robust(p) or not _noised_together(p),
        lambda p: (
            f"algorithm.fold is {p.algorithm.fold!r} and privacy.noise is {p.privacy.noise!r}; "
            "how far one site can move this fold is not proven, so no noise is known to hide it: "
            "set fold = 'mean', or privacy.noise = 'site'"
        ),
    ),
    rule(
        lambda p: (
            p.algorithm.fold not in KRUM
            or p.rounds.quorum >= fewest_for_krum(p.algorithm.num_malicious)
        ),
        lambda p: (
            f"algorithm.fold is {p.algorithm.fold!r}, num_malicious is "
            f"{p.algorithm.num_malicious} and rounds.quorum is {p.rounds.quorum}; nothing is "
            f"known of fewer than 2 x num_malicious + 3 reports: set the quorum to "
            f"{fewest_for_krum(p.algorithm.num_malicious)} or more"
        ),
    ),
    rule(
        lambda p: (
            p.algorithm.num_kept is None
            or p.algorithm.num_kept <= p.rounds.quorum - p.algorithm.num_malicious - 2
        ),
        lambda p: (
            f"algorithm.num_kept is {p.algorithm.num_kept} and rounds.quorum is "
            f"{p.rounds.quorum}; of n reports at most n - num_malicious - 2 may be kept: set "
            f"{p.rounds.quorum - p.algorithm.num_malicious - 2} or fewer"
        ),
    ),
    rule(
        lambda p: (
            p.algorithm.fold != "trimmed_mean"
            or int(p.algorithm.trim_fraction * p.rounds.quorum) >= 1
        ),
        lambda p: (
            f"algorithm.trim_fraction is {p.algorithm.trim_fraction} and rounds.quorum is "
            f"{p.rounds.quorum}; of so few reports none would be left out: raise either"
        ),
    ),
    rule(
        lambda p: p.quarantine is None or p.kind == "train",
        lambda p: f"quarantine is given and kind is {p.kind!r}; it is about training: remove it",
    ),
    rule(
        lambda p: p.quarantine is None or p.secure_sum is None,
        lambda p: (
            "quarantine is given and secure_sum too; the coordinator then sees no site's own "
            "update: remove either"
        ),
    ),
    rule(
        lambda p: p.quarantine is None or not _noised_together(p),
        lambda p: (
            f"quarantine is given and privacy.noise is {p.privacy.noise!r}; one site would decide "
            "whether others are folded, so the noise is not known to hide it: remove quarantine, "
            "or set privacy.noise = 'site'"
        ),
    ),
    rule(
        lambda p: p.quarantine is None or p.rounds.quorum >= FEWEST_JUDGED,
        lambda p: (
            f"quarantine is given and rounds.quorum is {p.rounds.quorum}; fewer than "
            f"{FEWEST_JUDGED} reports cannot be told apart: set the quorum to {FEWEST_JUDGED} or "
            "more, and ask more sites than that"
        ),
    ),
)
"""Rules of :class:`asterion_shared.plan.Plan`, which imports them."""
