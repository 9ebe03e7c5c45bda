"""Where a run starts: the weights that a plan's seed gives, or those of its ``[init]`` file.

To lay out and to draw weights a network must be built, and the packages behind the networks take
150 MB that a coordinator needs for nothing else. So a process that has not loaded them has a short
child build the network, and remembers the layout beside the run's checkpoints.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asterion_server.checkpoint import MAPPED_BYTES
from asterion_shared.blocks import map_numbers
from asterion_shared.errors import (
    AsterionError,
    DiskProblemError,
    FileProblemError,
    PlanMismatchError,
)
from asterion_shared.files import make_folder, write_atomically
from asterion_shared.parameters import (
    Layout,
    Tensor,
    Vector,
    layout_of,
    take_vector,
    vector_of,
)
from asterion_shared.plan import Plan
from asterion_shared.tensor_files import map_tensors

LAYOUT_FILE = "layout.json"
NETWORKS = "monai"
"""The package that is large; whoever has it loaded builds networks itself."""

_PROBLEM_EXIT = 13


def initial_weights(plan: Plan, plan_folder: Path) -> tuple[Layout, Vector]:
    """Layout of the plan's network and its initial weights, shape ``(layout.size,)``.

    The network is built here; it and the vector are never both whole in memory.

    Args:
        plan: names the network, the seed and perhaps a file.
        plan_folder: where a relative ``init.file`` is looked up.

    Raises:
        FileProblemError: the file is missing or its SHA-256 is not the plan's.
        PlanMismatchError: its tensors, or the parameter policy, do not fit the network.
    """
    from asterion_shared.tasks import initial_model

    model = initial_model(plan)
    layout = layout_of(model, plan.parameters)
    if plan.init is None:
        return layout, take_vector(model, layout)
    del model
    return layout, _weights_of_file(plan, plan_folder, layout)


def begin(
    plan: Plan,
    plan_folder: Path,
    folder: Path,
    *,
    apart: Callable[[], bool] = lambda: NETWORKS not in sys.modules,
) -> tuple[Layout, Vector]:
    """The same for a run that begins, with less memory where the network is built apart.

    Args:
        plan: as above.
        plan_folder: as above.
        folder: the run's; the layout is kept there, and large weights are a view of a file in it.
        apart: whether a child builds the network.

    Raises:
        FileProblemError: see :func:`initial_weights`.
        PlanMismatchError: see :func:`initial_weights`.
        DiskProblemError: the folder cannot be written.
    """
    if not apart():
        return initial_weights(plan, plan_folder)
    if plan.init is not None:
        layout = _built_apart(plan, folder, None)
        return layout, _weights_of_file(plan, plan_folder, layout)
    path = folder / ".initial-weights.part"
    try:
        layout = _built_apart(plan, folder, path)
        if 4 * layout.size >= MAPPED_BYTES:
            return layout, map_numbers(path, layout.size)
        return layout, np.fromfile(path, np.float32)
    finally:
        with suppress(OSError):
            path.unlink()


def known_layout(plan: Plan, folder: Path) -> Layout:
    """The layout of a run that goes on, as it was kept; the network is built again if it was not.

    Raises:
        PlanMismatchError: the parameter policy does not fit the network.
        DiskProblemError: the folder cannot be written.
    """
    if NETWORKS in sys.modules:
        from asterion_shared.tasks import initial_model

        return layout_of(initial_model(plan), plan.parameters)
    try:
        kept = json.loads((folder / LAYOUT_FILE).read_bytes())
    except (OSError, ValueError):
        kept = {}
    if kept.get("plan_sha256") == plan.sha256:
        return layout_from(kept["tensors"])
    return _built_apart(plan, folder, None)


def layout_from(rows: list[dict[str, Any]]) -> Layout:
    """A layout from the fields of its tensors, as JSON has them."""
    return Layout(
        tuple(
            Tensor(row["name"], tuple(row["shape"]), row["dtype"], row["policy"], row["offset"])
            for row in rows
        )
    )


def _built_apart(plan: Plan, folder: Path, weights: Path | None) -> Layout:
    """Have a child build the network; keep the layout, and write the weights if they are wanted.

    Raises:
        PlanMismatchError: the network, or the parameter policy, does not fit the plan.
        DiskProblemError: the folder cannot be written.
        AsterionError: the child failed otherwise; with its last words.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or "not writable") from error
    command = [sys.executable, "-m", __name__, *([] if weights is None else [str(weights)])]
    done = subprocess.run(  # our own command line, no shell
        command, input=plan.canonical().encode(), capture_output=True, check=False
    )
    if done.returncode == _PROBLEM_EXIT:
        raise PlanMismatchError(json.loads(done.stdout)["problem"])
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace")[-2000:]
        msg = f"the plan's network could not be built (exit code {done.returncode}): {words}"
        raise AsterionError(msg)
    rows = json.loads(done.stdout)
    said = {"plan_sha256": plan.sha256, "tensors": rows}
    write_atomically(folder / LAYOUT_FILE, json.dumps(said).encode())
    return layout_from(rows)


def _weights_of_file(plan: Plan, plan_folder: Path, layout: Layout) -> Vector:
    assert plan.init is not None  # noqa: S101  # the caller asked
    path = plan_folder / plan.init.file
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "correct init.file in the plan") from None
    if found != plan.init.sha256:
        what = f"its SHA-256 is {found}, the plan says {plan.init.sha256}"
        raise FileProblemError(path, what, "use the file that was meant, or correct the plan")
    try:
        return vector_of(map_tensors(path).tensors, layout)
    except PlanMismatchError as error:
        msg = f"{path} does not fit the plan's network: {error}"
        raise PlanMismatchError(msg) from None


def _main() -> None:
    """In the child: build the network of the plan on standard input, say its layout."""
    from asterion_shared.plan import parse_plan
    from asterion_shared.tasks import initial_model

    plan = parse_plan(sys.stdin.read())
    try:
        model = initial_model(plan)
        layout = layout_of(model, plan.parameters)
    except PlanMismatchError as error:
        sys.stdout.write(json.dumps({"problem": str(error)}))
        sys.exit(_PROBLEM_EXIT)
    if sys.argv[1:]:
        take_vector(model, layout).tofile(sys.argv[1])
    sys.stdout.write(json.dumps([asdict(tensor) for tensor in layout.tensors]))


if __name__ == "__main__":
    _main()
