"""The coordinator's processes, kept running: the link and one process a run, or stock Flower's."""

import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from asterion_server.coordinator_metrics import metrics_served
from asterion_server.keys import (
    Provisioned,
    check_key_files,
    open_provisioned,
    own_problems,
    papers_problems,
)
from asterion_server.link_paths import database_url
from asterion_server.link_reclaim import reclaim_run, runs_with_orders
from asterion_server.link_store import LinkStore
from asterion_server.run_folder import RunFolder
from asterion_server.run_queue import launched_runs
from asterion_shared.child_process import Service
from asterion_shared.connection_check import check_connection
from asterion_shared.console.keeper import ConsoleKeeper
from asterion_shared.daily_warnings import DailyWarnings
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    PortInUseError,
    RunStoppedError,
    UnreachableError,
)
from asterion_shared.link.certificate_check import raise_first

START_SECONDS = 90.0
"""How long the listening process may take to answer; a slow machine needs a quarter of it."""

CHECK_SECONDS = 0.2
MOST_DEATHS = 5
"""How often a run's process may die without a round between before the run is given up."""

Say = Callable[[str], None]


class Coordinator(Protocol):
    """A coordinator on this machine; use it in a ``with`` block."""

    def __enter__(self) -> Self:
        """Start the processes and wait until they answer."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; runs go on at the next start."""
        ...

    def keep_running(self, say: Say, stop: Event) -> None:
        """Start again what dies, until told to stop."""
        ...


def coordinator_of(made: Provisioned) -> Coordinator:
    """The coordinator with the carrier that its settings name."""
    if made.settings.carrier == "flower":
        from asterion_server.superlink import FlowerCoordinator

        return FlowerCoordinator(made)
    return LinkCoordinator(made)


@dataclass
class _Carried:
    """A run that a process of ours carries out.

    Attributes:
        folder: the run's.
        service: its process.
        is_dead: whether it is known to be dead, and not started again yet.
        deaths: how often it died since the last finished round.
        round: the newest checkpoint at the last death.
    """

    folder: RunFolder
    service: Service
    is_dead: bool = False
    deaths: int = 0
    round: str = field(default="")


class LinkCoordinator:
    """The link's process, and one process for each run that was launched and has not ended.

    Args:
        made: its folder.
    """

    def __init__(self, made: Provisioned) -> None:
        self.made = made
        folder = str(made.folder.resolve())
        command = [sys.executable, "-m", "asterion_server.link_server", "--folder", folder]
        self.link = Service("link", command, made.folder / "logs" / "link.log")
        console = [sys.executable, "-m", "asterion_server.console.console", "--folder", folder]
        log = made.folder / "logs" / "console.log"
        self.console = ConsoleKeeper(Service("console", console, log))
        self._runs: dict[str, _Carried] = {}
        self._over: dict[str, tuple[int, bool]] = {}
        """How runs stood that have ended; so their results are read once."""

    def __enter__(self) -> Self:
        """Start the link and wait until it answers.

        Raises:
            FileProblemError: a certificate has ended, or does not belong to its key or authority,
                or others can read a key.
            PortInUseError: another process listens on the port.
            ConnectionProblemError: the link did not come up; its last words are named.
            DiskProblemError: the folder is not writable.
        """
        check_key_files(self.made)
        raise_first(own_problems(self.made))
        check_port(self.made.settings.listen, self.made.settings.port)
        self._reclaim_ended()
        try:
            self.link.start()
            wait_until_up(self.made, self.link)
        except BaseException:
            self.link.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; runs go on at the next start."""
        for carried in self._runs.values():
            carried.service.stop()
        self.console.stop()
        self.link.stop()

    def keep_running(self, say: Say, stop: Event) -> None:
        """Start runs that wait, and again what dies, until told to stop."""
        with metrics_served(self.made):
            self._keep_running(say, stop)

    def _keep_running(self, say: Say, stop: Event) -> None:
        papers = papers_warnings(self.made, say)
        while not stop.wait(CHECK_SECONDS):
            papers.look_if_due()
            restart([self.link], say)
            if self.made.settings.console is not None:
                self.console.look(say)
            for name in list(self._runs):
                self._look_after(self._runs[name], say)
            for folder in launched_runs(self.made):
                if folder.path.name not in self._runs and not self._is_over(folder):
                    self._begin(folder, say)

    def _is_over(self, folder: RunFolder) -> bool:
        """Whether a run has ended and was not launched again since."""
        try:
            launched = folder.launch_file.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        # A launch is written first, and the problem of the last one goes after it.
        standing = (launched, folder.problem_file.exists())
        if self._over.get(folder.path.name) == standing:
            return True
        if not folder.has_ended:
            return False
        self._over[folder.path.name] = standing
        return True

    def _reclaim_ended(self) -> None:
        """Remove what runs left whose process died at its very end."""
        ended = [r for r in runs_with_orders(self.made.folder) if self._folder_of(r).has_ended]
        self._reclaim(ended)

    def _folder_of(self, run: str) -> RunFolder:
        return RunFolder(self.made.runs / run)

    def _reclaim(self, runs: Sequence[str]) -> None:
        if not runs:
            return
        store = LinkStore(database_url(self.made))
        try:
            for run in runs:
                reclaim_run(store, self.made.folder, run)
        finally:
            store.close()

    def _begin(self, folder: RunFolder, say: Say) -> None:
        name = folder.path.name
        if folder.stop_file.exists():
            # It was stopped before its turn came.
            stopped = f"run {name!r} was stopped; launch it again under the same name to go on"
            folder.write_problem(RunStoppedError(stopped))
            return
        if len(self._runs) >= self.made.settings.runs_at_once:
            return
        where = ["--folder", str(self.made.folder.resolve()), "--run", name]
        command = [sys.executable, "-m", "asterion_server.run_process", *where]
        carried = _Carried(folder, Service(f"run {name}", command, folder.path / "process.log"))
        carried.service.start()
        self._runs[name] = carried
        say(f"run {name} goes on" if folder.newest_checkpoint else f"run {name} begins")

    def _look_after(self, carried: _Carried, say: Say) -> None:
        if carried.service.pid is not None:
            carried.service.bound_log()
            return
        name = carried.folder.path.name
        if carried.folder.has_ended:
            del self._runs[name]
            self._reclaim([name])
            return
        if not carried.is_dead:
            carried.is_dead = True
            reached = carried.folder.newest_checkpoint
            carried.deaths = 1 if reached != carried.round else carried.deaths + 1
            carried.round = reached
        if carried.deaths < MOST_DEATHS:
            carried.service.keep_running()
            if carried.service.pid is not None:
                carried.is_dead = False
                say(f"the process of run {name} had ended and was started again; see "
                    f"{carried.service.log}")  # fmt: skip
            return
        msg = (
            f"the process of run {name!r} died {MOST_DEATHS} times without finishing a round; see "
            f"{carried.service.log}; asterion server resume {name} tries again"
        )
        carried.folder.write_problem(AsterionError(msg))
        del self._runs[name]
        self._reclaim([name])  # or its sites would go on with what nobody wants
        say(msg)


def papers_warnings(made: Provisioned, say: Say) -> DailyWarnings:
    """Certificates of the coordinator and of its sites that will soon end."""
    return DailyWarnings(lambda: papers_problems(open_provisioned(made.folder)), say)


def restart(services: Sequence[Service], say: Say) -> None:
    """Start again those that died, and say so."""
    for service in services:
        before = service.num_starts
        if not service.keep_running() and service.num_starts > before:
            say(f"the {service.name} had ended and was started again; see {service.log}")


def wait_until_up(made: Provisioned, service: Service) -> None:
    """Wait until a process answers at the coordinator's address.

    Raises:
        ConnectionProblemError: it did not come up in :data:`START_SECONDS`.
    """
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            check_answers(made)
        except UnreachableError:
            if service.pid is None or time.monotonic() > until:
                raise _not_up(service) from None
            time.sleep(0.1)
        else:
            return


def check_answers(made: Provisioned) -> None:
    """Shake hands with the coordinator on this machine; its certificate is for the sites' name.

    Raises:
        UnreachableError: nobody answers.
        ConnectionProblemError: somebody else does.
    """
    check_connection(made.address, made.root_certificate, name=made.settings.hosts[0])


def _not_up(service: Service) -> AsterionError:
    lines = [line for line in service.last_words().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no word"
    msg = f"the {service.name} did not come up ({last}); {service.log} has the details"
    return ConnectionProblemError(msg)


def check_port(host: str, port: int) -> None:
    """Find out whether a port can be listened on.

    Raises:
        PortInUseError: another process holds it.
        ConnectionProblemError: it cannot be used for another reason.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the listener will: connections of a stopped one may still be closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            address = f"{host}:{port}"
            if isinstance(error, PermissionError):
                msg = f"{address} needs more rights; choose a port above 1023"
                raise ConnectionProblemError(msg) from None
            if error.errno is not None and "in use" in (error.strerror or ""):
                raise PortInUseError(address) from None
            msg = f"cannot listen on {address} ({error.strerror}); correct listen or port"
            raise ConnectionProblemError(msg) from None
