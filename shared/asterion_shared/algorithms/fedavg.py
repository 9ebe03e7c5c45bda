"""FedAvg, both halves. McMahan et al., AISTATS 2017, algorithm 1.

A site runs its optimiser from the global weights and sends local minus global. The centre adds
the weighted mean of these updates.
"""

from collections.abc import Sequence

import numpy as np
import torch

from asterion_shared.parameters import Vector


def site_gradient(weights: Sequence[torch.nn.Parameter], anchors: Sequence[torch.Tensor]) -> None:
    """What a site adds to the gradient of its own loss before each step: nothing."""


def central_step(weights: Vector, mean_update: Vector, learning_rate: float) -> Vector:
    """The next global weights, ``weights + learning_rate * mean_update``, in float32.

    >>> central_step(np.float32([1, 2]), np.float32([4, -2]), 0.5)
    array([3., 1.], dtype=float32)
    """
    step = np.float32(learning_rate) * mean_update
    moved: Vector = np.add(weights, step, dtype=np.float32)
    return moved
