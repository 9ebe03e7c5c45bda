"""What this machine can do at most, and the sites a second that follow from it.

Nothing simulates faster than these: ``arithmetic`` is the measured peak of products or
convolutions over a site's operations; ``stacked`` is memory bandwidth over the bytes that move when
each site has parameters of its own (a step reads the weights twice, writes and reads the gradient
and writes the weights: five passes of 4 bytes)::

    python -m bench.limits
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from bench.measuring import say
from bench.workloads import BENCH_FOLDER, WORKLOADS, flops_per_site, initial_network

SIDE = 1024
"""Rows and columns of the dense product."""

VECTOR = 1 << 26
"""Numbers of the vectors behind the bandwidth: 256 MiB each, far beyond any cache."""


def best_seconds(work: Callable[[], object], seconds: float = 2.0) -> float:
    """The shortest of the runs that fit into about ``seconds``, after two to warm up."""
    work()
    work()
    shortest, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest


def peaks(num_threads: int) -> dict[str, float]:
    """Measured peaks with ``num_threads`` threads: GFLOP/s, and GB/s of a vector addition.

    Convolutions are those of the CNN's second layer on a batch of 10, channels last.
    """
    torch.set_num_threads(num_threads)
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    image = torch.randn(10, 32, 30, 30).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(64, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    product = 2 * SIDE**3 / 1e9
    convolution = 2 * 10 * 28 * 28 * 64 * 32 * 9 / 1e9
    halves = one.bfloat16(), other.bfloat16()
    half_image, half_kernel = image.bfloat16(), kernel.bfloat16()
    found = {
        "product f32": product / best_seconds(lambda: one @ other),
        "product bf16": product / best_seconds(lambda: halves[0] @ halves[1]),
        "convolution f32": convolution / best_seconds(lambda: functional.conv2d(image, kernel)),
        "convolution bf16": convolution
        / best_seconds(lambda: functional.conv2d(half_image, half_kernel)),
    }
    if (seconds := _onednn_seconds(one, other)) is not None:
        found["product f32, oneDNN"] = product / seconds
    total, added = torch.zeros(VECTOR), torch.randn(VECTOR)
    # reads both, writes one: 12 bytes a number
    seconds = best_seconds(lambda: total.add_(added, alpha=0.5))
    return found | {"addition GB/s": 12 * VECTOR / seconds / 1e9}


def _onednn_seconds(one: Tensor, other: Tensor) -> float | None:
    """Of a product of f32 by oneDNN; None where that setting does not compute in f32.

    The setting allows bf16. A processor without AMX then still takes f32, by other and on some
    machines faster kernels than MKL's.
    """
    exact, settings = one @ other, cast("Any", torch.backends.mkldnn).matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        error = (one @ other - exact).norm() / exact.norm()
        return best_seconds(lambda: one @ other) if error < 1e-5 else None
    finally:
        settings.fp32_precision = before


def bounds(found: dict[str, float]) -> dict[str, dict[str, float]]:
    """Most sites a second by workload: ``arithmetic f32``, ``arithmetic bf16``, ``stacked``."""
    result: dict[str, dict[str, float]] = {}
    for name in ("cnn", "unet", "mlp", "logreg"):
        workload = WORKLOADS[name]
        gflop = flops_per_site(workload) / 1e9
        weights = sum(weight.numel() for weight in initial_network(workload).parameters())
        steps = workload.examples_per_site // workload.batch_size
        result[name] = {
            f"arithmetic {dtype}": max(v for k, v in found.items() if dtype in k) / gflop
            for dtype in ("f32", "bf16")
        } | {"stacked": found["addition GB/s"] * 1e9 / (5 * 4 * weights * steps)}
    return result


def main() -> None:
    """Measure, print, and write ``limits.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "limits.json")
    wanted = parser.parse_args()
    content: dict[str, Any] = {}
    for num_threads in sorted({1, os.cpu_count() or 1}):
        found = peaks(num_threads)
        content[f"{num_threads} threads"] = {"peaks": found, "sites_per_second": bounds(found)}
        for name, value in found.items():
            say(f"{num_threads} threads  {name:20}  {value:8.0f}")
        for name, most in bounds(found).items():
            text = ", ".join(f"{bound} {value:.0f}" for bound, value in most.items())
            say(f"{num_threads} threads  {name:20}  sites/s at most: {text}")
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
