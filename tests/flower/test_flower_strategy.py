"""Stock Flower strategies as the centre's step, against results by hand."""

from typing import Any, get_args

import numpy as np
import pytest
from tests.flower.conftest import make_plan

from asterion_server.flower_strategy import FlowerStep
from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.errors import PlanMismatchError
from asterion_shared.parameters import Vector

STRATEGIES = [
    name
    for option in get_args(AlgorithmSettings.model_fields["flower_strategy"].annotation)
    for name in get_args(option)
]


def step_of(name: str, **arguments: Any) -> FlowerStep:
    algorithm = {"flower_strategy": name, "flower_arguments": arguments}
    return FlowerStep(make_plan(algorithm=algorithm))


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float32)


TWO = [("a", vector(1.0, -2.0), 1.0), ("b", vector(5.0, 2.0), 3.0)]
START = vector(10.0, -10.0)


def test_fed_avg_by_hand() -> None:
    # (1 * 1 + 3 * 5) / 4 = 4 and (1 * -2 + 3 * 2) / 4 = 1
    assert step_of("FedAvg").step(1, START, TWO) == pytest.approx([14.0, -9.0])


def test_fed_avg_m_by_hand() -> None:
    step = step_of("FedAvgM", server_learning_rate=0.5, server_momentum=0.9)
    first = step.step(1, START, TWO)
    # half of the mean update (4, 1)
    assert first == pytest.approx([12.0, -9.5])
    # momentum 0.9 * (4, 1) + (4, 1) = (7.6, 1.9), half of it on top
    assert step.step(2, first, TWO) == pytest.approx([15.8, -8.55])


def test_fed_adam_by_hand() -> None:
    eta, beta_1, beta_2, tau = 0.1, 0.9, 0.99, 1e-3
    step = step_of("FedAdam", eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
    m = v = np.zeros(2)
    weights = START
    for round_, delta in ((1, np.array([4.0, 1.0])), (2, np.array([4.0, 1.0]))):
        m = beta_1 * m + (1 - beta_1) * delta
        v = beta_2 * v + (1 - beta_2) * delta**2
        rate = eta * np.sqrt(1 - beta_2 ** (round_ + 1)) / (1 - beta_1 ** (round_ + 1))
        expected = weights + rate * m / (np.sqrt(v) + tau)
        weights = step.step(round_, weights, TWO)
        assert weights == pytest.approx(expected, rel=1e-5)


FOUR = [("a", vector(1.0), 1.0), ("b", vector(1.25), 1.0), ("c", vector(0.5), 1.0),
        ("liar", vector(1000.0), 9.0)]  # fmt: skip


def test_krum_takes_the_update_with_the_nearest_neighbours() -> None:
    # One neighbour counts (4 - 1 - 2): a is 0.25 from b, b 0.25 from a, c 0.5 from a.
    got = step_of("Krum", num_malicious_nodes=1).step(1, vector(2.0), FOUR)
    assert got[0] in (3.0, 3.25)


def test_multi_krum_leaves_the_liar_out() -> None:
    step = step_of("MultiKrum", num_malicious_nodes=1, num_nodes_to_select=3)
    got = step.step(1, vector(2.0), FOUR)
    assert got == pytest.approx([2.0 + (1.0 + 1.25 + 0.5) / 3], rel=1e-6)


def test_median_and_trimmed_mean_by_hand() -> None:
    # of 0.5, 1, 1.25, 1000: the middle two are 1 and 1.25; with 25 % trimmed at each end too
    assert step_of("FedMedian").step(1, vector(2.0), FOUR) == pytest.approx([3.125])
    got = step_of("FedTrimmedAvg", beta=0.25).step(1, vector(2.0), FOUR)
    assert got == pytest.approx([3.125])


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_on_bit_for_bit_after_a_restart(name: str) -> None:
    arguments: dict[str, Any] = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    rng = np.random.default_rng(5)
    rounds = [
        [(site, rng.normal(size=4).astype(np.float32), n) for site, n in
         (("a", 1.0), ("b", 2.0), ("c", 1.0), ("d", 5.0))]
        for _ in range(4)
    ]  # fmt: skip
    whole, weights = step_of(name, **arguments), np.zeros(4, np.float32)
    broken, other = step_of(name, **arguments), np.zeros(4, np.float32)
    for number, reports in enumerate(rounds, start=1):
        weights = whole.step(number, weights, reports)
        state = {key: array.copy() for key, array in broken.state().items()}
        broken = step_of(name, **arguments)
        broken.restore(state)
        other = broken.step(number, other, reports)
        assert weights.dtype == np.float32
        assert weights.tobytes() == other.tobytes()
    assert bool(whole.state()) == (name in ("FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"))


def test_one_report_is_enough_for_the_mean() -> None:
    got = step_of("FedAvg").step(1, vector(1.0), [("a", vector(2.0), 1.0)])
    assert got == pytest.approx([3.0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("FedAvg", {"eta": 0.1}), ("FedAdam", {"min_train_nodes": 5}), ("FedAvg", {"typo": 1})],
)
def test_an_argument_the_strategy_does_not_take_is_named(name: str, arguments: Any) -> None:
    with pytest.raises(PlanMismatchError, match=next(iter(arguments))):
        step_of(name, **arguments)


def test_a_plan_without_a_strategy_is_refused() -> None:
    with pytest.raises(PlanMismatchError, match="flower_strategy"):
        FlowerStep(make_plan())
