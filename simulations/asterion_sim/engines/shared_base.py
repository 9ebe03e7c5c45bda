"""The shared-base engine: a wide layer's common weight is multiplied once for all sites.

Within a round every site starts from the same weight W0 of its first dense layer, and SGD moves it
only by outer products of output slopes and inputs: W = a W0 + sum_i c_i g_i x_i'. So one W0 is
kept for all sites and, for each site, the rows x_i and g_i with their coefficients. A forward
pass is one large product for the whole chunk and two thin ones; the weight's gradient is never
formed; the fold is one product over all sites' rows. This is exact up to rounding, also with
FedProx, weight decay and momentum, which only change the scalars a and c. Layers before it train
site by site, those after it stacked.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from asterion_shared.cases import SiteData
from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import Order
from asterion_shared.parameters import Vector, layout_of
from asterion_shared.plan import Plan
from asterion_shared.tasks import initial_model, task_module
from asterion_sim.engines.kernel import Float64, Ints, Trained
from asterion_sim.engines.stacked_network import StackedNetwork
from asterion_sim.engines.stacked_optimiser import StackedOptimiser
from asterion_sim.engines.step_batches import longest_first, step_batches
from asterion_sim.engines.trunk import Trunk, is_known
from asterion_sim.engines.vectorised import StackedUpdates, anchors_of, require_batchable, sums_of
from asterion_sim.engines.wide_layer import WideLayer, WideUpdates


class SharedBase:
    """Trains a chunk of sites around one shared wide layer.

    Args:
        plan: the run's plan.
        device: ``cpu`` or ``cuda[:N]``.
        dtype: of activations and large products; the sites' own weights and all sums stay
            float32.

    Raises:
        PlanMismatchError: the network is no chain of layers with a dense one, the optimiser is
            not SGD, or the plan cannot be run for several sites at once.
    """

    def __init__(self, plan: Plan, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        model = initial_model(plan)
        self._layout = layout_of(model, plan.parameters)
        require_batchable(plan, self._layout)
        if plan.local.optimiser != "sgd":
            msg = (
                f"local.optimiser is {plan.local.optimiser!r} and only 'sgd' moves a layer by "
                "outer products; use --engine vectorised"
            )
            raise PlanMismatchError(msg)
        trunk, self._wide, head = _split(model)
        self._plan, self._device, self._dtype = plan, device, dtype
        self._trunk = Trunk(trunk, plan, dtype)
        self._head = StackedNetwork(head)
        self._optimiser = StackedOptimiser(plan.local, plan.algorithm.mu)
        self._bias = f"{self._wide}.bias"
        self._late = [name for name, _ in head.named_parameters()]
        self._names = [*self._trunk.names, self._bias, *self._late]

    def train(self, order: Order, sites: Sequence[SiteData]) -> Trained:
        """See :class:`Kernel`."""
        task = task_module(self._plan.task)
        places, done = longest_first(self._plan, sites)
        chunk = [sites[place] for place in places]
        anchors = anchors_of(order, self._layout, self._device)
        own = {name: self._trunk.stacked(anchors[name], len(chunk)) for name in self._names}
        self._optimiser.begin(list(own.values()), [anchors[name] for name in self._names])
        wide = WideLayer(
            self._trunk.arranged(anchors[f"{self._wide}.weight"]),
            self._plan.local,
            self._plan.algorithm.mu,
            self._dtype,
        )
        losses: list[Tensor] = []
        batches = step_batches(self._plan, order.round, chunk, done, self._device)
        for number, batch in enumerate(batches):
            weights = {name: w[: batch.active].detach() for name, w in own.items()}
            rows = self._trunk.forward(weights, batch.batch.inputs)
            products = wide.forward(rows).requires_grad_()
            late = {name: weights[name].requires_grad_() for name in (self._bias, *self._late)}
            sums = products + late[self._bias].unsqueeze(1)
            self._head.load(late)
            loss = task.loss(self._head(sums), batch.batch, self._plan)
            slopes, *gradients = torch.autograd.grad(loss.sum(), [products, *late.values()])
            inner = wide.backward(slopes, needed=bool(self._trunk.names))
            gradients = [*self._trunk.backward(inner), *gradients]
            self._optimiser.step([w.detach() for w in weights.values()], gradients, number)
            wide.step()
            losses.append(loss.detach())
        for name in self._names:
            own[name] -= anchors[name]
        return self._trained(own, wide, places, done, losses)

    def _trained(
        self,
        own: Mapping[str, Tensor],
        wide: WideLayer,
        places: Ints,
        done: Ints,
        losses: list[Tensor],
    ) -> Trained:
        given = np.argsort(places)
        offsets = {tensor.name: tensor.offset for tensor in self._layout.shared}
        updates = SharedBaseUpdates(
            StackedUpdates(
                [own[name] for name in self._names],
                [offsets[name] for name in self._names],
                places,
                self._layout.size,
            ),
            wide.finish(done),
            offsets[f"{self._wide}.weight"],
            self._trunk,
            given,
        )
        means = sums_of(losses, len(done)) / done
        return Trained(done[given], means[given], updates.norms(), updates)


@dataclass(frozen=True, slots=True)
class SharedBaseUpdates:
    """Updates of S sites: stacked ones, and those of the wide layer.

    Attributes:
        others: every weight but the wide one.
        wide: the wide one.
        offset: where it stands in the vector.
        trunk: knows the order of its columns.
        given: the row of each site in the order they were given, int64 (S,).
    """

    others: StackedUpdates
    wide: WideUpdates
    offset: int
    trunk: Trunk
    given: Ints

    def norms(self) -> Float64:
        """Length of each site's update, in the order the sites were given, (S,)."""
        wide = self.wide.squares().sqrt().cpu().numpy()[self.given]
        return np.asarray(np.hypot(self.others.norms(), wide), np.float64)

    def weighted_sum(self, weights: Float64) -> Float64:
        """See :class:`Updates`."""
        by_row = np.empty(len(weights))
        by_row[self.given] = weights
        factors = torch.from_numpy(by_row).float().to(self.wide.base.device)
        return self._placed(self.others.weighted_sum(weights), self.wide.weighted_sum(factors))

    def update(self, index: int) -> Vector:
        """See :class:`Updates`."""
        weights = np.zeros(len(self.given))
        weights[index] = 1.0
        return self.weighted_sum(weights).astype(np.float32)

    def _placed(self, vector: Float64, wide: Tensor) -> Float64:
        stored = self.trunk.stored(wide).flatten().cpu().numpy()
        vector[self.offset : self.offset + stored.size] = stored
        return vector


def _split(model: nn.Module) -> tuple[nn.Sequential, str, nn.Sequential]:
    """Layers before the first dense one, its name, and the layers after it.

    Raises:
        PlanMismatchError: the network is not such a chain.
    """
    layers = list(model.named_children()) if isinstance(model, nn.Sequential) else []
    dense = [place for place, (_, layer) in enumerate(layers) if isinstance(layer, nn.Linear)]
    if not dense:
        msg = (
            f"the network ({type(model).__name__}) is no chain of layers with a dense one; use "
            "--engine vectorised"
        )
        raise PlanMismatchError(msg)
    before, (name, wide), after = layers[: dense[0]], layers[dense[0]], layers[dense[0] + 1 :]
    trunk = [(n, layer) for n, layer in before if not isinstance(layer, nn.Flatten)]
    for layer_name, layer in trunk:
        if not is_known(layer):
            msg = (
                f"layer {layer_name} ({type(layer).__name__}) stands before the dense layer {name} "
                "and is not known to this engine; use --engine vectorised"
            )
            raise PlanMismatchError(msg)
    if wide.bias is None:
        msg = f"layer {name} has no bias; use --engine vectorised"
        raise PlanMismatchError(msg)
    return nn.Sequential(OrderedDict(trunk)), name, nn.Sequential(OrderedDict(after))


def largest_rows_worth(plan: Plan) -> float:
    """Rows (steps times batch) of a site up to which this engine saves arithmetic.

    With in and out the wide layer's sizes, the thin products of r rows cost as much as the
    layer's own at r = in * out / (in + out).

    Raises:
        PlanMismatchError: the network is no chain of layers with a dense one.
    """
    model = initial_model(plan)
    wide = model.get_submodule(_split(model)[1])
    assert isinstance(wide, nn.Linear)  # noqa: S101  # _split found it
    return wide.in_features * wide.out_features / (wide.in_features + wide.out_features)
