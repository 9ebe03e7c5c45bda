"""FedProx, both halves. Li et al., MLSys 2020, equation 2: f(w) + mu/2 * ||w - w_global||^2.

The centre's half is FedAvg's. Sites that did fewer steps are folded like the others, which the
paper allows and FedAvg's own text does not.
"""

from collections.abc import Sequence

import torch

from asterion_shared.algorithms.fedavg import central_step

__all__ = ["central_step", "site_gradient"]


def site_gradient(
    weights: Sequence[torch.nn.Parameter], anchors: Sequence[torch.Tensor], mu: float
) -> None:
    """Add the gradient of the proximal term, ``mu * (w - w_global)``, to each weight's ``grad``.

    Args:
        weights: the site's shared weights during local training.
        anchors: the global weights of this round, detached, in the same order and shapes.
        mu: strength of the pull, >= 0. With 0 nothing is touched, which is FedAvg bit for bit.
    """
    if mu == 0:
        return
    for weight, anchor in zip(weights, anchors, strict=True):
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - anchor, alpha=mu)
