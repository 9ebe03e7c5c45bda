"""The networks of the catalogue."""

from typing import Any

import pytest
import torch

from asterion_shared.errors import PlanMismatchError
from asterion_shared.networks import ConvAutoencoder, build_network
from asterion_shared.plan import MODELS, Plan
from asterion_shared.settings_files import validate

TASK_OF = {model: task for task, models in MODELS.items() for model in models}


def plan_of(model: str, patch: tuple[int, ...] = (32, 32), **settings: Any) -> Plan:
    data: dict[str, Any] = {"patch_size": patch, "dimensions": len(patch), "channels": ["g", "r"]}
    if model in ("logistic", "mlp"):
        data = {"kind": "table", "features": ["age", "cp"], "categorical": ["cp=1|2|3"]}
    if TASK_OF[model] != "anomaly":
        data["classes"] = ["a", "b", "c"]
    values = {
        "name": "test",
        "task": TASK_OF[model],
        "model": {"name": model, "widths": (4, 8)} | settings,
        "data": data,
    }
    return validate(Plan, values, "test")


@pytest.mark.parametrize("patch", [(32, 64), (32, 32, 32)])
@pytest.mark.parametrize("model", [m for m in TASK_OF if m not in ("logistic", "mlp")])
def test_shapes(model: str, patch: tuple[int, ...]) -> None:
    network = build_network(plan_of(model, patch))
    outputs = network(torch.zeros(2, 2, *patch))
    expected = {
        "segmentation": (2, 3, *patch),
        "classification": (2, 3),
        "anomaly": (2, 2, *patch),
    }
    assert outputs.shape == expected[TASK_OF[model]]
    outputs.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_tables(model: str) -> None:
    # age and whether it is missing, and three codes
    network = build_network(plan_of(model))
    assert network(torch.zeros(7, 5)).shape == (7, 3)


def test_logistic_is_linear() -> None:
    network = build_network(plan_of("logistic"))
    a, b = torch.randn(2, 1, 5)
    middle = network((a + b) / 2)
    assert torch.allclose(middle, (network(a) + network(b)) / 2, atol=1e-6)


@pytest.mark.parametrize("model", TASK_OF)
def test_only_densenet_keeps_statistics_of_the_site(model: str) -> None:
    names = [name for name, _ in build_network(plan_of(model)).named_buffers()]
    assert bool(names) == (model == "densenet121")


def test_the_first_weights_come_from_torch_alone() -> None:
    for model in TASK_OF:
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(
                torch.cat([w.flatten() for w in build_network(plan_of(model)).parameters()])
            )
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


def test_the_code_is_a_bottleneck() -> None:
    network = build_network(plan_of("conv_autoencoder", code_size=3))
    assert isinstance(network, ConvAutoencoder)
    assert network.encode(torch.randn(5, 2, 32, 32)).shape == (5, 3)


def test_one_sample_does_not_depend_on_its_neighbours() -> None:
    for model in ("unet", "residual", "conv_autoencoder"):
        network = build_network(plan_of(model))
        pair = torch.randn(2, 2, 32, 32)
        assert torch.allclose(network(pair)[:1], network(pair[:1]), atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of("unet", (31, 32)), "multiples of 2"),
        (plan_of("unet", (2, 2)), "not all 2"),
        (plan_of("unet", widths=(8,)), "at least 2 levels"),
        (plan_of("conv_autoencoder", (32, 30)), "multiples of 4"),
        (plan_of("densenet121", (28, 28)), "at least 32"),
    ],
)
def test_a_patch_that_does_not_suit_is_named(plan: Plan, words: str) -> None:
    with pytest.raises(PlanMismatchError, match=words):
        build_network(plan)


def test_dropout_is_used() -> None:
    for model in ("unet", "residual", "mlp", "densenet121"):
        layers = build_network(plan_of(model, dropout=0.3)).modules()
        shares = [getattr(layer, "p", 0.0) for layer in layers]
        assert 0.3 in shares
