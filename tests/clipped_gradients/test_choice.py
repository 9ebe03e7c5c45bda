"""The probe: it picks an exact method, and leaves model and generators as they were."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from asterion_shared.clipped_gradients import choose_method, clipped_gradient_sum, example_losses
from asterion_shared.errors import PlanMismatchError
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch


def squares(outputs: Tensor, batch: Batch) -> Tensor:
    return outputs.square().flatten(1).sum(1)


def unlabelled(inputs: Tensor) -> Batch:
    return Batch(inputs, inputs, torch.ones(len(inputs)))


def test_the_probe_keeps_modes_weights_and_generators(
    plan_of: Callable[..., Plan], batch_of: Callable[..., Batch]
) -> None:
    plan = plan_of("cnn")
    model, batch = build_network(plan), batch_of(plan, 16)
    model[0].eval()  # type: ignore[index]
    modes = [layer.training for layer in model.modules()]
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    method = choose_method(model, example_losses(plan), batch)
    assert method.name == "book_keeping"
    assert modes == [layer.training for layer in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    clipped_gradient_sum(model, example_losses(plan), batch, 1.0, method)


class Odd(nn.Module):
    """One dense layer, and what is done around it."""

    def __init__(self, around: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.around = nn.Linear(4, 4), around

    def forward(self, inputs: Tensor) -> Tensor:
        return self.around(self.dense, inputs)


@pytest.mark.parametrize(
    "around",
    [
        lambda dense, inputs: inputs @ dense.weight,
        lambda dense, inputs: dense(inputs - inputs.mean(0)),
        # Sequence first: with as many steps as examples, only the numbers tell.
        lambda dense, inputs: dense(inputs.transpose(0, 1)).transpose(0, 1),
    ],
    ids=["no rule", "examples mixed", "another first axis"],
)
def test_where_the_rules_are_not_exact_another_method_is_chosen(
    around: Callable[[nn.Linear, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    batch = unlabelled(torch.randn(6, 6, 4))
    assert choose_method(Odd(around), squares, batch).name in ("vmap", "loop")


def test_what_vmap_cannot_do_is_looped() -> None:
    def around(dense: nn.Linear, inputs: Tensor) -> Tensor:
        return inputs @ dense.weight * (2.0 if inputs.sum().item() > 0 else 1.0)

    batch = unlabelled(torch.randn(4, 4))
    assert choose_method(Odd(around), squares, batch).name == "loop"


def test_the_probe_refuses_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(PlanMismatchError, match="BatchNorm1d"):
        choose_method(model, squares, unlabelled(torch.randn(4, 2)))
