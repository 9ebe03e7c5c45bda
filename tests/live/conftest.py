"""A federation of real processes, started as people start it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asterion_server.keys import Provisioned
from asterion_shared.carrier import Carrier
from asterion_shared.link.steps import STOP_VARIABLE
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import enrol_on_this_machine, operator_key

ASTERION = [sys.executable, "-m", "asterion_shared.command_line"]
SITES = {"north": 40, "south": 90, "west": 60}
PATIENT = "mueller_anna"


def plan_of(name: str, rounds: int, /, **sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": name,
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [8]},
        "algorithm": {"name": "fedprox", "mu": 0.1},
        "local": {"amount": 10, "learning_rate": 0.01},
        "rounds": {"count": rounds, "deadline_seconds": 240.0},
    }
    return validate(Plan, values | sections, name)


@dataclass
class Federation:
    """What was started, and how to start and kill more."""

    root: Path
    made: Provisioned
    stops: Path | None = None
    """Where the stop folder of each daemon is, see asterion_shared.link.steps; None: none."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        known = {} if self.stops is None else {STOP_VARIABLE: str(self.stops / name)}
        mode = "ab" if name in self.words and self.stops is not None else "wb"
        self.words[name] = words
        with (self.root / f"{name}.log").open(mode) as log:
            self.processes[name] = subprocess.Popen(
                [*ASTERION, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | known,
            )

    def start_site(self, name: str) -> None:
        self.start(name, "site", "start", str(self.root / "sites" / name / "site.toml"))
        wait_for(lambda: "waiting for orders" in self.log(name), 90, f"site {name}")

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def child(self, name: str, words: str) -> psutil.Process:
        """The process below one of ours whose command line has these words."""
        family = psutil.Process(self.processes[name].pid).children(recursive=True)
        return next(p for p in family if words in " ".join(_command(p)))

    def launch(self, plan: Plan) -> "Launch":
        path = self.root / f"{plan.name}.toml"
        path.write_text(plan_to_toml(plan))
        return Launch(self.made, plan, path)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


class Launch:
    """``asterion server launch`` on its way."""

    def __init__(self, made: Provisioned, plan: Plan, path: Path) -> None:
        self.folder = made.runs / plan.name
        self._told = path.with_suffix(".events")
        with self._told.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *ASTERION,
                    "server",
                    "launch",
                    str(path),
                    "--folder",
                    str(made.folder),
                    "--key",
                    str(operator_key(made.folder)),
                    "--json",
                ],
                stdout=out,
                stderr=subprocess.PIPE,
            )

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._told.read_bytes().splitlines()]

    def wait_for_round(self, number: int) -> None:
        def reached() -> bool:
            assert self._process.poll() is None, "the launch ended early"
            told = [e["round_result"]["round"] for e in self.events() if "round_result" in e]
            return max(told, default=-1) >= number

        wait_for(reached, 120, f"round {number}")

    def end(self, seconds: float = 180) -> tuple[int, str]:
        """Its exit code and its words; a launch that does not end is killed, and told of."""
        try:
            _, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            logs = sorted(
                [*self.folder.glob("*.log"), *self._told.parent.rglob("state/logs/*.log")]
            )
            last = "\n".join(f"== {p}\n{p.read_text(errors='replace')[-2000:]}" for p in logs)
            pytest.fail(f"the launch did not end within {seconds} s\n{last}")
        return self._process.returncode, errors.decode()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} took longer than {seconds} s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_site(folder: Path, size: int, epsilon_limit: float) -> Path:
    """A site that has not joined yet; its settings' path."""
    name = folder.name
    (folder / PATIENT).mkdir(parents=True)
    draws = np.random.default_rng(size)
    rows = [
        f"{draws.normal(i % 2):.3f},{draws.normal(i % 2):.3f},{'ill' if i % 2 else 'well'}"
        for i in range(size)
    ]
    (folder / PATIENT / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    path = folder / "site.toml"
    path.write_text(
        f'name = "{name}"\ntask = "classification"\n[data]\nformat = "table"\n'
        f'folder = "{PATIENT}"\n\n'
        f"[privacy]\nepsilon_limit = {epsilon_limit}\ndelta = 1e-5\n"
    )
    return path


@contextmanager
def running_federation(
    root: Path,
    limits: Mapping[str, float],
    way_to: Callable[[int], int] = lambda port: port,
    *,
    carrier: Carrier = "flower",
    stops: Path | None = None,
) -> Iterator[Federation]:
    """A coordinator and its sites, connected; stopped at the end, and no log may have a traceback.

    Args:
        root: an empty folder.
        limits: of each site, what its own ledger allows.
        way_to: the coordinator's port to the one that the sites connect to.
        carrier: of the messages.
        stops: a folder; processes stop at the steps that are armed in the daemons' folders in it.
    """
    tomls = {
        name: write_site(root / "sites" / name, size, limits[name]) for name, size in SITES.items()
    }
    made = enrol_on_this_machine(
        root / "center", list(tomls.values()), port=free_port(), listen="127.0.0.1", carrier=carrier
    )
    running, way = Federation(root, made, stops), way_to(made.settings.port)
    for name in () if stops is None else ("center", *SITES):
        (stops / name).mkdir(parents=True)
    try:
        running.start("center", "server", "start", str(made.folder))
        for name, path in tomls.items():
            text = path.read_text().replace(f":{made.settings.port}", f":{way}")
            # A run that is stopped in the middle of a message leaves its rest behind for ever.
            path.write_text(text.replace("[connection]\n", "[connection]\nmessage_seconds = 30\n"))
            running.start(name, "site", "start", str(path), "--wait", "90")
        for name in SITES:
            wait_for(
                lambda name=name: "waiting for orders" in running.log(name),  # type: ignore[misc]
                90,
                f"site {name}",
            )
        yield running
    finally:
        running.stop()
    for name in running.processes:
        assert "Traceback" not in running.log(name)


def said(*words: str) -> tuple[int, str]:
    done = subprocess.run([*ASTERION, *words], capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr.decode()
