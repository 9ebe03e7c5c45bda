"""Memory that a process and the workers it forks all see: large arrays need not be sent.

A round's weights go to every worker and a sum as large comes back from each; through pipes that
is a copy into bytes, one into the pipe, one out of it and one back, for each of them.
"""

import mmap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_shared.messages import Order, PartialFold
from asterion_shared.parameters import Vector


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a parent and one of its workers share.

    Attributes:
        weights: of the present order, float32 (P,), the same memory for all workers.
        total: of the worker's last partial fold, float64 (P,), its own.
    """

    weights: Vector
    total: npt.NDArray[np.float64]

    def put_order(self, order: Order) -> Order:
        """The order without its weights, which are here then."""
        if order.weights is None:
            return order
        self.weights[:] = order.weights
        return replace(order, weights=np.zeros(0, np.float32))

    def get_order(self, order: Order) -> Order:
        """The opposite of :meth:`put_order`."""
        return order if order.weights is None else replace(order, weights=self.weights)

    def put(self, result: Any) -> Any:
        """A job's result; a partial fold without its total, which is here then."""
        if not isinstance(result, PartialFold):
            return result
        self.total[:] = result.total
        return replace(result, total=np.zeros(0))

    def get(self, result: Any) -> Any:
        """The opposite of :meth:`put`; the total is a copy, as the worker writes a new one here."""
        if not isinstance(result, PartialFold):
            return result
        return replace(result, total=self.total.copy())


def sheets(num_weights: int, num_workers: int) -> list[Sheet]:
    """One for each worker that is forked from now on."""
    weights = np.frombuffer(mmap.mmap(-1, max(1, num_weights) * 4), np.float32)[:num_weights]
    totals = [
        np.frombuffer(mmap.mmap(-1, max(1, num_weights) * 8), np.float64)[:num_weights]
        for _ in range(num_workers)
    ]
    return [Sheet(weights, total) for total in totals]
