"""From a released network to probabilities and calls: its temperature and its thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Rule:
    """How a class is called.

    Attributes:
        by_class: scores from which on classes are called, by class; may be empty.
        points: other scores of the second class that the release names, such as the one that keeps
            a false-alarm rate; each case is told on which side it lies.
        words: how, in words.
    """

    by_class: Mapping[str, float]
    points: Mapping[str, float]
    words: str


PREFERRED = "youden"
"""The point that calls, where a release has points and no threshold of a class."""


def decision_rule(released: ReleasedModel) -> Rule:
    """The thresholds of a release, told apart.

    One that has a class's name is that class's. Any other is a point of the second of two classes.

    Raises:
        PlanMismatchError: a threshold is neither.
    """
    plan, thresholds = released.plan, released.thresholds
    classes = plan.data.classes
    by_class = {name: value for name, value in thresholds.items() if name in classes}
    points = {name: value for name, value in thresholds.items() if name not in classes}
    if points and (plan.task == "segmentation" or classes[2:]):
        msg = (
            f"the release has a threshold for {min(points)!r}, which is none of {classes}; "
            "build it again"
        )
        raise PlanMismatchError(msg)
    if by_class:
        return Rule(by_class, points, "thresholds by class")
    if PREFERRED in points:
        return Rule({classes[1]: points[PREFERRED]}, points, f"the threshold {PREFERRED}")
    if plan.task == "anomaly":
        return Rule({}, points, "none is called, without a threshold")
    return Rule({}, points, "the most probable class")


def predicting_network(released: ReleasedModel) -> nn.Module:
    """The release's network with its temperature; that of an anomaly has no logits and none.

    Raises:
        PlanMismatchError: a temperature other than 1 for an anomaly.
    """
    if released.plan.task != "anomaly":
        return Tempered(released.network, released.temperature)
    if released.temperature != 1:
        msg = (
            f"the release is for anomalies and has the temperature {released.temperature}; an "
            "error of reconstruction has none: build it again"
        )
        raise PlanMismatchError(msg)
    return released.network


def as_fitted(
    probabilities: npt.NDArray[np.float32], temperature: float
) -> npt.NDArray[np.floating]:
    """Probabilities ``(K, ...)`` without the temperature: thresholds were fitted on these.

    Exact where a network gave them at once; where windows were blended, up to the blend.
    """
    if temperature == 1:
        return probabilities
    smallest = np.finfo(np.float32).tiny
    logits = temperature * np.log(np.maximum(probabilities.astype(np.float64), smallest))
    shares = np.exp(logits - logits.max(axis=0))
    return np.asarray(shares / shares.sum(axis=0))


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
        probabilities: shape ``(K, ...)``, as the thresholds were fitted.
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
