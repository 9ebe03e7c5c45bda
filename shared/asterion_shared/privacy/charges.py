"""What a release cost in privacy: a fact that is stored. Epsilon is computed from it anew.

A charge says which mechanism really ran, how often and on what sensitivity. It holds for one
neighbouring relation; charges of different relations are never added.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from asterion_shared.settings_files import Positive, Settings

Relation = Literal["add_or_remove_one", "replace_one"]
"""Two data sets are neighbours when one has one protected unit more, or another one instead."""

RELATION_WORDS: dict[Relation, str] = {
    "add_or_remove_one": "with or without one of them",
    "replace_one": "with one of them exchanged for another",
}

Count = Annotated[int, Field(ge=1)]


class GaussianCharge(Settings):
    """Gaussian noise on a sum, each unit in it with a secret probability or surely."""

    kind: Literal["gaussian"] = "gaussian"
    relation: Relation
    noise_multiplier: Positive
    """Standard deviation of the noise over the L2 sensitivity under ``relation``."""

    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability with which Poisson sampling took each unit, secretly and really; 1 where it
    did not, or where the party that the charge is against knows the sample."""

    times: Count = 1
    """Executed steps or releases."""


class DiscreteGaussianSumCharge(Settings):
    """A sum of discrete Gaussian shares under secure aggregation, in units of its integer grid.

    Kairouz, Liu and Steinke 2021 (https://arxiv.org/abs/2102.06387).
    """

    kind: Literal["discrete_gaussian_sum"] = "discrete_gaussian_sum"
    relation: Relation
    l2_sensitivity: Positive
    """Of the encoded (rotated, scaled, rounded) update, under ``relation``."""

    share_sigma: Positive
    """Scale of each share's discrete Gaussian."""

    num_shares: Count
    """Honest shares that are surely in the sum: the fewest survivors less the colluders."""

    dimension: Count
    """Numbers in the encoded update."""

    wrap_delta: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that the sum leaves the modulus; added to delta."""

    times: Count = 1


Charge = Annotated[GaussianCharge | DiscreteGaussianSumCharge, Field(discriminator="kind")]

CHARGES: TypeAdapter[tuple[Charge, ...]] = TypeAdapter(tuple[Charge, ...])
"""Reads and writes charges as JSON."""
