"""``make bench-simulation``: all runners in turn, medians, the table, ``simulation.json``.

The figure is processor time of the whole process tree per site trained: on a shared machine it
repeats within a few per cent, wall time does not. A ratio counts only where both sides end at the
same loss.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.measuring import medians, read_engine, read_figures, say
from bench.races import RACES, Figures, Race, Verdict, judge, table
from bench.workloads import BENCH_FOLDER, WORKLOADS, prepare

PFL_VERSION, FLOWER_VERSION = "0.6.0", "1.41.0"
SECONDS_LIMIT = 900
"""Most seconds of one runner."""


@dataclass(frozen=True, slots=True)
class Runner:
    """One configuration of one system on one race.

    Attributes:
        name: such as ``pfl 2 processes``.
        system: ``ours``, ``pfl`` or ``flower``.
        command: prints its figures.
    """

    name: str
    system: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One turn of a runner: the engine it names and its figures."""

    engine: str
    figures: dict[str, float]


Turn = tuple[Race, Runner]


def runners(race: Race, pfl_python: str, flower_python: str) -> list[Runner]:
    """The runners of a race, in the order in which they take turns."""
    common = ("--workload", race.workload, "--dtype", race.dtype)
    timed = (*common, "--rounds", str(race.rounds))
    flower = (*common, "--rounds", str(race.flower_rounds))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2")
    found = [Runner("asterion auto", "ours", (sys.executable, "-m", "bench.ours", *timed))]
    if race.pfl_bar:
        peer = ("-m", "bench.peer_pfl", *timed)
        found += [
            Runner("pfl 1 process", "pfl", (pfl_python, *peer)),
            Runner("pfl 2 processes", "pfl", (pfl_python, *launcher, *peer)),
        ]
    peer = ("-m", "bench.peer_flower", *flower)
    return [*found, Runner("flower 2 workers", "flower", (flower_python, *peer))]


def run(runner: Runner) -> Run | None:
    """Run one runner; None when it failed, and then the reason is printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    if runner.system != "ours":
        environment["OMP_NUM_THREADS"] = "1"
    try:
        done = subprocess.run(
            runner.command, env=environment, timeout=SECONDS_LIMIT, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        say(f"  {runner.name}: still running after {SECONDS_LIMIT} s; stopped")
        return None
    figures = read_figures(done.stdout)
    if done.returncode or "clients_per_s" not in figures:
        say(f"  {runner.name}: failed with code {done.returncode}\n{done.stderr[-1500:]}")
        return None
    return Run(read_engine(done.stdout), figures)


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": models[0] if models else platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "pfl": PFL_VERSION,
        "flower": FLOWER_VERSION,
    }


def main() -> None:
    """Run the races, print the table, write ``simulation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=5, help="repetitions of everything")
    parser.add_argument("--only", default="", help="regular expression of races, such as 'cnn f32'")
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "simulation.json")
    parser.add_argument("--private", action="store_true", help="also the cost of private steps")
    for peer in ("pfl", "flower"):
        python = BENCH_FOLDER / f"env-{peer}" / "bin" / "python"
        parser.add_argument(f"--{peer}-python", default=str(python))
    wanted = parser.parse_args()
    races = [race for race in RACES if re.search(wanted.only, race.name)]
    for race in races:
        prepare(WORKLOADS[race.workload])
    turns = [
        (race, runner)
        for race in races
        for runner in runners(race, wanted.pfl_python, wanted.flower_python)
    ]
    found: dict[Turn, list[Run]] = {turn: [] for turn in turns}
    verdicts: list[Verdict] = []
    for repetition in range(1, wanted.reps + 1):
        for turn in turns:
            race, runner = turn
            if (result := run(runner)) is not None:
                found[turn].append(result)
                cost, speed = (
                    result.figures[key] for key in ("cpu_ms_per_client", "clients_per_s")
                )
                say(f"{repetition}  {race.name}, {runner.name}: {cost:.3g} ms, {speed:.4g} sites/s")
        verdicts = [_verdict(race, found) for race in races]
        _write(wanted.out, verdicts, found, repetition)
    say(f"\n{table(verdicts)}\n{wanted.out}")
    failed = any(len(runs) < wanted.reps for runs in found.values())
    if wanted.private:
        failed = subprocess.call([sys.executable, "-m", "bench.private_step"]) != 0 or failed
    sys.exit(1 if failed else 0)


def _verdict(race: Race, found: Mapping[Turn, Sequence[Run]]) -> Verdict:
    by_system: dict[str, dict[str, Figures]] = {}
    engines: set[str] = set()
    for (one, runner), runs in found.items():
        if one == race:
            by_system.setdefault(runner.system, {})[runner.name] = _medians(runs)
            engines |= {result.engine for result in runs if runner.system == "ours"}
    return judge(race, by_system, " or ".join(sorted(engines)))


def _medians(runs: Sequence[Run]) -> Figures:
    return medians(result.figures for result in runs)


def _write(
    path: Path,
    verdicts: Sequence[Verdict],
    found: Mapping[Turn, Sequence[Run]],
    repetitions: int,
) -> None:
    content = {
        "machine": machine(),
        "repetitions": repetitions,
        "rows": [verdict.row for verdict in verdicts],
        "not_won": {verdict.race.name: verdict.why_not for verdict in verdicts if verdict.why_not},
        "runners": [
            {
                "race": asdict(race),
                "runner": runner.name,
                "medians": _medians(runs),
                "repetitions": [asdict(result) for result in runs],
            }
            for (race, runner), runs in found.items()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
