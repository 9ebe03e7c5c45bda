"""Shamir's secret sharing of 32-byte secrets over a prime field.

Shamir, "How to share a secret", Communications of the ACM 22 (1979): the secret is the value at 0
of a random polynomial of degree ``threshold - 1``; a share is its value at another point. Any
``threshold`` shares give the secret, fewer say nothing about it.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

SECRET_BYTES = 32
SHARE_BYTES = 33
"""A share is a number below :data:`PRIME`, little-endian."""

PRIME = (1 << 256) + 297
"""The smallest prime above every secret."""


def split(secret: bytes, points: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Share a secret among the holders of ``points``.

    The polynomial's coefficients come from the operating system.

    Args:
        secret: 32 bytes.
        points: one for each holder, different, 1 to 2^32.
        threshold: shares that give the secret back, 1 to the number of points.

    Returns:
        The share of each point, 33 bytes.

    Raises:
        ValueError: an argument is outside its range.
    """
    if len(secret) != SECRET_BYTES:
        msg = f"the secret has {len(secret)} bytes; give {SECRET_BYTES}"
        raise ValueError(msg)
    _check_points(points)
    if not 1 <= threshold <= len(points):
        msg = f"threshold {threshold} for {len(points)} holders; give 1 to {len(points)}"
        raise ValueError(msg)
    random = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = [int.from_bytes(secret, "little"), *random]
    return {point: _to_bytes(_value(coefficients, point)) for point in points}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret that ``shares`` (by point) belong to; all of them are used.

    With fewer shares than the threshold the answer is a random secret, and with a wrong share a
    wrong one: whoever combines compares with a commitment.

    Returns:
        32 bytes.

    Raises:
        ValueError: there is no share, a point or a share is outside the field, or what they give
            is no secret.

    >>> parts = split(bytes(range(32)), [1, 2, 3, 4], threshold=3)
    >>> combine({point: parts[point] for point in (4, 1, 3)}) == bytes(range(32))
    True
    """
    points = tuple(sorted(shares))
    _check_points(points)
    factors = _lagrange_at_zero(points)
    total = 0
    for point, factor in zip(points, factors, strict=True):
        total += share_number(shares[point]) * factor
    total %= PRIME
    if total >> (8 * SECRET_BYTES):
        msg = "the shares give no secret: they do not belong together"
        raise ValueError(msg)
    return total.to_bytes(SECRET_BYTES, "little")


def share_number(share: bytes) -> int:
    """The number that a share stands for.

    Raises:
        ValueError: it has another length than 33 bytes, or is not below :data:`PRIME`.
    """
    number = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or number >= PRIME:
        msg = f"a share of {len(share)} bytes is outside the field"
        raise ValueError(msg)
    return number


def _check_points(points: Sequence[int]) -> None:
    if not points or len(set(points)) != len(points):
        msg = f"{len(points)} points of which {len(set(points))} differ; give different ones"
        raise ValueError(msg)
    if min(points) < 1 or max(points) > 1 << 32:
        msg = f"points from {min(points)} to {max(points)}; they must lie in 1 to 2^32"
        raise ValueError(msg)


def _value(coefficients: Sequence[int], point: int) -> int:
    """Horner's rule, lowest coefficient first in the list."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


@lru_cache(maxsize=256)
def _lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Factors f with secret = sum of f times share: prod over the others of other/(other - own)."""
    # Points are small: exact products of them, reduced once, are faster than reducing each step.
    everybody, factors = prod(points), []
    for own in points:
        below = prod(other - own for other in points if other != own) % PRIME
        factors.append(everybody // own * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)


def _to_bytes(number: int) -> bytes:
    return number.to_bytes(SHARE_BYTES, "little")
