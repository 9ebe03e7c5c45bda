"""Two libraries over a grid of settings: like is compared with like.

Opacus' accountants are written apart from dp-accounting, which the product uses. Its PRV figure is
an upper bound that adds a chosen error; the error is set to 0.1 % of epsilon here.
"""

import itertools
import warnings
from contextlib import contextmanager

import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from asterion_shared.privacy.accounting import ORDERS, pld_epsilon, rdp_epsilon, spent
from asterion_shared.privacy.charges import GaussianCharge

DELTA = 1e-5
NOISES = (0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0)
RATES = (0.001, 0.004, 0.01, 0.05, 0.2, 0.5, 1.0)
STEPS = (1, 10, 100, 1000, 10_000)
GRID = tuple(itertools.product(NOISES, RATES, STEPS))
QUICK = tuple(itertools.product((0.6, 1.0, 4.0), (0.004, 0.05, 1.0), (1, 100, 10_000)))

# Beyond it nothing is protected, and PRV's double-precision exponentials overflow.
LARGEST_EPSILON = 50.0
# Below it a grid that is relative to epsilon has too many points for PRV.
SMALLEST_EPSILON = 0.02


def charge(noise, rate, steps):
    return GaussianCharge(
        relation="add_or_remove_one", noise_multiplier=noise, sampling_rate=rate, times=steps
    )


@contextmanager
def opacus_remarks_ignored():
    with warnings.catch_warnings():
        # The best order is the first or the last of those given; PRV only sizes its grid by it.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        # PRV writes log(1 - rate), and compares with the -inf that this is at rate 1.
        warnings.filterwarnings(
            "ignore", message="divide by zero encountered in log", category=RuntimeWarning
        )
        yield


def prv_epsilon(history, error):
    accountant = PRVAccountant()
    accountant.history = history
    with opacus_remarks_ignored():
        return accountant.get_epsilon(DELTA, eps_error=error)


def check_rdp_against_rdp(noise, rate, steps):
    # Sampled steps count at integer orders only; see _sampled_gaussian_curve. Opacus' binomial
    # coefficients overflow at orders of a thousand.
    orders = [float(order) for order in ORDERS if order < 1000 and (rate == 1 or order % 1 == 0)]
    rdp = compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    with opacus_remarks_ignored():
        theirs, best = get_privacy_spent(orders=orders, rdp=rdp, delta=DELTA)
    ours = rdp_epsilon([charge(noise, rate, steps)], DELTA)
    if best == orders[-1]:
        assert ours <= theirs * (1 + 1e-9)  # order 1024 of ours may be better
    else:
        assert ours == pytest.approx(max(0.0, float(theirs)), rel=1e-3)


def check_pld_against_prv(noise, rate, steps):
    outcome = spent([charge(noise, rate, steps)], DELTA)
    ours = outcome.pld_epsilon
    assert ours is not None
    assert ours <= outcome.rdp_epsilon
    assert outcome.epsilon == ours
    if not SMALLEST_EPSILON <= ours <= LARGEST_EPSILON:
        return
    assert ours == pytest.approx(prv_epsilon([(noise, rate, steps)], 1e-3 * ours), rel=1e-2)


@pytest.mark.parametrize(("noise", "rate", "steps"), QUICK)
def test_rdp_is_that_of_opacus(noise, rate, steps):
    check_rdp_against_rdp(noise, rate, steps)


@pytest.mark.nightly
@pytest.mark.parametrize(("noise", "rate", "steps"), sorted(set(GRID) - set(QUICK)))
def test_rdp_is_that_of_opacus_over_the_grid(noise, rate, steps):
    check_rdp_against_rdp(noise, rate, steps)


@pytest.mark.parametrize(("noise", "rate", "steps"), QUICK)
def test_pld_is_below_rdp_and_near_prv(noise, rate, steps):
    check_pld_against_prv(noise, rate, steps)


@pytest.mark.nightly
@pytest.mark.parametrize(("noise", "rate", "steps"), sorted(set(GRID) - set(QUICK)))
def test_pld_is_below_rdp_and_near_prv_over_the_grid(noise, rate, steps):
    check_pld_against_prv(noise, rate, steps)


def test_pld_of_two_kinds_of_steps_is_near_prv():
    ours = pld_epsilon([charge(1.0, 0.01, 500), charge(2.0, 0.1, 50)], DELTA)
    theirs = prv_epsilon([(1.0, 0.01, 500), (2.0, 0.1, 50)], 1e-3 * ours)
    assert ours == pytest.approx(theirs, rel=1e-2)
