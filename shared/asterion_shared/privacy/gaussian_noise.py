"""Gaussian noise whose last digits tell nothing.

A sampler that computes in floating point reaches only some of the doubles near its argument, and
which ones depends on the argument: the digits of ``x + noise`` then betray x, whatever sigma is
(Mironov, "On significance of the least significant bits for differential privacy", CCS 2012). Here
the result is a fixed function of the ideal, real-valued ``x + sigma z``:

    output = gamma * floor((x + sigma z) / gamma + 1/2),  gamma a power of two near sigma / 2^20,

so it is post-processing of the ideal Gaussian mechanism, and every statement about that mechanism
holds for it. The grid depends on sigma alone, and rounding after the noise adds no sensitivity.

z is ideal although it is computed in doubles. It is a function of two ideal uniform numbers (Box
and Muller 1958), of which 64 digits are drawn at first: with U and X uniform on [-1, 1),

    R = sign(U) sqrt(-2 ln|U|);  z1 = R cos(pi X / 2);  z2 = R sin(pi X / 2).

The double result is accepted only where its proven error and the digits not yet drawn leave one
grid cell possible; elsewhere, two or three times in a million, :mod:`lazy_uniform` decides in
interval arithmetic and draws more digits if it must. So the output depends on the drawn bits and
not on the processor or the mathematical library.

What this does not do: the time a call takes is not constant, and the sensitivity of x must cover
the rounding of the sums that made it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asterion_shared.privacy.lazy_uniform import decide
from asterion_shared.privacy.secret_stream import SecretStream

_CELLS_PER_SIGMA_BITS = 20
_PAIRS_PER_BLOCK = 4096  # ten working arrays of 32 KiB stay in a core's cache
_LARGEST_RATIO = 2.0**29
_SMALLEST_SIGMA, _LARGEST_SIGMA = 2.0**-900, 2.0**900

# -2 ln|U| must lie between these, or the pair is decided exactly: below the first its square root
# is too uncertain, above the second (|U| < 2^-21.9) the digits of U not yet drawn are.
_LEAST_SQUARE, _MOST_SQUARE = 2.0**-20, 30.4
_LEAST_UNIFORM = 2.0**-22

# Bound on the error of (x + sigma z) / gamma inside that range. Half a unit in the last place of
# the double U (2^-54), its digits not drawn (2^-63) and a logarithm good to 2^-49 give R within
# 2^-43; polynomials and Horner's rule give sine and cosine within 2^-46; |R| <= 5.52: z is within
# 2^-42, times at most 2^21 cells per sigma, and 2^-28 for the last product and sum: 2^-20.9
# together. The bound is nearly twice that. Against 300-bit arithmetic the largest error found
# among 43,000 pairs, chosen at the ends of the range and drawn, is 2^-23.6.
_CELL_ERROR = 2.0**-20

# cos(pi x / 2) and sin(pi x / 2) / x as polynomials in x^2 for |x| <= 1, the constants first: those
# that agree with them at the eight Chebyshev points of [0, 1]. Their errors, of the coefficients'
# rounding too, are 2.0e-15 and 2.9e-16, both below 2^-48.
_COSINE = (
    0.9999999999999981, -1.2337005501359215, 0.2536695078958309, -0.020863480721590055,
    0.0009192601105983545, -2.52016913827359e-05, 4.706713995845052e-07, -6.1289345837731264e-09,
)  # fmt: skip
_SINE = (
    1.5707963267948963, -0.6459640975062232, 0.07969262624568337, -0.004681754131447062,
    0.0001604411695631063, -3.5988107063136794e-06, 5.688318064017795e-08, -6.449471237809134e-10,
)  # fmt: skip


def grid_spacing(sigma: float) -> float:
    """gamma: the power of two in (sigma / 2^21, sigma / 2^20].

    Raises:
        ValueError: ``sigma`` is not a number from 2^-900 to 2^900.
    """
    if not _SMALLEST_SIGMA <= sigma <= _LARGEST_SIGMA:
        msg = f"sigma is {sigma}; give a finite standard deviation above 0 (2^-900 to 2^900)"
        raise ValueError(msg)
    _, exponent = math.frexp(sigma)
    return math.ldexp(1.0, exponent - 1 - _CELLS_PER_SIGMA_BITS)


def add_gaussian(
    values: NDArray[np.float64],
    sigma: float,
    stream: SecretStream,
    out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """``values`` plus independent Gaussian noise, exactly rounded to the grid of ``sigma``.

    Args:
        values: float64 ``(n,)``, finite, no larger in size than ``2^29 sigma`` (so that every
            grid point near them is a double).
        sigma: standard deviation of the noise, in the unit of ``values``.
        stream: where the bits come from: ``secret_stream()``.
        out: float64 ``(n,)`` for the result, such as ``values`` itself; a new array when None.

    Returns:
        float64 ``(n,)``, each a multiple of ``grid_spacing(sigma)``; empty for empty ``values``.

    Raises:
        ValueError: ``sigma`` is 0, negative or not finite; ``values`` is not a float64 vector, or
            has a number that is not finite or too large.
    """
    spacing = grid_spacing(sigma)
    if values.dtype != np.float64 or values.ndim != 1:
        msg = f"values are {values.dtype} with shape {values.shape}; give a float64 vector"
        raise ValueError(msg)
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if not largest <= _LARGEST_RATIO * sigma:
        msg = (
            f"the largest of the values is {largest} in size; they must be finite and at most "
            f"2^29 sigma = {_LARGEST_RATIO * sigma}: clip them first, or check what made them"
        )
        raise ValueError(msg)
    noised = np.empty_like(values) if out is None else out
    if noised.dtype != np.float64 or noised.shape != values.shape:
        found = f"{noised.dtype} with shape {noised.shape}"
        msg = f"out is {found}; give it the type and shape of the values, {values.shape}"
        raise ValueError(msg)
    for start in range(0, values.size, 2 * _PAIRS_PER_BLOCK):
        block = slice(start, start + 2 * _PAIRS_PER_BLOCK)
        cells = _cells(values[block] / spacing, sigma / spacing, stream)
        np.multiply(cells, spacing, out=noised[block])
    return noised


def _cells(
    values: NDArray[np.float64], cells_per_sigma: float, stream: SecretStream
) -> NDArray[np.float64]:
    """The cell of the grid, a whole number, for each of ``values`` (in cells, without noise)."""
    pairs = (values.size + 1) // 2
    radius_words, angle_words = stream.words(2 * pairs).reshape(2, pairs)
    square = _minus_two_log(radius_words)
    noise = _normal_pairs(square, radius_words, angle_words).reshape(-1)[: values.size]
    whole = np.rint(values)
    fraction = values - whole  # exact, and small, so that the sum below loses no digits
    noise *= cells_per_sigma
    noise += fraction
    cells = np.rint(noise)
    noise -= cells
    cells += whole
    for pair in _unclear_pairs(square, noise):
        members = [row for row in (pair, pair + pairs) if row < values.size]
        exact = _exact_cells(
            [float(fraction[row]) for row in members],
            cells_per_sigma,
            (int(radius_words[pair]), int(angle_words[pair])),
            stream,
        )
        for row, cell in zip(members, exact, strict=True):
            cells[row] = whole[row] + cell
    return cells


def _unclear_pairs(square: NDArray[np.float64], offset: NDArray[np.float64]) -> set[int]:
    """The pairs that doubles cannot decide: few of a million, and mostly none of a block.

    Args:
        square: -2 ln|U|, one for each pair.
        offset: of each number from the middle of its cell, in cells; its pair is its place
            modulo the number of pairs.
    """
    pairs, edge = square.size, 0.5 - _CELL_ERROR
    found: set[int] = set()
    if square.min() < _LEAST_SQUARE or square.max() > _MOST_SQUARE:
        found.update(np.flatnonzero((square < _LEAST_SQUARE) | (square > _MOST_SQUARE)).tolist())
    if offset.min() < -edge or offset.max() > edge:
        found.update((np.flatnonzero(np.abs(offset) > edge) % pairs).tolist())
    return found


def _minus_two_log(radius_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """-2 ln|U|; |U| is kept from 0, which :data:`_MOST_SQUARE` sorts out."""
    square = radius_words.view(np.int64).astype(np.float64)
    np.abs(square, out=square)
    square *= 2.0**-63
    np.maximum(square, _LEAST_UNIFORM, out=square)
    np.log(square, out=square)
    square *= -2.0
    return square


def _normal_pairs(
    square: NDArray[np.float64], radius_words: NDArray[np.uint64], angle_words: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """(z1, z2), shape ``(2, pairs)``, in doubles."""
    radius = np.sqrt(square)
    # The first bit is the sign of a word read as int64 and of one read as float64 alike.
    np.copysign(radius, radius_words.view(np.float64), out=radius)
    angle = angle_words.view(np.int64).astype(np.float64)
    angle *= 2.0**-63
    angle_squared = angle * angle
    normals = np.empty((2, square.size))
    _polynomial(_COSINE, angle_squared, out=normals[0])
    _polynomial(_SINE, angle_squared, out=normals[1])
    normals[1] *= angle
    normals *= radius
    return normals


def _polynomial(
    coefficients: tuple[float, ...], x: NDArray[np.float64], *, out: NDArray[np.float64]
) -> None:
    """Horner's rule, into ``out``."""
    np.multiply(x, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        out += coefficient
        out *= x
    out += coefficients[0]


def _exact_cells(
    values: list[float], cells_per_sigma: float, words: tuple[int, int], stream: SecretStream
) -> list[int]:
    """The cells of one pair (or of its first member), from as many digits as they need."""
    negative, turned = (word >> 63 for word in words)

    def answer(context: Any, numbers: list[Any]) -> list[int] | None:
        size, angle = 2 * numbers[0], 2 * numbers[1] - 2 * turned
        if negative:
            size = 2 - size
        if size.a == 0:
            return None
        radius = context.sqrt(-2 * context.log(size)) * (-1 if negative else 1)
        angle *= context.pi / 2
        cells = []
        for value, part in zip(values, (context.cos(angle), context.sin(angle)), strict=False):
            cell = _floor(context.mpf(value) + cells_per_sigma * radius * part + 0.5)
            if cell is None:
                return None
            cells.append(cell)
        return cells

    return decide(words, stream, answer)


def _floor(interval: Any) -> int | None:
    """The whole number below everything in the interval, or None if there are two."""
    offset = 1 << 32  # int() cuts towards 0, and cells are smaller than this in size
    low, high = int((interval + offset).a), int((interval + offset).b)
    return low - offset if low == high else None
