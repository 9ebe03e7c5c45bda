import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.algorithms import fedavg, fedprox

FINITE = st.floats(-100, 100, width=32)


def pull(weight: float, anchor: float, mu: float, gradient: float = 0.0) -> float:
    parameter = torch.nn.Parameter(torch.tensor([weight], dtype=torch.float64))
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    fedprox.site_gradient([parameter], [torch.tensor([anchor], dtype=torch.float64)], mu)
    return float(parameter.grad)


@pytest.mark.parametrize("anchor", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("weight", [-0.7, 0.7])
def test_the_pull_is_the_gradient_of_the_squared_distance(weight: float, anchor: float) -> None:
    mu, step = 0.3, 1e-6

    def term(w: float) -> float:
        return mu / 2 * (w - anchor) ** 2

    slope = (term(weight + step) - term(weight - step)) / (2 * step)
    assert pull(weight, anchor, mu) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@given(FINITE, FINITE, FINITE)
def test_the_pull_adds_to_the_gradient_and_vanishes_with_mu(w: float, a: float, g: float) -> None:
    assert pull(w, a, 0.0, g) == g
    assert pull(w, a, 2.0, g) == pytest.approx(g + 2.0 * (w - a))


def test_the_central_step_by_hand() -> None:
    weights, update = np.float32([1.0, -1.0]), np.float32([0.5, 2.0])
    assert fedavg.central_step(weights, update, 1.0).tolist() == [1.5, 1.0]
    assert fedprox.central_step(weights, update, 0.5).tolist() == [1.25, 0.0]
    assert fedavg.central_step(weights, update, 0.5).dtype == np.float32
