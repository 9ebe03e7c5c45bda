"""Peak memory of a run's process with a large model, at the coordinator.

Sites hand over updates as read-only maps of stored files, as the link does; nothing is trained. The
run is carried out by a process of its own, so that its peak (``VmHWM``) is the run's::

    python -m bench.fold_memory
    python -m bench.fold_memory --sites 5 --plan '{"algorithm": {"fold": "median"}}'
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asterion_shared.blocks import map_numbers
from asterion_shared.messages import Answer, Order, Report
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

WIDTHS = (4096, 4096, 4096, 4096)
"""Of a perceptron with 50,364,418 weights: 201 MB."""

SITES = ("centre", "east", "north", "south", "west")


def plan_of(widths: Iterable[int], rounds: int, sections: dict[str, Any]) -> Plan:
    """A plan whose network has these hidden layers, with more sections."""
    values = {
        "name": "fold-memory",
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": list(widths)},
        "rounds": {"count": rounds, "quorum": 3},
    }
    return validate(Plan, values | sections, "plan")


class StoredUpdates:
    """A cohort whose updates lie on disk already, each site's in a file that stays the same."""

    def __init__(self, folder: Path, sites: tuple[str, ...]) -> None:
        self._folder, self._sites = folder, sites

    def sites(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return self._sites

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """One report a site, the last site's first."""
        for site in sorted(sites, reverse=True):
            update = None
            if order.phase == "train":
                assert order.weights is not None  # noqa: S101  # a train order has weights
                update = self._update(site, order.weights.size)
            yield Report(
                site=site, num_examples=10, num_test=5, num_bad_files=0,
                manifest_sha256="0" * 64, update=update, num_steps=1,
            )  # fmt: skip

    def _update(self, site: str, size: int) -> Any:
        path = self._folder / site
        if not path.exists():
            draws = np.random.default_rng(SITES.index(site))
            with path.open("wb") as file:
                for start in range(0, size, 2**20):
                    numbers = draws.standard_normal(min(2**20, size - start), np.float32)
                    (1e-3 * numbers).tofile(file)
        return map_numbers(path, size)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    msg = "this system does not tell a process's peak memory"
    raise RuntimeError(msg)


def carry_out(plan: Plan, folder: Path, sites: tuple[str, ...]) -> dict[str, float]:
    """Carry out a plan in this process and say what it took."""
    from asterion_server.rounds import run_rounds

    imported, began = peak_bytes(), time.perf_counter()
    (folder / "updates").mkdir()
    run_rounds(
        plan, StoredUpdates(folder / "updates", sites), folder / "run",
        run="bench", expected_sites=sites, carrier="simulation",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    model = (folder / "run" / "model.safetensors").stat().st_size
    return {
        "model_bytes": model,
        "imports_peak_bytes": imported,
        "peak_bytes": peak_bytes(),
        "peak_over_model": peak_bytes() / model,
        "seconds": seconds,
    }


def measured_apart(plan: Plan, num_sites: int = 3) -> dict[str, float]:
    """The figures of a plan's run, from a process that did nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.fold_memory", "--here", folder,
                   "--sites", str(num_sites)]  # fmt: skip
        done = subprocess.run(
            command, input=plan.canonical(), stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", type=int, default=3, choices=range(1, len(SITES) + 1))
    parser.add_argument("--plan", type=json.loads, default={}, help="JSON of more sections")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here is not None:
        from asterion_shared.plan import parse_plan

        figures = carry_out(parse_plan(sys.stdin.read()), asked.here, SITES[: asked.sites])
    else:
        figures = measured_apart(plan_of(asked.widths, asked.rounds, asked.plan), asked.sites)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
