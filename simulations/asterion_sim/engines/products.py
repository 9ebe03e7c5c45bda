"""Float32 products through oneDNN where that is faster and just as exact.

On AMD processors MKL multiplies float32 matrices at half the speed of oneDNN. torch chooses
oneDNN when bfloat16 products are allowed; a processor without bfloat16 tiles (AMX) then still
computes in true float32. Whether this one does is measured, not believed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

_SIZE = 512
_MOST_ERROR = 1e-5
"""Largest relative error of a true float32 product of this size; bfloat16 gives about 3e-3."""


@contextmanager
def fast_products(device: str) -> Iterator[None]:
    """Multiply float32 matrices through oneDNN inside the block, where that pays."""
    if device != "cpu" or not _onednn_is_exact_and_faster():
        yield
        return
    with _onednn():
        yield


@cache
def _onednn_is_exact_and_faster() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, _SIZE, _SIZE, generator=generator)
    exact = one.double() @ other.double()
    usual_seconds = _seconds(one, other)
    with _onednn():
        error = ((one @ other).double() - exact).abs().max() / exact.abs().max()
        return float(error) < _MOST_ERROR and _seconds(one, other) < usual_seconds


@contextmanager
def _onednn() -> Iterator[None]:
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _seconds(one: torch.Tensor, other: torch.Tensor) -> float:
    """Shortest of a few products."""
    found = []
    for _ in range(5):
        started = time.process_time()
        torch.mm(one, other)
        found.append(time.process_time() - started)
    return min(found)
