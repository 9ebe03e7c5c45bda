"""Submit a run to the coordinator and follow it by its events file."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from asterion_server.bundle import bundle
from asterion_server.flower_server_compat import Control, FlowerNode, FlowerRun
from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    PlanMismatchError,
    UserInputError,
)
from asterion_shared.events import Listener, RunFinished, read_events
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.result import Result, read_result
from asterion_shared.site_standing import SiteStanding

POLL_SECONDS = 0.25
ALIVE_SECONDS = 3.0
"""Pause between two questions to Flower whether the run still goes on."""

SILENCE_SECONDS = 120.0
"""How long the coordinator may be gone before a launch stops following its run."""

STOP_SECONDS = 20.0
"""How long a run may take to end by itself after it was told to stop."""


@dataclass(frozen=True, slots=True)
class RunState:
    """A run as the coordinator knows it."""

    name: str
    status: str


def launch(
    made: Provisioned,
    plan: Plan,
    *,
    run: str,
    sites: Sequence[str] = (),
    plan_folder: Path = Path(),
    wait_seconds: float = 30.0,
    emit: Listener = lambda event: None,
) -> Result:
    """Start a run, or go on with it, and follow it to its end.

    A run that already goes on under this name is only followed; one that has finished is only
    told again.

    Args:
        made: the coordinator's folder.
        plan: what to do.
        run: its name; the same name and plan resume an earlier run.
        sites: which sites shall take part; empty for all enrolled ones.
        plan_folder: where the plan's ``init.file`` is looked up.
        wait_seconds: how long the run waits for sites at its start.
        emit: is told of each event.

    Raises:
        UserInputError: a site is not enrolled.
        PlanMismatchError: the name belongs to a run with another plan.
        UnreachableError: the coordinator does not run.
        AsterionError: the run ended early, with the exit code of what ended it.
    """
    if unknown := sorted(set(sites) - set(made.settings.sites)):
        known = ", ".join(made.settings.sites)
        msg = f"the sites {', '.join(unknown)} are not enrolled; enrolled are {known}"
        raise UserInputError(msg)
    folder = RunFolder(made.runs / run)
    _claim(folder, plan)
    with control_of(made) as control:
        submitted = _submission(control, folder)
        told = 0
        if submitted is None or submitted.status == "finished":
            if _is_finished(folder):
                return _tell_again(folder, emit)
            told = len(read_events(folder.events))
            wanted = Launch(
                sites=tuple(sorted(sites or made.settings.sites)),
                wait_seconds=wait_seconds,
                plan_folder=str(plan_folder.resolve()),
            )
            submitted = _submit(control, folder, wanted)
        return _follow(control, folder, submitted.run_id, told, emit)


def stop(made: Provisioned, run: str) -> None:
    """End a run; its finished rounds are kept and launching it again goes on.

    Raises:
        UserInputError: no such run goes on.
        UnreachableError: the coordinator does not run.
    """
    folder = RunFolder(made.runs / run)
    with control_of(made) as control:
        found = _submission(control, folder) if folder.launch_file.exists() else None
        if found is None or found.status == "finished":
            msg = f"no run {run!r} goes on; asterion server status shows those that do"
            raise UserInputError(msg)
        write_atomically(folder.stop_file, b"")
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until:
            now = control.run(found.run_id)
            if now is None or now.status == "finished":
                return
            time.sleep(POLL_SECONDS)
        control.stop(found.run_id)


def run_states(made: Provisioned, control: Control) -> list[RunState]:
    """The coordinator's runs with their latest standing, sorted by name."""
    flower = {run.run_id: run for run in control.runs()}
    states: list[RunState] = []
    for path in sorted(made.runs.glob("*/launch.json")):
        folder = RunFolder(path.parent)
        found = flower.get(folder.read_launch().flower_run)
        if found is not None and found.status != "finished":
            status = "waiting" if found.status == "pending" else "running"
        elif folder.result.exists():
            status = read_result(folder.result).status
        else:
            status = "interrupted"
        states.append(RunState(path.parent.name, status))
    return states


def site_standings(made: Provisioned, control: Control) -> list[SiteStanding]:
    """The enrolled sites, sorted by name, as far as stock Flower knows: connected or not."""
    known = {node.name: node for node in control.nodes()}
    return [standing_of(name, known.get(name)) for name in sorted(made.settings.sites)]


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
    found = datetime.fromisoformat(moment).astimezone(UTC)
    return found.isoformat(timespec="seconds").replace("+00:00", "Z")


@contextmanager
def control_of(made: Provisioned) -> Iterator[Control]:
    """The coordinator's control interface.

    Raises:
        UnreachableError: the coordinator does not run.
        ConnectionProblemError: it does not accept what is asked.
    """
    check_connection(made.address, made.root_certificate)
    control = Control(made.address, made.root_certificate)
    try:
        yield control
    except httpx.HTTPError as error:
        msg = (
            f"the coordinator at {made.address} did not do what was asked "
            f"({type(error).__name__}); see {made.folder / 'logs' / 'superlink.log'}"
        )
        raise ConnectionProblemError(msg) from error
    finally:
        control.close()


def _claim(folder: RunFolder, plan: Plan) -> None:
    if folder.plan_file.exists() and folder.read_plan() != plan:
        msg = (
            f"run {folder.path.name!r} exists with another plan ({folder.plan_file}); choose "
            "another name with --run, or take back the change to the plan"
        )
        raise PlanMismatchError(msg)
    write_atomically(folder.plan_file, plan.canonical().encode())


def _submission(control: Control, folder: RunFolder) -> FlowerRun | None:
    if not folder.launch_file.exists():
        return None
    number = folder.read_launch().flower_run
    return _standing(control, folder, number) if number else None


def _standing(control: Control, folder: RunFolder, number: int) -> FlowerRun | None:
    """How a submission stands; one whose process is dead is ended, Flower takes a minute to see."""
    found = control.run(number)
    if found is not None and found.status != "finished" and folder.process_is_gone():
        control.stop(number)
        return control.run(number)
    return found


def _submit(control: Control, folder: RunFolder, wanted: Launch) -> FlowerRun:
    for path in (folder.problem_file, folder.stop_file, folder.process_file):
        path.unlink(missing_ok=True)
    # Before the submission too: the run reads it as soon as it starts.
    folder.write_launch(wanted)
    fab = bundle()
    config = {"run": folder.path.name}
    number = control.start(fab, hashlib.sha256(fab).hexdigest(), config)
    folder.write_launch(wanted.model_copy(update={"flower_run": number}))
    return FlowerRun(number, "pending", "", folder.path.name)


def _is_finished(folder: RunFolder) -> bool:
    return (
        folder.result.exists()
        and not folder.problem_file.exists()
        and read_result(folder.result).status == "finished"
    )


def _tell_again(folder: RunFolder, emit: Listener) -> Result:
    for event in read_events(folder.events):
        emit(event)
    return read_result(folder.result)


def _follow(control: Control, folder: RunFolder, number: int, told: int, emit: Listener) -> Result:
    """Tell events as they come, until the run has ended in some way."""
    result: Result | None = None
    asked = heard = time.monotonic()
    ended = False
    while True:
        for event in read_events(folder.events)[told:]:
            told += 1
            emit(event)
            if isinstance(event, RunFinished):
                result = event.result
        problem = folder.problem()
        if problem is not None:
            raise problem
        if result is not None and result.status == "finished":
            return result
        if ended:
            msg = (
                f"run {folder.path.name!r} ended without a result (its process was killed?); "
                "its finished rounds are stored: launch it again to go on"
            )
            raise AsterionError(msg)
        time.sleep(POLL_SECONDS)
        if time.monotonic() - asked > ALIVE_SECONDS:
            asked = time.monotonic()
            try:
                found = _standing(control, folder, number)
            except httpx.TransportError:
                # A SuperLink that died is started again, and the run outlives it.
                if asked - heard > SILENCE_SECONDS:
                    raise
                continue
            heard = asked
            # Once more around: it may have written its last event just now.
            ended = found is None or found.status == "finished"
