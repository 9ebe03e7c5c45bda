"""A stock Flower strategy that does the centre's step, when a plan names one.

The strategy is given what it expects (replies with whole weights and ``num-examples``) and asked
for the next weights; how sites are chosen and asked stays ours. Its moments survive a restart.
"""

import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Strategy

from asterion_server.flower_server_compat import ensure_task_identity, set_message_id
from asterion_server.in_process_grid import InProcessGrid
from asterion_shared.errors import PlanMismatchError
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan

_SELECTION = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1,
              "min_evaluate_nodes": 0, "min_available_nodes": 1}  # fmt: skip
_MOMENTS = ("m_t", "v_t", "momentum_vector")
"""Attributes in which stock strategies keep state beside the weights."""


class FlowerStep:
    """The centre's step of a stock Flower strategy.

    Args:
        plan: names the strategy and its arguments.

    Raises:
        PlanMismatchError: the plan names none, or the strategy does not take an argument.
    """

    def __init__(self, plan: Plan) -> None:
        name, given = plan.algorithm.flower_strategy, dict(plan.algorithm.flower_arguments)
        if name is None:
            msg = "algorithm.flower_strategy is not set; name a strategy"
            raise PlanMismatchError(msg)
        kind: Any = getattr(strategies, name)
        known = set(inspect.signature(kind).parameters) - set(_SELECTION)
        if unknown := sorted(set(given) - known):
            msg = (
                f"algorithm.flower_arguments has {', '.join(unknown)}, which {name} does not "
                f"take; it takes {', '.join(sorted(known))}"
            )
            raise PlanMismatchError(msg)
        self._name = name
        with _quiet():
            try:
                self._strategy: Strategy = kind(**_SELECTION, **given)
            except (TypeError, ValueError) as error:
                msg = f"algorithm.flower_arguments does not hold for {name}: {error}"
                raise PlanMismatchError(msg) from None

    def step(
        self, round_: int, weights: Vector, reports: Sequence[tuple[str, Vector, float]]
    ) -> Vector:
        """Make the next global weights.

        Args:
            round_: from 1; FedAdam's bias correction depends on it.
            weights: the global weights the sites started from, shape ``(P,)``.
            reports: site, update of shape ``(P,)`` and weight > 0, at least one.

        Returns:
            The next global weights, float32, shape ``(P,)``.

        Raises:
            PlanMismatchError: the strategy cannot work with this many reports.
        """
        ensure_task_identity()
        grid = _Reporters(range(1, len(reports) + 1))
        arrays = ArrayRecord({"vector": Array(np.asarray(weights, np.float32))})
        with _quiet():
            orders = self._strategy.configure_train(round_, arrays, ConfigRecord(), grid)
            replies = [
                _reply(order, weights + update, weight)
                for order, (_, update, weight) in zip(orders, reports, strict=True)
            ]
            try:
                made, _ = self._strategy.aggregate_train(round_, replies)
            except (ValueError, ArithmeticError, IndexError) as error:
                msg = f"{self._name} cannot work with {len(reports)} reports: {error}"
                raise PlanMismatchError(msg) from error
        if made is None:
            msg = f"{self._name} made no weights from {len(reports)} reports; ask more sites"
            raise PlanMismatchError(msg)
        return np.asarray(made["vector"].numpy(), np.float32).reshape(weights.shape)

    def state(self) -> dict[str, Vector]:
        """The strategy's moments, by name, each of shape ``(P,)``; empty when it has none."""
        found: dict[str, Vector] = {}
        for name in _MOMENTS:
            value = getattr(self._strategy, name, None)
            if isinstance(value, dict):
                value = value.get("vector")
            elif isinstance(value, list):
                value = value[0]
            if value is not None:
                found[name] = np.asarray(value)
        return found

    def restore(self, state: dict[str, Vector]) -> None:
        """Take up moments that :meth:`state` gave, as after a restart."""
        for name, value in state.items():
            as_list = name == "momentum_vector"
            setattr(self._strategy, name, [value] if as_list else {"vector": value})


class _Reporters(InProcessGrid):
    """A grid that only says how many sites there are: ``configure_train`` asks."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__({})
        self._numbers = list(numbers)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the reports."""
        return self._numbers


def _reply(order: Message, weights: Vector, weight: float) -> Message:
    set_message_id(order)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"vector": Array(np.asarray(weights, np.float32))}),
            "metrics": MetricRecord({"num-examples": float(weight)}),
        }
    )
    return Message(content, reply_to=order)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's progress lines out of ours."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
