"""Clipped sums against a plain loop over examples, for every network of the catalogue."""

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from asterion_shared.clipped_gradients import (
    LossOf,
    Method,
    NoRuleError,
    clipped_gradient_sum,
    example_losses,
)
from asterion_shared.clipped_gradients.recording import record
from asterion_shared.errors import PlanMismatchError
from asterion_shared.networks import build_network
from asterion_shared.plan import MODELS, Plan
from asterion_shared.tasks import task_module
from asterion_shared.tasks.batch import Batch

PlanOf, BatchOf = Callable[..., Plan], Callable[..., Batch]
TABLES = ("logistic", "mlp")
NETWORKS = [m for models in MODELS.values() for m in models if m != "densenet121"]
CASES = [(name, 2, way) for name in NETWORKS for way in ("grouped", "vmap", "loop")]
CASES += [(n, 2, way) for n in NETWORKS if n not in TABLES for way in ("merged", "unfold")]
CASES += [(n, 3, "grouped") for n in NETWORKS if n not in TABLES]
CASES += [(n, 3, way) for n in ("unet", "small_unet") for way in ("merged", "unfold")]


def squares(outputs: Tensor, batch: Batch) -> Tensor:
    return outputs.square().flatten(1).sum(1)


def unlabelled(inputs: Tensor) -> Batch:
    return Batch(inputs, inputs, torch.ones(len(inputs)))


def to_double(batch: Batch) -> Batch:
    tensors = (batch.inputs, batch.targets, batch.weights)
    return Batch(*(t.double() if t.is_floating_point() else t for t in tensors))


def by_hand(
    model: nn.Module, loss_of: LossOf, batch: Batch, clip_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The definition; give it float64."""
    norms: list[float] = []
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(batch.inputs)):
        one = Batch(*(t[n : n + 1] for t in (batch.inputs, batch.targets, batch.weights)))
        model.zero_grad(set_to_none=False)
        loss_of(model(one.inputs), one).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
        for name, gradient in found.items():
            sums[name] += gradient * (min(1.0, clip_norm / norm) if norm > 0 else 1.0)
        norms.append(norm)
    model.zero_grad(set_to_none=True)
    return sums, torch.tensor(norms, dtype=torch.float64)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal as one vector, and each parameter for itself up to the whole's rounding."""
    assert got.keys() == expected.keys()
    length = torch.cat([value.double().flatten() for value in expected.values()]).norm()
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert (got[name].double() - value.double()).norm() <= tolerance * length, name


def check(model: nn.Module, loss_of: LossOf, batch: Batch, method: Method) -> None:
    """Against the definition; the clip norm is the median, so that only some are clipped.

    In float64 to many digits, for the formulas; and in float32, whose kernels are others.
    """
    model.double()
    clip_norm = by_hand(model, loss_of, to_double(batch), math.inf)[1].median().item()
    expected, norms = by_hand(model, loss_of, to_double(batch), clip_norm)
    exact = clipped_gradient_sum(model, loss_of, to_double(batch), clip_norm, method)
    assert torch.allclose(exact.norms, norms, rtol=1e-9)
    assert_same(exact.gradients, expected, 1e-9)
    model.float()
    got = clipped_gradient_sum(model, loss_of, batch, clip_norm, method)
    assert torch.allclose(got.norms.double(), norms, rtol=1e-5)
    assert_same(got.gradients, expected, 1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def kernels_of(model: nn.Module, kernel: str) -> Method:
    names = [name for name, p in model.named_parameters() if p.ndim > 2]
    return Method(kernels=dict.fromkeys(names, kernel))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "dimensions", "way"), CASES)
def test_the_catalogue(
    name: str, dimensions: int, way: str, plan_of: PlanOf, batch_of: BatchOf
) -> None:
    plan = plan_of(name, dimensions)
    torch.manual_seed(1)
    model, batch = build_network(plan), batch_of(plan, 4)
    method = Method(way) if way in ("vmap", "loop") else kernels_of(model, way)  # type: ignore[arg-type]
    check(model, example_losses(plan), batch, method)


@pytest.mark.parametrize("name", ["unet", "small_unet", "cnn"])
@pytest.mark.parametrize("kernel", ["grouped", "merged", "unfold"])
def test_channels_last(name: str, kernel: str, plan_of: PlanOf, batch_of: BatchOf) -> None:
    plan = plan_of(name)
    torch.manual_seed(1)
    model = build_network(plan).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = batch_of(plan, 4)
    inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
    batch = Batch(inputs, batch.targets, batch.weights)
    check(model, example_losses(plan), batch, kernels_of(model, kernel))


def test_by_hand_on_one_weight() -> None:
    # loss w x: gradients are the inputs 3, -1, 0.5; clipped at 2 they add to 2 - 1 + 0.5.
    model = nn.Linear(1, 1, bias=False)
    inputs = torch.tensor([[3.0], [-1.0], [0.5]])
    got = clipped_gradient_sum(model, lambda o, b: o.flatten(), unlabelled(inputs), 2.0)
    assert got.gradients["weight"].item() == pytest.approx(1.5)
    assert got.norms.tolist() == pytest.approx([3.0, 1.0, 0.5])


@pytest.mark.parametrize("task", list(MODELS))
def test_example_losses_are_losses_of_batches_of_one(
    task: str, plan_of: PlanOf, batch_of: BatchOf
) -> None:
    plan = plan_of(MODELS[task][0])  # type: ignore[index]
    model, batch = build_network(plan), batch_of(plan, 4)
    outputs = model(batch.inputs).detach()
    each = example_losses(plan)(outputs, batch)
    for n in range(4):
        some = slice(n, n + 1)
        one = Batch(batch.inputs[some], batch.targets[some], batch.weights[some])
        alone = task_module(plan.task).loss(outputs[some], one, plan)
        assert each[n].item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["unet", "cnn", "conv_autoencoder"])
def test_an_example_of_weight_zero_adds_nothing(
    name: str, plan_of: PlanOf, batch_of: BatchOf
) -> None:
    plan = plan_of(name)
    model, batch = build_network(plan), batch_of(plan, 4)
    weights = batch.weights.clone()
    weights[1] = 0
    padded = Batch(batch.inputs, batch.targets, weights)
    kept = [0, 2, 3]
    without = Batch(batch.inputs[kept], batch.targets[kept], batch.weights[kept])
    losses = example_losses(plan)
    got = clipped_gradient_sum(model, losses, padded, 0.01)
    expected = clipped_gradient_sum(model, losses, without, 0.01)
    assert got.norms[1] == 0
    for name_, value in expected.gradients.items():
        assert torch.allclose(got.gradients[name_], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [Method(), Method("vmap"), Method("loop")])
def test_an_empty_batch_gives_zeros(method: Method) -> None:
    model = nn.Linear(3, 2)
    got = clipped_gradient_sum(model, squares, unlabelled(torch.zeros(0, 3)), 1.0, method)
    assert got.norms.shape == (0,)
    assert all((value == 0).all() for value in got.gradients.values())


@pytest.mark.parametrize("method", [Method(), Method("vmap"), Method("loop")])
def test_an_example_without_a_finite_gradient_is_left_out(method: Method) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    inputs = torch.randn(3, 1, 4, 4)
    inputs[1, 0, 0, 0] = math.nan
    got = clipped_gradient_sum(model, squares, unlabelled(inputs), 0.5, method)
    expected = clipped_gradient_sum(model, squares, unlabelled(inputs[[0, 2]]), 0.5, method)
    assert got.norms.isnan().tolist() == [False, True, False]
    assert_same(got.gradients, expected.gradients, 1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_norm_that_is_not_positive_is_refused(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        clipped_gradient_sum(nn.Linear(1, 1), squares, unlabelled(torch.ones(1, 1)), clip_norm)


def test_the_sum_is_never_longer_than_examples_times_clip_norm() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    same = torch.ones(6, 3)  # equal gradients point one way: the bound is reached
    got = clipped_gradient_sum(model, squares, unlabelled(same), 1e-3)
    length = torch.cat([g.flatten() for g in got.gradients.values()]).norm().item()
    assert length == pytest.approx(6e-3, rel=1e-5)


@pytest.mark.parametrize("method", [Method(), Method("vmap"), Method("loop")])
def test_batch_norm_is_refused_by_name(method: Method) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(PlanMismatchError, match=r"layer '1' \(BatchNorm2d\).*group norm"):
        clipped_gradient_sum(model, squares, unlabelled(torch.ones(2, 1, 4, 4)), 1.0, method)
    model[1] = nn.InstanceNorm2d(2, track_running_stats=True)
    with pytest.raises(PlanMismatchError, match="track_running_stats=False"):
        clipped_gradient_sum(model, squares, unlabelled(torch.ones(2, 1, 4, 4)), 1.0, method)


def test_batch_norm_that_does_not_learn_is_no_hindrance() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)).eval()
    check(model, squares, unlabelled(torch.randn(3, 1, 4, 4)), Method())


def test_an_operation_without_a_rule_is_named() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.shift = nn.Linear(2, 2), nn.Parameter(torch.ones(2))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.dense(inputs) * self.shift

    batch = unlabelled(torch.randn(3, 2))
    with pytest.raises(NoRuleError, match="parameter shift"):
        clipped_gradient_sum(Shifted(), squares, batch, 1.0)
    check(Shifted(), squares, batch, Method("vmap"))


@pytest.mark.parametrize("name", ["cnn", "small_unet", "mlp"])
def test_nothing_of_a_batch_outlives_its_tape(
    name: str, plan_of: PlanOf, batch_of: BatchOf
) -> None:
    plan = plan_of(name)
    model, losses, batch = build_network(plan), example_losses(plan), batch_of(plan, 5)
    tape = record(
        lambda: model(batch.inputs),
        lambda outputs: losses(outputs, batch),
        dict(model.named_parameters()),
        len(batch.inputs),
    )
    assert not tape.sums(tape.norms())[0].requires_grad
    alive = weakref.ref(tape)
    del tape
    gc.collect()
    assert alive() is None
