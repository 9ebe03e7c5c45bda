"""A site's privacy ledger in words: what was charged, lost and is left."""

import math

from asterion_client.privacy_ledger import Exposure
from asterion_client.settings import PrivacySettings
from asterion_shared.privacy.charges import RELATION_WORDS, Charge


def charge_words(charge: Charge) -> str:
    """Such as ``1.1, 1% drawn, 1,200 times``."""
    if charge.kind == "gaussian":
        words = f"{charge.noise_multiplier:.3g}"
        if charge.sampling_rate < 1:
            words += f", {charge.sampling_rate:.3g} drawn"
    else:
        noise = charge.share_sigma * math.sqrt(charge.num_shares)
        words = f"{noise / charge.l2_sensitivity:.3g} in {charge.num_shares:,} shares"
    return f"{words}, {charge.times:,} times" if charge.times > 1 else words


def summary(exposure: Exposure | None, limits: PrivacySettings | None) -> str:
    """What the most exposed has lost, what the site allows, and what is left; one sentence."""
    allowed = (
        f"this site allows epsilon {limits.epsilon_limit:g} at delta {limits.delta:.2g}"
        if limits is not None
        else "site.toml has no [privacy], so nothing more can be charged"
    )
    if exposure is None or exposure.relation is None:
        return f"Nothing was charged yet; {allowed}."
    who = "The site" if exposure.unit_kind == "site" else f"The most exposed {exposure.unit_kind}"
    left = f", so {left_words(exposure.epsilon, limits)} is left" if limits is not None else ""
    return (
        f"{who} has lost at most epsilon {epsilon_number(exposure.epsilon)} over all runs, "
        f"comparing data {RELATION_WORDS[exposure.relation]}; {allowed}{left}."
    )


def left_words(epsilon: float, limits: PrivacySettings | None) -> str:
    """What is left of the limit; ``nothing`` where it is spent, a dash without one."""
    if limits is None:
        return "-"
    left = limits.epsilon_limit - epsilon
    # Rounded down: never more than there is.
    return f"{math.floor(left * 1000) / 1000:,.3f}" if left > 0 else "nothing"


def epsilon_number(value: float) -> str:
    """Epsilon with three decimals; ``without bound`` where it has none."""
    # Rounded up: never less than was lost.
    return f"{math.ceil(value * 1000) / 1000:,.3f}" if math.isfinite(value) else "without bound"
