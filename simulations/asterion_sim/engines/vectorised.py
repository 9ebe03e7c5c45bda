"""The vectorised engine: a chunk of sites trains as one batch, each with its own weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asterion_shared.cases import SiteData
from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import Order
from asterion_shared.parameters import Layout, Vector, layout_of
from asterion_shared.plan import Plan
from asterion_shared.tasks import initial_model, task_module
from asterion_sim.engines.kernel import Float64, Ints, Trained
from asterion_sim.engines.stacked_network import StackedNetwork
from asterion_sim.engines.stacked_optimiser import StackedOptimiser
from asterion_sim.engines.step_batches import longest_first, step_batches


class Vectorised:
    """Trains a chunk of sites with stacked weights: grouped convolutions, batched products.

    Args:
        plan: the run's plan.
        device: ``cpu`` or ``cuda[:N]``.
        dtype: of activations and products; weights and their updates stay float32.

    Raises:
        PlanMismatchError: the plan's network or settings cannot be run for several sites at once.
    """

    def __init__(self, plan: Plan, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        model = initial_model(plan)
        self._layout = layout_of(model, plan.parameters)
        require_batchable(plan, self._layout)
        self._plan, self._device, self._dtype = plan, device, dtype
        self._network = StackedNetwork(model)
        self._optimiser = StackedOptimiser(plan.local, plan.algorithm.mu)
        self._weights: list[Tensor] = []

    def train(self, order: Order, sites: Sequence[SiteData]) -> Trained:
        """See :class:`Kernel`."""
        plan, task = self._plan, task_module(self._plan.task)
        places, done = longest_first(plan, sites)
        chunk = [sites[place] for place in places]
        named = anchors_of(order, self._layout, self._device)
        names, anchors = list(named), list(named.values())
        weights = self._stack(anchors, len(chunk))
        self._optimiser.begin(weights, anchors)
        losses: list[Tensor] = []
        own: list[Tensor] = []
        batches = step_batches(plan, order.round, chunk, done, self._device)
        for number, batch in enumerate(batches):
            if not own or len(own[0]) != batch.active:
                own = [w[: batch.active].requires_grad_() for w in weights]
                self._network.load(dict(zip(names, own, strict=True)))
            with self._lowered():
                outputs = self._network(batch.batch.inputs)
            loss = task.loss(outputs.float(), batch.batch, plan)
            gradients = torch.autograd.grad(loss, own, torch.ones_like(loss))
            self._optimiser.step(own, gradients, number)
            losses.append(loss.detach())
        for weight, anchor in zip(weights, anchors, strict=True):
            weight -= anchor
        offsets = [tensor.offset for tensor in self._layout.shared]
        updates = StackedUpdates(weights, offsets, places, self._layout.size)
        given = np.argsort(places)
        means = sums_of(losses, len(chunk)) / done
        return Trained(done[given], means[given], updates.norms(), updates)

    def _lowered(self) -> AbstractContextManager[object]:
        """Activations and products in the engine's dtype, if that is not float32."""
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(torch.device(self._device).type, self._dtype)

    def _stack(self, anchors: Sequence[Tensor], num_sites: int) -> list[Tensor]:
        """The global weights once for each site; memory of an equal chunk is used again."""
        if not self._weights or len(self._weights[0]) != num_sites:
            self._weights = [a.new_empty((num_sites, *a.shape)) for a in anchors]
        for weight, anchor in zip(self._weights, anchors, strict=True):
            weight.copy_(anchor.expand_as(weight))
        return self._weights


@dataclass(frozen=True, slots=True)
class StackedUpdates:
    """Updates of S sites as stacked tensors.

    Attributes:
        tensors: ``(S, *shape)`` each; they are the engine's and last until its next chunk.
        offsets: where each stands in the vector.
        places: which of the given sites each row is, int64 (S,).
        size: P.
    """

    tensors: Sequence[Tensor]
    offsets: Sequence[int]
    places: Ints
    size: int

    def norms(self) -> Float64:
        """Length of each site's update, in the order the sites were given, (S,)."""
        squares = sum(
            torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64).square()
            for t in self.tensors
        )
        norms = np.empty(len(self.places))
        norms[self.places] = torch.as_tensor(squares).sqrt().cpu().numpy()
        return norms

    def weighted_sum(self, weights: Float64) -> Float64:
        """See :class:`Updates`; 0 where no tensor stands."""
        by_row = weights[self.places]
        chosen = torch.from_numpy(np.flatnonzero(by_row))
        factors = torch.from_numpy(by_row)[chosen]
        found = np.zeros(self.size)
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            rows = tensor.flatten(1)
            if len(chosen) < len(rows):
                rows = rows[chosen.to(tensor.device)]
            total = (factors.to(tensor.device) @ rows.double()).cpu().numpy()
            found[offset : offset + total.size] = total
        return found

    def update(self, index: int) -> Vector:
        """See :class:`Updates`."""
        row = int(np.flatnonzero(self.places == index)[0])
        found = np.zeros(self.size, np.float32)
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            found[offset : offset + tensor[row].numel()] = tensor[row].flatten().cpu().numpy()
        return found


def anchors_of(order: Order, layout: Layout, device: str) -> dict[str, Tensor]:
    """The order's weights by name, views of one copy on the device."""
    assert order.weights is not None  # noqa: S101  # a train order has weights
    whole = torch.from_numpy(order.weights).to(device, copy=True)
    return {t.name: whole[t.offset : t.offset + t.size].view(t.shape) for t in layout.shared}


def sums_of(losses: Sequence[Tensor], num_sites: int) -> Float64:
    """Sum over the steps of each site's losses; a step has those of the first A sites, (A,)."""
    sums = np.zeros(num_sites)
    for loss in losses:
        sums[: len(loss)] += loss.cpu().numpy()
    return sums


def require_batchable(plan: Plan, layout: Layout) -> None:
    """Refuse what only the hospital's step can do, site after site.

    Raises:
        PlanMismatchError: the plan keeps tensors at the sites, limits their seconds, has noise
            added at the sites, or rounds their updates.
    """
    if plan.transport.update != "float32":
        kind = plan.transport.update
        msg = (
            f"transport.update is {kind!r}: where two engines differ in a last digit, rounding "
            "makes a whole step of it; use --engine sequential"
        )
        raise PlanMismatchError(msg)
    if plan.privacy is not None and plan.privacy.noise == "site":
        msg = "privacy.noise is 'site': every site draws its own; use --engine sequential"
        raise PlanMismatchError(msg)
    if layout.kept:
        msg = f"tensor {layout.kept[0].name} stays at each site; use --engine sequential"
        raise PlanMismatchError(msg)
    if plan.local.seconds_limit is not None:
        limit = plan.local.seconds_limit
        msg = f"local.seconds_limit is {limit} and holds for one site; use --engine sequential"
        raise PlanMismatchError(msg)
