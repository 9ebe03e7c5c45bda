"""What a backward pass leaves behind: for each parameter, the gradient of every example.

A small parameter's gradients are *formed*, one row an example. A dense layer that sees one row an
example is kept as its two factors: the gradient is their outer product, its norm the product of
their norms, and the clipped sum one matrix product, so nothing of size examples x weights exists.
A layer too large to form for all examples at once is kept too, and formed for a few at a time.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# Shapes: B examples, *P the shape of a parameter.

LARGEST_FORMED_BYTES = 64 * 2**20
"""Most memory that one parameter's per-example gradients may take."""

_NORM_BLOCK = 2**12
"""Squares that float32 adds one by one: over a million of them the sum is wrong by 2e-5."""

_JOINED = 2**10
"""Parameters of up to this many numbers share one block of rows."""


class Use(Protocol):
    """One use of a weight in the forward pass, from which its gradients can be formed."""

    def select(self, examples: slice | Tensor) -> "Use":
        """The same use by some of the examples."""
        ...

    def form(self) -> Tensor:
        """The gradient of each example, (B, *P)."""
        ...

    @property
    def is_product(self) -> bool:
        """Whether each gradient is an outer product, whose norm needs no forming."""
        ...

    def norms(self) -> Tensor:
        """Norm of each example's gradient, (B,)."""
        ...

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """The sum over the examples of factor (B,) times gradient, (*P)."""
        ...


class Tape:
    """The per-example gradients of one batch, gathered while autograd walks back.

    Args:
        parameters: those whose gradients are wanted.
        batch_size: B.
        largest_formed_bytes: a parameter whose gradients take more is not formed at once;
            ``LARGEST_FORMED_BYTES`` when it is None.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        batch_size: int,
        largest_formed_bytes: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        limit = largest_formed_bytes
        self._largest_bytes = LARGEST_FORMED_BYTES if limit is None else limit
        self._parameters = parameters
        self._index = {id(parameter): n for n, parameter in enumerate(parameters)}
        self._formed: dict[int, Tensor] = {}
        self._uses: dict[int, list[Use]] = {}
        self._blocks: list[tuple[list[int], Tensor]] = []

    def wants(self, parameter: Tensor | None) -> bool:
        """Whether the gradients of this very tensor are wanted."""
        return id(parameter) in self._index

    def form(self, parameter: Tensor, gradients: Tensor) -> None:
        """Add gradients, (B, *P); a parameter that is used twice gets their sum."""
        n = self._index[id(parameter)]
        rows = gradients.reshape(self.batch_size, -1)
        self._formed[n] = self._formed[n] + rows if n in self._formed else rows

    def keep(self, parameter: Tensor, use: Use) -> None:
        """Form the gradients of this use now if they are small, else keep what they come from."""
        if not use.is_product and self._is_small(parameter):
            self.form(parameter, use.form())
        else:
            self._uses.setdefault(self._index[id(parameter)], []).append(use)

    def uses(self, parameter: Tensor) -> Sequence[Use]:
        """The uses that were kept."""
        return self._uses.get(self._index[id(parameter)], [])

    def norms(self) -> Tensor:
        """Norm of each example's gradient over all parameters together, (B,).

        To be asked once, when the backward pass is over and before the sums.
        """
        for n, uses in list(self._uses.items()):
            # The norm of a sum needs the sum: of a layer that is used twice.
            if (len(uses) > 1 or n in self._formed) and self._is_small(self._parameters[n]):
                for use in self._uses.pop(n):
                    self.form(self._parameters[n], use.form())
        self._join()
        parts = [row_norms(rows) for _, rows in self._blocks]
        parts += [self._norms_of_uses(n) for n in self._uses]
        return parts[0] if len(parts) == 1 else row_norms(torch.stack(parts, dim=1))

    def sums(self, factors: Tensor) -> list[Tensor]:
        """For each parameter the sum over the examples of factor (B,) times gradient, (*P).

        An example of factor 0 adds nothing, even where its gradient is not finite.
        """
        chosen = None if factors.min().item() > 0 else factors.nonzero().flatten()
        factors = factors if chosen is None else factors[chosen]
        sums: dict[int, Tensor] = {}
        for numbers, rows in self._blocks:
            total = factors @ (rows if chosen is None else rows[chosen])
            sizes = [self._parameters[n].numel() for n in numbers]
            sums.update(zip(numbers, torch.split(total, sizes), strict=True))
        for n, uses in self._uses.items():
            some = uses if chosen is None else [use.select(chosen) for use in uses]
            sums[n] = _add([use.weighted_sum(factors) for use in some])
        return [
            sums[n].view(parameter.shape) if n in sums else torch.zeros_like(parameter)
            for n, parameter in enumerate(self._parameters)
        ]

    def _is_small(self, parameter: Tensor) -> bool:
        return self.batch_size * _bytes(parameter) <= self._largest_bytes

    def _join(self) -> None:
        """Put the rows of small parameters side by side: one operation then serves them all."""
        short = [n for n, rows in self._formed.items() if rows.shape[1] <= _JOINED]
        if len(short) > 1:
            self._blocks.append((short, torch.cat([self._formed.pop(n) for n in short], dim=1)))
        self._blocks += [([n], rows) for n, rows in self._formed.items()]

    def _norms_of_uses(self, n: int) -> Tensor:
        uses = self._uses[n]
        alone = uses[0] if len(uses) == 1 else None
        if alone is not None and alone.is_product:
            return alone.norms()
        step = max(1, self._largest_bytes // _bytes(self._parameters[n]))
        parts: list[Tensor] = []
        for start in range(0, self.batch_size, step):
            some = slice(start, start + step)
            if alone is not None:
                parts.append(alone.select(some).norms())
            else:
                parts.append(row_norms(_add([use.select(some).form() for use in uses]).flatten(1)))
        return torch.cat(parts)


def _add(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row: (B, N) to (B,)."""
    if rows.shape[1] > _NORM_BLOCK:
        rows = torch.stack(
            [row_norms(block) for block in torch.split(rows, _NORM_BLOCK, dim=1)], dim=1
        )
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
