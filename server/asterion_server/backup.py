"""Backup and restore of a coordinator: settings, keys, runs, what sites said; while it runs.

A run's checkpoints are copied before what only grows, so that the copy never has less on
record than the newest one needs: who was asked, the rounds before it. Orders and reports on their
way are left out: a run that goes on posts its orders anew, and sites answer again.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from asterion_server.keys import open_provisioned
from asterion_server.link_paths import database_url
from asterion_server.link_reclaim import EVERY_ROUND
from asterion_server.link_store import SESSION_SECONDS, LinkStore
from asterion_server.run_folder import RunFolder
from asterion_shared.archives import Archived, files_below, read_archive, write_archive
from asterion_shared.errors import AsterionError, DiskProblemError, UserInputError

KIND = "asterion coordinator"
LEFT_OUT = ("logs",)
ON_THEIR_WAY = ("orders", "reports")
"""Below ``link``: large parts of orders and reports."""

OF_A_PROCESS = ("lock", "process", "process.log", "early", "checkpoints")
"""Of a run; its checkpoints are copied by themselves."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A coordinator from a backup.

    Attributes:
        archived: what the archive was.
        sites: enrolled in it; who was revoked since is so again.
        stopped: private runs that a person has to resume.
        foreign_queue: whether the queue is a database elsewhere that could not be cleared.
    """

    archived: Archived
    sites: tuple[str, ...]
    stopped: tuple[str, ...]
    foreign_queue: bool


def back_up_coordinator(folder: Path, out: Path) -> Archived:
    """Write a coordinator's backup; it may run meanwhile.

    Args:
        folder: the coordinator's.
        out: the archive, mode 0600; nothing may be there.

    Raises:
        UserInputError: something stands at ``out``.
        FileProblemError: it is not a coordinator's folder, or a file cannot be read.
        DiskProblemError: the disk is full or not writable.
    """
    return write_archive(out, KIND, _files(open_provisioned(folder).folder.resolve()))


def restore_coordinator(archive: Path, target: Path) -> Restored:
    """Put a coordinator's backup into a new folder.

    Runs go on from their checkpoints with the next start. But a private run that had not ended:
    what sites were asked after the backup is not on record, so its epsilon would be too small, and
    a person has to say that nothing was.

    Raises:
        UserInputError: the target is not empty, or sites are connected to a coordinator that works
            with the same database.
        FileProblemError: the archive is not a whole backup of a coordinator.
        DiskProblemError: the disk is full or not writable.
    """
    sites: tuple[str, ...] = ()
    stopped: list[str] = []
    unreachable = False

    def prepare(folder: Path, archived: Archived) -> None:
        nonlocal sites, unreachable
        made = open_provisioned(folder)
        sites = made.settings.sites
        runs = [RunFolder(path.parent) for path in sorted(made.runs.glob("*/launch.json"))]
        for run in runs:
            if not run.has_ended and run.read_plan().privacy is not None:
                run.write_problem(_asked_since(run.path.name, archived.at))
                stopped.append(run.path.name)
        if made.settings.carrier != "link":
            return
        try:
            with closing(LinkStore(database_url(made))) as store:
                if made.settings.database is not None:
                    _check_not_in_use(store)
                for run in runs:
                    store.reclaim(run.path.name, EVERY_ROUND)
        except DiskProblemError:
            if made.settings.database is None:
                raise
            unreachable = True

    archived = read_archive(archive, KIND, target, prepare)
    return Restored(archived, sites, tuple(stopped), unreachable)


def _check_not_in_use(store: LinkStore) -> None:
    since = time.time() - SESSION_SECONDS
    if any(session.is_open and session.last_contact > since for session in store.sessions()):
        msg = (
            "sites are connected to a coordinator that works with the database of this backup: "
            f"its orders would be lost; end it and wait {SESSION_SECONDS:g} seconds"
        )
        raise UserInputError(msg)


def _asked_since(run: str, at: str) -> AsterionError:
    msg = (
        f"run {run!r} was put back from a backup of {at}: what its sites were asked after that is "
        "not on record, and its epsilon would leave it out; if they were asked nothing, "
        f"asterion server resume {run} goes on, else launch the plan as a new run"
    )
    return AsterionError(msg)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for checkpoints in sorted(folder.glob("runs/*/checkpoints")):
        yield from _checkpoints(folder, checkpoints)
    for name, path in files_below(folder):
        parts = list(path.relative_to(folder).parts)
        on_its_way = parts[0] == "link" and len(parts) > 2 and parts[1] in ON_THEIR_WAY
        process = parts[0] == "runs" and len(parts) > 2 and parts[2] in OF_A_PROCESS
        if parts[0] not in LEFT_OUT and not on_its_way and not process:
            yield name, path
    for log in sorted(folder.glob("runs/*/checkpoints/*.jsonl")):
        yield log.relative_to(folder).as_posix(), log


def _checkpoints(folder: Path, checkpoints: Path) -> Iterator[tuple[str, Path]]:
    """All that there are, by names of their own: the run removes the first ones meanwhile."""
    held: dict[str, Path] = {}
    try:
        while wanted := _wanted(checkpoints):
            for path in wanted:
                mine = checkpoints / f".backup-{secrets.token_hex(4)}.part"
                with suppress(FileNotFoundError):  # removed just now, so others are wanted
                    mine.hardlink_to(path)
                    held[path.relative_to(folder).as_posix()] = mine
            if len(held) == len(wanted) and _wanted(checkpoints) == wanted:
                yield from held.items()
                return
            _release(held)
    finally:
        _release(held)


def _wanted(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("round-*.safetensors"))


def _release(held: dict[str, Path]) -> None:
    while held:
        held.popitem()[1].unlink(missing_ok=True)
