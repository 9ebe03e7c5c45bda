"""The coordinator's self-check: certificates, keys, database, disk and port, all at once."""

import os
import shutil
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from asterion_server.coordinator import check_answers, check_port
from asterion_server.keys import Provisioned, papers_problems, private_files
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    FileProblemError,
    PortInUseError,
    Problem,
)
from asterion_shared.key_files import check_private

LEAST_FREE_BYTES = 10 * 2**30


def check_coordinator(made: Provisioned, now: datetime | None = None) -> list[Problem]:
    """Look at everything that could stop a coordinator, or will soon.

    Args:
        made: its folder, whose files are there.
        now: UTC; None: the clock's.

    Returns:
        Every problem with its fix, fatal ones and warnings; empty when all is well.
    """
    problems = [*papers_problems(made, now), *_mode_problems(made)]
    if made.settings.carrier == "link":
        problems += _database_problems(made)
    problems += _disk_problems(made.folder)
    problems += _port_problems(made)
    return problems


def _mode_problems(made: Provisioned) -> Iterator[Problem]:
    for path in private_files(made):
        try:
            if path.exists() and path != made.private_key:  # told with its certificate
                check_private(path)
        except FileProblemError as error:
            yield Problem(where=error.path, what=error.what, fix=error.fix)
    mode = stat.S_IMODE(made.folder.stat().st_mode)
    if mode & 0o007:
        what = f"has mode {mode:04o}: whoever has an account here can read updates and models"
        fix = f"chmod 700 {made.folder}"
        yield Problem(where=str(made.folder), what=what, fix=fix, fatal=False)


def _database_problems(made: Provisioned) -> Iterator[Problem]:
    try:
        LinkStore(database_url(made)).close()
    except AsterionError as error:
        what, _, fix = str(error).partition("; ")
        fix = fix or "see that the database runs, and database in coordinator.toml"
        yield Problem(where="database", what=what, fix=fix)


def _disk_problems(folder: Path) -> Iterator[Problem]:
    if not os.access(folder, os.W_OK):
        yield Problem(where=str(folder), what="is not writable", fix="change its owner")
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        what = f"{free / 2**30:.1f} GiB are free on its disk"
        fix = "free some space: a run needs a few times its model for each site"
        yield Problem(where=str(folder), what=what, fix=fix, fatal=False)


def _port_problems(made: Provisioned) -> Iterator[Problem]:
    """The port is free, or a coordinator with this folder's certificate answers there."""
    try:
        check_port(made.settings.listen, made.settings.port)
    except PortInUseError as error:
        try:
            check_answers(made)
        except ConnectionProblemError:
            what = f"{str(error).partition(';')[0]}, and not by this coordinator"
            yield Problem(where="port", what=what, fix="end it, or choose another port")
    except ConnectionProblemError as error:
        what, _, fix = str(error).partition("; ")
        yield Problem(where="listen", what=what, fix=fix)
