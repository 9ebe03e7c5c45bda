"""The link beside stock Flower: ``make bench-link`` writes ``runs/bench/link.json``.

Real processes on this machine: a coordinator and three sites over loopback with TLS, the same
plans over both carriers, in turns. An *empty round* is one step of a logistic model on a few rows,
without evaluation; the *big model* has 50 million weights (200 MB) and is trained one step at each
site, so all three updates differ. A round's time is the one its result states. Memory is the peak
of the process that carries the run out (VmHWM). Disk is what the carrier has in the coordinator's
folder, at most during the run and after it.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from asterion_server.keys import Provisioned
from asterion_shared.carrier import Carrier
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.result import read_result
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import enrol_on_this_machine, operator_key
from bench.measuring import say

ASTERION = [sys.executable, "-m", "asterion_shared.command_line"]
SITES = ("north", "south", "west")
CARRIERS: tuple[Carrier, ...] = ("link", "flower")
PORTS: dict[Carrier, int] = {"link": 18_701, "flower": 18_702}
FEATURES = ("a", "b")
TIDY_SECONDS = 10.0
"""After a run the link removes its reports within 5 s."""


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/bench/link.json"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--carrier", choices=CARRIERS, action="append")
    given = parser.parse_args()
    root = given.out.parent / "link"
    shutil.rmtree(root, ignore_errors=True)
    carriers: tuple[Carrier, ...] = tuple(given.carrier or CARRIERS)
    found: dict[str, dict[str, list[float]]] = {c: {} for c in carriers}
    for repetition in range(given.repetitions):
        for carrier in carriers:
            with federation(root / f"{carrier}-{repetition}", carrier) as made:
                for name, value in measured(made, carrier).items():
                    found[carrier].setdefault(name, []).append(value)
                    say(f"{repetition} {carrier} {name} {value:.3f}")
    figures = {
        carrier: {name: statistics.median(values) for name, values in names.items()}
        for carrier, names in found.items()
    }
    given.out.write_text(json.dumps({**named(figures), "all": found}, indent=2) + "\n")
    say(given.out.read_text())


def named(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """The link's figures by name, and Flower's beside each as ``flower_...``."""
    ours = dict(figures.get("link", {}))
    return ours | {f"flower_{k}": v for k, v in figures.get("flower", {}).items()}


def measured(made: Provisioned, carrier: Carrier) -> dict[str, float]:
    """The figures of one federation."""
    empty = run(made, plan_of("empty", 20, {"name": "logistic"}), carrier)
    big = run(made, plan_of("big", 4, {"name": "mlp", "widths": [4096] * 4}), carrier)
    model_bytes = 4 * big["num_weights"]
    time.sleep(TIDY_SECONDS)
    return {
        "empty_round_seconds": empty["round_seconds"],
        "big_model_round_seconds": big["round_seconds"],
        "big_model_bytes": model_bytes,
        "coordinator_peak_over_model": big["peak_bytes"] / model_bytes,
        "coordinator_peak_disk_over_model": big["disk_bytes"] / model_bytes,
        "coordinator_disk_over_model": disk_bytes(made, carrier) / model_bytes,
    }


def plan_of(name: str, rounds: int, model: dict[str, Any]) -> Plan:
    """A plan of one step a round."""
    values: dict[str, Any] = {
        "name": name,
        "task": "classification",
        "data": {"kind": "table", "features": FEATURES, "classes": ["well", "ill"]},
        "model": model,
        "local": {"amount": 1, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.01},
        "rounds": {"count": rounds, "deadline_seconds": 600.0, "evaluate_every": 1000},
    }
    return validate(Plan, values, name)


def run(made: Provisioned, plan: Plan, carrier: Carrier) -> dict[str, float]:
    """Launch a plan; the median time of its rounds but the first, peaks of memory and disk."""
    path = made.folder.parent / f"{plan.name}.toml"
    path.write_text(plan_to_toml(plan))
    command = [*ASTERION, "server", "launch", str(path), "--folder", str(made.folder),
               "--key", str(operator_key(made.folder))]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as launched:
        peak, disk = 0, 0.0
        while launched.poll() is None:
            peak = max(peak, peak_of_run(plan.name))
            disk = max(disk, disk_bytes(made, carrier))
            time.sleep(0.1)
    if launched.returncode:
        msg = f"{plan.name} ended with {launched.returncode}"
        raise SystemExit(msg)
    result = read_result(made.runs / plan.name / "result.json")
    seconds = [r.seconds for r in result.rounds[2:]]
    last = result.rounds[-1]
    weights = last.bytes_up / (4 * len(last.answered))
    return {
        "round_seconds": statistics.median(seconds),
        "peak_bytes": float(peak),
        "disk_bytes": disk,
        "num_weights": float(round(weights)),
    }


def peak_of_run(name: str) -> int:
    """VmHWM in bytes of the process that carries the run out; 0 while there is none."""
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        ours = "asterion_server.run_process" in words and words.endswith(f"--run {name}")
        if ours or "flwr-serverapp" in words:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
    return 0


def disk_bytes(made: Provisioned, carrier: Carrier) -> float:
    """What the carrier holds on the coordinator's disk now."""
    total = 0.0
    for path in (made.folder / carrier).rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def federation(root: Path, carrier: Carrier) -> Iterator[Provisioned]:
    """A coordinator and its sites, running."""
    tomls = [write_site(root / site) for site in SITES]
    made = enrol_on_this_machine(
        root / "center", tomls, port=PORTS[carrier], listen="127.0.0.1", carrier=carrier
    )
    processes = [start(root / "center.log", "server", "start", str(made.folder))]
    try:
        for site, settings in zip(SITES, tomls, strict=True):
            processes.append(start(root / f"{site}.log", "site", "start", str(settings)))
        for site in SITES:
            while "waiting for orders" not in (root / f"{site}.log").read_text():
                time.sleep(0.2)
        yield made
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command of ours in the background."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen([*ASTERION, *words], stdout=file, stderr=subprocess.STDOUT)


def write_site(folder: Path) -> Path:
    """A site with a few rows, that has not joined yet."""
    draws = np.random.default_rng(len(folder.name))
    rows = [f"{draws.normal():.3f},{draws.normal():.3f},{'ill' if i % 2 else 'well'}"
            for i in range(20)]  # fmt: skip
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    settings = folder / "site.toml"
    settings.write_text(
        f'name = "{folder.name}"\ntask = "classification"\n[data]\nformat = "table"\n'
        'folder = "data"\n'
    )
    return settings


if __name__ == "__main__":
    main()
