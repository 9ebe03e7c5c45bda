"""A coordinator and sites in network namespaces of their own, joined by a bad network of ours.

Each namespace has ``lo`` and one device, ``link0``, whose packets pass `tests.network.forwarder`::

    with network(["north", "south"], seed=1) as net:
        server = net.coordinator.start([sys.executable, "server.py", net.coordinator.address])
        site = net.sites["north"].start([sys.executable, "site.py", net.coordinator.address])
        net.set("north", CONDITIONS["loss-10-percent"])
        ...
        net.counters()["north"].up.lost

There is no way out: no route to the machine's own network, none between sites. As behind a
hospital's firewall, the coordinator cannot open a TCP connection to a site unless
``sites_reachable`` is set; sites can to the coordinator. Files are shared, so certificates and
logs can stand anywhere. ``Host.start`` gives an ordinary ``Popen`` whose pid is the program
itself (``ip netns exec`` becomes it), fit for ``kill -9``.

At the end everything started inside is killed, and devices and namespaces are removed, also when
the test raised. After a ``kill -9`` of the test the forwarder ends by itself and the next
`network` removes what is left: the names carry pid and start time of their owner
(`sweep`), so that a living test beside this one keeps its own.

It needs Linux, root, iproute2 and /dev/net/tun. Tests call `require` first: without root it
skips with the reason, with root whatever is missing is a failure.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.network.conditions import UNDISTURBED, Condition
from tests.network.control import Control
from tests.network.forwarder import DEVICE, Counters, Wiring

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "asnet"
MOST_SITES = 200
NAMESPACES = Path("/run/netns")


def reason_to_skip() -> str | None:
    """Why the network cannot be made by this user, or None for root."""
    if os.geteuid() != 0:
        return "network namespaces need root; run these tests as root"
    return None


def require() -> None:
    """Skip without root; fail when root lacks something.

    Raises:
        RuntimeError: iproute2 or /dev/net/tun is missing.
    """
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    if shutil.which("ip") is None:
        msg = "no `ip` on the PATH: install iproute2"
        raise RuntimeError(msg)
    if not Path("/dev/net/tun").is_char_device():
        msg = "no /dev/net/tun: load the tun module or give the container the device"
        raise RuntimeError(msg)


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace and the address of its end of the link."""

    name: str
    namespace: str
    address: str
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    def command(self, words: Sequence[str]) -> list[str]:
        """The words that run a command inside; the process becomes the command."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def start(self, words: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """``subprocess.Popen`` inside; killed at the end of the network if it still runs."""
        process = subprocess.Popen[bytes](self.command(words), **options)
        self._started.append(process)
        return process

    def run(self, words: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """``subprocess.run`` inside, with its output as text; a failure raises."""
        options = {"check": True, "capture_output": True, "text": True} | options
        return subprocess.run(self.command(words), **options)


@dataclass(frozen=True, slots=True)
class SiteCounters:
    """Packets of one site's link since the network was made."""

    up: Counters
    down: Counters


@dataclass(frozen=True, slots=True)
class Network:
    """What `network` gives."""

    coordinator: Host
    sites: Mapping[str, Host]
    control: Control

    def set(self, site: str, condition: Condition) -> None:
        """Put a condition on one site's link, in force on return; see `forwarder`."""
        up, down = asdict(condition.up), asdict(condition.down)
        self.control.ask(do="set", site=site, up=up, down=down)

    def set_all(self, condition: Condition) -> None:
        """The same condition on every site's link."""
        for site in self.sites:
            self.set(site, condition)

    def endure(self, sites: Sequence[str], condition: Condition) -> None:
        """Put a condition on some links, wait until it is over and take it away again.

        Raises:
            ValueError: the condition has no end.
        """
        if condition.lasts_seconds == float("inf"):
            msg = "this condition has no end; set it, and set UNDISTURBED when it shall end"
            raise ValueError(msg)
        try:
            for site in sites:
                self.set(site, condition)
            time.sleep(condition.lasts_seconds)
        finally:
            for site in sites:
                self.set(site, UNDISTURBED)

    def counters(self) -> dict[str, SiteCounters]:
        """What happened to the packets of each site so far."""
        told = self.control.ask(do="counters")["sites"]
        return {
            site: SiteCounters(Counters(**ways["up"]), Counters(**ways["down"]))
            for site, ways in told.items()
        }

    def cpu_seconds(self) -> float:
        """Processor time the forwarder has used."""
        return float(self.control.ask(do="counters")["cpu_seconds"])

    def stopped_by_firewall(self) -> int:
        """Attempts to open a TCP connection to a site that were dropped."""
        return int(self.control.ask(do="counters")["stopped_by_firewall"])

    def dropped_by_kernel(self) -> int:
        """Packets a device's own queue had no room for: zero unless the forwarder is too slow."""
        hosts = [self.coordinator, *self.sites.values()]
        dropped = 0
        for host in hosts:
            shown = _ip("-n", host.namespace, "-j", "-s", "link", "show", DEVICE)
            dropped += json.loads(shown)[0]["stats64"]["tx"]["dropped"]
        return dropped


@contextmanager
def network(
    sites: Sequence[str], *, seed: int = 0, mtu: int = 1500, sites_reachable: bool = False
) -> Iterator[Network]:
    """Make a coordinator, sites and the links between them; remove them at the end.

    Args:
        sites: their names, at most 200.
        seed: of loss, duplication, reordering and jitter.
        mtu: largest IP packet in bytes.
        sites_reachable: whether the coordinator may open TCP connections to sites.

    Raises:
        RuntimeError: a command of iproute2 failed; the message has its words and errors.
        ValueError: more than 200 sites.
        HelperDiedError: the forwarder did not start.
    """
    if len(sites) > MOST_SITES:
        msg = f"{len(sites)} sites are more than {MOST_SITES}, which one block of addresses holds"
        raise ValueError(msg)
    sweep()
    owner = f"{PREFIX}-{os.getpid()}-{_started_at(os.getpid())}-{secrets.token_hex(3)}"
    # 198.18.0.0/15 is set aside for such networks (RFC 2544); nothing outside sees it anyway.
    block = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}"
    names = ["coordinator", *(f"site{number}" for number in range(len(sites)))]
    hosts = [
        Host(name, f"{owner}-{short}", f"{block}.{10 + number}")
        for number, (name, short) in enumerate(zip(["coordinator", *sites], names, strict=True))
    ]
    with ExitStack() as undo:
        folder = Path(tempfile.gettempdir(), owner)
        folder.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, folder)
        for host in hosts:
            undo.callback(_remove, host)
            _ip("netns", "add", host.namespace)
        wiring = Wiring(
            control=str(folder / "control"),
            seed=seed,
            sites_reachable=sites_reachable,
            coordinator_namespace=hosts[0].namespace,
            coordinator_address=hosts[0].address,
            sites={host.name: (host.namespace, host.address) for host in hosts[1:]},
        )
        control = undo.enter_context(_forwarder(wiring, folder))
        for host in hosts:
            commands = (
                "link set lo up",
                f"addr add {host.address}/32 dev {DEVICE}",
                # Room for a burst: a packet dropped here would be a loss nobody asked for.
                f"link set {DEVICE} mtu {mtu} txqueuelen 20000 up",
                f"route add default dev {DEVICE}",
            )
            _ip("-n", host.namespace, "-batch", "-", said="\n".join(commands))
        yield Network(hosts[0], {host.name: host for host in hosts[1:]}, control)


@contextmanager
def _forwarder(wiring: Wiring, folder: Path) -> Iterator[Control]:
    words = [sys.executable, "-m", "tests.network.forwarder", json.dumps(asdict(wiring))]
    log = folder / "forwarder.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        with closing(Control(process, Path(wiring.control), log)) as control:
            yield control
    finally:
        process.kill()
        process.communicate()


def sweep() -> list[str]:
    """Remove namespaces whose owner is dead, kill what still runs in them, return their names."""
    removed = []
    for path in sorted(NAMESPACES.glob(f"{PREFIX}-*")):
        if _owner_is_dead(path.name):
            _remove(Host("left over", path.name, ""))
            removed.append(path.name)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if _owner_is_dead(folder.name):
            shutil.rmtree(folder)
    return removed


def _owner_is_dead(name: str) -> bool:
    _, pid, started_at, *_ = name.split("-")
    return _started_at(int(pid)) != int(started_at)


def _remove(host: Host) -> None:
    if not (NAMESPACES / host.namespace).exists():
        return
    until = time.monotonic() + 10
    while pids := _ip("netns", "pids", host.namespace).split():
        for pid in pids:
            with suppress(ProcessLookupError):  # It ended by itself in between.
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > until:
            msg = f"processes {pids} in {host.namespace} survive SIGKILL"
            raise RuntimeError(msg)
    for process in host._started:
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):  # Words the dead program no longer reads.
                    pipe.close()
    _ip("netns", "delete", host.namespace)


def _started_at(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None when there is none.

    Field 22 of /proc/pid/stat, see proc(5). The name before may hold spaces and parentheses.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _ip(*words: str, said: str | None = None) -> str:
    done = subprocess.run(["ip", *words], input=said, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = f"`ip {' '.join(words)}` failed: {done.stderr.strip()}{f' ({said})' if said else ''}"
        raise RuntimeError(msg)
    return done.stdout
