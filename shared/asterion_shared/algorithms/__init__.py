"""The two halves of each federated algorithm: what a site adds, what the centre does.

Each algorithm is one file with ``site_gradient`` and ``central_step``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.algorithms import fedavg, fedprox
from asterion_shared.parameters import Vector

SiteGradient = Callable[[Sequence[torch.nn.Parameter], Sequence[torch.Tensor]], None]
CentralStep = Callable[[Vector, Vector], Vector]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Both halves, ready to call.

    Attributes:
        site_gradient: changes the ``grad`` of the site's weights in place, before each step.
        central_step: next global weights from (global weights, weighted mean update).
    """

    site_gradient: SiteGradient
    central_step: CentralStep


def algorithm_of(settings: AlgorithmSettings) -> Algorithm:
    """The algorithm that a plan names."""
    rate = settings.central_learning_rate
    match settings.name:
        case "fedavg":
            step = partial(fedavg.central_step, learning_rate=rate)
            return Algorithm(fedavg.site_gradient, step)
        case "fedprox":
            step = partial(fedprox.central_step, learning_rate=rate)
            return Algorithm(partial(fedprox.site_gradient, mu=settings.mu), step)
