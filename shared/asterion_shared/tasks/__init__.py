"""The tasks: sister modules with the same five names, so that reading one is reading three."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from asterion_shared.cases import Case, Predict
from asterion_shared.metrics import Statistic
from asterion_shared.plan import Plan, TaskName
from asterion_shared.randomness import torch_stream
from asterion_shared.tasks.batch import Batch as TaskBatch


class Task(Protocol):
    """What every module of a task defines."""

    @property
    def DEFAULTS(self) -> Mapping[str, Any]:  # noqa: N802  # a constant of the module
        """Settings that, with a ``name``, are a valid plan."""
        ...

    @property
    def Batch(self) -> type[TaskBatch]:  # noqa: N802  # a class of the module
        """What one optimiser step learns from."""
        ...

    def build_model(self, plan: Plan) -> nn.Module:
        """The plan's network; its first weights come from torch's global generator."""
        ...

    def loss(self, outputs: Tensor, batch: TaskBatch, plan: Plan) -> Tensor:
        """The loss of a network's outputs, a scalar."""
        ...

    def scores(self, predict: Predict, cases: Iterable[Case], plan: Plan) -> dict[str, Statistic]:
        """The statistics behind the metrics of a predictor."""
        ...


def task_module(name: TaskName) -> Task:
    """The module of a task; imported when asked for, because the networks take seconds."""
    match name:
        case "segmentation":
            from asterion_shared.tasks import segmentation

            return segmentation
        case "classification":
            from asterion_shared.tasks import classification

            return classification
        case "anomaly":
            from asterion_shared.tasks import anomaly

            return anomaly


def initial_model(plan: Plan) -> nn.Module:
    """The plan's network with the weights that its seed gives: the same at every party.

    Raises:
        PlanMismatchError: the patch does not suit the network.
    """
    with torch_stream(plan.seed, round_=0, site="", purpose="initial weights"):
        return task_module(plan.task).build_model(plan)
