"""What every runner of the benchmark measures and prints. Linux; the standard library alone."""

import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment of a run.

    Attributes:
        wall_seconds: of a clock that never goes back.
        processor_seconds: of a process and its descendants so far.
        machine_seconds: processor time of the whole machine so far.
        peak_memory_mb: sum of the largest resident sizes of these processes so far, in MiB. Pages
            that several share are counted in each: an upper bound.
    """

    wall_seconds: float
    processor_seconds: float
    machine_seconds: float
    peak_memory_mb: float


def stamp(root: int) -> Stamp:
    """This moment, for process ``root`` and its descendants.

    Reading ``/proc`` takes milliseconds: stamp the two ends of what is timed, not every round.
    """
    tree = process_tree(root)
    return Stamp(
        wall_seconds=time.perf_counter(),
        processor_seconds=sum(_own_seconds(one) + _inherited_seconds(one) for one in tree),
        machine_seconds=_machine_seconds(),
        peak_memory_mb=sum(_peak_memory_mb(one) for one in tree),
    )


def process_tree(root: int) -> list[int]:
    """Process ``root`` and its living descendants; empty when it does not exist."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root] if _stat(root) else []
    for process in found:
        found.extend(children.get(process, []))
    return found


def site_figures(before: Stamp, after: Stamp, num_trained: int) -> dict[str, float]:
    """What training ``num_trained`` sites (at least 1) between two stamps took.

    >>> figures = site_figures(Stamp(1.0, 2.0, 3.0, 10.0), Stamp(3.0, 5.0, 8.0, 20.0), 100)
    >>> figures["cpu_ms_per_client"], figures["foreign_cores"], figures["clients_per_s"]
    (30.0, 1.0, 50.0)
    """
    wall = after.wall_seconds - before.wall_seconds
    processor = after.processor_seconds - before.processor_seconds
    machine = after.machine_seconds - before.machine_seconds
    return {
        "timed_s": wall,
        "cpu_ms_per_client": processor / num_trained * 1e3,
        "foreign_cores": (machine - processor) / wall,
        "peak_rss_mb": after.peak_memory_mb,
        "clients_per_s": num_trained / wall,
    }


def print_figures(engine: str, figures: Mapping[str, float]) -> None:
    """Print a runner's result, a ``name: number`` a line, ``clients_per_s`` last."""
    lines = [f"engine: {engine}"]
    last = "clients_per_s"
    for name in [*(name for name in figures if name != last), last]:
        lines.append(f"{name}: {figures[name]:.6g}")
    say("\n".join(lines))


def read_figures(printed: str) -> dict[str, float]:
    r"""The numbers that :func:`print_figures` printed, by name; other lines are passed over.

    >>> read_figures("engine: pfl\nfinal_loss: 0.25\na warning\nclients_per_s: 12.5\n")
    {'final_loss': 0.25, 'clients_per_s': 12.5}
    """
    figures: dict[str, float] = {}
    for line in printed.splitlines():
        name, _, value = line.partition(": ")
        if name.isidentifier():
            try:
                figures[name] = float(value)
            except ValueError:
                continue
    return figures


def read_engine(printed: str) -> str:
    r"""The engine that :func:`print_figures` printed.

    >>> read_engine("a warning\nengine: pfl f32, 2 x 1 thread\nfinal_loss: 0.25\n")
    'pfl f32, 2 x 1 thread'
    """
    named = [line for line in printed.splitlines() if line.startswith("engine: ")]
    return named[-1].removeprefix("engine: ")


def medians(repetitions: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over the repetitions that have it.

    >>> medians([{"a": 1.0}, {"a": 5.0, "b": 2.0}, {"a": 3.0}])
    {'a': 3.0, 'b': 2.0}
    """
    values: dict[str, list[float]] = {}
    for repetition in repetitions:
        for name, value in repetition.items():
            values.setdefault(name, []).append(value)
    return {name: statistics.median(found) for name, found in values.items()}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _own_seconds(process: int) -> float:
    """User and system time of a living process, ended threads included, to the nanosecond."""
    # clock_getcpuclockid(3) of another process, which Python does not offer: see
    # CPUCLOCK_SCHED in the kernel's include/linux/posix-timers.h.
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0  # it ended since it was listed; its parent inherits the time


def _inherited_seconds(process: int) -> float:
    """The same of its ended children that it waited for, to a hundredth of a second."""
    fields = _stat(process)
    return (int(fields[13]) + int(fields[14])) / _TICKS if fields else 0.0


def _machine_seconds() -> float:
    ticks = [int(field) for field in _read("/proc/stat").splitlines()[0].split()[1:9]]
    idle, waiting_for_disk = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting_for_disk) / _TICKS


def _peak_memory_mb(process: int) -> float:
    lines = _read(f"/proc/{process}/status").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _stat(process: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` after the name; empty when the process has ended."""
    return _read(f"/proc/{process}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    try:
        with Path(path).open() as file:
            return file.read()
    except OSError:
        return ""
