"""What stands in the one vector that a site gives to a secure sum, and what is read off the sum.

First the weighted update: on a fixed grid, or rotated, rounded and with the site's share of the
noise where the plan says ``noise = "shares"``. Then its weight and the statistics behind the
metrics, as whole numbers in four words each. All of it is summed modulo 2^32 without loss, except
for the update's rounding to its grid.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import OrderRefusedError, PrivacyProofError
from asterion_shared.metrics import Statistic, Statistics, expected_statistics
from asterion_shared.parameters import Vector, clipped
from asterion_shared.plan import Plan
from asterion_shared.privacy.charges import DiscreteGaussianSumCharge
from asterion_shared.privacy.encoding import (
    Encoding,
    decode_sum,
    noised_share,
    smallest_block,
    wrap_probability,
)
from asterion_shared.privacy.fixed_point import OUT_OF_RANGE, FixedPoint, choose_fixed_point
from asterion_shared.privacy.plan_rules import sharing_of
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.privacy.secure_sum_graph import Sharing

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

BITS = 32
"""Numbers travel in words of 4 bytes, so a smaller modulus would save nothing."""

WRAP_DELTA = 1e-12
"""Largest probability that one noised sum leaves the modulus; it is added to delta."""

ROTATED_TOGETHER = 1 << 20
"""Longest block of a rotation: it saves padding and stays in a core's cache."""

LIMBS, LIMB_BITS = 4, 16
"""A whole number below 2^64 in words of 16 bits, so that 2^16 of them add up in 32."""

STEP = 2.0**-16
LARGEST = 2.0**36
"""Grid and range of a statistic: counts are exact, other numbers off by at most STEP / 2."""


@dataclass(frozen=True, slots=True)
class NoiseInShares:
    """How noise is split over the sites of a plan.

    Attributes:
        encoding: of each site's weighted update.
        share_sigma: scale of each site's discrete Gaussian, in units of the grid.
        num_shares: shares that are surely in the sum and unknown to the coordinator.
    """

    encoding: Encoding
    share_sigma: float
    num_shares: int

    def charge(self, rounds: int) -> DiscreteGaussianSumCharge:
        """What ``rounds`` >= 1 sums charge to each site."""
        return DiscreteGaussianSumCharge(
            relation="add_or_remove_one",
            l2_sensitivity=self.encoding.l2_bound,
            share_sigma=self.share_sigma,
            num_shares=self.num_shares,
            dimension=self.encoding.padded_dimension,
            wrap_delta=WRAP_DELTA,
            times=rounds,
        )


@dataclass(frozen=True, slots=True)
class Summed:
    """What the coordinator learns.

    Attributes:
        update: sum of the weighted updates, float64 ``(size,)``.
        weight: what the sum of updates is divided by: the sum of the weights, or, where noise is in
            shares, ``sites_per_round * max_weight``, which no site can change (McMahan et al.,
            ICLR 2018, the fixed-denominator estimator).
        statistics: sums over the sites; empty when no site measured anything.
    """

    update: Floats
    weight: float
    statistics: dict[str, Statistic]


@dataclass(frozen=True, slots=True)
class SummedVector:
    """The form of the vector, which both sides compute from the plan.

    Attributes:
        plan: with ``[secure_sum]``.
        size: numbers in an update; 0 when only metrics are summed.
        round: of the run; the rotation differs from round to round.
    """

    plan: Plan
    size: int
    round: int

    @property
    def sharing(self) -> Sharing:
        """The thresholds of the sum."""
        return sharing_of(self.plan)

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return self._update_length + LIMBS * _tail_size(self.plan)

    def encode(
        self, update: Vector | None, num_examples: int, statistics: Statistics, secret: SecretStream
    ) -> Words:
        """A site's vector, uint32 ``(length,)``, with its share of the noise in it.

        Args:
            update: float32 ``(size,)``; shortened to the plan's clip norm. None when ``size`` is 0.
            num_examples: behind the update; its weight is this, at most ``max_weight``.
            statistics: of the site's test cases; may lack any.
            secret: where rounding and noise come from.

        Raises:
            OrderRefusedError: ``secure_sum_out_of_range``: a number is not finite or too large, or
                the update has another shape.
        """
        if (0 if update is None else update.size) != self.size:
            msg = f"the update has {0 if update is None else update.size} numbers, not {self.size}"
            raise OrderRefusedError(msg, code=OUT_OF_RANGE)
        weight = float(min(num_examples, _max_weight(self.plan)))
        words = np.empty(self.length, np.uint32)
        if update is not None:
            if not np.isfinite(update).all():
                msg = "the update has a number that is not finite; nothing is sent"
                raise OrderRefusedError(msg, code=OUT_OF_RANGE)
            weighted = weight * clipped(update, _clip_norm(self.plan))
            words[: self._update_length] = self._encoded(weighted, secret)
        tail = np.zeros(_tail_size(self.plan))
        tail[0] = weight if update is not None and not _in_shares(self.plan) else 0.0
        for name, begin, _, length in _places(self.plan):
            if name in statistics:
                tail[begin] = 1.0
                tail[begin + 1 : begin + 1 + length] = statistics[name].values
        words[self._update_length :] = _limbs(tail)
        return words

    def decode(self, total: Words) -> Summed:
        """Read what the sum of the sites' vectors says, uint32 ``(length,)``."""
        update: Floats = np.zeros(0)
        if self.size and _in_shares(self.plan):
            encoding = noise_in_shares(self.plan, self.size, self.round).encoding
            update = decode_sum(total[: self._update_length], encoding)
        elif self.size:
            update = self._grid.decode(total[: self._update_length])
        tail = _numbers(total[self._update_length :])
        weight = float(tail[0])
        if _in_shares(self.plan):
            weight = float(self.sharing.num_sites * _max_weight(self.plan))
        return Summed(update, weight, {
            name: Statistic(kind, tail[begin + 1 : begin + 1 + length])
            for name, begin, kind, length in _places(self.plan)
            if tail[begin] > 0
        })  # fmt: skip

    @property
    def _update_length(self) -> int:
        if not self.size or not _in_shares(self.plan):
            return self.size
        return noise_in_shares(self.plan, self.size, self.round).encoding.padded_dimension

    @property
    def _grid(self) -> FixedPoint:
        return choose_fixed_point(
            largest=_clip_norm(self.plan) * _max_weight(self.plan),
            num_summands=self.sharing.num_sites,
            steps=1,
        )

    def _encoded(self, weighted: Floats, secret: SecretStream) -> Words:
        if not _in_shares(self.plan):
            return self._grid.encode(weighted).astype(np.uint32)
        shares = noise_in_shares(self.plan, self.size, self.round)
        return noised_share(weighted, shares.encoding, shares.share_sigma, secret)


def noise_in_shares(plan: Plan, size: int, round_: int = 0) -> NoiseInShares:
    """The encoding and the noise of a plan with ``noise = "shares"``.

    The grid is the finest, by factors of two, on which the sum leaves the modulus with probability
    at most :data:`WRAP_DELTA`. A share has the variance of the whole noise over the fewest shares
    that are surely in the sum and unknown: the fewest survivors less the colluders.

    Args:
        plan: with ``[secure_sum]``.
        size: numbers in an update, at least 1.
        round_: of the run.

    Raises:
        PrivacyProofError: no grid is fine enough for the plan's noise, sites and network.
    """
    assert plan.privacy is not None  # noqa: S101  # noise = "shares" says so
    return _noise_in_shares(
        sharing_of(plan), size, _clip_norm(plan) * _max_weight(plan),
        plan.privacy.noise_multiplier, plan.seed, round_,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _noise_in_shares(
    sharing: Sharing, size: int, longest: float, noise_multiplier: float, seed: int, round_: int
) -> NoiseInShares:
    num_shares = sharing.min_survivors - sharing.max_colluders
    for exponent in range(BITS - 2, -1, -1):
        try:
            encoding = Encoding(
                dimension=size, clip_norm=longest, scale=2.0**exponent / longest,
                modulus_bits=BITS, rotation_seed=seed, round_=round_,
                block_size=smallest_block(size, at_most=ROTATED_TOGETHER),
            )  # fmt: skip
        except ValueError:
            continue  # too fine: one update alone would not fit the modulus
        share_sigma = noise_multiplier * encoding.l2_bound / math.sqrt(num_shares)
        if wrap_probability(encoding, sharing.num_sites, share_sigma) > WRAP_DELTA:
            continue
        if 2.0**exponent < math.sqrt(encoding.padded_dimension) or share_sigma < 1:
            break  # rounding would add more to the sensitivity than the update itself has
        return NoiseInShares(encoding, share_sigma, num_shares)
    raise PrivacyProofError(
        what=f"no grid of {BITS} bits holds the sum of {sharing.num_sites} updates of {size} "
        f"numbers with noise multiplier {noise_multiplier:g} in shares",
        fix="ask fewer sites a round, take a smaller network or less noise",
    )


def _in_shares(plan: Plan) -> bool:
    return plan.privacy is not None and plan.privacy.noise == "shares"


def _clip_norm(plan: Plan) -> float:
    clip = plan.algorithm.clip_norm
    if plan.privacy is not None and plan.privacy.protects == "site":
        clip = plan.privacy.clip_norm
    assert clip is not None  # noqa: S101  # a rule of the plan
    return clip


def _max_weight(plan: Plan) -> int:
    assert plan.algorithm.max_weight is not None  # noqa: S101  # a rule of the plan
    return plan.algorithm.max_weight


def _places(plan: Plan) -> list[tuple[str, int, str, int]]:
    """Where each statistic stands in the tail: name, place of its 0 or 1, kind, length."""
    places, begin = [], 1
    for name, (kind, length) in expected_statistics(plan).items():
        places.append((name, begin, kind, length))
        begin += 1 + length
    return places


def _tail_size(plan: Plan) -> int:
    return 1 + sum(1 + length for _, _, _, length in _places(plan))


def _limbs(values: Floats) -> Words:
    """Numbers from 0 to LARGEST as four words each, the lowest bits first, ``(4 n,)``."""
    if not ((values >= 0) & (values <= LARGEST)).all():
        msg = f"a statistic is not within 0 and {LARGEST:g}; nothing is sent"
        raise OrderRefusedError(msg, code=OUT_OF_RANGE)
    whole = np.rint(values / STEP).astype(np.uint64)
    shifts = np.arange(LIMBS, dtype=np.uint64) * np.uint64(LIMB_BITS)
    limbs = (whole[:, None] >> shifts) & np.uint64((1 << LIMB_BITS) - 1)
    return limbs.astype(np.uint32).ravel()


def _numbers(limbs: Words) -> Floats:
    """The numbers whose (summed) limbs these are, float64 ``(n,)``."""
    weights = 2.0 ** (LIMB_BITS * np.arange(LIMBS)) * STEP
    return np.asarray(limbs.reshape(-1, LIMBS).astype(np.float64) @ weights)
