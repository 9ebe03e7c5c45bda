"""The ``[transport]`` section of a plan, and which plans it fits."""

from typing import Any, Literal

from asterion_shared.settings_files import Rule, Settings, rule

RoundedKind = Literal["bf16", "int8"]
"""The forms in which an update is rounded; :mod:`asterion_shared.update_codec` has them."""

UpdateKind = Literal["float32", RoundedKind]


class TransportSettings(Settings):
    """In what form numbers travel."""

    update: UpdateKind = "float32"
    """How a site sends its update. ``float32``: as it is. ``bf16``: rounded to 16 bits a weight.
    ``int8``: rounded to 8 bits, with a scale for each 1024 weights."""

    error_feedback: bool = True
    """Whether a site adds what rounding lost to its update of the next round that it is asked
    for. It keeps that for itself, as much as an update in float32. No effect with ``float32``."""

    lossless: bool = False
    """Whether the carrier packs what it sends, without any loss; sizes then depend on the content.
    The stock Flower carrier has no packing and ignores it."""


def _rounds(plan: Any) -> bool:
    return bool(plan.transport.update != "float32")


TRANSPORT_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: not _rounds(p) or p.secure_sum is None,
        lambda p: (
            f"transport.update is {p.transport.update!r} and secure_sum is given; what is "
            "summed has one fixed point for all sites: leave transport.update at 'float32'"
        ),
    ),
    rule(
        lambda p: not p.transport.lossless or p.privacy is None or p.privacy.noise != "centre",
        lambda p: (
            "transport.lossless is true and privacy.noise is 'centre'; updates leave without "
            "noise, and whoever watches the network would learn how well each packs: "
            "leave transport.lossless at false"
        ),
    ),
)
"""Rules of :class:`asterion_shared.plan.Plan`, which imports them."""
