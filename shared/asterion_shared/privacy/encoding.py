"""From a clipped update to whole numbers that can be noised and securely summed, and back.

Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation" (ICML 2021, https://arxiv.org/abs/2102.06387), Algorithms 1 and 2: rotate, scale
to the integer grid, round at random until the length is within a bound, add a discrete Gaussian
share, reduce modulo 2^b; the sum is centred, scaled and rotated back.

**Rotation.** Random signs and a Walsh-Hadamard transform, orthonormal, in blocks of ``block_size``;
one block as long as the padded vector is the paper's single rotation. The signs are public and the
same at every site: they spread the update evenly over the coordinates and protect nothing. Blocks
change nothing in the privacy proof, which needs only that lengths are kept. They weaken the
spreading: all of an update may fall into one block, so that :func:`wrap_probability` has the
block's size where the paper has the dimension. They save padding: 25 M numbers become 25.2 M in
blocks of 2^20 and 33.6 M in one.

**Memory.** For P padded numbers :func:`noised_share` holds 8 P bytes rotated and 4 P rounded beside
the update itself, then 4 P rounded and 4 P of result: 0.40 GB for P = 2^25. :func:`decode_sum`
holds 12 P at its start and returns 8 P.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

from asterion_shared.privacy.discrete_gaussian import discrete_gaussian
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.randomness import stream as public_stream

LARGEST_BLOCK = 1 << 26
LARGEST_BETA = 0.99

_RADIX = 16
_TILE = 1 << 16  # doubles; with its scratch it fits a core's cache
_COLUMNS = 1 << 13
_PART = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What every site and the centre must agree on.

    Attributes:
        dimension: numbers in an update, at least 1.
        clip_norm: largest L2 norm of what a site adds, its weight included; above 0.
        scale: grid units per unit of the update; above 0.
        modulus_bits: sums are taken modulo 2 to this power; 2 to 32.
        rotation_seed: public seed of the signs.
        round_: round of the run; each has its own signs.
        block_size: length of a rotation, a power of two up to 2^26: :func:`smallest_block`.
        beta: rounding is repeated with at most this probability; 0 to 0.99. Larger gives a
            tighter bound. With 0 nothing is repeated, and the bound is the deterministic one.

    Raises:
        ValueError: a value is out of its range, or the rounded update could not be told from its
            remainder modulo ``2^modulus_bits``.
    """

    dimension: int
    clip_norm: float
    scale: float
    modulus_bits: int
    rotation_seed: int
    round_: int
    block_size: int
    beta: float = math.exp(-0.5)

    def __post_init__(self) -> None:
        ranges = {
            "dimension": self.dimension >= 1,
            "clip_norm": 0 < self.clip_norm < math.inf,
            "scale": 0 < self.scale < math.inf,
            "modulus_bits": 2 <= self.modulus_bits <= 32,
            "block_size": 1 <= self.block_size <= LARGEST_BLOCK
            and self.block_size.bit_count() == 1,
            "beta": 0 <= self.beta <= LARGEST_BETA,
        }
        for name, fits in ranges.items():
            if not fits:
                msg = f"{name} of an encoding is {getattr(self, name)}; see its range in Encoding"
                raise ValueError(msg)
        if not self.l2_bound < 1 << (self.modulus_bits - 1):
            msg = (
                f"one rounded update may be {self.l2_bound:.4g} long, which is not below half the "
                f"modulus 2^{self.modulus_bits}; take a smaller scale or more modulus_bits"
            )
            raise ValueError(msg)

    @property
    def padded_dimension(self) -> int:
        """Numbers in an encoded update: the dimension filled up to whole blocks."""
        return -(-self.dimension // self.block_size) * self.block_size

    @property
    def l2_bound(self) -> float:
        """Largest L2 norm of a rounded update, in grid units."""
        return rounded_l2_bound(self.clip_norm, self.scale, self.padded_dimension, self.beta)


def smallest_block(dimension: int, *, at_most: int = LARGEST_BLOCK) -> int:
    """The smallest power of two that holds ``dimension`` numbers, or ``at_most`` if that is less.

    >>> smallest_block(25_000_000) == 2**25, smallest_block(25_000_000, at_most=2**20) == 2**20
    (True, True)
    """
    return min(1 << (dimension - 1).bit_length(), at_most)


def rounded_l2_bound(clip_norm: float, scale: float, dimension: int, beta: float) -> float:
    """Length that a rounded update never exceeds, in grid units: its L2 sensitivity.

    With c = ``clip_norm * scale`` and d = ``dimension``, the smaller of c + sqrt(d), which always
    holds, and the square root of c^2 + d/4 + sqrt(2 ln(1/beta)) (c + sqrt(d)/2), which one random
    rounding exceeds with probability at most beta (Delta_2 of Theorem 1 of Kairouz et al. 2021; it
    is Hoeffding's inequality for the sum of the squares).

    Args:
        clip_norm: largest L2 norm before scaling.
        scale: grid units per unit.
        dimension: padded dimension.
        beta: 0 to below 1.
    """
    length, root = clip_norm * scale, math.sqrt(dimension)
    if beta == 0:
        return length + root
    likely = length**2 + dimension / 4 + math.sqrt(-2 * math.log(beta)) * (length + root / 2)
    return min(length + root, math.sqrt(likely))


def wrap_probability(encoding: Encoding, num_sites: int, share_sigma: float) -> float:
    """Bound on the probability that any coordinate of the sum leaves the modulus.

    A coordinate of the sum is (rotated updates) + (rounding) + (noise). Over the public signs the
    first is sub-Gaussian with variance proxy (N clip scale)^2 / block size, if no update was chosen
    to fit the signs; the noise with N sigma^2. The rounding is less than N in all, or, as the
    better of two bounds, sub-Gaussian with N/4 and a factor (1 - beta)^-N for its condition. The
    tails are added over the padded coordinates.

    Wrapping happens after the noise and so costs accuracy, not privacy; adding this to delta is on
    the safe side.

    Args:
        encoding: of the updates.
        num_sites: most sites in the sum.
        share_sigma: scale of each site's discrete Gaussian, in grid units.

    Returns:
        0 to 1.
    """
    half = 2.0 ** (encoding.modulus_bits - 1)
    length = num_sites * encoding.clip_norm * encoding.scale
    variance = length**2 / encoding.block_size + num_sites * share_sigma**2
    sides = math.log(2 * encoding.padded_dimension)
    surely = max(half - num_sites, 0.0)
    exponents = (
        sides - surely**2 / (2 * variance),
        sides - half**2 / (2 * (variance + num_sites / 4)) - num_sites * math.log1p(-encoding.beta),
    )
    return math.exp(min(0.0, *exponents))


def noised_share(
    values: NDArray[np.floating],
    encoding: Encoding,
    share_sigma: float | Fraction,
    stream: SecretStream,
) -> NDArray[np.uint32]:
    """What a site gives to the secure sum: its encoded update plus a discrete Gaussian share.

    Args:
        values: see :func:`round_update`.
        encoding: agreed by all sites.
        share_sigma: scale of the share, in grid units, as :func:`discrete_gaussian` takes it.
        stream: where the bits come from: ``secret_stream()``.

    Returns:
        uint32 ``(encoding.padded_dimension,)``, below ``2^modulus_bits``.

    Raises:
        ValueError: as :func:`round_update` and :func:`discrete_gaussian`.
    """
    rounded = round_update(values, encoding, stream)
    share = np.empty(rounded.size, np.uint32)
    for part in _parts(rounded.size):
        noise = discrete_gaussian(share_sigma, rounded[part].size, stream)
        share[part] = reduce_modulo(rounded[part] + noise, encoding.modulus_bits)
    return share


def round_update(
    values: NDArray[np.floating], encoding: Encoding, stream: SecretStream
) -> NDArray[np.int32]:
    """Clip, rotate, scale, and round at random until the length is within ``l2_bound``.

    Each coordinate goes up with its fractional part as probability (to 2^-53), else down; without
    the repetition the expectation would be the coordinate itself. The length is compared in whole
    numbers, so the bound holds whatever rounding errors the rotation made.

    Args:
        values: ``(encoding.dimension,)``, finite; scaled down to ``clip_norm`` if longer.
        encoding: agreed by all sites.
        stream: where the bits come from.

    Returns:
        int32 ``(encoding.padded_dimension,)``.

    Raises:
        ValueError: ``values`` has another shape or a number that is not finite.
    """
    rotated = _padded(values, encoding)
    # A double's square may overflow: measure the length in units of the largest number.
    largest = max(float(rotated.max()), -float(rotated.min()))
    if not math.isfinite(largest):
        msg = f"an update has numbers that are not finite (found {largest}); refuse it"
        raise ValueError(msg)
    if largest > 0:
        rotated /= largest
        norm = math.sqrt(float(rotated @ rotated))
        rotated *= min(largest, encoding.clip_norm / norm) * encoding.scale
    _rotate(rotated, encoding)
    most = math.floor(Fraction(encoding.l2_bound) ** 2)
    rounded = np.empty(rotated.size, np.int32)
    while True:
        square = sum(_round_part(rotated[p], rounded[p], stream) for p in _parts(rotated.size))
        if square <= most:
            return rounded


def _round_part(
    values: NDArray[np.float64], rounded: NDArray[np.int32], stream: SecretStream
) -> int:
    """Round ``values`` at random into ``rounded``; returns the sum of squares."""
    below = np.floor(values)
    below += (stream.words(values.size) >> np.uint64(11)) < (values - below) * 2.0**53
    whole = below.astype(np.int64)
    rounded[...] = whole
    return int(whole @ whole)


def reduce_modulo(values: NDArray[np.signedinteger], modulus_bits: int) -> NDArray[np.uint32]:
    """``values`` modulo ``2^modulus_bits`` (2 to 32), as uint32 of the same shape."""
    return values.astype(np.uint32) & np.uint32((1 << modulus_bits) - 1)


def centre(remainders: NDArray[np.uint32], modulus_bits: int) -> NDArray[np.int32]:
    """The number nearest 0 with each remainder: -2^(b-1) to 2^(b-1) - 1.

    >>> centre(np.array([0, 1, 7, 8, 15], np.uint32), 4).tolist()
    [0, 1, 7, -8, -1]
    """
    unused = np.int32(32 - modulus_bits)
    return (remainders << unused.astype(np.uint32)).view(np.int32) >> unused


def decode_sum(remainders: NDArray[np.uint32], encoding: Encoding) -> NDArray[np.float64]:
    """The sum of the updates (and of the noise) from the sum of their shares.

    Args:
        remainders: uint32 ``(encoding.padded_dimension,)``, the sum modulo ``2^modulus_bits``.
        encoding: the sites'.

    Returns:
        float64 ``(encoding.dimension,)``, in the unit of the updates. True unless a coordinate
        wrapped: :func:`wrap_probability`.

    Raises:
        ValueError: the sum has another shape.
    """
    _check_shape(remainders, encoding.padded_dimension)
    rotated = np.divide(centre(remainders, encoding.modulus_bits), encoding.scale)
    for block in rotated.reshape(-1, encoding.block_size):
        _hadamard(block)
    _flip_signs(rotated, encoding)
    return rotated[: encoding.dimension]


def rotate(values: NDArray[np.floating], encoding: Encoding) -> NDArray[np.float64]:
    """``values`` filled up with zeros and rotated: float64 ``(padded_dimension,)``, equally long.

    Raises:
        ValueError: ``values`` is not ``(encoding.dimension,)``.
    """
    padded = _padded(values, encoding)
    _rotate(padded, encoding)
    return padded


def _padded(values: NDArray[np.floating], encoding: Encoding) -> NDArray[np.float64]:
    _check_shape(values, encoding.dimension)
    padded = np.zeros(encoding.padded_dimension)
    padded[: values.size] = values
    return padded


def _rotate(padded: NDArray[np.float64], encoding: Encoding) -> None:
    _flip_signs(padded, encoding)
    for block in padded.reshape(-1, encoding.block_size):
        _hadamard(block)


def _check_shape(values: NDArray[np.generic], size: int) -> None:
    if values.shape != (size,):
        msg = f"a vector has shape {values.shape}; this encoding takes ({size},)"
        raise ValueError(msg)


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, _PART):
        yield slice(start, start + _PART)


def _flip_signs(padded: NDArray[np.float64], encoding: Encoding) -> None:
    """Multiply by the public signs, in place. Twice is nothing."""
    generator = public_stream(
        encoding.rotation_seed, round_=encoding.round_, site="", purpose="rotation"
    ).bit_generator
    for part in _parts(padded.size):
        numbers = padded[part]
        words = np.asarray(generator.random_raw(-(-numbers.size // 64)), "<u8")
        numbers *= np.where(np.unpackbits(words.view(np.uint8), count=numbers.size), -1.0, 1.0)


@cache
def _matrix(size: int) -> NDArray[np.float64]:
    """The Walsh-Hadamard matrix ``(size, size)``, orthonormal."""
    matrix: NDArray[np.float64] = np.ones((1, 1))
    smallest = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    while len(matrix) < size:
        matrix = np.asarray(np.kron(matrix, smallest), np.float64)
    return matrix


def _hadamard(values: NDArray[np.float64]) -> None:
    """Orthonormal Walsh-Hadamard transform of ``(2^k,)``, in place.

    The matrix is a Kronecker product of small ones; each is applied as a matrix product, first
    those that stay inside a tile of the cache, then the others over columns of the tiles.
    """
    step = min(values.size, _TILE)
    scratch = np.empty(step)
    for tile in values.reshape(-1, step):
        _hadamard_tile(tile, scratch)
    while step < values.size:
        radix = min(_RADIX, values.size // step)
        for group in values.reshape(-1, radix, step):
            for start in range(0, step, _COLUMNS):
                columns = group[:, start : start + _COLUMNS]
                columns[...] = _matrix(radix) @ columns
        step *= radix


def _hadamard_tile(tile: NDArray[np.float64], scratch: NDArray[np.float64]) -> None:
    source, target, step = tile, scratch, 1
    while step < tile.size:
        radix = min(_RADIX, tile.size // step)
        if step == 1:
            np.matmul(source.reshape(-1, radix), _matrix(radix), out=target.reshape(-1, radix))
        else:
            shape = (-1, radix, step)
            np.matmul(_matrix(radix), source.reshape(shape), out=target.reshape(shape))
        source, target, step = target, source, step * radix
    if source is not tile:
        tile[...] = source
