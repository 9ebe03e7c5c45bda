"""The wide dense layer of the shared-base engine: one common weight, thin corrections by site."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from asterion_shared.plan import LocalSettings
from asterion_sim.engines.kernel import Float64, Ints
from asterion_sim.engines.shapes import unflatten

# Shapes: A sites, B examples each, F inputs and O outputs of the layer.


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
        if not self.scales.any():
            return outer.clamp(min=0)
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
