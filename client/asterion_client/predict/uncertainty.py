"""How sure a model is: by dropout at prediction, by several releases, or by itself alone.

What is predicted is always what the release alone predicts, as it was evaluated. Samples say how
sure that is. The uncertainty is the predictive entropy, that of the mean probabilities, over its
largest value ln K: 0 is certain, 1 knows nothing. The disagreement is the part of it that the
samples do not have by themselves (mutual information, over ln K): 0 where all agree. Sources: Gal
and Ghahramani 2016 (dropout), Lakshminarayanan et al. 2017 (ensembles), Houlsby et al. 2011.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import entr
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from asterion_client.predict.calls import predicting_network
from asterion_shared.cases import Case
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.randomness import torch_stream
from asterion_shared.release.opening import ReleasedModel
from asterion_shared.tasks.prediction import model_predictor

Floats = npt.NDArray[np.float32]
Method = Literal["dropout", "ensemble", "single"]

POSSIBLE = 0.1
"""From this probability of any object on, a point counts in a segmentation's uncertainty."""


@dataclass(frozen=True, slots=True)
class Opinions:
    """Where further predictions of a case come from.

    Attributes:
        method: ``single``: there are none.
        count: how many a case; the release itself is one of an ensemble.
        ask: the predictions of a case, by its id in the results.
        words: the method in a sentence.
    """

    method: Method
    count: int
    ask: Callable[[Case, str, Floats], Iterable[Floats]]
    words: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Entropy and disagreement of each point, 0 to 1; shape ``(...)`` of ``(K, ...)``."""

    entropy: npt.NDArray[np.float64]
    disagreement: npt.NDArray[np.float64]


class DropoutOn(nn.Module):
    """A network in evaluation mode but for its dropout layers, whichever mode it is put in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> "DropoutOn":
        """Leave evaluation mode to all layers but dropout."""
        del mode
        super().train(False)
        for layer in dropout_layers(self.network):
            layer.train()
        return self

    def forward(self, inputs: nn.Module) -> nn.Module:
        """As the network's own."""
        outputs: nn.Module = self.network(inputs)
        return outputs


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that drop something."""
    return [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]


def choose_opinions(
    released: ReleasedModel, others: Sequence[ReleasedModel], samples: int, device: str
) -> Opinions:
    """An ensemble where there are other releases, else dropout where there is some.

    Args:
        released: the release that predicts.
        others: further releases for the same data; may be empty.
        samples: of dropout, a case; below 2 switches it off.
        device: where the networks lie.

    Raises:
        PlanMismatchError: another release is for another task or other data.
    """
    plan = released.plan
    if others:
        for other in others:
            if (other.plan.task, other.plan.data) != (plan.task, plan.data):
                msg = (
                    f"release {other.facts.name} version {other.facts.version} is for another "
                    "task or other data; an ensemble needs the same"
                )
                raise PlanMismatchError(msg)
        count = len(others) + 1
        return Opinions("ensemble", count, _ensemble(others, device), f"{count} releases")
    network = predicting_network(released)
    if samples > 1 and dropout_layers(network):
        words = f"{samples} samples with dropout"
        return Opinions("dropout", samples, _dropout(network, plan, samples, device), words)
    words = "one model, whose own entropy it is: no dropout in the network, and no other release"
    if plan.task == "anomaly":
        words = "nothing, for a score has no entropy and there is no other release; by the score"
    elif dropout_layers(network):
        words = "one model, whose own entropy it is: no samples were asked for"
    return Opinions("single", 1, lambda _case, _id, alone: [alone], words)


def _ensemble(
    others: Sequence[ReleasedModel], device: str
) -> Callable[[Case, str, Floats], Iterator[Floats]]:
    predictors = [
        model_predictor(predicting_network(other).to(device), other.plan, device)
        for other in others
    ]

    def ask(case: Case, _: str, alone: Floats) -> Iterator[Floats]:
        yield alone
        for predictor in predictors:
            yield from predictor([case])

    return ask


def _dropout(
    network: nn.Module, plan: Plan, samples: int, device: str
) -> Callable[[Case, str, Floats], Iterator[Floats]]:
    predictor = model_predictor(DropoutOn(network).to(device), plan, device)

    def ask(case: Case, case_id: str, _: Floats) -> Iterator[Floats]:
        for number in range(samples):
            purpose = f"dropout of {case_id}"
            with torch_stream(plan.seed, round_=number, site="", purpose=purpose):
                found = list(predictor([case]))
            yield from found

    return ask


def spread_of(samples: Iterable[Floats]) -> Spread:
    """Entropy of the mean and disagreement of samples, at least one, in one pass.

    Args:
        samples: probabilities ``(K, ...)`` each, all of one shape.
    """
    total: npt.NDArray[np.float64] | None = None
    own: npt.NDArray[np.float64] | float = 0.0
    count = 0
    for sample in samples:
        values = sample.astype(np.float64)
        total = values if total is None else total + values
        own = own + entr(values).sum(axis=0)
        count += 1
    if total is None:
        msg = "a spread needs at least one sample"
        raise ValueError(msg)
    most = np.log(len(total))
    entropy = np.clip(entr(total / count).sum(axis=0) / most, 0.0, 1.0)
    return Spread(entropy, np.clip(entropy - own / count / most, 0.0, 1.0))


def segmentation_summary(spread: Spread, probabilities: Floats) -> tuple[float, float, int]:
    """A whole segmentation's entropy and disagreement, and the number of points behind them.

    The mean over the points where an object is possible (:data:`POSSIBLE`), because most of an
    image is certain background. Where there is none, the largest entropy of any point, and 0
    points.
    """
    possible = 1.0 - probabilities[0] >= POSSIBLE
    count = int(possible.sum())
    if not count:
        return float(spread.entropy.max()), float(spread.disagreement.max()), 0
    return (
        float(spread.entropy[possible].mean()),
        float(spread.disagreement[possible].mean()),
        count,
    )
