"""Real processes, real TLS: a coordinator and three sites, as people start them, and kill them.

Everything runs through the commands that a person types. A run that survived a kill must end in
the very bytes of a simulation of the same plan, which nobody disturbed.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from asterion_server.keys import Provisioned, provision
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.planned import charge_of
from asterion_shared.result import read_result
from asterion_shared.settings_files import validate

pytestmark = pytest.mark.live

ASTERION = [sys.executable, "-m", "asterion_shared.command_line"]
SITES = {"north": 40, "south": 90, "west": 60}
PATIENT = "mueller_anna"
PRIVATE = {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "sampling_rate": 0.2, "epsilon_limit": 10.0}  # fmt: skip
PRIVATE_LIMITS = {"north": 100.0, "south": 100.0, "west": 2.5}
"""``west`` can afford two rounds of three."""


def plan_of(name: str, rounds: int, **sections: Any) -> Plan:
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
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        with (self.root / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*ASTERION, *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
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
                [*ASTERION, "server", "launch", str(path), "--folder", str(made.folder), "--json"],
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
        _, errors = self._process.communicate(timeout=seconds)
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


def write_site(folder: Path, name: str, size: int, kit: Path) -> None:
    (folder / PATIENT).mkdir(parents=True)
    draws = np.random.default_rng(size)
    rows = [
        f"{draws.normal(i % 2):.3f},{draws.normal(i % 2):.3f},{'ill' if i % 2 else 'well'}"
        for i in range(size)
    ]
    (folder / PATIENT / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    for file in ("ca.pem", "site.key"):
        shutil.copy(kit / file, folder / file)
    (folder / "site.toml").write_text(
        f'name = "{name}"\ntask = "classification"\n[data]\nformat = "table"\n'
        f'folder = "{PATIENT}"\n\n'
        + (kit / "connection.toml").read_text()
        # A run that is stopped in the middle of a message leaves its rest behind for ever.
        + "message_seconds = 30\n"
        + f"[privacy]\nepsilon_limit = {PRIVATE_LIMITS[name]}\ndelta = 1e-5\n"
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("live")
    made = provision(
        root / "center", ["127.0.0.1"], list(SITES), port=free_port(), listen="127.0.0.1"
    )
    running = Federation(root, made)
    try:
        running.start("center", "server", "start", str(made.folder))
        for name, size in SITES.items():
            write_site(root / "sites" / name, name, size, made.kit(name))
            site_toml = str(root / "sites" / name / "site.toml")
            running.start(name, "site", "start", site_toml, "--wait", "90")
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


def simulated_bytes(federation: Federation, plan: Plan, out: Path) -> bytes:
    from asterion_sim.simulate import simulate
    from asterion_sim.virtual_cohort import read_virtual_sites

    folders = [federation.root / "sites" / name for name in SITES]
    simulate(plan, read_virtual_sites(plan, folders), out, report=False)
    return (out / "model.safetensors").read_bytes()


def test_a_live_run_ends_in_the_bytes_of_the_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of("plain", 3)
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert (result.status, result.carrier) == ("finished", "flower")
    assert [r.answered for r in result.rounds] == [tuple(SITES)] * 4
    assert result.rounds[1].bytes_up > 0
    assert launch.events()[-1]["event"] == "run_finished"
    assert "<html" in (launch.folder / "report.html").read_text().lower()
    model = (launch.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)
    # Idle machines do 4 to 5 s; the bound leaves room for a busy one.
    assert statistics.median(r.seconds for r in result.rounds[1:]) < 20


def test_killed_processes_cost_time_and_nothing_else(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of("killed", 5)
    first = federation.launch(plan)
    first.wait_for_round(1)
    federation.child("north", "flower-supernode").kill()
    federation.child("south", "asterion_client.runner").kill()
    first.wait_for_round(2)
    federation.child("center", "flower-superlink").kill()
    first.wait_for_round(3)
    federation.child("center", "flwr-serverapp").kill()
    code, words = first.end()
    assert code == 1
    assert "launch it again to go on" in words
    second = federation.launch(plan)
    assert second.end() == (0, "")
    result = read_result(second.folder / "result.json")
    assert result.headline.startswith("5 of 5 rounds finished; no site was missing")
    model = (second.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)


def test_a_killed_site_is_named_and_the_run_finishes(federation: Federation) -> None:
    launch = federation.launch(plan_of("mourning", 4))
    launch.wait_for_round(0)
    family = psutil.Process(federation.processes["west"].pid).children(recursive=True)
    os.kill(federation.processes["west"].pid, signal.SIGKILL)
    assert launch.end()[0] == 0
    result = read_result(launch.folder / "result.json")
    assert result.status == "finished"
    assert result.rounds[-1].missing == {"west": "unreachable"}
    assert "site west missing in" in result.headline
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    federation.processes.pop("west").wait()
    federation.start_site("west")


def test_a_stopped_run_goes_on(federation: Federation, tmp_path: Path) -> None:
    plan = plan_of("stopped", 4)
    first = federation.launch(plan)
    first.wait_for_round(1)
    stop = [*ASTERION, "server", "stop", "stopped", "--folder", str(federation.made.folder)]
    assert subprocess.run(stop, capture_output=True, check=False).returncode == 0
    code, words = first.end()
    assert code == 50
    assert "was stopped" in words
    second = federation.launch(plan)
    assert second.end() == (0, "")
    model = (second.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)


def test_a_private_run_is_charged_at_the_sites_and_stops_at_their_limits(
    federation: Federation,
) -> None:
    scaled = {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"],
              "scale": {"a": [0.5, 1.0], "b": [0.5, 1.0]}}  # fmt: skip
    plan = plan_of("private", 3, privacy=PRIVATE, data=scaled)
    rounds = {n: spent([charge], 1e-5).epsilon for n in (2, 3) if (charge := charge_of(plan, n))}
    assert rounds[2] < PRIVATE_LIMITS["west"] < rounds[3]
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert result.privacy_account is not None
    assert result.privacy_account.epsilon == rounds[3]
    assert result.rounds[3].missing == {"west": "budget_spent"}
    assert all(outcome.train_loss is None for outcome in result.rounds[2].outcomes.values())
    for name, releases in {"north": 3, "west": 2}.items():
        folder = str(federation.root / "sites" / name)
        assert said("site", "ledger", "verify", folder) == (0, "")
        told = federation.root / f"{name}.jsonl"
        assert said("site", "ledger", "export", folder, "--out", str(told)) == (0, "")
        charged = [json.loads(line) for line in told.read_text().splitlines()]
        remembered = federation.made.folder / "ledger_heads" / name
        assert remembered.read_text().strip() == charged[-1]["head"]
        assert sum("private" in json.dumps(line) for line in charged) == releases


def test_the_status_names_every_site(federation: Federation) -> None:
    command = [*ASTERION, "server", "status", "--folder", str(federation.made.folder), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert told["sites"] == dict.fromkeys(SITES, True)


def said(*words: str) -> tuple[int, str]:
    done = subprocess.run([*ASTERION, *words], capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr.decode()


def test_a_wrong_certificate_port_or_key_is_one_clear_line(
    federation: Federation, tmp_path: Path
) -> None:
    code, words = said("server", "start", str(federation.made.folder))
    assert (code, "already in use" in words) == (31, True)
    other = provision(tmp_path / "other", ["127.0.0.1"], ["north"])
    shutil.copytree(federation.root / "sites" / "north", tmp_path / "north")
    shutil.copy(other.root_certificate, tmp_path / "north" / "ca.pem")
    code, words = said("site", "start", str(tmp_path / "north" / "site.toml"))
    assert (code, "not issued by the authority" in words) == (30, True)
    assert len(words.strip().splitlines()) == 1
    (tmp_path / "north" / "site.key").chmod(0o644)
    code, words = said("site", "start", str(tmp_path / "north" / "site.toml"))
    assert (code, "chmod 600" in words) == (11, True)


def test_no_log_names_a_patient(federation: Federation) -> None:
    logs = [*federation.root.rglob("*.log")]
    assert len(logs) > 8
    for log in logs:
        assert PATIENT not in log.read_text(errors="replace"), log.name
