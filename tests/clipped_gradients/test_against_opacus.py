"""Clipped sums against Opacus's, whose hooks form every example's gradient."""

from collections.abc import Callable

import pytest
import torch
from opacus import GradSampleModule

from asterion_shared.clipped_gradients import Method, clipped_gradient_sum, example_losses
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kernel", ["grouped", "merged", "unfold"])
@pytest.mark.parametrize(
    "name", ["cnn", "small_unet", "unet", "residual", "conv_autoencoder", "mlp"]
)
def test_equal_to_opacus(
    name: str, kernel: str, plan_of: Callable[..., Plan], batch_of: Callable[..., Batch]
) -> None:
    plan = plan_of(name)
    torch.manual_seed(0)
    model, batch = build_network(plan), batch_of(plan, 6)
    losses = example_losses(plan)

    hooked = GradSampleModule(build_network(plan), loss_reduction="sum")
    hooked.load_state_dict({f"_module.{n}": p for n, p in model.state_dict().items()})
    losses(hooked(batch.inputs), batch).sum().backward()
    samples = [p.grad_sample for p in hooked.parameters()]
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    clip_norm = norms.median().item()
    # DPOptimizer.clip_and_accumulate, whose 1e-6 guards against a norm of 0
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    expected = torch.cat([torch.einsum("i,i...", factors, s).flatten() for s in samples])

    kernels = {n: kernel for n, p in model.named_parameters() if p.ndim > 2}
    got = clipped_gradient_sum(model, losses, batch, clip_norm, Method(kernels=kernels))  # type: ignore[arg-type]
    whole = torch.cat([g.flatten() for g in got.gradients.values()])
    assert torch.allclose(got.norms, norms, rtol=1e-5)
    assert (whole - expected).norm() <= 1e-5 * expected.norm()
