"""torch's optimisers for the stacked weights of several sites, with memory allocated once.

The formulas and their order are those of ``torch.optim``, so that a site's numbers are those of
the hospital's step up to rounding: SGD with momentum (Sutskever et al. 2013 as torch writes it),
Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asterion_shared.plan import LocalSettings

# Public in all but name: torch's own optimisers are written with them.
_foreach: Any = torch

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class StackedOptimiser:
    """Updates weights ``(S, *shape)`` in place.

    Args:
        local: the optimiser and its rates.
        mu: strength of FedProx's pull towards ``anchors``, >= 0.
    """

    def __init__(self, local: LocalSettings, mu: float) -> None:
        self._local, self._mu = local, mu
        self._anchors: list[Tensor] = []
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    def begin(self, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        """Start a round: state back to zero.

        Args:
            weights: stacked, ``(S, *shape)``.
            anchors: the round's global weights, ``shape``, in the same order.
        """
        self._anchors = list(anchors)
        if self._local.optimiser != "sgd" or self._local.momentum > 0:
            self._first = _zeros_like(self._first, weights)
        if self._local.optimiser != "sgd":
            self._second = _zeros_like(self._second, weights)

    @torch.no_grad()
    def step(self, weights: list[Tensor], gradients: Sequence[Tensor], number: int) -> None:
        """Take a step with the first A sites.

        Args:
            weights: ``(A, *shape)``, views of what :meth:`begin` got; changed in place.
            gradients: the same shapes; may be changed.
            number: steps these sites have done before.
        """
        local, grads = self._local, list(gradients)
        if self._mu > 0:
            pulls = [w - anchor for w, anchor in zip(weights, self._anchors, strict=True)]
            _foreach._foreach_add_(grads, pulls, alpha=self._mu)
        if local.weight_decay > 0 and local.optimiser == "adamw":
            _foreach._foreach_mul_(weights, 1 - local.learning_rate * local.weight_decay)
        elif local.weight_decay > 0:
            _foreach._foreach_add_(grads, weights, alpha=local.weight_decay)
        if local.optimiser != "sgd":
            self._adam(weights, grads, number + 1)
            return
        if local.momentum > 0:
            speeds = [speed[: len(w)] for speed, w in zip(self._first, weights, strict=True)]
            _foreach._foreach_mul_(speeds, local.momentum)
            _foreach._foreach_add_(speeds, grads)
            grads = speeds
        _foreach._foreach_add_(weights, grads, alpha=-local.learning_rate)

    def _adam(self, weights: list[Tensor], grads: list[Tensor], number: int) -> None:
        means = [m[: len(w)] for m, w in zip(self._first, weights, strict=True)]
        squares = [v[: len(w)] for v, w in zip(self._second, weights, strict=True)]
        _foreach._foreach_lerp_(means, grads, 1 - _BETA1)
        _foreach._foreach_mul_(squares, _BETA2)
        _foreach._foreach_addcmul_(squares, grads, grads, 1 - _BETA2)
        roots = _foreach._foreach_sqrt(squares)
        _foreach._foreach_div_(roots, math.sqrt(1 - _BETA2**number))
        _foreach._foreach_add_(roots, _EPS)
        rate = self._local.learning_rate / (1 - _BETA1**number)
        _foreach._foreach_addcdiv_(weights, means, roots, -rate)


def _zeros_like(kept: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Zeros of the weights' shapes; the memory of ``kept`` where it fits."""
    if [k.shape for k in kept] == [w.shape for w in weights]:
        _foreach._foreach_zero_(list(kept))
        return list(kept)
    return [torch.zeros_like(w) for w in weights]
