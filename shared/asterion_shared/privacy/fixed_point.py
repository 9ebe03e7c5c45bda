"""Real numbers as integers modulo 2^bits and back, with a range that is checked and never cut.

Zero is 0, a negative number is 2^bits less its size.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import OrderRefusedError, UserInputError
from asterion_shared.privacy.masks import MAX_BITS, MIN_BITS, Words, word_type, wrap

OUT_OF_RANGE = "secure_sum_out_of_range"
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """A grid of numbers whose sum over all summands cannot wrap.

    Attributes:
        bits: of the modulus, 8 to 64.
        step: distance between two neighbours on the grid, > 0.
        largest: greatest magnitude of one summand, > 0.
        num_summands: most summands, >= 1.
    """

    bits: int
    step: float
    largest: float
    num_summands: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS or self.num_summands < 1:
            msg = f"{self.num_summands} summands modulo 2^{self.bits}; give {MIN_BITS} to "
            msg += f"{MAX_BITS} bits and at least one summand"
            raise UserInputError(msg)
        if not (0 < self.step < math.inf and 0 < self.largest < math.inf):
            msg = f"step {self.step} up to {self.largest}; both must be positive and finite"
            raise UserInputError(msg)
        most = self.levels * self.num_summands
        if most >= 1 << (self.bits - 1):
            msg = (
                f"{self.num_summands} numbers up to {self.largest:g} in steps of {self.step:g} "
                f"reach {most}, beyond 2^{self.bits - 1} - 1; take more bits, a longer step or a "
                "smaller range"
            )
            raise UserInputError(msg)

    @property
    def levels(self) -> int:
        """Steps from zero to the largest magnitude."""
        return round(self.largest / self.step)

    def encode(self, values: npt.NDArray[np.floating], weight: float = 1.0) -> Words:
        """Multiply by the weight in float64 and round to the grid, halves to even.

        Args:
            values: ``(n,)`` of any float type; may be empty.
            weight: finite.

        Returns:
            ``(n,)`` uint32 up to 32 bits, else uint64.

        Raises:
            OrderRefusedError: a product is not finite, or its magnitude is above ``largest``.
        """
        coded = np.empty(values.shape, word_type(self.bits))
        for start in range(0, values.size, _BLOCK):
            with np.errstate(over="ignore", invalid="ignore"):  # refused just below
                block = values[start : start + _BLOCK].astype(np.float64) * weight
            if not np.max(np.abs(block)) <= self.largest:
                raise self._refusal(values, weight)
            whole = np.rint(block / self.step).astype(np.int64)
            coded[start : start + _BLOCK] = whole.astype(coded.dtype)
        wrap(coded, self.bits)
        return coded

    def decode(self, total: Words) -> npt.NDArray[np.float64]:
        """The sum of at most ``num_summands`` encoded vectors, ``(n,)``, as float64."""
        signed = total.astype(np.uint64) << np.uint64(64 - self.bits)
        return (signed.view(np.int64) >> np.int64(64 - self.bits)).astype(np.float64) * self.step

    def _refusal(self, values: npt.NDArray[np.floating], weight: float) -> OrderRefusedError:
        worst = float(np.max(np.abs(values))) * abs(weight)
        if not math.isfinite(worst):
            msg = "the vector has a number that is not finite; nothing is sent"
            return OrderRefusedError(msg, code=OUT_OF_RANGE)
        msg = (
            f"the largest magnitude is {worst:g}, the secure sum's range ends at {self.largest:g}; "
            "nothing is cut or sent: clip the update to less, or let the plan give a larger range"
        )
        return OrderRefusedError(msg, code=OUT_OF_RANGE)


def choose_fixed_point(*, largest: float, num_summands: int, steps: int = 1 << 20) -> FixedPoint:
    """The finest grid in 32 bits, or in 64 where 32 leave fewer than ``steps`` up to ``largest``.

    Args:
        largest: greatest magnitude of one summand, > 0 and finite.
        num_summands: most summands, >= 1.
        steps: wanted at least between zero and ``largest``, 1 to 2^50.

    Raises:
        UserInputError: an argument is outside its range.

    >>> choose_fixed_point(largest=1.0, num_summands=100).bits
    32
    >>> choose_fixed_point(largest=1.0, num_summands=100, steps=1 << 30).bits
    64
    """
    if num_summands < 1 or not 1 <= steps <= 1 << 50 or not 0 < largest < math.inf:
        msg = f"{num_summands} summands up to {largest} in {steps} steps; give positive numbers, "
        msg += "and at most 2^50 steps"
        raise UserInputError(msg)
    for bits in (32, 64):
        # Beyond 2^52 steps a float64 cannot tell neighbours apart.
        levels = min(((1 << (bits - 1)) - 1) // num_summands, 1 << 52)
        if levels >= steps:
            return FixedPoint(
                bits=bits, step=largest / levels, largest=largest, num_summands=num_summands
            )
    msg = f"{num_summands} summands of {steps} steps do not fit 64 bits; take fewer of either"
    raise UserInputError(msg)
