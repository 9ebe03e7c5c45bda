"""What per-example clipping costs: a private step beside a plain one, and Opacus's hooks.

A step is the forward and the backward pass of one batch; neither noise nor the optimiser is in it,
because both sides would pay the same. Run it as ``python -m bench.private_step`` in
``simulations/``. The figure is processor time with one thread, which repeats on a shared machine;
the rows take turns, and medians count. Every way's sum is compared with a loop over the examples.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asterion_shared.clipped_gradients import (
    Method,
    choose_method,
    clipped_gradient_sum,
    example_losses,
)
from asterion_shared.networks import build_network
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module
from asterion_shared.tasks.batch import Batch
from bench.measuring import say, stamp
from bench.workloads import BENCH_FOLDER

CLIP_NORM = 1.0
WAYS = ("plain", "chosen", "grouped", "merged", "unfold", "vmap", "loop", "opacus hooks")
LAYOUTS = ("contiguous", "channels last")
_PLANS = {
    "cnn": {
        "task": "classification",
        "model": {"name": "cnn", "widths": (32, 64, 128)},
        "data": {"channels": ["r", "g", "b"], "classes": [f"class {n}" for n in range(10)]},
    },
    "unet": {
        "task": "segmentation",
        "model": {"name": "small_unet", "widths": (8, 16, 32)},
        "data": {"channels": ["g"], "classes": ["sky", "source"]},
        "local": {"dice_weight": 0.0},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of taking a step, measured.

    Attributes:
        workload: ``cnn`` (1.63 M parameters, 3 x 32 x 32) or ``unet`` (29,641, 1 x 32 x 32).
        batch_size: examples of a step.
        layout: of the channels in memory.
        way: one of ``WAYS``.
        cpu_ms: median processor time of a step, milliseconds.
        over_plain: divided by the plain step of the same layout.
        over_best_plain: divided by the faster of the two layouts' plain steps.
        error: distance of the clipped sum from the loop's, relative; None for the plain step. It
            is 1e-7 of rounding, and up to 1e-3 where rounding flips a maximum or a rectifier: the
            loop's forward pass, of one example, uses other kernels.
        peak_mb: largest resident size of a process that takes only such steps, MiB; of
            ``chosen`` the probe counts too.
        kernels: what the probe chose for each convolution; empty for the other ways.
    """

    workload: str
    batch_size: int
    layout: str
    way: str
    cpu_ms: float
    over_plain: float
    over_best_plain: float
    error: float | None
    peak_mb: float
    kernels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """A way of taking a step, ready to be called; its sums by parameter come back."""

    layout: str
    way: str
    call: Callable[[], list[Tensor]]
    kernels: dict[str, str]


def make_step(workload: str, batch_size: int, layout: str, way: str) -> Step:
    """Network, batch and step of one way; the same weights and numbers for all ways."""
    torch.manual_seed(0)
    patch = {"patch_size": (32, 32)}
    values = {"name": "bench"} | _PLANS[workload]
    plan = validate(Plan, values | {"data": _PLANS[workload]["data"] | patch}, "bench")
    model, batch = build_network(plan), _batch(plan, batch_size)
    if layout == "channels last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
        batch = Batch(inputs, batch.targets, batch.weights)
    weights, losses = list(model.parameters()), example_losses(plan)
    if way == "plain":

        def plain() -> list[Tensor]:
            loss = task_module(plan.task).loss(model(batch.inputs), batch, plan)
            return list(torch.autograd.grad(loss, weights))

        return Step(layout, way, plain, {})
    if way == "opacus hooks":
        return Step(layout, way, _opacus_step(model, plan, batch), {})
    method = _method(way, model, plan, batch)

    def private() -> list[Tensor]:
        found = clipped_gradient_sum(model, losses, batch, CLIP_NORM, method)
        return list(found.gradients.values())

    return Step(layout, way, private, dict(method.kernels) if way == "chosen" else {})


def _batch(plan: Plan, size: int) -> Batch:
    inputs = torch.randn(size, len(plan.data.channels), 32, 32)
    space = () if plan.task == "classification" else (32, 32)
    targets = torch.randint(0, len(plan.data.classes), (size, *space))
    return Batch(inputs, targets, torch.ones(size, *space))


def _method(way: str, model: nn.Module, plan: Plan, batch: Batch) -> Method:
    match way:
        case "chosen":
            return choose_method(model, example_losses(plan), batch)
        case "vmap" | "loop":
            return Method(way)
        case "grouped" | "merged" | "unfold":
            convolutions = [name for name, weight in model.named_parameters() if weight.ndim == 4]
            return Method(kernels=dict.fromkeys(convolutions, way))
        case _:
            msg = f"way is {way!r}; choose one of {', '.join(WAYS)}"
            raise ValueError(msg)


def _opacus_step(model: nn.Module, plan: Plan, batch: Batch) -> Callable[[], list[Tensor]]:
    """Opacus's default: hooks form every example's gradient, ``DPOptimizer`` clips and adds."""
    from opacus import GradSampleModule

    hooked, losses = (
        GradSampleModule(copy.deepcopy(model), loss_reduction="sum"),
        example_losses(plan),
    )

    def step() -> list[Tensor]:
        losses(hooked(batch.inputs), batch).sum().backward()
        samples: list[Tensor] = [
            weight.grad_sample  # type: ignore[attr-defined]
            for weight in hooked.parameters()
        ]
        norms = torch.stack([s.flatten(1).norm(2, dim=-1) for s in samples], dim=1).norm(2, dim=1)
        factors = (CLIP_NORM / (norms + 1e-6)).clamp(max=1.0)
        sums = [torch.einsum("i,i...", factors, sample) for sample in samples]
        hooked.zero_grad(set_to_none=True)
        return sums

    return step


def measure(
    workload: str, batch_size: int, ways: Sequence[str], layouts: Sequence[str], repetitions: int
) -> Iterator[Row]:
    """Time all ways and layouts in turns."""
    steps = [make_step(workload, batch_size, layout, way) for layout in layouts for way in ways]
    oracle = make_step(workload, batch_size, "contiguous", "loop").call()
    errors = [None if s.way == "plain" else _distance(s.call(), oracle) for s in steps]
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step.call()
    for _ in range(repetitions):
        for step, found in zip(steps, times, strict=True):
            found.append(_cpu_ms(step.call))
    medians = [statistics.median(found) for found in times]
    plain = {s.layout: m for s, m in zip(steps, medians, strict=True) if s.way == "plain"}
    for step, median, error in zip(steps, medians, errors, strict=True):
        yield Row(
            workload=workload,
            batch_size=batch_size,
            layout=step.layout,
            way=step.way,
            cpu_ms=median,
            over_plain=median / plain[step.layout],
            over_best_plain=median / min(plain.values()),
            error=error,
            peak_mb=_peak_mb(workload, batch_size, step),
            kernels=step.kernels,
        )


def _cpu_ms(call: Callable[[], object]) -> float:
    """Processor time of a call, the mean over at least 50 ms of calls."""
    started, calls = time.process_time(), 0
    while time.process_time() - started < 0.05:
        call()
        calls += 1
    return (time.process_time() - started) / calls * 1e3


def _distance(sums: Sequence[Tensor], oracle: Sequence[Tensor]) -> float:
    got, expected = (
        torch.cat([s.detach().flatten() for s in some]).double() for some in (sums, oracle)
    )
    return float((got - expected).norm() / expected.norm())


def _peak_mb(workload: str, batch_size: int, step: Step) -> float:
    """The largest resident size of a fresh process that makes and takes three such steps."""
    alone = ["--alone", workload, str(batch_size), step.layout, step.way]
    command = [sys.executable, "-m", "bench.private_step", *alone]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _run_alone(workload: str, batch_size: int, layout: str, way: str) -> None:
    step = make_step(workload, batch_size, layout, way)
    for _ in range(3):
        step.call()
    say(str(stamp(os.getpid()).peak_memory_mb))


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = f"{'workload':9}{'batch':>6}  {'layout':14}{'way':13}{'cpu ms':>8}{'/ plain':>9}"
    lines = [head + f"{'/ best plain':>13}{'error':>9}{'peak MB':>9}"]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.0e}"
        lines.append(
            f"{row.workload:9}{row.batch_size:6}  {row.layout:14}{row.way:13}{row.cpu_ms:8.2f}"
            f"{row.over_plain:9.2f}{row.over_best_plain:13.2f}{error:>9}{row.peak_mb:9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write ``private_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(_PLANS), choices=list(_PLANS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--onednn", action="store_true", help="dense products by oneDNN, in float32"
    )
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "private_step.json")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.alone:
        workload, batch_size, layout, way = asked.alone
        _run_alone(workload, int(batch_size), layout, way)
        return
    if asked.onednn:
        # Selects oneDNN; without AMX it computes in true float32, and the error column would tell.
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    ways = [way for way in WAYS if way in {"plain", *asked.ways}]
    rows: list[Row] = []
    for workload in asked.workloads:
        for batch_size in asked.batch_sizes:
            rows += measure(workload, batch_size, ways, asked.layouts, asked.repetitions)
    say(table(rows))
    written = {
        "rows": [asdict(row) for row in rows],
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "onednn_products": asked.onednn,
        "load_average": os.getloadavg(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
