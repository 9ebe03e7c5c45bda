"""What the guesses about one run refute, when a claim is held against them at every delta at once.

A charge claims an epsilon for each delta. Together these are a trade-off curve, and a one-run
attack is far sharper against the whole curve than against one of its points (Steinke, Nasr and
Jagielski 2023, https://arxiv.org/abs/2305.08846, theorem 5.2): halved noise is noticed. The
argument is that of Mahloujifar, Melis and Chaudhuri 2025
(https://arxiv.org/abs/2410.22235), for coins; :func:`refuted` gives it in full.

Nothing here looks at data or draws at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.charges import GaussianCharge

Floats = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]

DELTAS: tuple[float, ...] = (
    *np.geomspace(1e-9, 0.1, 17).tolist(),
    *np.linspace(0.16, 0.94, 9).tolist(),
)
"""Where a curve is known; between them it is the chord, which claims less."""

MOST_NOISE = 8.0
"""Largest factor on the noise multiplier that is tried; beyond it nothing was shown."""

LEAST_NOISE = 0.25
"""Smallest factor that is tried: more than this need not be shown of a broken claim."""

STEP = 1.02
"""Between neighbouring factors."""

LESS_NOISE = (2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
"""How many times too little the noise is, against which the number of guesses is planned."""

_HALVINGS = 60
"""Of the interval that holds a threshold."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Pairs (epsilon, delta) that all hold, for adding and for removing one.

    Attributes:
        epsilons: float64 ``(k,)``, finite, at least 0.
        deltas: float64 ``(k,)``, in (0, 1).
    """

    epsilons: Floats
    deltas: Floats

    def least(self, chance: float) -> float:
        """Least chance on a neighbouring data set of an event that has ``chance`` on this one.

        From both ``P(E) <= exp(epsilon) Q(E) + delta`` and the same of the complement with P and Q
        exchanged; in [0, ``chance``].
        """
        direct = (chance - self.deltas) * np.exp(-self.epsilons)
        # As a product, large epsilons would overflow.
        turned = (1 - self.deltas) - np.exp(np.minimum(self.epsilons, 700.0)) * (1 - chance)
        return float(max(0.0, direct.max(initial=0.0), turned.max(initial=0.0)))


def claims_of(charges: Sequence[GaussianCharge]) -> Claims:
    """What charges claim at each of :data:`DELTAS`.

    Raises:
        PrivacyProofError: as :func:`asterion_shared.privacy.accounting.spent`.
    """
    found = np.array([spent(charges, delta).epsilon for delta in DELTAS])
    known = np.isfinite(found)
    return Claims(found[known], np.array(DELTAS)[known])


def count_right(scores: Floats, included: Coins, num_guesses: int) -> int:
    """Guess "included" of the highest half of the guesses, "not" of the lowest, and compare.

    Args:
        scores: float ``(m,)``, higher where a canary looks included; ties go by position.
        included: bool ``(m,)``, the coins.
        num_guesses: even, 0 to m.

    Returns:
        How many guesses were right, 0 to ``num_guesses``.

    Raises:
        ValueError: shapes differ, or ``num_guesses`` is odd or outside its range.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        msg = f"scores have shape {scores.shape} and coins {included.shape}; give one coin a score"
        raise ValueError(msg)
    if num_guesses % 2 or not 0 <= num_guesses <= scores.size:
        msg = f"num_guesses is {num_guesses}; give an even number from 0 to {scores.size}"
        raise ValueError(msg)
    order, half = np.argsort(scores, kind="stable"), num_guesses // 2
    lowest, highest = order[:half], order[scores.size - half :]
    return int(included[highest].sum() + (~included[lowest]).sum())


def refuted(
    num_canaries: int, num_guesses: int, num_right: int, claims: Claims, confidence: float
) -> bool:
    """Whether so many right guesses about one run have less than ``1 - confidence`` of chance.

    Let ``p_t`` be the chance that exactly ``t`` of ``r`` guesses about ``m`` fair coins are right,
    and draw one of the coins. That it is guessed at, rightly, and ``t`` or more are right in all
    has the chance ``R_t = sum_{s >= t} s p_s / m``. With that coin turned over the same outputs
    guess it wrongly and ``t - 1`` or more are right: ``W_{t-1} = sum_{s >= t-1} (r - s) p_s / m``.
    Turning a coin over leads to a neighbouring data set, so ``W_{t-1} >= least(R_t)`` for every
    ``t``; the mean over coins keeps the inequality because ``least`` is convex. Is
    ``sum_{s >= v} p_s`` to reach the level, then the smallest ``p`` that obey all of this have it
    at ``v`` and go downwards from there, each as small as its inequality allows; when they come
    to more than 1, there are none.

    Args:
        num_canaries: m, each included by a fair coin of its own; at least 0.
        num_guesses: r of them that were guessed at, 0 to m; fixed before the output was seen.
        num_right: v, 0 to r.
        claims: the curve.
        confidence: in (0, 1).

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= num_right <= num_guesses <= num_canaries:
        msg = (
            f"{num_right} of {num_guesses} guesses about {num_canaries} canaries were right; give "
            "0 <= right <= guesses <= canaries"
        )
        raise ValueError(msg)
    if not 0 < confidence < 1:
        msg = f"confidence is {confidence}; give a number in (0, 1), such as 0.95"
        raise ValueError(msg)
    level = 1 - confidence
    total = level
    right, wrong = (level * n / num_canaries if n else 0.0
                    for n in (num_right, num_guesses - num_right))  # fmt: skip
    for below in range(num_right - 1, -1, -1):
        others = num_guesses - below
        least = max(0.0, (claims.least(right) - wrong) * num_canaries / others)
        total += least
        if total > 1:
            return True
        right += least * below / num_canaries
        wrong += least * others / num_canaries
    return False


def fewest_right(num_canaries: int, num_guesses: int, claims: Claims, confidence: float) -> int:
    """Fewest right guesses that refute the claims; ``num_guesses + 1`` if not even all do."""
    low, high = 0, num_guesses + 1  # no right guess refutes nothing
    while high - low > 1:
        middle = (low + high) // 2
        if refuted(num_canaries, num_guesses, middle, claims, confidence):
            high = middle
        else:
            low = middle
    return high


def planned_guesses(num_canaries: int, deviation: float, claims: Claims, confidence: float) -> int:
    """How many guesses notice too little noise most surely, before any score is seen.

    The first of :data:`LESS_NOISE` that would be noticed in the mean decides. For scores from
    N(0, deviation^2) without and N(1, deviation^2) with the canary, as those of Gaussian
    mechanisms are. Where they are otherwise the bound still holds, and may be smaller.

    Args:
        num_canaries: at least 0.
        deviation: above 0: the noise that is claimed over what a canary adds.
        claims: the curve.
        confidence: in (0, 1).

    Returns:
        Even, 0 to ``num_canaries``; 0 for fewer than two canaries.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 < deviation < math.inf:
        msg = f"deviation is {deviation}; give a finite number above 0"
        raise ValueError(msg)
    sizes = {int(size) for size in np.geomspace(1, max(1, num_canaries // 2), 20)}
    halves = np.array(sorted(half for half in sizes if 2 * half <= num_canaries))
    if halves.size == 0:
        return 0
    needed = np.array([fewest_right(num_canaries, 2 * half, claims, confidence) for half in halves])
    margins = halves * -math.inf
    for share in LESS_NOISE:
        accuracy = np.array(
            [expected_accuracy(half / num_canaries, deviation / share) for half in halves]
        )
        scatter = np.sqrt(2 * halves * accuracy * (1 - accuracy) + 1)
        margins = (2 * halves * accuracy - needed) / scatter
        if margins.max() > 0:
            break
    return int(2 * halves[margins.argmax()])


def expected_accuracy(share: float, deviation: float) -> float:
    """Of "included", said of the highest ``share`` <= 1/2 of scores from both Gaussians."""

    def above(edge: float) -> tuple[float, float]:
        without, including = special.ndtr([-edge / deviation, (1 - edge) / deviation])
        return float(without), float(including)

    low, high = 0.5, 1.0 + deviation * 30
    for _ in range(_HALVINGS):
        edge = (low + high) / 2
        low, high = (edge, high) if sum(above(edge)) / 2 > share else (low, edge)
    without, including = above(low)
    return including / (without + including)


def refuted_noise(
    num_canaries: int,
    num_guesses: int,
    num_right: int,
    charge: GaussianCharge,
    confidence: float,
) -> float:
    """Least factor on the charge's noise multiplier whose claims the guesses refute.

    At most 1: the charge itself is refuted. The release shows as much as one with this factor
    times the noise would at least be allowed to.

    Returns:
        From :data:`LEAST_NOISE` to :data:`MOST_NOISE`; ``math.inf`` when not even the latter is.

    Raises:
        ValueError: as :func:`refuted`.
    """

    def is_refuted(step: int) -> bool:
        noise = charge.noise_multiplier * STEP**step
        louder = charge.model_copy(update={"noise_multiplier": noise})
        return refuted(num_canaries, num_guesses, num_right, claims_of((louder,)), confidence)

    # The charge itself first, then away from it: far from it the accountants are slow.
    if is_refuted(0):
        low, high = math.floor(math.log(LEAST_NOISE, STEP)), 0
    else:
        low, high = 0, math.ceil(math.log(MOST_NOISE, STEP))
        if not is_refuted(high):
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        if is_refuted(middle):
            high = middle
        else:
            low = middle
    return STEP**high
