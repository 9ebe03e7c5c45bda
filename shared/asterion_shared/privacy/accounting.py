"""What stored charges add up to: an upper bound of epsilon for a delta.

Two accountants of dp-accounting are asked and the smaller figure is reported; both are proofs.

- *RDP* adds Renyi divergences at fixed orders (Mironov 2017, https://arxiv.org/abs/1702.07476)
  and converts them by Proposition 12 of Canonne, Kamath and Steinke 2020
  (https://arxiv.org/abs/2004.00010). It covers every charge.
- *PLD* convolves privacy loss distributions. It covers Gaussian charges only. Each distribution is
  put on a grid by "connect the dots" (Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380):
  the grid's hockey-stick divergence is nowhere below the true one, so epsilon comes out too large,
  never too small.

Sampled charges under ``replace_one`` are counted as if every unit took part, for both accountants.
With the same coin for both data sets a sampled release is a mixture of the release with the unit
(probability q) and a release without it that is the same for both; Renyi and hockey-stick
divergences are quasi-convex, so the mixture's is at most that of the unsampled release, step for
step, and composition keeps the order. Amplification would need the norm of a contribution
beside the distance of two, which a charge does not hold; moreover dp-accounting's RDP refuses
Poisson sampling under this relation, and its PLD measures noise there over half the distance.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asterion_shared.errors import PrivacyProofError
from asterion_shared.privacy.charges import (
    Charge,
    DiscreteGaussianSumCharge,
    GaussianCharge,
    Relation,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Curve = NDArray[np.float64]

# dp_accounting is imported where it is used: it takes a second, and most commands need no epsilon.

Accountant = Literal["rdp", "pld"]
Unit = Literal["record", "patient", "site"]

ORDERS: tuple[float, ...] = (
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024),
)
"""Renyi orders: dp-accounting's default ones and more above 63, where small epsilons lie."""

GRID_PER_STEP = 1 / 8
"""Distance of the PLD grid over the root mean square of a step's privacy loss. Connecting the dots
adds at most a quarter of the squared distance to a step's variance, so that the deviation grows
by 0.2 % at most."""

GRID_PER_UNSAMPLED_STEP = 1 / 256
"""The same where nothing was sampled: all releases are then one step and a fine grid is cheap."""

GRID_AT_MOST = 2.0**-6
"""Largest distance of the PLD grid where a sampled step may lose much, but seldom does: its
divergence of order 2 is then far above its mean squared loss."""

GRID_POINTS = 2**20
"""About the most points of a composed PLD; the grid is coarser, and epsilon larger, beyond."""

TIMES_AT_MOST = 1_000_000
"""Most repetitions that :func:`steps_within` looks at."""

ROUNDING = 1e-14
"""Added to each Renyi divergence of a sampled step, which may be as small as its rounding error:
that of logarithms of binomial coefficients up to 1024 over the order."""

HOPELESS_EPSILON = 1e5
"""Renyi figure beyond which no privacy loss distribution is formed."""

HARDLY = 0.99
"""Chance of a right guess beyond which a guarantee is said to protect hardly at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What charges amount to.

    Attributes:
        epsilon: the smaller of the two figures below; ``math.inf`` when nothing is promised.
        delta: the delta it was asked for, failure probabilities of the charges included.
        accountant: whose figure ``epsilon`` is.
        relation: of all charges; None when there was no charge.
        rdp_epsilon: by Renyi divergences.
        pld_epsilon: by privacy loss distributions; None where these have no proof for a charge, or
            were not worth their memory.
    """

    epsilon: float
    delta: float
    accountant: Accountant
    relation: Relation | None
    rdp_epsilon: float
    pld_epsilon: float | None


def rdp_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of the charges together, by Renyi differential privacy.

    For the sum of ``n`` discrete Gaussian shares of scale ``s`` in dimension ``d``, with L2
    sensitivity ``D`` on the integer grid, Kairouz, Liu and Steinke 2021
    (https://arxiv.org/abs/2102.06387, section 3) bound the divergence of order ``a`` by the smaller
    of ``a D^2 / (2 n s^2) + t d`` and ``a/2 (D^2 / (n s^2) + 2 t D1 / (sqrt(n) s) + t^2 d)``, where
    ``t = 10 sum_{k=1}^{n-1} exp(-2 pi^2 s^2 k / (k + 1))`` is how far the logarithm of a density
    ratio of the sum may lie from that of one discrete Gaussian, and ``D1`` is the L1 sensitivity,
    at most ``D min(sqrt(d), D)`` for integers. It needs ``s >= 1/2`` when ``n > 1``.

    ``wrap_delta`` is taken off delta once for each release. Reduction modulo a public number is
    post-processing of the sum and costs no privacy; this is set aside on top.

    Args:
        charges: of one relation; none gives 0.
        delta: in (0, 1).

    Returns:
        An upper bound, at least 0; ``math.inf`` when delta cannot be reached.

    Raises:
        PrivacyProofError: for charges of two relations, a delta outside (0, 1), or discrete
            Gaussian shares too narrow for the theorem.
    """
    return _rdp_epsilon(_merged(charges), delta)


def pld_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of the charges together, by privacy loss distributions.

    The grid follows the charges (:data:`GRID_PER_STEP`), since a fixed one is too coarse for many
    small steps and too large for a few big ones. Unsampled releases are composed in closed form
    first: Gaussian noise over ``z_1, z_2, ...`` is as one over ``(sum z_i^-2)^(-1/2)``. Rounding of
    the Fourier transforms, estimated as one unit in the last place for each sampled step, is taken
    off delta sixteenfold.

    Args:
        charges: Gaussian ones of one relation; none gives 0.
        delta: in (0, 1).

    Returns:
        An upper bound, at least 0; ``math.inf`` when delta cannot be reached.

    Raises:
        PrivacyProofError: for a charge other than :class:`GaussianCharge`, charges of two
            relations, or a delta outside (0, 1).
    """
    return _pld_epsilon(_merged(charges), delta)


def spent(charges: Iterable[Charge], delta: float) -> Spent:
    """Epsilon of the charges together: the smaller figure among the proofs that cover them all.

    Above :data:`HOPELESS_EPSILON` the Renyi figure stands alone: a privacy loss distribution would
    take gigabytes there and protect nobody.

    Args:
        charges: of one relation, in any order; none gives epsilon 0.
        delta: in (0, 1).

    Raises:
        PrivacyProofError: as :func:`rdp_epsilon`.
    """
    merged = _merged(charges)
    by_rdp = _rdp_epsilon(merged, delta)
    gaussian = all(isinstance(charge, GaussianCharge) for charge in merged)
    hopeless = HOPELESS_EPSILON < by_rdp < math.inf
    by_pld = _pld_epsilon(merged, delta) if gaussian and not hopeless else None
    figures: list[tuple[float, Accountant]] = [(by_rdp, "rdp")]
    if by_pld is not None:
        figures.append((by_pld, "pld"))
    epsilon, accountant = min(figures, key=lambda figure: figure[0])
    return Spent(
        epsilon=epsilon,
        delta=delta,
        accountant=accountant,
        relation=merged[0].relation if merged else None,
        rdp_epsilon=by_rdp,
        pld_epsilon=by_pld,
    )


def noise_multiplier_for(
    epsilon: float, delta: float, relation: Relation, sampling_rate: float, steps: int
) -> float:
    """Smallest noise multiplier, of three significant digits, that stays within epsilon.

    Args:
        epsilon: above 0; what :func:`spent` may say at most.
        delta: in (0, 1).
        relation: as in :class:`GaussianCharge`.
        sampling_rate: in (0, 1].
        steps: at least 1.

    Returns:
        Standard deviation of the noise over the L2 sensitivity, between 0.01 and 999,000.

    Raises:
        PrivacyProofError: when no such noise multiplier keeps to epsilon.
    """

    def enough(digits: int) -> bool:
        charge = GaussianCharge(
            relation=relation,
            noise_multiplier=_three_digits(digits),
            sampling_rate=sampling_rate,
            times=steps,
        )
        return spent((charge,), delta).epsilon <= epsilon

    candidates = range(8 * 900)
    found = bisect_left(candidates, True, key=enough)
    if found == len(candidates):
        raise PrivacyProofError(
            what=f"no noise multiplier up to {_three_digits(candidates[-1]):g} keeps {steps} steps "
            f"within epsilon {epsilon:g} at delta {delta:g}",
            fix="allow a larger epsilon or plan fewer steps",
        )
    return _three_digits(found)


def steps_within(epsilon: float, delta: float, charge: Charge) -> int:
    """How many times a charge may be made at most, each time with all its ``times``.

    Args:
        epsilon: at least 0; what :func:`spent` may say at most.
        delta: in (0, 1).
        charge: of any kind.

    Returns:
        0 when not even once; repetitions with more than :data:`TIMES_AT_MOST` in all are not tried.

    Raises:
        PrivacyProofError: as :func:`rdp_epsilon`.
    """
    most = max(1, TIMES_AT_MOST // charge.times)

    def largest(low: int, epsilon_of: Callable[[tuple[Charge], float], float]) -> int:
        """Most repetitions within epsilon, known that ``low`` are."""

        def too_many(repetitions: int) -> bool:
            repeated = _times(charge, charge.times * repetitions)
            return epsilon_of((repeated,), delta) > epsilon

        high = max(1, low)
        while high <= most and not too_many(high):
            low, high = high, 2 * high
        candidates = range(low + 1, min(high, most + 1))
        return low + bisect_left(candidates, True, key=too_many)

    # The quick accountant first; the other one can only find room for more.
    return largest(largest(0, rdp_epsilon), lambda repeated, delta: spent(repeated, delta).epsilon)


def sentence(spent: Spent, unit: Unit, relation: Relation) -> str:
    """One sentence on what epsilon and delta promise to one protected unit.

    Against a mechanism of (epsilon, delta) nobody who starts from even odds is right with a
    probability above ``(e^epsilon + delta) / (1 + e^epsilon)``, whatever else is known: the two
    errors of a test add up to ``2 (1 - delta) / (1 + e^epsilon)`` at least (Kairouz, Oh and
    Viswanath 2015, https://arxiv.org/abs/1311.0776). Epsilon and the chance are rounded up.

    Args:
        spent: what was computed.
        unit: whom the charges protect.
        relation: the one under which ``spent`` was computed.

    Raises:
        PrivacyProofError: when ``spent`` was computed under the other relation.
    """
    if spent.relation not in (None, relation):
        raise PrivacyProofError(
            what=f"epsilon was computed for {spent.relation!r}, not for {relation!r}",
            fix="tell it for the relation of its charges",
        )
    question = {
        "add_or_remove_one": f"whether the data of one {unit} were used",
        "replace_one": f"whether the data of one {unit} or those of another in its place were used",
    }[relation]
    if math.isinf(spent.epsilon):
        return (
            f"No epsilon can be proven at delta {spent.delta:g}, so nothing is promised to a "
            f"{unit}: whoever sees what was released may learn {question}."
        )
    right = right_guess(spent.epsilon, spent.delta)
    figures = f"epsilon {math.ceil(spent.epsilon * 100) / 100:.2f}, delta {spent.delta:g}"
    if right > HARDLY:
        return (
            f"This protects a {unit} hardly at all ({figures}): it does not exclude that somebody "
            f"who sees what was released is right more than {HARDLY:.0%} of the time about "
            f"{question}."
        )
    return (
        f"Whoever sees all that was released, even knowing the data of every other {unit}, and "
        f"would otherwise have to toss a coin, is right at most {math.ceil(right * 1000) / 10:.1f} "
        f"times in 100 instead of 50 about {question} ({figures})."
    )


def right_guess(epsilon: float, delta: float) -> float:
    """Largest probability of a right guess between two neighbours, from even odds.

    >>> right_guess(0.0, 0.0), round(right_guess(math.log(3), 0.0), 12), right_guess(math.inf, 0.1)
    (0.5, 0.75, 1.0)
    """
    # 1 / (1 + e^epsilon), written so that a large epsilon does not overflow.
    return 1 - (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))


def _merged(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """One charge for each different kind, its ``times`` added up, in an order of their own."""
    kinds: dict[str, Charge] = {}
    times: dict[str, int] = {}
    for charge in charges:
        once = _times(_without_unproven_sampling(charge), 1)
        kind = repr(once)
        kinds[kind] = once
        times[kind] = times.get(kind, 0) + charge.times
    relations = sorted({charge.relation for charge in kinds.values()})
    if len(relations) > 1:
        raise PrivacyProofError(
            what=f"charges under {' and '.join(map(repr, relations))} do not add up",
            fix="account for the charges of each relation by themselves",
        )
    return tuple(_times(kinds[kind], times[kind]) for kind in sorted(kinds))


def _times(charge: Charge, times: int) -> Charge:
    return charge if charge.times == times else charge.model_copy(update={"times": times})


def _without_unproven_sampling(charge: Charge) -> Charge:
    """See the module's docstring on ``replace_one``."""
    if isinstance(charge, GaussianCharge) and charge.relation == "replace_one":
        return charge.model_copy(update={"sampling_rate": 1.0})
    return charge


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyProofError(
            what=f"delta must lie in (0, 1), got {delta}",
            fix="choose one far below 1 / number of units",
        )


def _rdp_epsilon(merged: Sequence[Charge], delta: float) -> float:
    _check_delta(delta)
    if not merged:
        return 0.0
    left = delta - math.fsum(
        charge.wrap_delta * charge.times
        for charge in merged
        if isinstance(charge, DiscreteGaussianSumCharge)
    )
    if left <= delta * 2.0**-50:  # no more than the rounding of the subtraction
        return math.inf
    from dp_accounting.rdp import compute_epsilon

    divergences = np.zeros(len(ORDERS))
    for charge in merged:
        divergences += charge.times * _renyi_curve(charge)
    return float(compute_epsilon(ORDERS, divergences.tolist(), left)[0])


def _renyi_curve(charge: Charge) -> "Curve":
    """Renyi divergences of one release at :data:`ORDERS`, float64 ``(len(ORDERS),)``."""
    orders = np.asarray(ORDERS, np.float64)
    if isinstance(charge, DiscreteGaussianSumCharge):
        return _discrete_gaussian_sum_curve(charge, orders)
    if charge.sampling_rate == 1:
        return orders / (2 * charge.noise_multiplier**2)
    return _sampled_gaussian_curve(charge.noise_multiplier, charge.sampling_rate)


@lru_cache(maxsize=4096)
def _sampled_gaussian_curve(noise_multiplier: float, sampling_rate: float) -> "Curve":
    """Divergences of a Poisson-sampled release at integer orders, infinite at the others.

    Between integers dp-accounting adds up the moduli of a series with alternating signs: a bound,
    but up to ten times the divergence, and slow. At integers it is exact.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    orders = np.asarray(ORDERS, np.float64)
    whole = orders == np.floor(orders)
    accountant = RdpAccountant(orders[whole].tolist())
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    curve = np.full(orders.shape, np.inf)
    curve[whole] = np.maximum(accountant.rdp, 0) + ROUNDING
    return curve


def _discrete_gaussian_sum_curve(charge: DiscreteGaussianSumCharge, orders: "Curve") -> "Curve":
    if charge.num_shares > 1 and charge.share_sigma < 0.5:
        raise PrivacyProofError(
            what="the bound on a sum of discrete Gaussian shares needs share_sigma of at least "
            f"0.5, got {charge.share_sigma}",
            fix="encode on a finer grid",
        )
    k = np.arange(1, charge.num_shares)
    tau = 10 * float(np.exp(-2 * (math.pi * charge.share_sigma) ** 2 * k / (k + 1)).sum())
    sigma = charge.share_sigma * math.sqrt(charge.num_shares)
    l2, dimension = charge.l2_sensitivity, charge.dimension
    l1 = l2 * min(math.sqrt(dimension), l2)
    return np.minimum(
        orders / 2 * (l2 / sigma) ** 2 + tau * dimension,
        orders / 2 * ((l2 / sigma) ** 2 + 2 * tau * l1 / sigma + tau**2 * dimension),
    )


def _pld_epsilon(merged: Sequence[Charge], delta: float) -> float:
    _check_delta(delta)
    sampled: list[GaussianCharge] = []
    precisions: list[float] = []
    for charge in merged:
        if not isinstance(charge, GaussianCharge):
            raise PrivacyProofError(
                what=f"no privacy loss distribution is proven for charges of kind {charge.kind!r}",
                fix="account for it by Renyi divergences",
            )
        if charge.sampling_rate < 1:
            sampled.append(charge)
        else:
            precisions.append(charge.times / charge.noise_multiplier**2)
    steps = sum(charge.times for charge in sampled)
    left = delta - 16 * steps * 2.0**-53
    if left <= 0:
        return math.inf
    # The divergence of order 2 is close to a step's mean squared loss, and not below it.
    squared_loss = math.fsum(
        [charge.times * float(_renyi_curve(charge)[_ORDER_2]) for charge in sampled] + precisions
    )
    if not merged:
        return 0.0
    interval = _interval(sampled, squared_loss, steps + bool(precisions))
    parts = [
        _gaussian_pld(charge.noise_multiplier, charge.sampling_rate, interval).self_compose(
            charge.times
        )
        for charge in sampled
    ]
    if precisions:
        parts.append(_gaussian_pld(math.fsum(precisions) ** -0.5, 1.0, interval))
    whole = reduce(lambda one, other: one.compose(other), parts)
    # It divides by what is left of the mass: an overflow means an epsilon without end, a bound too.
    with np.errstate(over="ignore"):
        return float(whole.get_epsilon_for_delta(left))


_ORDER_2 = ORDERS.index(2)


def _interval(sampled: Sequence[GaussianCharge], squared_loss: float, steps: int) -> float:
    """Distance of the grid: a power of two, so that cached distributions fit together."""
    step_loss = math.sqrt(squared_loss / steps)
    if sampled:
        fine = min(GRID_PER_STEP * step_loss, GRID_AT_MOST)
    else:
        fine = GRID_PER_UNSAMPLED_STEP * step_loss
    # A sampled step's distribution is cut ten standard deviations out.
    largest_loss = max(
        (
            10 / one.noise_multiplier + 0.5 / one.noise_multiplier**2 + math.log(one.sampling_rate)
            for one in sampled
        ),
        default=0.0,
    )
    coarse = max(16 * math.sqrt(squared_loss), largest_loss) / GRID_POINTS
    return float(2.0 ** math.floor(math.log2(max(fine, coarse))))


@lru_cache(maxsize=64)
def _gaussian_pld(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    """Privacy loss distribution of one release, pessimistic, by connecting the dots."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        sampling_prob=sampling_rate,
        use_connect_dots=True,
    )


def _three_digits(index: int) -> float:
    """The ``index``-th number of three digits from 0.01 on: 0.01, 0.0101, ..., 999000."""
    exponent, digits = divmod(index, 900)
    return float(f"{100 + digits}e{exponent - 4}")
