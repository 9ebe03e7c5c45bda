"""From a released network to probabilities and calls: its temperature and its thresholds."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from asterion_shared.errors import PlanMismatchError
from asterion_shared.release.opening import ReleasedModel


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature (Guo et al. 2017).

    Args:
        network: gives logits.
        temperature: > 0; 1 changes nothing.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, inputs: Tensor) -> Tensor:
        """As the network's own, each logit divided."""
        logits: Tensor = self.network(inputs) / self.temperature
        return logits


def predicting_network(released: ReleasedModel) -> nn.Module:
    """The release's network with its temperature; that of an anomaly has no logits and none.

    Raises:
        PlanMismatchError: a threshold is for no class of the plan, or a temperature other than 1
            for an anomaly.
    """
    classes = released.plan.data.classes
    strange = sorted(set(released.thresholds) - set(classes))
    if strange:
        msg = (
            f"the release has a threshold for {strange[0]!r}, which is none of {classes}; "
            "build it again"
        )
        raise PlanMismatchError(msg)
    if released.plan.task != "anomaly":
        return Tempered(released.network, released.temperature)
    if released.temperature != 1:
        msg = (
            f"the release is for anomalies and has the temperature {released.temperature}; an "
            "error of reconstruction has none: build it again"
        )
        raise PlanMismatchError(msg)
    return released.network


def call_classes(
    probabilities: npt.NDArray[np.floating],
    classes: Sequence[str],
    thresholds: Mapping[str, float],
) -> npt.NDArray[np.int16]:
    """The class of each point.

    Without thresholds the most probable. With some: of the classes that reach theirs the most
    probable; where none does, the most probable of those that have none, and the first class
    where all have one.

    Args:
        probabilities: shape ``(K, ...)``.
        classes: K names.
        thresholds: of some classes by name, 0 to 1.

    Returns:
        Class numbers, shape ``(...)``.
    """
    if not thresholds:
        return np.asarray(probabilities.argmax(axis=0), np.int16)
    points = (1,) * (probabilities.ndim - 1)
    limits = np.array([thresholds.get(name, np.inf) for name in classes])
    reached = probabilities >= limits.reshape(-1, *points)
    free = np.isinf(limits).reshape(-1, *points)
    first = np.where(reached, probabilities, -1.0)
    second = np.where(free, probabilities, -1.0)
    some = reached.any(axis=0)
    called = np.where(some, first.argmax(axis=0), second.argmax(axis=0))
    return np.asarray(called, np.int16)
