"""How the cost of a site changes with the number of sites, the model's size and the cohort.

Prints a table for each, and the largest memory by the number of sites, for
``docs/performance.md``; writes ``curves.json``::

    python -m bench.curves
"""

import argparse
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.measuring import process_tree, say
from bench.ours import measure
from bench.workloads import BENCH_FOLDER, WORKLOADS, Workload, initial_network

OPTIONS = ("--engine", "auto")
SAMPLE_SECONDS = 0.1
"""Between two looks at the memory of a run."""


def by_sites() -> Iterable[tuple[str, Workload, int]]:
    """10 to 10,000 sites of 50 examples; 50 (or all 10) train in a round."""
    for num_sites in (10, 100, 1000, 10_000):
        workload = replace(
            WORKLOADS["mlp"], num_sites=num_sites, sites_per_round=min(50, num_sites)
        )
        yield f"{num_sites} sites", workload, 30 if num_sites > 10 else 100


def by_model() -> Iterable[tuple[str, Workload, int]]:
    """A hidden layer of 12 to 4096 units, 1000 sites."""
    for units, rounds in ((12, 100), (50, 60), (200, 30), (800, 12), (4096, 5)):
        workload = replace(WORKLOADS["mlp"], hidden_units=units)
        num_weights = sum(weight.numel() for weight in initial_network(workload).parameters())
        yield f"{num_weights} weights", workload, rounds


def by_cohort() -> Iterable[tuple[str, Workload, int]]:
    """10 to 1000 of 1000 sites train in a round."""
    for name in ("mlp", "logreg"):
        for size, rounds in ((10, 150), (50, 40), (200, 12), (1000, 5)):
            yield f"{name}, {size} a round", replace(WORKLOADS[name], sites_per_round=size), rounds


CURVES: dict[str, Callable[[], Iterable[tuple[str, Workload, int]]]] = {
    "sites": by_sites,
    "model": by_model,
    "cohort": by_cohort,
}


class MemoryWatch:
    """The largest memory of a process tree, looked at every :data:`SAMPLE_SECONDS`.

    Pages that several processes share are counted once (the kernel's proportional set size).
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        """All resident pages, those of mapped files (the examples) included."""
        self.peak_own_mb = 0.0
        """Without the pages of files."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, process: int) -> None:
        """Start to look at a process and its descendants."""
        self._thread = threading.Thread(target=self._look, args=(process,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, root: int) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            sizes = [_sizes_mb(process) for process in process_tree(root)]
            self.peak_mb = max(self.peak_mb, sum(size.get("Pss", 0.0) for size in sizes))
            own = sum(size.get("Pss_Anon", 0.0) + size.get("Pss_Shmem", 0.0) for size in sizes)
            self.peak_own_mb = max(self.peak_own_mb, own)


def _sizes_mb(process: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}  # it has ended
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) / 1024 for name, value in pairs}


def memory_of(workload: Workload) -> dict[str, float]:
    """The largest memory of a short run; apart from the timed one, which it would disturb."""
    watch = MemoryWatch()
    try:
        measure(workload, 4, OPTIONS, begun=watch.begin)
    finally:
        watch.end()
    return {"peak_mb": watch.peak_mb, "peak_own_mb": watch.peak_own_mb}


def main() -> None:
    """Run the curves, print them, and write ``curves.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(CURVES), action="append")
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "curves.json")
    wanted = parser.parse_args()
    names: Sequence[str] = wanted.only or list(CURVES)
    content: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        say(f"{name:24}  cpu ms/site  sites/s  start-up s  peak MB  without files MB")
        content[name] = []
        for label, workload, rounds in CURVES[name]():
            engine, figures = measure(workload, rounds, OPTIONS)
            memory = memory_of(workload) if name == "sites" else {}
            content[name].append(
                {"label": label, "engine": engine, "rounds": rounds, **figures, **memory}
            )
            line = (
                f"{label:24}  {figures['cpu_ms_per_client']:11.3f}  "
                f"{figures['clients_per_s']:7.0f}  {figures['startup_s']:10.2f}"
            )
            if memory:
                line += f"  {memory['peak_mb']:7.0f}  {memory['peak_own_mb']:16.0f}"
            say(f"{line}  {engine}")
            wanted.out.parent.mkdir(parents=True, exist_ok=True)
            wanted.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
