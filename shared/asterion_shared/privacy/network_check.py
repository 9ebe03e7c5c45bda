"""Whether a plan's network can be trained with privacy for records: tried, not believed."""

import torch
from torch import nn

from asterion_shared.clipped_gradients import Method, choose_method, example_losses
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.table_columns import table_width
from asterion_shared.tasks.batch import Batch

_MOST_TRIED = 16


def private_method(plan: Plan, model: nn.Module) -> Method:
    """How the network's per-example gradients are formed: found by real backward passes.

    They are tried on made-up examples of the plan's shape, so that nothing depends on data.

    Args:
        plan: with ``[privacy]`` for records or patients.
        model: the plan's network, on its device; its weights and gradients are left as they are.

    Raises:
        PlanMismatchError: a layer mixes examples or stores their statistics (batch norm).
    """
    device = next(model.parameters()).device
    batch = _made_up(plan, min(plan.local.batch_size, _MOST_TRIED)).to(str(device))
    before = model.training
    model.train()
    try:
        return choose_method(model, example_losses(plan), batch)
    except PlanMismatchError as error:
        msg = (
            f"model.name is {plan.model.name!r}, which cannot be trained with privacy for a "
            f"{plan.privacy.protects if plan.privacy else 'record'}: {error}"
        )
        raise PlanMismatchError(msg) from None
    finally:
        model.train(before)


def _made_up(plan: Plan, count: int) -> Batch:
    draw = torch.Generator().manual_seed(plan.seed)
    spatial = plan.data.patch_size
    if plan.data.kind == "table":
        inputs = torch.randn(count, table_width(plan.data), generator=draw)
    else:
        inputs = torch.randn(count, len(plan.data.channels), *spatial, generator=draw)
    match plan.task:
        case "anomaly":
            return Batch(inputs, inputs, torch.ones_like(inputs[:, 0]))
        case "classification":
            shape: tuple[int, ...] = (count,)
        case "segmentation":
            shape = (count, *spatial)
    targets = torch.randint(len(plan.data.classes), shape, generator=draw)
    return Batch(inputs, targets, torch.ones(shape))
