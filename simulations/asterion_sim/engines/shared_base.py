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
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from asterion_shared.cases import SiteData
from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import Order
from asterion_shared.parameters import Vector, layout_of
from asterion_shared.plan import LocalSettings, Plan
from asterion_shared.tasks import initial_model, task_module
from asterion_sim.engines.kernel import Float64, Ints, Trained
from asterion_sim.engines.shapes import unflatten
from asterion_sim.engines.stacked_network import StackedNetwork, channels_last
from asterion_sim.engines.stacked_optimiser import StackedOptimiser
from asterion_sim.engines.step_batches import longest_first, step_batches
from asterion_sim.engines.vectorised import (
    StackedUpdates,
    anchors_of,
    require_batchable,
)


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
        self._trunk = _Trunk(trunk, plan, dtype)
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
        own = {n: anchors[n].expand(len(chunk), *anchors[n].shape).clone() for n in self._names}
        self._optimiser.begin(list(own.values()), [anchors[name] for name in self._names])
        wide = WideLayer(
            self._trunk.arranged(anchors[f"{self._wide}.weight"]),
            self._plan.local,
            self._plan.algorithm.mu,
            self._dtype,
        )
        totals = torch.zeros(len(chunk), dtype=torch.float64, device=self._device)
        batches = step_batches(self._plan, order.round, chunk, done, self._device)
        for number, batch in enumerate(batches):
            weights = {name: w[: batch.active].detach() for name, w in own.items()}
            rows = self._trunk.forward(weights, batch.batch.inputs)
            products = wide.forward(rows).requires_grad_()
            late = {name: weights[name].requires_grad_() for name in (self._bias, *self._late)}
            sums = products + late[self._bias].unsqueeze(1)
            losses = task.loss(self._head(late, sums), batch.batch, self._plan)
            slopes, *gradients = torch.autograd.grad(losses.sum(), [products, *late.values()])
            inner = wide.backward(slopes, needed=bool(self._trunk.names))
            gradients = [*self._trunk.backward(inner), *gradients]
            self._optimiser.step([w.detach() for w in weights.values()], gradients, number)
            wide.step()
            totals[: batch.active] += losses.detach()
        for name in self._names:
            own[name] -= anchors[name]
        return self._trained(own, wide, places, done, totals)

    def _trained(
        self, own: Mapping[str, Tensor], wide: "WideLayer", places: Ints, done: Ints, totals: Tensor
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
        return Trained(done[given], (totals.cpu().numpy() / done)[given], updates.norms(), updates)


class WideLayer:
    """The weights of S sites' wide layer: a common one, and outer products for each site.

    Rows are kept step by step, as they come, so that none is copied.

    Args:
        base: the common weight W0, ``(O, F)``.
        local: the rates of SGD.
        mu: strength of FedProx's pull.
        dtype: of the large products.
    """

    def __init__(self, base: Tensor, local: LocalSettings, mu: float, dtype: torch.dtype) -> None:
        self._local, self._mu = local, mu
        self._base = base.to(dtype)
        self._steps: list[_Step] = []
        # W = a W0 + sum_i c_i g_i x_i', and its speed under momentum, b W0 + sum_i v_i g_i x_i'.
        # All rows of a step have one c; all sites that did a step have the same.
        self._a, self._b = 1.0, 0.0
        self._c, self._v = np.zeros(0), np.zeros(0)
        self._finished: dict[int, tuple[float, Float64]] = {}

    def forward(self, rows: Tensor) -> Tensor:
        """Products of the first A sites' rows ``(A, B, F)`` with their weights, ``(A, B, O)``."""
        active = len(rows)
        products = unflatten(
            torch.mm(rows.flatten(0, 1), self._base.t()), 0, rows.shape[:2]
        ).float()
        sums = self._a * products
        grams = []
        for step, coefficient in zip(self._steps, self._c.tolist(), strict=True):
            likeness = torch.bmm(rows, step.rows[:active].transpose(1, 2))
            grams.append(likeness.float())
            sums += coefficient * torch.bmm(likeness, step.slopes[:active]).float()
        grams.append(torch.bmm(rows, rows.transpose(1, 2)).float())
        self._steps.append(_Step(rows, products, grams))
        return sums

    def backward(self, slopes: Tensor, *, needed: bool) -> Tensor | None:
        """Take the slopes of the loss at the last products, ``(A, B, O)``.

        Returns:
            The slopes at the rows, ``(A, B, F)``; None when not ``needed``.
        """
        slopes = slopes.to(self._base.dtype)
        self._steps[-1].slopes = slopes
        if not needed:
            return None
        inner = unflatten(torch.mm(slopes.flatten(0, 1), self._base), 0, slopes.shape[:2])
        if self._a != 1:
            inner *= self._a
        for step, coefficient in zip(self._steps[:-1], self._c.tolist(), strict=True):
            likeness = torch.bmm(slopes, step.slopes[: len(slopes)].transpose(1, 2))
            inner.baddbmm_(likeness, step.rows[: len(slopes)], alpha=coefficient)
        return inner

    def step(self) -> None:
        """SGD's step with weight decay, FedProx and momentum, on the scalars."""
        local, mu = self._local, self._mu
        decay, rate = local.weight_decay, local.learning_rate
        self._b = local.momentum * self._b + mu * (self._a - 1) + decay * self._a
        speeds = local.momentum * self._v + (mu + decay) * self._c
        self._v = np.append(speeds, 1.0)
        self._a -= rate * self._b
        self._c = np.append(self._c, 0.0) - rate * self._v
        self._finished[len(self._steps)] = (self._a, self._c)

    def finish(self, done: Ints) -> "WideUpdates":
        """The change of each site's weight; ``done`` is how many steps each did, (S,)."""
        coefficients = np.zeros((len(done), len(self._steps)))
        scales = np.zeros(len(done))
        for site, count in enumerate(done.tolist()):
            scales[site] = self._finished[count][0] - 1
            coefficients[site, :count] = self._finished[count][1]
        on = self._base.device
        return WideUpdates(
            self._base,
            torch.from_numpy(scales).float().to(on),
            torch.from_numpy(coefficients).float().to(on),
            self._steps,
        )


@dataclass(slots=True)
class _Step:
    """What one step of the first A sites leaves behind.

    Attributes:
        rows: x, (A, B, F).
        products: W0 x, (A, B, O).
        grams: products of the rows with those of each step up to this one, (A, B, B') each.
        slopes: g, (A, B, O).
    """

    rows: Tensor
    products: Tensor
    grams: list[Tensor]
    slopes: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, slots=True)
class WideUpdates:
    """The change of S sites' wide weight: ``scales[s] W0 + sum_t coefficients[s, t] g_t' x_t``.

    Attributes:
        base: W0, (O, F).
        scales: (S,).
        coefficients: of each step, (S, T); 0 for steps that a site did not do.
        steps: T steps, the sites of each a prefix of all.
    """

    base: Tensor
    scales: Tensor
    coefficients: Tensor
    steps: Sequence[_Step]

    def squares(self) -> Tensor:
        """Squared length of each site's change, (S,), from products that are there already."""
        outer = torch.zeros_like(self.scales, dtype=torch.float64)
        mixed = torch.zeros_like(outer)
        for number, step in enumerate(self.steps):
            active, slopes = len(step.rows), step.slopes.float()
            own = self.coefficients[:active, number].double()
            mixed[:active] += own * (slopes * step.products).double().sum((1, 2))
            for other, gram in enumerate(step.grams):
                likeness = torch.bmm(slopes, self.steps[other].slopes[:active].float().mT)
                # Twice, for the two halves of a symmetric matrix; its diagonal blocks once.
                factor = own * self.coefficients[:active, other] * (1 if other == number else 2)
                outer[:active] += factor * (likeness * gram).double().sum((1, 2))
        base = torch.linalg.vector_norm(self.base.float(), dtype=torch.float64).square()
        scales = self.scales.double()
        squares: Tensor = outer + 2 * scales * mixed + scales.square() * base
        return squares.clamp(min=0)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum over the sites of weight != 0, float32 (O, F); ``weights`` is float32 (S,)."""
        found = self.base.new_zeros(self.base.shape, dtype=torch.float32)
        chosen = weights != 0
        for number, step in enumerate(self.steps):
            active = len(step.rows)
            own, rows, slopes = chosen[:active], step.rows, step.slopes
            factors = (self.coefficients[:active, number] * weights[:active])[own]
            if not own.all():
                rows, slopes = rows[own], slopes[own]
            weighted = (slopes * factors.view(-1, 1, 1)).to(rows.dtype).flatten(0, 1)
            if rows.dtype == found.dtype:
                found.addmm_(weighted.t(), rows.flatten(0, 1))
            else:
                found += torch.mm(weighted.t(), rows.flatten(0, 1)).float()
        if self.scales.any():
            found += (self.scales * weights)[chosen].sum() * self.base.float()
        return found


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
    trunk: "_Trunk"
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


class _Trunk:
    """The layers before the wide one, run site by site.

    Maps leave it with their channels last, as the convolutions make them; the wide weight's columns
    are arranged alike, so that nothing is copied.
    """

    def __init__(self, layers: nn.Sequential, plan: Plan, dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype
        self.names = [name for name, _ in layers.named_parameters()]
        with torch.no_grad():
            probe = torch.zeros(1, len(plan.data.channels), *plan.data.patch_size)
            self._grid = tuple(layers(probe).shape[1:]) if self.names else ()
        self._outputs: list[Tensor] = []
        self._leaves: list[list[Tensor]] = []

    def arranged(self, weight: Tensor) -> Tensor:
        """The wide weight (O, F) with its columns in the order of the rows."""
        if not self._grid:
            return weight
        return unflatten(weight, 1, self._grid).movedim(1, -1).flatten(1)

    def stored(self, weight: Tensor) -> Tensor:
        """The opposite of :meth:`arranged`."""
        if not self._grid:
            return weight
        channels, *spatial = self._grid
        return unflatten(weight, 1, (*spatial, channels)).movedim(-1, 1).flatten(1)

    def forward(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Rows (A, B, F) for the wide layer, from inputs (A, B, C, *S) or (A, B, N)."""
        if not self.names:
            return inputs.flatten(2).to(self._dtype)
        self._outputs, self._leaves = [], []
        for site, images in enumerate(inputs.to(self._dtype)):
            leaves = {n: weights[n][site].to(self._dtype).requires_grad_() for n in self.names}
            found = channels_last(images)
            for name, layer in self._layers.named_children():
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    convolve = torch.conv2d if isinstance(layer, nn.Conv2d) else torch.conv3d
                    weight = channels_last(leaves[f"{name}.weight"])
                    bias = leaves.get(f"{name}.bias")
                    found = convolve(
                        found, weight, bias, layer.stride, layer.padding, layer.dilation,
                        layer.groups,
                    )  # fmt: skip
                else:
                    found = layer(found)
            self._outputs.append(found.movedim(1, -1).flatten(1))
            self._leaves.append(list(leaves.values()))
        return torch.stack([found.detach() for found in self._outputs])

    def backward(self, slopes: Tensor | None) -> list[Tensor]:
        """Gradients of the trunk's weights, (A, *shape) each, from the slopes (A, B, F)."""
        if slopes is None:
            return []
        found = [
            torch.autograd.grad(outputs, leaves, own)
            for outputs, leaves, own in zip(self._outputs, self._leaves, slopes, strict=True)
        ]
        return [torch.stack(parts).float() for parts in zip(*found, strict=True)]


_TRUNK_LAYERS = (nn.Conv2d, nn.Conv3d, nn.ReLU, nn.MaxPool2d, nn.MaxPool3d)


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
        if not isinstance(layer, _TRUNK_LAYERS):
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
