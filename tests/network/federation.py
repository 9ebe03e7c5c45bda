"""A real federation on the link, each of its processes in a network namespace of its own.

The coordinator's daemon runs in the coordinator's namespace, each site's daemon in the site's::

    with federation(tmp_path) as running:
        launched = running.launch(plan_of("large"), "first")
        launched.end(120)
        running.trainings("north")

The coordinator has a second address, ``INNER``, that only its own machine can reach: a site that is
given that address gets there through a proxy on the coordinator's machine, and in no other way.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.network.namespaces import ROOT, Network, network

from asterion_client.site_standing import read_status
from asterion_server.keys import Provisioned
from asterion_shared.errors import FileProblemError
from asterion_shared.link.steps import STOP_VARIABLE
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import enrol_on_this_machine, operator_key

ASTERION = [sys.executable, "-m", "asterion_shared.command_line"]
SITES = {"north": 40, "south": 90, "west": 60}
"""Names and numbers of rows."""

PORT = 8000
INNER = "10.77.0.1"
NEVER = 10**9
"""A step that is armed with it counts, and stops nobody."""

COUNTED = ("S1", "S2", "S3", "S6")
ROUNDS = 3
PRIVATE = {"protects": "site", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "epsilon_limit": 1000.0}  # fmt: skip


def plan_of(kind: str, **sections: Any) -> Plan:
    """A plan of three rounds.

    Args:
        kind: ``large`` (4.2 MB of weights, five chunks), ``small`` (0.65 MB, one chunk), or
            ``private`` (as small, with noise at the sites).
        sections: of the plan, in place of its own.
    """
    width = 1024 if kind == "large" else 400
    values: dict[str, Any] = {
        "name": kind,
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [width, width]},
        "algorithm": {"name": "fedprox", "mu": 0.1},
        "local": {"amount": 40, "learning_rate": 0.01},
        "rounds": {"count": ROUNDS, "deadline_seconds": 8.0, "late": "wait"},
    }
    if kind == "private":
        values["privacy"] = PRIVATE
    return validate(Plan, values | sections, kind)


@dataclass
class Federation:
    """What was started, and how to start more of it."""

    net: Network
    root: Path
    made: Provisioned
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start_coordinator(self) -> None:
        """Start its daemon and wait until it listens."""
        words = [*ASTERION, "server", "start", str(self.made.folder)]
        self._start("center", self.net.coordinator.start, words)
        wait_for(lambda: "listens on" in self.log("center"), 90, "the coordinator")

    def start_site(
        self, name: str, *, address: str = "", proxy: str = "", **environment: str
    ) -> None:
        """Start a site's daemon; :meth:`wait_until_connected` waits for it.

        Args:
            name: of the site.
            address: of the coordinator; empty: its own.
            proxy: for ``connection.proxy``; empty: none.
            environment: added to the process's own.
        """
        site_toml = self.site(name) / "site.toml"
        set_way(site_toml, address or self.net.coordinator.address, proxy)
        words = [*ASTERION, "site", "start", str(site_toml), "--wait", "60"]
        self._start(name, self.net.sites[name].start, words, environment)

    def wait_until_connected(self, *names: str, seconds: float = 90) -> None:
        """Wait until these sites, or all, have a session."""
        for name in names or tuple(self.net.sites):
            wait_for(lambda name=name: self.connected(name), seconds, f"site {name}")  # type: ignore[misc]

    def connected(self, name: str) -> bool:
        """Whether a running site says that its session is open."""
        daemon = self.daemons[name]
        assert daemon.poll() is None, f"the daemon of {name} ended: {self.log(name)}"
        try:
            return read_status(self.site(name) / "state").connected
        except FileProblemError:
            return False

    def stop(self, *names: str) -> None:
        """End daemons as an operator does; none named: all of them."""
        chosen = [self.daemons.pop(name) for name in names or tuple(self.daemons)]
        for daemon in chosen:
            daemon.terminate()
        for daemon in chosen:
            daemon.wait(30)

    def log(self, name: str) -> str:
        """What a daemon said."""
        return (self.root / f"{name}.log").read_text()

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.root / "sites" / name

    def launch(self, plan: Plan, run: str) -> "Launched":
        """Launch a run as its operator does, on the coordinator's machine."""
        path = self.root / f"{run}.toml"
        path.write_text(plan_to_toml(plan))
        return Launched(self, path, run)

    def reset_counts(self) -> None:
        """Begin to count the sites' steps anew."""
        for name in self.net.sites:
            for step in COUNTED:
                ready = self._step(name, f"{step}.ready")
                ready.write_text(str(NEVER))
                ready.replace(self._step(name, step))

    def count(self, site: str, step: str) -> int:
        """How often a site took a step since the counts were reset."""
        return NEVER - int(self._step(site, step).read_text() or NEVER)

    def sent_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes of the packets that each site sent, and that were sent to it, lost ones too."""
        return {
            name: (ways.up.received_bytes, ways.down.received_bytes)
            for name, ways in self.net.counters().items()
        }

    def charges(self, site: str, run: str) -> int:
        """Entries of a site's ledger for a run."""
        out = self.root / f"{site}-{run}.jsonl"
        out.unlink(missing_ok=True)
        words = [*ASTERION, "site", "ledger", "export", str(self.site(site)), "--out", str(out)]
        subprocess.run(words, check=True, capture_output=True)
        entries = [json.loads(line) for line in out.read_text().splitlines()]
        return sum(_names(entry, run) for entry in entries)

    def _step(self, site: str, step: str) -> Path:
        return self.root / "steps" / site / step

    def _start(
        self,
        name: str,
        start: Callable[..., "subprocess.Popen[bytes]"],
        words: list[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        own = {STOP_VARIABLE: str(self.root / "steps" / name)} if name in self.net.sites else {}
        outside = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        with (self.root / f"{name}.log").open("wb") as log:
            self.daemons[name] = start(
                words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env=outside | own | dict(environment or {}),
            )  # fmt: skip


def _names(entry: object, run: str) -> bool:
    """Whether a ledger's entry is of a run, wherever it says so."""
    if isinstance(entry, dict):
        return any(_names(value, run) for value in entry.values())
    return entry == run


class Launched:
    """``asterion server launch`` on its way."""

    def __init__(self, federation: Federation, plan: Path, run: str) -> None:
        made = federation.made
        self.folder, self.run = made.runs / run, run
        self._told = plan.with_suffix(".events")
        words = [*ASTERION, "server", "launch", str(plan), "--folder", str(made.folder),
                 "--key", str(operator_key(made.folder))]  # fmt: skip
        with self._told.open("wb") as out:
            self._process = federation.net.coordinator.start(
                [*words, "--run", run, "--json"], cwd=ROOT, stdout=out, stderr=subprocess.PIPE
            )

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def events(self) -> list[dict[str, Any]]:
        """What it told so far."""
        whole, _, _ = self._told.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def end(self, seconds: float) -> Result:
        """Wait for its end and read the result; a run that ends otherwise fails the caller."""
        _, errors = self._process.communicate(timeout=seconds)
        assert self._process.returncode == 0, errors.decode()
        return read_result(self.folder / "result.json")

    @property
    def weights(self) -> bytes:
        """The bytes of the final model's tensors: its file without its head, which names the run.

        A safetensors file begins with the length of its head in 8 bytes, little-endian.
        """
        data = (self.folder / "model.safetensors").read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look each 10 ms until a condition holds.

    Raises:
        AssertionError: it did not in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} took longer than {seconds} s"
        time.sleep(0.01)


def write_site(folder: Path) -> Path:
    """A site that has not joined yet; its settings' path."""
    (folder / "data").mkdir(parents=True)
    size, path = SITES[folder.name], folder / "site.toml"
    draws = np.random.default_rng(size)
    rows = [
        f"{draws.normal(i % 2):.3f},{draws.normal(i % 2):.3f},{'ill' if i % 2 else 'well'}"
        for i in range(size)
    ]
    (folder / "data" / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    path.write_text(
        f'name = "{folder.name}"\ntask = "classification"\n'
        '[data]\nformat = "table"\nfolder = "data"\n\n'
        "[privacy]\nepsilon_limit = 1e6\ndelta = 1e-5\n"
    )
    return path


def set_way(path: Path, host: str, proxy: str) -> None:
    """Have a site that has joined reach the coordinator at an address, through a proxy or not."""
    ours = ("address =", "proxy =")
    lines = [line for line in path.read_text().splitlines() if not line.startswith(ours)]
    way = [f'address = "{host}:{PORT}"', *([f'proxy = "{proxy}"'] if proxy else [])]
    section = lines.index("[connection]") + 1
    lines[section:section] = way
    path.write_text("\n".join(lines) + "\n")


@contextmanager
def federation(root: Path, *, seed: int = 1) -> Iterator[Federation]:
    """A coordinator and three sites, connected; ended and removed at the end.

    Args:
        root: an empty folder.
        seed: of the network's chance.

    Raises:
        AssertionError: something did not start, or a log has a traceback.
    """
    with network(list(SITES), seed=seed) as net:
        inner = ["ip", "addr", "add", f"{INNER}/32", "dev", "lo"]
        net.coordinator.run(inner)
        hosts = [net.coordinator.address, INNER]
        tomls = [write_site(root / "sites" / name) for name in SITES]
        made = enrol_on_this_machine(root / "center", tomls, hosts, port=PORT)
        running = Federation(net, root, made)
        for name in SITES:
            (root / "steps" / name).mkdir(parents=True)
        running.reset_counts()
        try:
            running.start_coordinator()
            for name in SITES:
                running.start_site(name)
            running.wait_until_connected()
            yield running
        finally:
            running.stop()
    for log in root.glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()
