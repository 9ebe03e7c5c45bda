"""Real processes of a federation on the link, stopped at numbered steps, and started by nobody.

The daemons start again what dies below them. A daemon itself is started again by the harness, as
systemd does.
"""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.faults.kill_cases import PRIVATE, Case, Group, matrix_plan, times_of
from tests.live.conftest import SITES, Federation, running_federation

from asterion_server.launch import launch
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.run_folder import RunFolder
from asterion_shared.errors import AsterionError
from asterion_shared.link.steps import STEPS
from asterion_shared.result import Result
from asterion_sim.local_federation import signed_here

GROUPS: tuple[Group, ...] = ("center", "north", "south", "west")
NEVER = 10**9
"""A step that is armed with it counts, and stops nobody."""

END_SECONDS = 240.0
"""A run that has not ended by then has not ended."""

LOOK_SECONDS = 0.02
WITNESS_TABLE = """
CREATE TABLE IF NOT EXISTS witness (
    key TEXT, site TEXT, run TEXT, round INTEGER, message_type TEXT, content BLOB);
"""
"""Reports are reclaimed after their round; this keeps what each one was."""

_WITNESS_TRIGGER = """
CREATE TRIGGER IF NOT EXISTS witness_of_reports AFTER INSERT ON link_report BEGIN
    INSERT INTO witness SELECT key, site, run, round, message_type, NEW.content
    FROM link_order WHERE key = NEW.key;
END;
"""


@dataclass(frozen=True, slots=True)
class Played:
    """A run that was disturbed.

    Attributes:
        run: its name.
        result: as whoever launched it was told; None when it ended with a problem.
        problem: what the launch said instead.
        not_reached: stops that nobody came to.
        trained: how often each site took S3.
        seconds: from the launch to the end.
    """

    run: str
    result: Result | None
    problem: str
    not_reached: tuple[str, ...]
    trained: dict[str, int]
    seconds: float


class Harness:
    """A federation whose processes can be stopped.

    Args:
        federation: running, with stop folders.
    """

    def __init__(self, federation: Federation) -> None:
        assert federation.stops is not None
        self.federation, self._stops = federation, federation.stops
        self.made = federation.made
        self._store = LinkStore(database_url(self.made))
        self.counted: dict[str, dict[str, dict[str, int]]] = {}
        """How often each group takes each step in an undisturbed run, by plan."""

        self.calm: dict[str, Result] = {}
        """What undisturbed runs gave, by plan."""

        self.num_daemon_starts = 0
        with closing(sqlite3.connect(self.queue_file)) as queue:
            queue.executescript(WITNESS_TABLE + _WITNESS_TRIGGER)

    @property
    def queue_file(self) -> Path:
        """The link's database."""
        return self.made.folder.resolve() / "link" / "queue.sqlite"

    def undisturbed(self, kind: str) -> Played:
        """Carry a plan out with nobody killed; count the steps.

        The run is named with as many letters as :meth:`name_of` gives.
        """
        for group in GROUPS:
            for step in STEPS:
                self._arm(group, step, NEVER)
        played = self._carried_out(f"{kind}-calm", kind, lambda run: None)
        assert played.result is not None, played.problem
        self.calm[kind] = played.result
        self.counted[kind] = {
            group: {step: self._taken(group, step) for step in STEPS} for group in GROUPS
        }
        self._disarm()
        return played

    def name_of(self, kind: str, number: int) -> str:
        """Name of a run; as long as the undisturbed one's."""
        return f"{kind}-{number:04d}"

    def play(self, case: Case, run: str) -> Played:
        """Carry out a case under the name of a run."""
        counted = self._counted(case.plan)
        for site in SITES:
            self._arm(site, "S3", NEVER)
        stops = {
            (stop.group, stop.step): times_of(stop, counted[stop.group]) for stop in case.stops
        }
        for (group, step), times in stops.items():
            self._arm(group, step, times)
        waiting = set(stops)
        taken = dict.fromkeys(SITES, 0)
        struck = False

        def look(name: str) -> None:
            nonlocal struck
            for group, step in [s for s in waiting if not self._file(*s).exists()]:
                waiting.discard((group, step))
                if step == "S3":
                    taken[group] += stops[group, step]
                    self._arm(group, "S3", NEVER)
                if not struck:
                    struck = True
                    self._strike(case, name)

        played = self._carried_out(run, case.plan, look)
        trained = {site: taken[site] + self._taken(site, "S3") for site in SITES}
        self._disarm()
        missed = tuple(f"{step}@{group}" for group, step in sorted(waiting))
        return Played(run, played.result, played.problem, missed, trained, played.seconds)

    def _counted(self, kind: str) -> dict[str, dict[str, int]]:
        """Private plans take the same steps as often."""
        alike = [kind, *(PRIVATE if kind in PRIVATE else ())]
        return next(self.counted[known] for known in alike if known in self.counted)

    def wait_until_whole(self, seconds: float = 180.0) -> None:
        """Wait until every process is there and every site is connected."""
        until = time.monotonic() + seconds
        while not self._is_whole():
            self._keep_daemons()
            assert time.monotonic() < until, "the federation does not come back"
            time.sleep(0.5)

    def orders_of(self, run: str) -> int:
        """How many orders of a run are in the queue."""
        query = "SELECT count(*) FROM link_order WHERE run = ?"
        with closing(sqlite3.connect(self.queue_file)) as queue:
            return int(queue.execute(query, (run,)).fetchone()[0])

    def kill_run(self, run: str) -> bool:
        """Kill the process that carries a run out; whether there was one."""
        return self._kill("center", f"--run {run}")

    def _carried_out(self, run: str, kind: str, look: Callable[[str], None]) -> Played:
        told: list[Result] = []
        problems: list[str] = []

        def follow() -> None:
            try:
                plan = matrix_plan(kind)
                told.append(
                    launch(
                        self.made, plan, run=run, signature=signed_here(self.made.folder, plan, run)
                    )
                )
            except AsterionError as error:
                problems.append(f"{type(error).__name__}: {error}")

        self.wait_until_whole()
        began = time.monotonic()
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        while follower.is_alive() and time.monotonic() < began + END_SECONDS:
            look(run)
            self._keep_daemons()
            time.sleep(LOOK_SECONDS)
        if follower.is_alive():
            problems.append(f"no end after {END_SECONDS} s")
            RunFolder(self.made.runs / run).stop_file.touch()  # or it would be in the way
            follower.join(60.0)
        look(run)
        seconds = time.monotonic() - began
        return Played(run, told[0] if told else None, " ".join(problems), (), {}, seconds)

    def _strike(self, case: Case, run: str) -> None:
        if case.struck == "all":
            self._kill_everything()
            return
        for role in case.struck:
            if role == "run":
                self.kill_run(run)
            elif role == "link":
                self._kill("center", "asterion_server.link_server")
            else:
                self._kill(role, "asterion_client.link_runner")

    def _kill(self, daemon: str, words: str) -> bool:
        with suppress(StopIteration, psutil.Error):
            self.federation.child(daemon, words).kill()
            return True
        return False

    def _kill_everything(self) -> None:
        doomed: list[psutil.Process] = []
        for process in self.federation.processes.values():
            with suppress(psutil.Error):
                daemon = psutil.Process(process.pid)
                doomed += [daemon, *daemon.children(recursive=True)]
        for process in doomed:
            # Some go by themselves as soon as the process above them is gone.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _keep_daemons(self) -> None:
        for name, process in list(self.federation.processes.items()):
            if process.poll() is not None:
                self.federation.start(name, *self.federation.words[name])
                self.num_daemon_starts += 1

    def _is_whole(self) -> bool:
        there = {s.site for s in self._store.sessions() if s.is_open}
        alive = all(p.poll() is None for p in self.federation.processes.values())
        return alive and there == set(SITES) and all(map(self._has_runner, SITES))

    def _has_runner(self, site: str) -> bool:
        with suppress(StopIteration, psutil.Error):
            return bool(self.federation.child(site, "asterion_client.link_runner").is_running())
        return False

    def _file(self, group: str, step: str) -> Path:
        return self._stops / group / step

    def _arm(self, group: str, step: str, times: int) -> None:
        ready = self._file(group, f"{step}.ready")
        ready.write_text(str(times))
        ready.replace(self._file(group, step))

    def _taken(self, group: str, step: str) -> int:
        try:
            return NEVER - int(self._file(group, step).read_text())
        except FileNotFoundError:
            return 0

    def _disarm(self) -> None:
        for path in self._stops.glob("*/*"):
            path.unlink(missing_ok=True)


@contextmanager
def stopped_federation(root: Path) -> Iterator[Harness]:
    """A federation on the link with a harness; it ends with the block.

    Args:
        root: an empty folder.
    """
    limits = dict.fromkeys(SITES, 1e6)
    with running_federation(root, limits, carrier="link", stops=root / "stops") as federation:
        yield Harness(federation)
