"""What charges add up to: by hand, by brute force, and what must hold for any of them."""

import math
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import log_ndtr, ndtr

from asterion_shared.errors import PrivacyProofError
from asterion_shared.privacy.accounting import (
    ORDERS,
    Spent,
    _renyi_curve,
    _sampled_gaussian_curve,
    noise_multiplier_for,
    pld_epsilon,
    rdp_epsilon,
    right_guess,
    sentence,
    spent,
    steps_within,
)
from asterion_shared.privacy.charges import (
    DiscreteGaussianSumCharge,
    GaussianCharge,
    Relation,
)

ADD: Relation = "add_or_remove_one"
REPLACE: Relation = "replace_one"


def gaussian(noise, rate=1.0, times=1, relation=ADD):
    return GaussianCharge(
        relation=relation, noise_multiplier=noise, sampling_rate=rate, times=times
    )


def shares(sigma, num=1, l2=1.0, dimension=1, times=1, wrap_delta=0.0):
    return DiscreteGaussianSumCharge(
        relation=ADD,
        l2_sensitivity=l2,
        share_sigma=sigma,
        num_shares=num,
        dimension=dimension,
        times=times,
        wrap_delta=wrap_delta,
    )


def analytic_gaussian_epsilon(noise, delta):
    """Balle and Wang 2018 (https://arxiv.org/abs/1805.06530), Theorem 8, solved for epsilon."""
    mu = 1 / noise

    def excess(epsilon):
        above = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return ndtr(mu / 2 - epsilon / mu) - above - delta

    return optimize.brentq(excess, 0, mu * mu / 2 + 20 * mu, xtol=1e-12) if excess(0) > 0 else 0.0


@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("noise", [0.3, 0.6, 1.0, 3.0, 10.0, 80.0])
def test_one_release_is_the_analytic_gaussian_mechanism(noise, delta):
    exact = analytic_gaussian_epsilon(noise, delta)
    assert exact * (1 - 1e-9) <= pld_epsilon([gaussian(noise)], delta) <= exact * 1.001 + 1e-9
    assert rdp_epsilon([gaussian(noise)], delta) >= exact


def test_unsampled_releases_compose_as_one_with_less_noise():
    four = pld_epsilon([gaussian(2.0, times=4)], 1e-6)
    exact = analytic_gaussian_epsilon(1.0, 1e-6)
    assert exact <= four <= exact * 1.001
    mixed = pld_epsilon([gaussian(2.0, times=3), gaussian(2.0, times=1)], 1e-6)
    assert mixed == four


def test_sampled_step_is_the_hockey_stick_divergence_of_the_mixture():
    noise, rate, delta = 0.8, 0.2, 1e-4
    x = np.linspace(-30, 30, 600_001)
    density = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    shifted = np.exp(-((x - 1) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    mixture = (1 - rate) * density + rate * shifted

    def divergence(epsilon):
        one = np.maximum(mixture - math.exp(epsilon) * density, 0).sum()
        other = np.maximum(density - math.exp(epsilon) * mixture, 0).sum()
        return max(one, other) * (x[1] - x[0]) - delta

    exact = optimize.brentq(divergence, 0.01, 20)
    assert exact * (1 - 1e-6) <= pld_epsilon([gaussian(noise, rate)], delta) <= exact * 1.01


def test_integer_orders_are_the_quadrature_of_the_mixture():
    noise, rate = 1.5, 0.05
    x = np.linspace(-60, 80, 2_000_001)
    log_density = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    curve = _renyi_curve(gaussian(noise, rate))
    for order in (2, 3, 7, 20, 40):
        moment = np.exp(log_density + order * log_ratio).sum() * (x[1] - x[0])
        exact = math.log(moment) / (order - 1)
        assert curve[ORDERS.index(order)] == pytest.approx(exact, rel=1e-6)


def discrete_gaussian_sum(sigma, num):
    """Probabilities of the sum of ``num`` discrete Gaussians, and the integer of the first."""
    reach = math.ceil(40 * sigma)
    x = np.arange(-reach, reach + 1)
    one = np.exp(-(x**2) / (2 * sigma**2))
    one /= one.sum()
    total = np.ones(1)
    for _ in range(num):
        total = np.convolve(total, one)
    return total


def renyi(p, q, order):
    inside = (p > 0) & (q > 0)
    log_terms = order * np.log(p[inside]) + (1 - order) * np.log(q[inside])
    top = log_terms.max()
    return (top + math.log(np.exp(log_terms - top).sum())) / (order - 1)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("num", [1, 2, 3, 6])
@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.8, 1.0, 2.0])
def test_bound_on_a_sum_of_discrete_gaussians_against_brute_force(sigma, num, shift):
    total = discrete_gaussian_sum(sigma, num)
    p = np.concatenate([total, np.zeros(shift)])
    q = np.concatenate([np.zeros(shift), total])
    bound = _renyi_curve(shares(sigma, num, l2=float(shift)))
    gaps = []
    for order in (1.1, 1.5, 2, 3, 5, 8):
        # High orders put their weight far out, where the products of float64 have underflowed.
        if order * shift > num * 30 * sigma**2:
            continue
        exact = renyi(p, q, order)
        limit = bound[ORDERS.index(order)]
        assert exact <= limit * (1 + 1e-9)
        gaps.append(limit / exact)
    if sigma >= 2:  # then the sum is all but a discrete Gaussian, and the bound is tight
        assert max(gaps) < 1.02


def test_discrete_gaussian_sum_in_many_dimensions_by_hand():
    tau = 10 * (math.exp(-(math.pi**2) * 0.64) + math.exp(-(math.pi**2) * 0.64 * 4 / 3))
    curve = _renyi_curve(shares(0.8, num=3, l2=5.0, dimension=100))
    order = 4.0
    first = order / 2 * 25 / 1.92 + 100 * tau
    second = order / 2 * (25 / 1.92 + 2 * tau * 25 / math.sqrt(1.92) + 100 * tau**2)
    assert curve[ORDERS.index(order)] == pytest.approx(min(first, second), rel=1e-12)


def test_wide_shares_cost_what_gaussian_noise_costs():
    sum_of_shares = rdp_epsilon([shares(50.0, num=4, l2=100.0, dimension=1000, times=7)], 1e-6)
    assert sum_of_shares == pytest.approx(rdp_epsilon([gaussian(1.0, times=7)], 1e-6), rel=1e-9)


def test_narrow_shares_are_refused_unless_there_is_one():
    with pytest.raises(PrivacyProofError, match=r"at least 0\.5, got 0\.4"):
        spent([shares(0.4, num=2)], 1e-5)
    assert math.isfinite(spent([shares(0.4, num=1)], 1e-5).epsilon)


def test_wrapping_is_taken_off_delta_for_each_release():
    wrapped = rdp_epsilon([shares(9.0, times=10, wrap_delta=5e-7)], 1e-5)
    assert wrapped == pytest.approx(rdp_epsilon([shares(9.0, times=10)], 5e-6), rel=1e-12)
    assert spent([shares(9.0, times=20, wrap_delta=5e-7)], 1e-5).epsilon == math.inf


def test_no_charge_costs_nothing():
    assert spent([], 1e-5) == Spent(
        epsilon=0.0,
        delta=1e-5,
        accountant="rdp",
        relation=None,
        rdp_epsilon=0.0,
        pld_epsilon=0.0,
    )


def test_the_smaller_proof_is_reported():
    both = spent([gaussian(1.0, 0.01, 1000)], 1e-5)
    assert both.accountant == "pld"
    assert both.epsilon == both.pld_epsilon < both.rdp_epsilon
    with_shares = spent([gaussian(1.0, 0.01, 1000), shares(9.0)], 1e-5)
    assert with_shares.accountant == "rdp"
    assert with_shares.pld_epsilon is None
    assert with_shares.epsilon > both.rdp_epsilon
    with pytest.raises(PrivacyProofError, match="discrete_gaussian_sum"):
        pld_epsilon([shares(9.0)], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_outside_its_range_is_refused(delta):
    for epsilon in (rdp_epsilon, pld_epsilon, spent):
        with pytest.raises(PrivacyProofError, match="delta must lie"):
            epsilon([], delta)


def test_relations_do_not_mix():
    with pytest.raises(PrivacyProofError, match="'add_or_remove_one' and 'replace_one'"):
        spent([gaussian(1.0), gaussian(1.0, relation=REPLACE)], 1e-5)


def test_sampling_is_not_claimed_when_one_is_replaced():
    sampled = spent([gaussian(2.0, 0.01, 50, REPLACE)], 1e-5)
    whole = spent([gaussian(2.0, 1.0, 50, REPLACE)], 1e-5)
    assert sampled == whole
    assert whole.epsilon == spent([gaussian(2.0, 1.0, 50)], 1e-5).epsilon
    assert whole.relation == REPLACE


def test_replacing_one_under_sampling_stays_below_what_is_charged():
    """The worst pair that keeps the distance: a contribution of half of it to either side."""
    noise, rate = 0.9, 0.3
    x = np.linspace(-30, 30, 600_001)

    def density(mean):
        return np.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    p = (1 - rate) * density(0) + rate * density(0.5)
    q = (1 - rate) * density(0) + rate * density(-0.5)
    epsilon = pld_epsilon([gaussian(noise, rate, relation=REPLACE)], 1e-3)
    excess = np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0])
    assert excess <= 1e-3


def test_tiny_sampling_rates_never_come_out_as_nothing():
    tiny = spent([gaussian(1.0, 1e-9, 1000)], 1e-9)
    assert tiny.pld_epsilon is not None
    assert 0 <= tiny.epsilon < 1e-3
    assert (_renyi_curve(gaussian(1.0, 1e-9)) > 0).all()


def test_rounding_swallows_a_delta_that_is_too_small():
    assert pld_epsilon([gaussian(1.0, 0.01, 10_000)], 1e-12) == math.inf
    outcome = spent([gaussian(1.0, 0.01, 10_000)], 1e-12)
    assert outcome.accountant == "rdp"
    assert math.isfinite(outcome.epsilon)


def test_hardly_any_noise_takes_no_gigabytes() -> None:
    hopeless = spent([gaussian(0.001, 0.5, 1000)], 1e-5)
    assert (hopeless.accountant, hopeless.pld_epsilon) == ("rdp", None)
    assert hopeless.epsilon == hopeless.rdp_epsilon > 1e8
    tracemalloc.start()
    assert steps_within(1e9, 1e-5, gaussian(0.001, 0.5)) > 100
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


noises = st.floats(0.6, 10.0)
rates = st.one_of(st.just(1.0), st.floats(0.005, 0.9))
counts = st.integers(1, 2000)
few = settings(max_examples=25, deadline=None)

# Far beyond any use (epsilon 500 and more) the one accountant may come to no figure, and the other,
# coarser one stands alone: then two figures cannot be compared.
# Grids of different charges differ: a figure may lie this much nearer to the truth than another.
GRID = 1 - 5e-3


@few
@given(noises, rates, counts, counts)
def test_more_steps_never_cost_less(noise, rate, one, other):
    fewer, more = sorted((one, other))
    less = spent([gaussian(noise, rate, fewer)], 1e-5)
    most = spent([gaussian(noise, rate, more)], 1e-5)
    assert most.rdp_epsilon >= less.rdp_epsilon
    assert math.isinf(less.pld_epsilon) or most.epsilon >= less.epsilon * GRID


@few
@given(noises, st.floats(1.0, 3.0), rates, counts)
def test_less_noise_never_costs_less(noise, factor, rate, times):
    more = spent([gaussian(noise, rate, times)], 1e-5)
    less = spent([gaussian(noise * factor, rate, times)], 1e-5)
    assert more.rdp_epsilon >= less.rdp_epsilon * (1 - 1e-9)
    assert math.isinf(less.pld_epsilon) or more.epsilon >= less.epsilon * GRID


@few
@given(noises, rates, st.floats(0.1, 1.0), counts)
def test_more_sampling_never_costs_less(noise, rate, factor, times):
    more = spent([gaussian(noise, rate, times)], 1e-5)
    less = spent([gaussian(noise, rate * factor, times)], 1e-5)
    assert math.isinf(less.pld_epsilon) or more.epsilon >= less.epsilon * GRID


mixed = st.lists(
    st.one_of(
        st.builds(gaussian, noises, st.sampled_from([0.01, 0.1, 1.0]), st.integers(1, 50)),
        st.builds(shares, st.floats(1, 20), st.integers(1, 9), times=st.integers(1, 5)),
    ),
    min_size=1,
    max_size=5,
)


@few
@given(mixed, st.randoms(use_true_random=False))
def test_order_and_merging_change_nothing(charges, random):
    split = [
        charge.model_copy(update={"times": part})
        for charge in charges
        for part in (charge.times - charge.times // 2, charge.times // 2)
        if part
    ]
    random.shuffle(split)
    assert spent(split, 1e-5) == spent(charges, 1e-5)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 200), (0.02, 1000)])
@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
def test_noise_multiplier_is_the_smallest_of_three_digits(epsilon, rate, steps):
    noise = noise_multiplier_for(epsilon, 1e-5, ADD, rate, steps)
    assert float(f"{noise:.3g}") == noise
    assert spent([gaussian(noise, rate, steps)], 1e-5).epsilon <= epsilon
    below = float(f"{noise - 10 ** (math.floor(math.log10(noise)) - 2):.3g}")
    assert spent([gaussian(below, rate, steps)], 1e-5).epsilon > epsilon


def test_no_noise_multiplier_is_enough():
    with pytest.raises(PrivacyProofError, match="no noise multiplier up to 999000 keeps 10000"):
        noise_multiplier_for(1e-7, 1e-5, ADD, 1.0, 10_000)


@pytest.mark.parametrize(
    "charge",
    [gaussian(5.0), gaussian(5.0, times=7), gaussian(1.1, 0.05), shares(9.0, 5, 10.0, 100)],
)
def test_steps_within_are_the_most(charge):
    most = steps_within(4.0, 1e-5, charge)
    assert most > 0

    def epsilon(repetitions):
        times = charge.times * repetitions
        return spent([charge.model_copy(update={"times": times})], 1e-5).epsilon

    assert epsilon(most) <= 4.0 < epsilon(most + 1)


def test_steps_within_may_be_none_or_as_many_as_are_looked_at():
    assert steps_within(0.1, 1e-5, gaussian(1.0)) == 0
    assert steps_within(8.0, 1e-5, gaussian(1e6, times=3)) == 333_333


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
def test_right_guess_is_reached_by_randomised_response(epsilon):
    """A coin that shows the truth with odds e^epsilon, or all of it with probability delta."""
    delta = 0.01
    shown = delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    assert right_guess(epsilon, delta) == pytest.approx(shown, rel=1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_best_guess_about_a_gaussian_release_stays_below_the_promise(noise):
    outcome = spent([gaussian(noise)], 1e-5)
    assert ndtr(1 / (2 * noise)) <= right_guess(outcome.epsilon, outcome.delta)


def outcome_of(epsilon, relation=ADD, delta=1e-5):
    return Spent(
        epsilon=epsilon,
        delta=delta,
        accountant="rdp",
        relation=relation,
        rdp_epsilon=epsilon,
        pld_epsilon=None,
    )


def test_sentence_a_physician_can_read():
    assert sentence(outcome_of(0.991), "patient", ADD) == (
        "Whoever sees all that was released, even knowing the data of every other patient, and "
        "would otherwise have to toss a coin, is right at most 73.0 times in 100 instead of 50 "
        "about whether the data of one patient were used (epsilon 1.00, delta 1e-05)."
    )
    assert "of one site or those of another in its place" in sentence(
        outcome_of(1.0, REPLACE), "site", REPLACE
    )


def test_sentence_promises_nothing_where_nothing_is_proven():
    assert sentence(outcome_of(math.inf), "site", ADD).startswith("No epsilon can be proven")
    for epsilon in (4.6, 50.0, 5000.0):
        text = sentence(outcome_of(epsilon), "record", ADD)
        assert "hardly at all" in text
        assert "at most" not in text
    assert "hardly" not in sentence(outcome_of(4.5), "record", ADD)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 7.0, math.inf])
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_sentence_is_one(epsilon, relation):
    text = sentence(outcome_of(epsilon, relation), "patient", relation)
    assert text.endswith(".")
    assert ". " not in text


def test_sentence_keeps_to_the_relation_of_the_charges():
    with pytest.raises(PrivacyProofError, match="not for 'replace_one'"):
        sentence(outcome_of(1.0), "patient", REPLACE)
    assert sentence(spent([], 1e-5), "patient", REPLACE).startswith("Whoever")


def test_thousands_of_steps_and_dozens_of_kinds_are_quick():
    spent([gaussian(1.0, 0.5)], 1e-5)  # the library is imported
    _sampled_gaussian_curve.cache_clear()
    start = time.process_time()
    spent([gaussian(1.1, 0.01) for _ in range(10_000)], 1e-5)
    assert time.process_time() - start < 1
    different = [gaussian(0.7 + k / 40, 0.003 + k / 400, 1 + 10 * k) for k in range(50)]
    start = time.process_time()
    spent(different, 1e-5)
    assert time.process_time() - start < 6  # 1.5 s where this was written


def test_import_leaves_the_library_alone():
    code = (
        "import sys, asterion_shared.privacy.accounting;"
        "sys.exit('dp_accounting' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
