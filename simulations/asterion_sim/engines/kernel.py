"""What every batched engine is: it trains a chunk of sites and can add up their updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import SiteData
from asterion_shared.messages import Order
from asterion_shared.parameters import Vector

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Updates(Protocol):
    """The updates of a chunk's S sites, in whatever form the engine holds them."""

    def weighted_sum(self, weights: Float64) -> Float64:
        """Sum of ``weights[s]`` times the update of site s, shape (P,).

        A site of weight 0 does not count, even if its update is not finite.
        """
        ...

    def update(self, index: int) -> Vector:
        """The update of one site, shape (P,)."""
        ...


@dataclass(frozen=True, slots=True)
class Trained:
    """What the local work of a chunk of S sites came to, in the order the sites were given.

    Attributes:
        num_steps: optimiser steps done, int64 (S,).
        losses: mean training loss over the steps, float64 (S,).
        norms: Euclidean length of each update, float64 (S,); not finite when training diverged.
        updates: the updates themselves.
    """

    num_steps: Ints
    losses: Float64
    norms: Float64
    updates: Updates


class Kernel(Protocol):
    """Trains several sites at once from the same weights."""

    def train(self, order: Order, sites: Sequence[SiteData]) -> Trained:
        """Do the local work of a train order at sites that all have usable cases.

        Args:
            order: with weights of shape (P,), of the plan that the kernel was built for.
            sites: at least one.
        """
        ...
