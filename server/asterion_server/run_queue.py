"""The coordinator's queue of runs, as a launch sees it: Flower's, or the link's.

The link's queue is the runs' own folders: a run that was launched and has not ended goes on, after
any restart of the coordinator too, without a hand.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx

from asterion_server.control_proof import coordinator_prover
from asterion_server.flower_server_compat import Control, FlowerNode
from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.bundle import bundle
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import ConnectionProblemError
from asterion_shared.site_standing import SiteStanding

if TYPE_CHECKING:
    from asterion_server.link_store import SiteSession

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

    def site_standings(self, sites: Sequence[str]) -> list[SiteStanding]:
        """How the enrolled sites stand, sorted by name."""
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
    control = Control(made.address, made.root_certificate, coordinator_prover(made))
    try:
        yield FlowerQueue(control)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise _not_done(made, error) from error
        msg = (
            f"the coordinator at {made.address} does not accept {made.secret}, or the clock was "
            f"set back; start it again: asterion server start {made.folder}"
        )
        raise ConnectionProblemError(msg) from error
    except httpx.HTTPError as error:
        raise _not_done(made, error) from error
    finally:
        control.close()


def _not_done(made: Provisioned, error: httpx.HTTPError) -> ConnectionProblemError:
    msg = (
        f"the coordinator at {made.address} did not do what was asked "
        f"({type(error).__name__}); see {made.folder / 'logs' / 'superlink.log'}"
    )
    return ConnectionProblemError(msg)


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
        number = self._control.start(bundle(), {"run": folder.path.name})
        folder.write_launch(wanted.model_copy(update={"flower_run": number}))

    def end(self, folder: RunFolder) -> None:
        """See :class:`RunQueue`."""
        self._control.stop(folder.read_launch().flower_run)

    def site_standings(self, sites: Sequence[str]) -> list[SiteStanding]:
        """As far as stock Flower knows: connected or not."""
        known = {node.name: node for node in self._control.nodes()}
        return [standing_of(name, known.get(name)) for name in sorted(sites)]


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

    def site_standings(self, sites: Sequence[str]) -> list[SiteStanding]:
        """See :class:`RunQueue`."""
        from asterion_server.link_paths import database_url
        from asterion_server.link_store import LinkStore

        store = LinkStore(database_url(self._made))
        try:
            known = {session.site: session for session in store.sessions()}
            work = store.orders_at_work()
        finally:
            store.close()
        return [_link_standing(name, known.get(name), work.get(name)) for name in sorted(sites)]


def _link_standing(
    name: str, session: "SiteSession | None", work: tuple[str, int] | None
) -> SiteStanding:
    if session is None:
        return SiteStanding(name=name, state="registered")
    known: dict[str, Any] = {"name": name, "version": session.version}
    if not session.is_open:
        return SiteStanding(state="away", since=_utc_of(session.last_contact), **known)
    if work is not None:
        run, round_ = work
        return SiteStanding(state="training", run=run, round=round_, **known)
    return SiteStanding(state="configured", since=_utc_of(session.opened), **known)


def _utc_of(seconds: float) -> str:
    return _iso(datetime.fromtimestamp(seconds, UTC))


def standing_of(name: str, node: FlowerNode | None) -> SiteStanding:
    """One site; its node is None where Flower does not list it."""
    if node is None or not node.last_activated:
        return SiteStanding(name=name, state="registered")
    if node.online:
        return SiteStanding(name=name, state="connected", since=_utc(node.last_activated))
    return SiteStanding(name=name, state="away", since=_utc(node.last_deactivated))


def _utc(moment: str) -> str | None:
    """Flower's time, ISO 8601, as ours; None where it has none."""
    if not moment:
        return None
    return _iso(datetime.fromisoformat(moment).astimezone(UTC))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def launched_runs(made: Provisioned) -> list[RunFolder]:
    """The folders of all runs that were ever launched, those launched first first."""
    found = made.runs.glob("*/launch.json")
    return [RunFolder(path.parent) for path in sorted(found, key=_age)]


def _age(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.parent.name
    except FileNotFoundError:
        return time.time(), path.parent.name
