"""Updates of 16 or 8 bits a weight, and what rounding lost, for the site's next round.

``bf16`` keeps the sign, the exponent and 7 bits of each float32, rounded to nearest, ties to even.
``int8`` divides each block of :data:`BLOCK` weights by a scale, its largest magnitude over 127,
and rounds to nearest, ties to even. No random number is drawn: equal updates give equal bytes.

With error feedback a site encodes its update plus the residual of its round before, and keeps the
new residual, which is that sum less what it came to. So over the rounds the decoded updates add up
to the updates, less one residual (Seide et al. 2014, "1-bit stochastic gradient descent";
Karimireddy et al. 2019, "Error feedback fixes SignSGD", algorithm 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_shared.parameters import Vector
from asterion_shared.transport_settings import RoundedKind

BLOCK = 1024
"""Weights that share a scale in ``int8``: 4 bytes more for 1024."""

MOST_CODE = 127
SMALLEST_SCALE = np.float32(2.0**-126)
"""Smallest normal float32. A block of zeros has it too, so that nothing is divided by zero."""

LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(MOST_CODE), np.float32(0))
"""Largest scale whose product with 127 is finite."""

CODE_TYPES: dict[RoundedKind, str] = {"bf16": "<u2", "int8": "|i1"}

_LARGEST_BF16 = np.uint32(0x7F7F)
_SLAB = 64 * BLOCK
"""Weights that are worked on at once: they fit the processor's second cache."""


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """An update as it leaves a site.

    Attributes:
        kind: which form.
        codes: a code for each weight, shape ``(P,)``: the upper halves of float32, uint16, for
            ``bf16``; integers of -127 to 127, int8, for ``int8``.
        scales: of the blocks of ``int8``, float32, shape ``(ceil(P / BLOCK),)``; empty for
            ``bf16``.
    """

    kind: RoundedKind
    codes: npt.NDArray[Any]
    scales: Vector

    def tobytes(self) -> bytes:
        """All that leaves, codes first, little-endian."""
        return self.codes.tobytes() + self.scales.tobytes()


def num_scales(kind: RoundedKind, size: int) -> int:
    """How many scales an update of ``size`` weights has."""
    return -(-size // BLOCK) if kind == "int8" else 0


def encode(
    update: Vector, kind: RoundedKind, residual: Vector | None = None
) -> tuple[EncodedUpdate, Vector]:
    """Round an update, and say what was lost.

    In each weight the error is at most half of the block's scale (``int8``, and 2^-15 of the scale
    for the arithmetic), or 2^-8 of its magnitude (``bf16``, and 2^-134 below the normal numbers).

    Args:
        update: float32, shape (P,), P >= 0, finite.
        kind: the form.
        residual: what the site's round before lost, float32, shape (P,); None: nothing.

    Returns:
        The codes, and the new residual, float32, shape (P,).

    Raises:
        ValueError: the residual has another shape, or update and residual together are not
            finite.

    >>> encoded, lost = encode(np.array([127.0, -1.25], np.float32), "int8")
    >>> encoded.codes.tolist(), decode(encoded).tolist(), lost.tolist()
    ([127, -1], [127.0, -1.0], [0.0, -0.25])
    """
    if residual is not None and residual.shape != update.shape:
        msg = f"the residual has shape {residual.shape}, the update {update.shape}"
        raise ValueError(msg)
    size = update.size
    codes = np.empty(size, CODE_TYPES[kind])
    scales = np.empty(num_scales(kind, size), "<f4")
    left = np.empty(size, np.float32)
    encode_slab = _encode_int8 if kind == "int8" else _encode_bf16
    wanted, came = np.empty(_SLAB, np.float32), np.empty(_SLAB, np.float32)
    for part in _slabs(size):
        count = part.stop - part.start
        wanted[count:] = 0  # fills up the last block
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(update[part], 0 if residual is None else residual[part], out=wanted[:count])
        if not np.isfinite(wanted).all():
            msg = "the update has a number that is not finite"
            raise ValueError(msg)
        encode_slab(wanted, came, codes[part], scales[_blocks(part)])
        np.subtract(wanted[:count], came[:count], out=left[part])
    return EncodedUpdate(kind, codes, scales), left


def decode(encoded: EncodedUpdate) -> Vector:
    """The update that codes stand for, float32, shape (P,), finite.

    Args:
        encoded: as :func:`encode` gave it, or as :func:`check` let it pass.
    """
    found = np.empty(encoded.codes.size, np.float32)
    for part in _slabs(found.size):
        if encoded.kind == "bf16":
            np.left_shift(encoded.codes[part], 16, out=found[part].view(np.uint32), dtype=np.uint32)
        else:
            each = encoded.scales[_blocks(part)].repeat(BLOCK)[: part.stop - part.start]
            np.multiply(encoded.codes[part], each, out=found[part])
    return found


def check(encoded: EncodedUpdate, size: int) -> None:
    """Refuse what :func:`encode` cannot have given for ``size`` weights.

    Raises:
        ValueError: another type or number of codes or scales, a code or a scale out of range, or
            a weight that is not finite.
    """
    kind, codes, scales = encoded.kind, encoded.codes, encoded.scales
    wanted = (np.dtype(CODE_TYPES[kind]), (size,)), (np.dtype("<f4"), (num_scales(kind, size),))
    if ((codes.dtype, codes.shape), (scales.dtype, scales.shape)) != wanted:
        msg = (
            f"a {kind} update has codes {codes.dtype}{codes.shape} and scales "
            f"{scales.dtype}{scales.shape}, needed are {wanted[0]} and {wanted[1]}"
        )
        raise ValueError(msg)
    if not ((scales >= SMALLEST_SCALE) & (scales <= LARGEST_SCALE)).all():  # NaN is neither
        msg = f"a scale is not in {SMALLEST_SCALE} to {LARGEST_SCALE}"
        raise ValueError(msg)
    for part in _slabs(size):
        some = codes[part]
        bad = some == -128 if kind == "int8" else (some & 0x7F80) == 0x7F80
        if bad.any():
            msg = f"a code of a {kind} update stands for no finite number"
            raise ValueError(msg)


def _encode_bf16(wanted: Vector, came: Vector, codes: npt.NDArray[Any], scales: Vector) -> None:
    """Round a slab; the upper halves go into ``codes``, the numbers they are into ``came``."""
    bits, halves = wanted.view(np.uint32), came.view(np.uint32)
    # To nearest, ties to even: add 0x7fff, and 1 where the last bit that stays is odd.
    np.right_shift(bits, 16, out=halves)
    np.bitwise_and(halves, 1, out=halves)
    halves += 0x7FFF
    halves += bits
    np.right_shift(halves, 16, out=halves)
    # A magnitude beyond the largest bf16 would round to infinity; it is cut off instead.
    halves -= (halves & 0x7FFF) > _LARGEST_BF16
    codes[:] = halves[: codes.size]
    np.left_shift(halves, 16, out=halves)


def _encode_int8(wanted: Vector, came: Vector, codes: npt.NDArray[Any], scales: Vector) -> None:
    """Round a slab; ``came`` gets the numbers that the codes stand for."""
    np.abs(wanted, out=came)
    blocks, rounded = wanted.reshape(-1, BLOCK), came.reshape(-1, BLOCK)
    found = rounded.max(axis=1) / np.float32(MOST_CODE)
    found = found.clip(SMALLEST_SCALE, LARGEST_SCALE)
    scales[:] = found[: scales.size]
    np.divide(blocks, found[:, None], out=rounded)
    np.rint(rounded, out=rounded)
    codes[:] = came[: codes.size]
    np.multiply(rounded, found[:, None], out=rounded)


def _slabs(size: int) -> Iterator[slice]:
    for begin in range(0, size, _SLAB):
        yield slice(begin, min(begin + _SLAB, size))


def _blocks(part: slice) -> slice:
    """The blocks that the weights of a slab are in."""
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
