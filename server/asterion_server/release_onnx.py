"""Export a network to ONNX, and hold what onnxruntime makes of it against torch."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asterion_shared.files import make_folder
from asterion_shared.plan import Plan
from asterion_shared.release.facts import OnnxFacts
from asterion_shared.table_columns import table_width

NEEDED = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 3)
TOLERANCE = 1e-4
"""Largest difference that is accepted, as a share of the largest output and at least of 1."""

_INPUT, _OUTPUT = "inputs", "outputs"


def input_shape(plan: Plan) -> tuple[int, ...]:
    """Shape of one input of the plan's network: ``(N,)`` columns, or ``(C, *patch_size)``."""
    if plan.data.kind == "table":
        return (table_width(plan.data),)
    return (len(plan.data.channels), *plan.data.patch_size)


def export_onnx(network: nn.Module, plan: Plan, path: Path) -> OnnxFacts:
    """Write a network as one ONNX file, any batch size, if it computes what torch does.

    Args:
        network: in eval mode, on the CPU.
        plan: says what an input looks like; its seed draws the random ones.
        path: the file; absent afterwards when the export failed or differs, and why is told.

    Raises:
        OSError: the disk is full or not writable.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        what = f"{', '.join(absent)} not installed where the release was made (asterion[onnx])"
        return OnnxFacts(why_not=what)
    make_folder(path.parent)
    shape = input_shape(plan)
    try:
        with _quiet():
            program = torch.onnx.export(
                network, (torch.zeros(2, *shape),), dynamo=True, verbose=False,
                input_names=[_INPUT], output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, torch.onnx.errors.OnnxExporterError) as error:
        return OnnxFacts(why_not=f"torch cannot export the network: {_first_line(error)}")
    if program is None:
        return OnnxFacts(why_not="torch gave no program for the network")
    program.save(path, external_data=False)
    difference, tolerance = _compare(network, path, shape, plan.seed)
    if not difference <= tolerance:
        path.unlink()
        return OnnxFacts(
            why_not=f"ONNX and torch differ by {difference:.3g}, and {tolerance:.3g} is accepted"
        )
    return OnnxFacts(
        opset=int(program.model.opset_imports[""]),
        batch_sizes=BATCHES,
        largest_difference=difference,
        tolerance=tolerance,
    )


def _compare(
    network: nn.Module, path: Path, shape: tuple[int, ...], seed: int
) -> tuple[float, float]:
    """Largest difference over random batches, and the one that is accepted."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    source = torch.Generator().manual_seed(seed)
    difference, scale = 0.0, 1.0
    for batch in BATCHES:
        inputs = torch.randn(batch, *shape, generator=source)
        with torch.no_grad():
            expected = network(inputs).numpy()
        found = np.asarray(session.run([_OUTPUT], {_INPUT: inputs.numpy()})[0])
        if found.shape != expected.shape:
            return float("inf"), TOLERANCE
        difference = max(difference, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return difference, TOLERANCE * scale


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own insides, and on packages that are not needed."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(before)


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:300]
