"""Where a classifier looked: Grad-CAM, with the check against randomised weights.

Selvaraju et al. 2017 for the map. A map that looks the same when the weights are replaced by random
ones shows the image and not what was learnt (Adebayo et al. 2018), so each is compared with those
of networks with random weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.plan import Plan
from asterion_shared.randomness import torch_stream
from asterion_shared.tasks import task_module

Floats = npt.NDArray[np.float32]

RANDOM_NETWORKS = 5
"""Networks with random weights that a map is compared with."""

ALIKE = 0.5
"""From this mean rank correlation on a map is flagged: it does not show what was learnt."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Where a network looked.

    Attributes:
        heat: 0 to 1, on the input's grid: how much each place speaks for the class; all 0 where
            none does.
        random_heat: the same with the first of the random networks.
        likeness: mean rank correlation (Spearman, absolute) with random networks, on the grid of
            the layer and before negative values are cut off; None where a map is constant.
    """

    heat: Floats
    random_heat: Floats
    likeness: float | None

    @property
    def flagged(self) -> bool:
        """Whether the map must not be read as what the network learnt."""
        return self.likeness is None or self.likeness >= ALIKE


def random_networks(plan: Plan) -> list[nn.Module]:
    """The plan's network with random weights, :data:`RANDOM_NETWORKS` times."""
    made = []
    for number in range(RANDOM_NETWORKS):
        with torch_stream(plan.seed, round_=number, site="", purpose="randomised weights"):
            made.append(task_module(plan.task).build_model(plan).eval())
    return made


def explain(
    network: nn.Module, random: Sequence[nn.Module], inputs: Floats, class_number: int
) -> Attention | None:
    """Grad-CAM of one class for one input.

    Args:
        network: gives logits; in evaluation mode, on the CPU.
        random: the same network with random weights, at least one.
        inputs: ``(C, *S)``, as the network sees it.
        class_number: whose logit is explained.

    Returns:
        None where no layer has a map of more than one point: the network has no place to show.
    """
    batch = torch.from_numpy(np.ascontiguousarray(inputs))[None]
    maps = [_raw_map(each, batch, class_number) for each in (network, *random)]
    known = [each for each in maps if each is not None]
    if not known:
        return None
    own, *others = known
    likenesses = [_correlation(own, other) for other in others]
    likeness = float(np.mean(likenesses))
    shape = tuple(inputs.shape[1:])
    heats = _heat(own, shape), _heat(others[0], shape)
    return Attention(*heats, None if np.isnan(likeness) else likeness)


def _raw_map(network: nn.Module, batch: Tensor, class_number: int) -> Tensor | None:
    """The layer's channels weighted by their mean gradient, ``(*S of the layer)``."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == batch.ndim and output[0, 0].numel() > 1:
            found.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in network.modules()]
    try:
        with torch.enable_grad():
            # The input takes part, so that frozen weights have gradients behind them as well.
            logits: Tensor = network(batch.clone().requires_grad_(True))
            if not found:
                return None
            (gradient,) = torch.autograd.grad(logits[0, class_number], found[-1])
    finally:
        for hook in hooks:
            hook.remove()
    over = tuple(range(2, batch.ndim))
    weights = gradient.mean(over, keepdim=True)
    return (weights * found[-1]).sum(1)[0].detach()


def _correlation(one: Tensor, other: Tensor) -> float:
    first, second = one.flatten().numpy(), other.flatten().numpy()
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(abs(np.corrcoef(rankdata(first), rankdata(second))[0, 1]))


def _heat(raw: Tensor, shape: tuple[int, ...]) -> Floats:
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    positive = functional.interpolate(raw.clamp(min=0)[None, None], shape, mode=mode)[0, 0]
    top = float(positive.max())
    return np.asarray(positive / top if top > 0 else positive, np.float32)
