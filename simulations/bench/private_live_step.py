"""A site's whole private step beside Opacus's, network by network.

A step is what DP-SGD does between two steps of the optimiser, that one included: sample, form the
batch, clip the examples' gradients, add noise, divide, move. Ours is the code of a live site
(:func:`asterion_client.private_round.train_privately`), whose noise is exact and comes from a
cipher. Opacus's is its own engine in every mode that supports the network, with its default noise,
which is torch's and not meant to be secret: its secure one needs a package that is not to be had.

Run it as ``python -m bench.private_live_step`` in ``simulations/``. The figure is processor time
with one thread, a site's default. All ways take turns, and a ratio is the median of the
repetitions' own ratios, so that load of others falls on both sides of it.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from asterion_client.local_round import Workspace, make_workspace
from asterion_client.private_round import train_privately
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.clipped_gradients import example_losses
from asterion_shared.plan import Plan
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.settings_files import validate
from asterion_shared.table_columns import table_width
from asterion_shared.tasks.batch import Batch
from asterion_shared.tasks.batches import batch_of
from bench.measuring import say
from bench.workloads import BENCH_FOLDER

STEPS = 20
"""Steps of a timed call: ours sets up its sampling once for so many, as in a round."""

LEAST_SECONDS = 0.1
"""Least processor time of a way in a repetition."""

OPACUS_MODES = ("hooks", "functorch", "ew", "ghost")
OURS = "ours"

_IMAGE: dict[str, Any] = {"channels": ["grey"], "classes": ["a", "b"], "patch_size": [28, 28]}
_TABLE: dict[str, Any] = {
    "kind": "table",
    "features": [f"f{n}" for n in range(20)],
    "scale": {f"f{n}": [0.0, 1.0] for n in range(20)},
    "classes": ["a", "b"],
}
WORKLOADS: dict[str, dict[str, Any]] = {
    "logistic": {"task": "classification", "model": {"name": "logistic"}, "data": _TABLE},
    "mlp": {"task": "classification", "model": {"name": "mlp"}, "data": _TABLE},
    "cnn": {
        "task": "classification",
        "model": {"name": "cnn", "widths": [32, 64, 128]},
        "data": {
            "channels": ["r", "g", "b"],
            "classes": [f"class {n}" for n in range(10)],
            "patch_size": [32, 32],
        },
    },
    "residual": {
        "task": "classification",
        "model": {"name": "residual", "widths": [16, 32, 64]},
        "data": _IMAGE,
    },
    "small_unet": {
        "task": "segmentation",
        "model": {"name": "small_unet", "widths": [8, 16, 32]},
        "data": _IMAGE | {"patch_size": [32, 32]},
    },
    "unet": {
        "task": "segmentation",
        "model": {"name": "unet", "widths": [12, 24, 48]},
        "data": _IMAGE | {"patch_size": [32, 32]},
    },
    "conv_autoencoder": {
        "task": "anomaly",
        "model": {"name": "conv_autoencoder", "widths": [16, 32], "code_size": 10},
        "data": _IMAGE,
    },
}

Call = Callable[[], None]
"""Takes :data:`STEPS` steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of taking the steps, measured.

    Attributes:
        network: a key of ``WORKLOADS``.
        weights: how many it has.
        batch_size: examples of a step.
        way: ``ours``, or a mode of Opacus.
        cpu_ms: median processor time of a step, milliseconds; None where the mode fails.
        ours_over_it: median of our time over this way's in the same repetition; None likewise.
        difference: distance between its change of the weights in one step without noise and ours,
            relative; ours clips shorter by 2^-9 = 0.002.
        failure: why the mode does not support the network; empty when it does.
    """

    network: str
    weights: int
    batch_size: int
    way: str
    cpu_ms: float | None = None
    ours_over_it: float | None = None
    difference: float | None = None
    failure: str = ""


def plan_of(network: str, batch_size: int, *, noise_multiplier: float, optimiser: str) -> Plan:
    """The plan of a private round of :data:`STEPS` steps in which every example takes part."""
    values = {
        "name": "bench",
        "local": {
            "unit": "steps",
            "amount": STEPS,
            "batch_size": batch_size,
            "optimiser": optimiser,
            "learning_rate": 1e-3,
        },
        "privacy": {
            "protects": "record",
            "noise": "site",
            "clip_norm": 1.0,
            "noise_multiplier": noise_multiplier,
            "sampling_rate": 1.0,
            "epsilon_limit": 1e300,
        },
    }
    return validate(Plan, values | WORKLOADS[network], "bench")


def site_of(plan: Plan, size: int) -> SiteData:
    """Made-up cases that a batch holds all of."""
    draw = np.random.default_rng(0)

    def case(number: int) -> Case:
        if plan.data.kind == "table":
            image = draw.standard_normal(table_width(plan.data)).astype(np.float32)
        else:
            shape = (len(plan.data.channels), *plan.data.patch_size)
            image = draw.standard_normal(shape).astype(np.float32)
        mask = None
        if plan.task == "segmentation":
            mask = draw.integers(0, len(plan.data.classes), image.shape[1:]).astype(np.int16)
        label = 0 if plan.task == "anomaly" else int(draw.integers(len(plan.data.classes)))
        return Case(id=f"{number:012x}", image=image, label=label, mask=mask)

    train = CaseList.of([case(number) for number in range(size)])
    return SiteData(site="bench", train=train, test=CaseList(()))


def our_call(plan: Plan, data: SiteData, space: Workspace) -> Call:
    """The steps as a live site takes them."""
    step, privacy = space.private_step, plan.privacy
    if step is None or privacy is None:
        msg = f"the plan {plan.name!r} protects no records; give it [privacy]"
        raise ValueError(msg)

    def steps() -> None:
        space.model.train()
        train_privately(
            plan, privacy, data, space.model, space.optimiser, step, lambda: None, secret_stream()
        )

    return steps


def opacus_call(plan: Plan, data: SiteData, model: nn.Module, mode: str) -> tuple[Call, nn.Module]:
    """The same steps by Opacus's engine, on batches of the same making; and its network."""
    from opacus import PrivacyEngine

    privacy, size = plan.privacy, len(data.train)
    if privacy is None:
        msg = f"the plan {plan.name!r} has no [privacy]; give it one"
        raise ValueError(msg)
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.Adam(model.parameters(), plan.local.learning_rate)
    if plan.local.optimiser == "sgd":
        optimiser = torch.optim.SGD(model.parameters(), plan.local.learning_rate)  # type: ignore[assignment]
    losses = example_losses(plan)
    # Opacus reads the number of examples and of batches from the loader.
    loader = DataLoader(TensorDataset(torch.zeros(size)), batch_size=size)
    engine: Any = PrivacyEngine()
    found = engine.make_private(
        module=model,
        optimizer=optimiser,
        criterion=_Criterion(plan),
        data_loader=loader,
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.clip_norm,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    wrapped, optimiser = found[:2]
    draws = np.random.default_rng(0)

    def steps() -> None:
        for _ in range(STEPS):
            rows = (torch.rand(size) < 1.0).nonzero().flatten().numpy()
            batch = batch_of(plan, data.train, rows, draws)
            optimiser.zero_grad(set_to_none=True)
            outputs = wrapped(batch.inputs)
            if mode == "ghost":
                found[2](outputs, batch).backward()
            else:
                losses(outputs, batch).mean().backward()
            optimiser.step()

    return steps, model


class _Criterion(nn.Module):
    """A plan's loss as Opacus's ghost clipping asks for one: it sets ``reduction`` to ``none``."""

    reduction = "mean"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._losses = example_losses(plan)

    def forward(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B,) while ``reduction`` is ``none``."""
        found = self._losses(outputs, batch)
        return found if self.reduction == "none" else found.mean()


def difference(network: str, batch_size: int, mode: str) -> float:
    """Distance of a mode's change of the weights from ours after one call, without noise."""
    plan = plan_of(network, batch_size, noise_multiplier=1e-7, optimiser="sgd")
    data, space = site_of(plan, batch_size), make_workspace(plan)
    before = _flat(space.model)
    theirs, model = opacus_call(plan, data, space.model, mode)
    theirs()
    our_call(plan, data, space)()
    ours = _flat(space.model) - before
    return float((_flat(model) - before - ours).norm() / ours.norm())


def measure(network: str, batch_size: int, repetitions: int) -> Iterator[Row]:
    """Time ours and every mode in turns."""
    plan = plan_of(network, batch_size, noise_multiplier=1.0, optimiser="adam")
    data, space = site_of(plan, batch_size), make_workspace(plan)
    weights = sum(weight.numel() for weight in space.model.parameters())
    calls: dict[str, Call] = {OURS: our_call(plan, data, space)}
    differences: dict[str, float] = {}
    failures: dict[str, str] = {}
    for mode in OPACUS_MODES:
        call, _ = opacus_call(plan, data, space.model, mode)
        try:
            call()
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # Whatever a mode that lacks an operation happens to raise: the table says it.
            failures[mode] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            calls[mode] = call
            differences[mode] = difference(network, batch_size, mode)
    times: dict[str, list[float]] = {way: [] for way in calls}
    for call in calls.values():
        call()
    for _ in range(repetitions):
        for way, call in calls.items():
            times[way].append(_cpu_ms(call))
    for way in (OURS, *OPACUS_MODES):
        if way in failures:
            yield Row(
                network=network, weights=weights, batch_size=batch_size, way=way,
                failure=failures[way],
            )  # fmt: skip
            continue
        ratios = [ours / its for ours, its in zip(times[OURS], times[way], strict=True)]
        yield Row(
            network=network,
            weights=weights,
            batch_size=batch_size,
            way=way,
            cpu_ms=statistics.median(times[way]),
            ours_over_it=statistics.median(ratios),
            difference=differences.get(way),
        )


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten().double() for weight in model.parameters()])


def _cpu_ms(call: Call) -> float:
    """Processor time of a step, milliseconds."""
    started, calls = time.process_time(), 0
    while time.process_time() - started < LEAST_SECONDS:
        call()
        calls += 1
    return (time.process_time() - started) / (calls * STEPS) * 1e3


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'network':17}{'weights':>9}{'batch':>6}  {'way':10}{'cpu ms':>9}{'ours / it':>10}  note"
    ]
    for row in rows:
        start = f"{row.network:17}{row.weights:9}{row.batch_size:6}  {row.way:10}"
        if row.cpu_ms is None or row.ours_over_it is None:
            lines.append(f"{start}{'-':>9}{'-':>10}  {row.failure}")
            continue
        note = "" if row.difference is None else f"differs by {row.difference:.1e}"
        lines.append(f"{start}{row.cpu_ms:9.2f}{row.ours_over_it:10.2f}  {note}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write ``private_live_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--repetitions", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    rows: list[Row] = []
    before = os.getloadavg()
    for network in asked.networks:
        for batch_size in asked.batch_sizes:
            found = list(measure(network, batch_size, asked.repetitions))
            rows += found
            say(table(found))
    written = {
        "rows": [asdict(row) for row in rows],
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "load_average": {"before": before, "after": os.getloadavg()},
    }
    BENCH_FOLDER.mkdir(parents=True, exist_ok=True)
    (BENCH_FOLDER / "private_live_step.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
