"""The coordinator's queue of runs, as a launch sees it: Flower's, or the link's.

The link's queue is the runs' own folders: a run that was launched and has not ended goes on, after
any restart of the coordinator too, without a hand.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import httpx

from asterion_server.bundle import bundle
from asterion_server.flower_server_compat import Control
from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import ConnectionProblemError

Standing = Literal["unknown", "waiting", "running", "ended"]


class RunQueue(Protocol):
    """Where runs are submitted."""

    def standing(self, folder: RunFolder) -> Standing:
        """How the last submission of a run stands.

        Raises:
            httpx.TransportError: the coordinator does not answer just now.
        """
        ...

    def submit(self, folder: RunFolder, wanted: Launch) -> None:
        """Have a run carried out, or the rest of it."""
        ...

    def end(self, folder: RunFolder) -> None:
        """End a run that did not end by itself when it was told to stop."""
        ...

    def connected(self) -> set[str]:
        """Sites that are connected now."""
        ...


@contextmanager
def queue_of(made: Provisioned) -> Iterator[RunQueue]:
    """The coordinator's queue.

    Raises:
        UnreachableError: the coordinator does not run.
        ConnectionProblemError: it does not accept what is asked.
    """
    check_connection(made.address, made.root_certificate)
    if made.settings.carrier == "link":
        yield LinkQueue(made)
        return
    control = Control(made.address, made.root_certificate)
    try:
        yield FlowerQueue(control)
    except httpx.HTTPError as error:
        msg = (
            f"the coordinator at {made.address} did not do what was asked "
            f"({type(error).__name__}); see {made.folder / 'logs' / 'superlink.log'}"
        )
        raise ConnectionProblemError(msg) from error
    finally:
        control.close()


class FlowerQueue:
    """Runs are submitted to the SuperLink, whose SuperExec starts their processes."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def standing(self, folder: RunFolder) -> Standing:
        """See :class:`RunQueue`."""
        if not folder.launch_file.exists():
            return "unknown"
        number = folder.read_launch().flower_run
        found = self._control.run(number) if number else None
        if found is not None and found.status != "finished" and folder.process_is_gone():
            # Flower takes a minute to see that a run's process is dead.
            self._control.stop(number)
            found = self._control.run(number)
        if found is None:
            return "unknown"
        if found.status == "finished":
            return "ended"
        return "waiting" if found.status == "pending" else "running"

    def submit(self, folder: RunFolder, wanted: Launch) -> None:
        """See :class:`RunQueue`."""
        folder.forget_ending()
        # Before the submission too: the run reads it as soon as it starts.
        folder.write_launch(wanted)
        fab = bundle()
        config = {"run": folder.path.name}
        number = self._control.start(fab, hashlib.sha256(fab).hexdigest(), config)
        folder.write_launch(wanted.model_copy(update={"flower_run": number}))

    def end(self, folder: RunFolder) -> None:
        """See :class:`RunQueue`."""
        self._control.stop(folder.read_launch().flower_run)

    def connected(self) -> set[str]:
        """See :class:`RunQueue`."""
        return {node.name for node in self._control.nodes() if node.online}


class LinkQueue:
    """Runs are their folders; the coordinator's daemon starts their processes."""

    def __init__(self, made: Provisioned) -> None:
        self._made = made

    def standing(self, folder: RunFolder) -> Standing:
        """See :class:`RunQueue`."""
        if not folder.launch_file.exists():
            return "unknown"
        if folder.has_ended:
            return "ended"
        return "running" if folder.is_carried_out else "waiting"

    def submit(self, folder: RunFolder, wanted: Launch) -> None:
        """See :class:`RunQueue`."""
        # The daemon looks for launched runs that have not ended, so the ending goes last.
        folder.write_launch(wanted)
        folder.forget_ending()

    def end(self, folder: RunFolder) -> None:
        """See :class:`RunQueue`."""
        folder.kill_process()

    def connected(self) -> set[str]:
        """See :class:`RunQueue`."""
        from asterion_server.link_paths import database_url
        from asterion_server.link_store import LinkStore

        store = LinkStore(database_url(self._made))
        try:
            return {session.site for session in store.sessions() if session.is_open}
        finally:
            store.close()


def launched_runs(made: Provisioned) -> list[RunFolder]:
    """The folders of all runs that were ever launched, those launched first first."""
    found = made.runs.glob("*/launch.json")
    return [RunFolder(path.parent) for path in sorted(found, key=_age)]


def _age(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.parent.name
    except FileNotFoundError:
        return time.time(), path.parent.name
