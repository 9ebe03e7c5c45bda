"""Exact samples of the discrete Gaussian: P(x) proportional to exp(-x^2 / (2 sigma^2)), x whole.

Algorithm 3 of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy"
(NeurIPS 2020, https://arxiv.org/abs/2004.00010): draw a discrete Laplace Y of scale
t = floor(sigma) + 1 and accept it with probability exp(-(|Y| - sigma^2 / t)^2 / (2 sigma^2)).

|Y| is geometric, P(|Y| >= k) = exp(-k / t) before the sign is drawn, so it is taken as
floor(-t ln V) of an ideal uniform V; "-0" is rejected as in their Algorithm 2. Both that floor and
the acceptance are decided in doubles only where a proven margin separates the outcomes; elsewhere
:mod:`lazy_uniform` decides, with sigma^2 an exact fraction and more binary digits of the uniform
numbers. Every sample is therefore one of the exact distribution.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asterion_shared.privacy.lazy_uniform import decide
from asterion_shared.privacy.secret_stream import SecretStream

_CANDIDATES_PER_BLOCK = 8192
_SMALLEST_SIGMA, _LARGEST_SIGMA = Fraction(1, 1 << 20), Fraction(1 << 32)

# -ln V from 64 digits of V is good to 2^-41 while V >= 2^-22: digits not drawn 2^-42, rounding of
# V 2^-53, a logarithm of size at most 15.3 good to 2^-49 of itself 2^-45. Smaller V go the exact
# way. The margin is twice that.
_LEAST_UNIFORM = 2.0**-22
_LOG_ERROR = 2.0**-40

# With d = (|Y| - sigma^2 / t) / sigma, d^2 / 2 is within (d^2 + |d|) 2^-50 in doubles, and
# exp(-d^2 / 2) (d^2 + |d|) < 1.4: the probability is good to 2^-48, the uniform number to 2^-53.
_CHANCE_ERROR = 2.0**-44


@dataclass(frozen=True, slots=True)
class _Target:
    """The distribution: sigma^2 exactly, and the scale t of the Laplace proposals."""

    variance: Fraction
    scale: int


def discrete_gaussian(
    sigma: float | Fraction, count: int, stream: SecretStream
) -> NDArray[np.int64]:
    """``count`` independent samples of the discrete Gaussian.

    Args:
        sigma: scale; a float is taken as the exact fraction that it is. From 2^-20 to 2^32. (The
            standard deviation is this to many digits from 1 up, and smaller below.)
        count: how many, at least 0.
        stream: where the bits come from: ``secret_stream()``.

    Returns:
        int64 ``(count,)``; empty for 0.

    Raises:
        ValueError: ``sigma`` is outside its range or not a number, or ``count`` is negative.
    """
    if not _SMALLEST_SIGMA <= sigma <= _LARGEST_SIGMA:
        msg = f"sigma is {sigma}; a discrete Gaussian takes a scale from 2^-20 to 2^32"
        raise ValueError(msg)
    if count < 0:
        msg = f"{count} samples were asked for; ask for 0 or more"
        raise ValueError(msg)
    exact = Fraction(sigma)
    target = _Target(exact * exact, math.floor(exact) + 1)
    samples = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        # Three to eight in ten candidates are accepted, by sigma; what is too much is cut below.
        candidates = min(_CANDIDATES_PER_BLOCK, 2 * (count - filled) + 16)
        accepted = _accepted(target, candidates, stream)[: count - filled]
        samples[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return samples


def _accepted(target: _Target, candidates: int, stream: SecretStream) -> NDArray[np.int64]:
    """Those of ``candidates`` proposals that were accepted, in order."""
    size_words, chance_words = stream.words(2 * candidates).reshape(2, candidates)
    sizes = _laplace_sizes(target, size_words, stream)
    # The first bit is the sign, the other 63 decide the acceptance.
    negative = chance_words.view(np.int64) < 0
    keep = _keep(target, sizes, chance_words & np.uint64(2**63 - 1), stream)
    keep &= ~(negative & (sizes == 0))
    signed = np.where(negative, -sizes, sizes)
    return signed[keep].astype(np.int64)


def _laplace_sizes(
    target: _Target, words: NDArray[np.uint64], stream: SecretStream
) -> NDArray[np.float64]:
    """floor(-t ln V) for uniform V, as doubles (whole, below 2^53)."""
    uniforms = words.astype(np.float64)
    uniforms *= 2.0**-64
    unclear = uniforms < _LEAST_UNIFORM
    np.maximum(uniforms, _LEAST_UNIFORM, out=uniforms)
    exponentials = np.log(uniforms)
    exponentials *= -target.scale
    sizes = np.floor(exponentials)
    exponentials -= sizes
    exponentials -= 0.5
    np.abs(exponentials, out=exponentials)
    unclear |= exponentials > 0.5 - target.scale * _LOG_ERROR
    for row in np.flatnonzero(unclear).tolist():
        sizes[row] = _exact_size(target, int(words[row]), stream)
    return sizes


def _keep(
    target: _Target,
    sizes: NDArray[np.float64],
    digits: NDArray[np.uint64],
    stream: SecretStream,
) -> NDArray[np.bool_]:
    """Accept each size with probability exp(-(size - sigma^2 / t)^2 / (2 sigma^2)).

    ``digits`` are the first 63 binary digits of a uniform number for each.
    """
    centre = float(target.variance / target.scale)
    chances = sizes - centre
    chances *= chances
    chances *= -0.5 / float(target.variance)
    np.exp(chances, out=chances)
    chances -= digits.astype(np.float64) * 2.0**-63
    keep = chances > 0
    np.abs(chances, out=chances)
    for row in np.flatnonzero(chances < _CHANCE_ERROR).tolist():
        keep[row] = _exactly_kept(target, int(sizes[row]), int(digits[row]), stream)
    return keep


def _exact_size(target: _Target, word: int, stream: SecretStream) -> int:
    def answer(context: Any, numbers: list[Any]) -> int | None:
        (uniform,) = numbers
        if uniform.a == 0:
            return None
        exponential = -target.scale * context.log(uniform)
        low, high = int(exponential.a), int(exponential.b)
        return low if low == high else None

    return decide([word], stream, answer)


def _exactly_kept(target: _Target, size: int, digits: int, stream: SecretStream) -> bool:
    gap = size - target.variance / target.scale
    exponent = gap * gap / (2 * target.variance)

    def answer(context: Any, numbers: list[Any]) -> bool | None:
        (uniform,) = numbers
        chance = context.exp(-context.mpf(exponent.numerator) / exponent.denominator)
        if uniform.b < chance.a:
            return True
        return False if uniform.a > chance.b else None

    return decide([digits], stream, answer, bits=63)
