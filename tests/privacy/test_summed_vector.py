"""The vector of a secure sum, the plans that may have one, and simulated runs under it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from asterion_shared.errors import (
    OrderRefusedError,
    PrivacyProofError,
    QuorumLostError,
    SettingsError,
)
from asterion_shared.metrics import Statistic, expected_statistics
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import planned_account, rounds_allowed
from asterion_shared.privacy.accounting import rdp_epsilon
from asterion_shared.privacy.charges import DiscreteGaussianSumCharge, GaussianCharge
from asterion_shared.privacy.planned import charge_of
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.privacy.summed_vector import (
    STEP,
    WRAP_DELTA,
    SummedVector,
    noise_in_shares,
)
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate
from asterion_sim.faults import FaultSchedule, FaultSettings
from asterion_sim.simulate import simulate
from asterion_sim.synthetic import synthetic_sites
from asterion_sim.virtual_cohort import VirtualSites

SHARES: dict[str, Any] = {
    "protects": "site", "noise": "shares", "clip_norm": 0.5, "noise_multiplier": 2.0,
    "epsilon_limit": 50.0,
}  # fmt: skip
SECURE: dict[str, Any] = {
    "name": "summed",
    "task": "classification",
    "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
    "model": {"name": "logistic"},
    "algorithm": {"max_weight": 20, "clip_norm": 50.0},
    "rounds": {"count": 2, "sites_per_round": 5},
    "secure_sum": {"max_colluders": 1, "max_dropouts": 1},
}


def plan_of(**sections: Any) -> Plan:
    values = SECURE | sections
    if "privacy" in sections:
        values["algorithm"] = {"max_weight": 20} | sections.get("algorithm", {})
    return validate(Plan, values, "test")


def secret(number: int = 0) -> SecretStream:
    return SecretStream(number.to_bytes(32, "big"))


def summed(form: SummedVector, *vectors: np.ndarray) -> np.ndarray:
    total = np.zeros(form.length, np.uint32)
    for vector in vectors:
        total += vector
    return total


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-40, 40, width=32), min_size=6, max_size=6), st.integers(0, 500)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_sum_is_that_of_the_weighted_updates(sites: list[tuple[list[float], int]]) -> None:
    form = SummedVector(plan_of(), 6, 1)
    vectors, expected, weights = [], np.zeros(6), 0.0
    for numbers, examples in sites:
        update = np.array(numbers, np.float32)
        vectors.append(form.encode(update, examples, {}, secret()))
        weight = min(examples, 20)
        longest = float(np.sqrt(np.square(update, dtype=np.float64).sum()))
        expected += weight * update.astype(np.float64) * min(1.0, 50.0 / max(longest, 1e-9))
        weights += weight
    found = form.decode(summed(form, *vectors))
    assert found.weight == weights
    np.testing.assert_allclose(found.update, expected, atol=5 * 1e-5)


def test_statistics_add_exactly_where_they_are_counts() -> None:
    plan = plan_of()
    form = SummedVector(plan, 0, 3)
    kinds = expected_statistics(plan)
    draws = np.random.default_rng(0)
    parts = [
        {name: Statistic(kind, draws.integers(0, 10**9, length).astype(np.float64))
         for name, (kind, length) in kinds.items() if not name.startswith("baseline/")}
        for _ in range(5)
    ]  # fmt: skip
    parts[2] = {}  # a site without test cases
    found = form.decode(summed(form, *(form.encode(None, 7, part, secret()) for part in parts)))
    assert found.weight == 0
    assert set(found.statistics) == set(parts[0])
    for name, statistic in found.statistics.items():
        total = sum(part[name].values for part in parts if part)
        np.testing.assert_array_equal(statistic.values, total)
        assert statistic.kind == kinds[name][0]
    fractions = {"calibration": Statistic("calibration", np.full(kinds["calibration"][1], 0.1))}
    found = form.decode(summed(form, *(form.encode(None, 7, fractions, secret()),) * 5))
    np.testing.assert_allclose(found.statistics["calibration"].values, 0.5, atol=2.5 * STEP)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_does_not_fit_is_refused_loudly(bad: float) -> None:
    for plan in (plan_of(), plan_of(privacy=SHARES)):
        form = SummedVector(plan, 6, 1)
        with pytest.raises(OrderRefusedError, match="not finite") as caught:
            form.encode(np.array([0, bad, 0, 0, 0, 0], np.float32), 1, {}, secret())
        assert caught.value.code == "secure_sum_out_of_range"
    with pytest.raises(OrderRefusedError, match="6 numbers, not 0"):
        SummedVector(plan, 0, 1).encode(np.zeros(6, np.float32), 1, {}, secret())
    for value in (-1.0, 2.0**37, math.nan):
        wrong = {"confusion": Statistic("confusion", np.full(4, value))}
        with pytest.raises(OrderRefusedError, match="not within"):
            form.encode(np.zeros(6, np.float32), 1, wrong, secret())


def test_shares_add_up_to_the_noise_that_is_charged() -> None:
    """Of 4,000 sums, the deviation along each coordinate, and never an update's own direction."""
    plan = plan_of(privacy=SHARES)
    noise = noise_in_shares(plan, 6)
    # 5 sites, 1 may be lost, 1 may tell the coordinator its share: 3 shares are surely unknown.
    assert noise.num_shares == 3
    assert noise.share_sigma**2 * 3 == pytest.approx((2.0 * noise.encoding.l2_bound) ** 2)
    assert noise.encoding.l2_bound == pytest.approx(0.5 * 20 * noise.encoding.scale, rel=1e-3)
    form, stream = SummedVector(plan, 6, 1), secret(1)
    updates = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    sums = np.stack([
        form.decode(summed(form, *(form.encode(u, 30, {}, stream) for u in updates))).update
        for _ in range(1000)
    ])  # fmt: skip
    lengths = np.sqrt(np.square(updates, dtype=np.float64).sum(axis=1, keepdims=True))
    clipped = 20 * updates * np.minimum(1, 0.5 / lengths)
    deviation = noise.share_sigma * 2 / noise.encoding.scale  # four shares, none missing
    np.testing.assert_allclose(sums.mean(axis=0), clipped.sum(axis=0), atol=5 * deviation / 31)
    np.testing.assert_allclose(sums.std(axis=0), deviation, rtol=0.12)
    assert form.decode(summed(form)).weight == 5 * 20


def test_the_charge_is_that_of_one_gaussian_of_the_same_noise() -> None:
    plan = plan_of(privacy=SHARES)
    charge = charge_of(plan, 2)
    assert isinstance(charge, DiscreteGaussianSumCharge)
    assert (charge.times, charge.wrap_delta, charge.dimension) == (2, WRAP_DELTA, 16)
    single = GaussianCharge(relation="add_or_remove_one", noise_multiplier=2.0, times=2)
    found, expected = rdp_epsilon((charge,), 1e-5), rdp_epsilon((single,), 1e-5)
    assert expected < found < expected * 1.0001
    account = planned_account(plan)
    assert account is not None
    assert account.accountant == "rdp"
    assert account.epsilon == found


def test_more_rounds_than_the_limit_are_refused_with_a_noise_that_would_do() -> None:
    plan = plan_of(privacy=SHARES | {"epsilon_limit": 2.0})
    with pytest.raises(PrivacyProofError, match=r"noise_multiplier = ([\d.]+)") as caught:
        rounds_allowed(plan)
    words = str(caught.value).split("noise_multiplier = ")[1].split(",")[0]
    assert (
        rounds_allowed(
            plan_of(privacy=SHARES | {"epsilon_limit": 2.0, "noise_multiplier": float(words)})
        )
        == 2
    )


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"privacy": SHARES, "secure_sum": None}, r"\[secure_sum\] is missing"),
        ({"privacy": SHARES | {"protects": "record", "sampling_rate": 0.1}}, "only the site sees"),
        ({"privacy": SHARES | {"noise": "centre"}}, "set privacy.noise = 'shares'"),
        ({"rounds": {"count": 2}}, "sites_per_round is missing"),
        ({"secure_sum": {"max_colluders": 1, "max_dropouts": 2}}, "secure_sum: 5 sites less 2"),
        ({"rounds": {"sites_per_round": 2}}, "2 sites less 1"),
        ({"algorithm": {"clip_norm": 1.0}}, "weights are inside the sum"),
        ({"algorithm": {"clip_norm": 1.0, "weighting": "uniform"}}, "weights are inside the sum"),
        ({"algorithm": {"max_weight": 1}}, "clip_norm is missing"),
        ({"algorithm": {"max_weight": 1, "clip_norm": 1.0, "flower_strategy": "FedMedian"}},
         "nobody sees one"),
        ({"kind": "count"}, "it is about training"),
    ],
)  # fmt: skip
def test_a_plan_that_a_secure_sum_cannot_serve_is_refused(
    sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        validate(Plan, SECURE | sections, "test")


def test_a_plan_survives_its_file() -> None:
    text = plan_to_toml(plan_of(privacy=SHARES))
    assert "[secure_sum]" in text
    assert "max_dropouts = 1" in text


def run(plan: Plan, folder: Path, *faults: dict[str, Any]) -> Result:
    sites = VirtualSites(synthetic_sites(plan, 5), {})
    entries = [validate(FaultSettings, fault, "test") for fault in faults]
    schedule = FaultSchedule(entries, plan.seed, sites.data)
    return simulate(plan, sites, folder, report=False, schedule=schedule)


def test_a_simulated_run_goes_on_without_those_it_may_lose(tmp_path: Path) -> None:
    plan = plan_of(privacy=SHARES, rounds={"count": 2, "sites_per_round": 5})
    lost = {"kind": "crash", "sites": ["site_002"], "rounds": 1}
    result = run(plan, tmp_path / "one", lost)
    assert result.status == "finished"
    assert result.rounds[1].missing == {"site_002": "unreachable"}
    assert result.privacy_account is not None
    assert set(result.privacy_account.rounds.values()) == {2}  # it may have trained: it is counted
    for round_ in result.rounds:
        assert round_.sites == {}
        assert {outcome.num_examples for outcome in round_.outcomes.values()} == {0}
    assert result.final_metrics["num_cases"] is not None
    assert result.final_metrics["num_cases"] > 0


def test_a_simulated_run_ends_when_more_are_lost(tmp_path: Path) -> None:
    plan = plan_of(rounds={"count": 2, "sites_per_round": 5})
    lost = {"kind": "drop", "sites": ["site_002", "site_004"], "rounds": 2}
    with pytest.raises(QuorumLostError, match="3 of 5"):
        run(plan, tmp_path, lost)
    result = read_result(tmp_path / "result.json")
    assert (result.status, result.rounds[-1].round) == ("quorum_lost", 2)


def test_without_noise_a_secure_sum_changes_nothing_but_the_rounding(tmp_path: Path) -> None:
    rounds = {"count": 2, "sites_per_round": 5}
    run(plan_of(rounds=rounds), tmp_path / "secure")
    run(plan_of(rounds=rounds, secure_sum=None), tmp_path / "clear")
    secure, clear = (
        load_file(tmp_path / name / "model.safetensors") for name in ("secure", "clear")
    )
    for name, values in clear.items():
        np.testing.assert_allclose(secure[name], values, atol=1e-6)
