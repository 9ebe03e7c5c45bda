"""Submit a run to the coordinator and follow it by its events file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import RunQueue, Standing, launched_runs, queue_of
from asterion_shared.errors import AsterionError, PlanMismatchError, UserInputError
from asterion_shared.events import Listener, RunFinished, read_events
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.result import Result, read_result
from asterion_shared.signed_plan import PlanSignature

POLL_SECONDS = 0.25
ALIVE_SECONDS = 3.0
"""Pause between two questions whether the run still goes on."""

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
    signature: PlanSignature | None = None,
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
        signature: an operator's under plan and run; None: that of an earlier launch, if any.
        emit: is told of each event.

    Raises:
        UserInputError: a site is not enrolled, or has withdrawn from the run.
        PlanMismatchError: the name belongs to a run with another plan.
        UnreachableError: the coordinator does not run.
        AsterionError: the run ended early, with the exit code of what ended it.
    """
    folder, wanted = _asked_for(made, plan, run, sites, plan_folder, wait_seconds, signature)
    with queue_of(made) as queue:
        told = 0
        if queue.standing(folder) in ("unknown", "ended"):
            if _is_finished(folder):
                return _tell_again(folder, emit)
            told = len(read_events(folder.events))
            queue.submit(folder, wanted)
        return _follow(queue, folder, told, emit)


def submit(
    made: Provisioned,
    plan: Plan,
    *,
    run: str,
    sites: Sequence[str] = (),
    plan_folder: Path = Path(),
    wait_seconds: float = 30.0,
    signature: PlanSignature | None = None,
) -> bool:
    """Start a run, or go on with it, as :func:`launch` does, and do not wait for its end.

    Returns:
        Whether there was something to do: False when it goes on already, or has finished.

    Raises:
        UserInputError, PlanMismatchError, UnreachableError: as :func:`launch`.
    """
    folder, wanted = _asked_for(made, plan, run, sites, plan_folder, wait_seconds, signature)
    with queue_of(made) as queue:
        if queue.standing(folder) not in ("unknown", "ended") or _is_finished(folder):
            return False
        queue.submit(folder, wanted)
    return True


def _asked_for(
    made: Provisioned,
    plan: Plan,
    run: str,
    sites: Sequence[str],
    plan_folder: Path,
    wait_seconds: float,
    signature: PlanSignature | None,
) -> tuple[RunFolder, Launch]:
    """The run's folder, with the plan in it, and what is asked for."""
    if unknown := sorted(set(sites) - set(made.settings.sites)):
        known = ", ".join(made.settings.sites)
        msg = f"the sites {', '.join(unknown)} are not enrolled; enrolled are {known}"
        raise UserInputError(msg)
    folder = RunFolder(made.runs / run)
    left = folder.read_launch().left if folder.launch_file.exists() else ()
    if gone := sorted(set(sites) & set(left)):
        msg = f"{', '.join(gone)} has withdrawn from run {run!r}; launch it without, or another run"
        raise UserInputError(msg)
    _claim(folder, plan, signature)
    wanted = Launch(
        sites=tuple(sorted(set(sites or made.settings.sites) - set(left))),
        left=left,
        wait_seconds=wait_seconds,
        plan_folder=str(plan_folder.resolve()),
    )
    return folder, wanted


def resume(made: Provisioned, run: str) -> bool:
    """Have a run that ended early go on from its last finished round, as it was launched.

    Args:
        made: the coordinator's folder.
        run: its name.

    Returns:
        Whether there was something to do: False when it goes on already, or has finished.

    Raises:
        UserInputError: no such run was ever launched.
        UnreachableError: the coordinator does not run.
    """
    folder = RunFolder(made.runs / run)
    if not folder.launch_file.exists():
        known = ", ".join(found.path.name for found in launched_runs(made)) or "none"
        msg = f"no run {run!r} was launched; known are: {known}"
        raise UserInputError(msg)
    with queue_of(made) as queue:
        if queue.standing(folder) not in ("unknown", "ended") or _is_finished(folder):
            return False
        queue.submit(folder, folder.read_launch())
    return True


def stop(made: Provisioned, run: str) -> None:
    """End a run; its finished rounds are kept and launching it again goes on.

    Raises:
        UserInputError: no such run goes on.
        UnreachableError: the coordinator does not run.
    """
    folder = RunFolder(made.runs / run)
    with queue_of(made) as queue:
        if queue.standing(folder) in ("unknown", "ended"):
            msg = f"no run {run!r} goes on; asterion server status shows those that do"
            raise UserInputError(msg)
        write_atomically(folder.stop_file, b"")
        until = time.monotonic() + STOP_SECONDS
        while time.monotonic() < until:
            if queue.standing(folder) in ("unknown", "ended"):
                return
            time.sleep(POLL_SECONDS)
        queue.end(folder)


def run_states(made: Provisioned, queue: RunQueue) -> list[RunState]:
    """The coordinator's runs with their latest standing, sorted by name."""
    return sorted(
        (RunState(f.path.name, run_status(f, queue.standing(f))) for f in launched_runs(made)),
        key=lambda state: state.name,
    )


def run_status(folder: RunFolder, standing: Standing) -> str:
    """How a run stands: its standing while it goes on, else its result's status.

    ``interrupted`` where it has ended without a result.
    """
    if standing in ("waiting", "running"):
        return standing
    return read_result(folder.result).status if folder.result.exists() else "interrupted"


def _claim(folder: RunFolder, plan: Plan, signature: PlanSignature | None) -> None:
    if folder.plan_file.exists() and folder.read_plan() != plan:
        msg = (
            f"run {folder.path.name!r} exists with another plan ({folder.plan_file}); choose "
            "another name with --run, or take back the change to the plan"
        )
        raise PlanMismatchError(msg)
    if signature is not None and (signature.plan_sha256, signature.run) != (
        plan.sha256,
        folder.path.name,
    ):
        msg = (
            f"the signature is for plan {signature.plan_sha256[:12]} as run {signature.run!r}, and "
            f"this is plan {plan.sha256[:12]} as run {folder.path.name!r}; sign it again"
        )
        raise PlanMismatchError(msg)
    write_atomically(folder.plan_file, plan.canonical().encode())
    if signature is not None:
        write_atomically(folder.signature_file, signature.model_dump_json().encode())


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


def _follow(queue: RunQueue, folder: RunFolder, told: int, emit: Listener) -> Result:
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
                standing = queue.standing(folder)
            except httpx.TransportError:
                # A SuperLink that died is started again, and the run outlives it.
                if asked - heard > SILENCE_SECONDS:
                    raise
                continue
            heard = asked
            # Once more around: it may have written its last event just now.
            ended = standing in ("unknown", "ended")
