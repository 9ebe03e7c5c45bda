"""Views that torch has and does not describe to a type checker."""

from collections.abc import Sequence

from torch import Tensor


def unflatten(tensor: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """The tensor with one axis as several; one of ``shape`` may be -1."""
    found: Tensor = tensor.unflatten(axis, tuple(shape))  # type: ignore[no-untyped-call]
    return found
