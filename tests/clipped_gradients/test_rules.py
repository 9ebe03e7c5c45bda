"""Each operation's rule, in its odd settings, against a plain loop over examples."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.clipped_gradients import Method, clipped_gradient_sum, tape
from asterion_shared.clipped_gradients.recording import record

sys.path.insert(0, str(Path(__file__).parent))
from test_clipped_sums import check, kernels_of, squares, unlabelled

KERNELS = ["grouped", "merged", "unfold"]


def begin(layer: Any, seed: int) -> None:
    """New weights: those of a layer made for `parametrize` depend on what else is collected."""
    torch.manual_seed(seed)
    layer.reset_parameters()


def cubes(outputs: Tensor, batch: object) -> Tensor:
    return outputs.pow(3).flatten(1).sum(1)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    dimensions, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.integers(1, 2))
    inside, outside = (groups * draw(st.integers(1, 3)) for _ in range(2))
    stride = draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "kernel_size": tuple(draw(st.integers(1, 3)) for _ in range(dimensions)),
        "stride": stride,
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 1)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, stride - 1))
        kinds: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    else:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    torch.manual_seed(draw(st.integers(0, 99)))
    size = tuple(draw(st.integers(5, 7)) for _ in range(dimensions))
    return kinds[dimensions - 1](inside, outside, **options), (inside, *size)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(case=convolutions())
def test_convolutions(kernel: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, shape = case
    # Behind another layer, so that the gradient by the inputs is needed too.
    model = nn.Sequential(nn.PReLU(shape[0]), layer)
    check(model, squares, unlabelled(torch.randn(3, *shape)), kernels_of(model, kernel))


# torch says of a kernel of even size that its own way has to copy the input.
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(1, 2)),
        nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1)),
        nn.Conv2d(2, 3, (2, 3), padding="same"),
        nn.Conv2d(2, 3, 3, padding="valid"),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=3, output_padding=2),
    ],
)
def test_other_paddings(layer: nn.Module, kernel: str) -> None:
    begin(layer, seed=4)
    check(layer, squares, unlabelled(torch.randn(3, 2, 7, 6)), kernels_of(layer, kernel))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3, bias=False), (5, 4)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.GroupNorm(2, 6), (6, 5)),
        (nn.GroupNorm(1, 6), (6,)),
        (nn.GroupNorm(2, 6), (6, 4, 3, 2)),
        (nn.InstanceNorm1d(4, affine=True), (4, 7)),
        (nn.InstanceNorm2d(4, affine=True), (4, 7, 3)),
        (nn.InstanceNorm3d(4, affine=True), (4, 2, 3, 2)),
        (nn.LayerNorm(6), (6,)),
        (nn.LayerNorm((3, 6)), (2, 3, 6)),
        (nn.LayerNorm(6, bias=False), (2, 3, 6)),
        (nn.PReLU(), (3, 5)),
        (nn.PReLU(3), (3, 5, 2)),
        (nn.PReLU(), (3,)),
    ],
)
def test_other_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.2, 1.5)
    model = nn.Sequential(nn.PReLU(shape[0]), layer)
    check(model, cubes, unlabelled(torch.randn(4, *shape)), Method())


class Twice(nn.Module):
    """Uses each of its layers twice, on inputs of different sizes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.layer(inputs)
        again = self.layer(functional.max_pool2d(first, 2) if inputs.ndim == 4 else first.tanh())
        # no sums of both signs: their cancellation would drown what is tested in float32
        return first.flatten(1).square().sum(1) * again.flatten(1).square().sum(1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("limit", [None, 0, 200])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), (2, 6, 6)),
        (nn.Linear(5, 5), (5,)),
        (nn.Linear(5, 5), (3, 5)),
        (nn.GroupNorm(1, 2), (2, 4, 4)),
    ],
)
def test_a_layer_used_twice_and_large_layers(
    layer: nn.Module,
    shape: tuple[int, ...],
    limit: int | None,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit is not None:
        monkeypatch.setattr(tape, "LARGEST_FORMED_BYTES", limit)
    begin(layer, seed=3)
    model = Twice(layer)

    def loss_of(outputs: Tensor, batch: object) -> Tensor:
        return outputs

    check(model, loss_of, unlabelled(torch.randn(5, *shape)), kernels_of(model, kernel))


def test_a_layer_too_large_to_form_is_kept_and_still_leaves_out_what_is_not_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    inputs = torch.randn(3, 1, 4, 4)
    inputs[0] = torch.inf
    parameters = dict(model.named_parameters())

    def sums(rows: Tensor, limit: int) -> list[Tensor]:
        batch = unlabelled(rows)
        found = record(
            lambda: model(rows),
            lambda outputs: squares(outputs, batch),
            parameters,
            len(rows),
            largest_formed_bytes=limit,
        )
        assert bool(found.uses(model[0].weight)) == (limit == 0)
        factors = torch.where(found.norms().isfinite(), 0.5, 0.0)
        return found.sums(factors)

    for small, large in zip(sums(inputs[1:], 10**6), sums(inputs, 0), strict=True):
        assert torch.allclose(small, large, rtol=1e-5, atol=1e-6)


def test_two_layers_that_share_a_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    check(model, squares, unlabelled(torch.randn(3, 4)), Method())


def test_an_unused_layer_has_gradient_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    model.forward = model["used"].forward  # type: ignore[method-assign]
    got = clipped_gradient_sum(model, squares, unlabelled(torch.randn(3, 2)), 1.0)
    assert (got.gradients["idle.weight"] == 0).all()


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_frozen_parameters(frozen: str, kernel: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 2)
    )
    batch = unlabelled(torch.randn(3, 1, 4, 4))
    model.get_parameter(frozen).requires_grad_(False)
    loop = clipped_gradient_sum(model, squares, batch, 0.1, Method("loop"))
    got = clipped_gradient_sum(model, squares, batch, 0.1, kernels_of(model, kernel))
    assert frozen not in got.gradients
    assert torch.allclose(got.norms, loop.norms, rtol=1e-5)
    for name, value in loop.gradients.items():
        assert torch.allclose(got.gradients[name], value, rtol=1e-4, atol=1e-7)


def test_only_the_named_parameters_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    batch = unlabelled(torch.randn(4, 3))
    some = {"2.weight": model.get_parameter("2.weight")}
    found = [
        clipped_gradient_sum(model, squares, batch, 0.1, Method(name), some)
        for name in ("book_keeping", "vmap", "loop")
    ]
    for one in found:
        assert list(one.gradients) == ["2.weight"]
        assert torch.allclose(one.norms, found[2].norms, rtol=1e-5)
        assert torch.allclose(one.gradients["2.weight"], found[2].gradients["2.weight"], rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_place_activations(kernel: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 3),
        nn.ReLU(inplace=True),
    )
    check(model, squares, unlabelled(torch.randn(3, 2, 6, 6)), kernels_of(model, kernel))


def test_an_input_overwritten_after_its_use_is_an_error() -> None:
    class Overwriting(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            between = self[0](inputs).tanh()
            outputs = self[1](between)
            between.zero_()
            return outputs  # type: ignore[no-any-return]

    model = Overwriting(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="inplace"):
        clipped_gradient_sum(model, squares, unlabelled(torch.randn(3, 2)), 1.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("view", [lambda t: t.transpose(2, 3), lambda t: t[..., ::2]])
def test_inputs_that_are_not_contiguous(kernel: str, view: Callable[[Tensor], Tensor]) -> None:
    class Viewed(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return view(super().forward(view(inputs)))

    torch.manual_seed(0)
    model = Viewed(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    check(model, squares, unlabelled(torch.randn(3, 2, 8, 6)), kernels_of(model, kernel))


def test_dropout_draws_one_mask_an_example_and_repeats_with_the_seed() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5), nn.Linear(50, 1, bias=False))
    same = unlabelled(torch.ones(2, 50))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(clipped_gradient_sum(model, squares, same, 1.0).norms)
    assert torch.equal(found[0], found[1])
    assert found[0][0] != found[0][1]


def test_a_long_gradient_has_an_exact_norm() -> None:
    rows = torch.randn(3, 1_500_000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tape.row_norms(rows), rows.double().norm(dim=1).float(), rtol=5e-7)
