"""The site's daemon on the link: keeps its process going, and says how the site stands."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event

from asterion_client.check_connection import missing_certificate, own_problems
from asterion_client.daemon import Say
from asterion_client.settings import ConnectionSettings, SiteSettings
from asterion_client.site_standing import (
    SiteStatus,
    read_status,
    write_status,
)
from asterion_client.site_vitals import health_page, metrics_page, watched_machine
from asterion_shared.child_process import Service
from asterion_shared.console.keeper import ConsoleKeeper
from asterion_shared.daily_warnings import DailyWarnings
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    FileProblemError,
)
from asterion_shared.link.certificate_check import raise_first
from asterion_shared.status_pages import Page, serve_pages

Pages = Mapping[str, Callable[[], Page]]
CHECK_SECONDS = 0.2
FINAL = ("foreign", "revoked", "other_version", "second_process")
"""Refusals that no waiting mends."""


def run_on_link(
    settings: SiteSettings,
    site_toml: Path,
    connection: ConnectionSettings,
    state: Path,
    say: Say,
    stop: Event,
) -> None:
    """Keep a site connected until told to stop.

    Args:
        settings: the site's.
        site_toml: where they were read from, absolute.
        connection: its connection.
        state: its state folder.
        say: is told in one line each time the site's standing changes.
        stop: set it to end.

    Raises:
        FileProblemError: the certificate is missing, has ended, is another site's or authority's,
            or is not of this key.
        ConnectionProblemError: the coordinator refuses the site, and did so from the start.
        PortInUseError: the health port is taken.
        AsterionError: the site's process cannot start.
    """
    name = settings.name
    _check_own(name, site_toml.parent, connection)
    papers = DailyWarnings(lambda: own_problems(connection, name, site_toml.parent), say)
    papers.look_if_due()
    command = [sys.executable, "-m", "asterion_client.link_runner", "--site", str(site_toml)]
    pages = _pages(settings, connection, state)
    with (
        serve_pages(connection.health_address, connection.health_port, pages),
        watched_machine(settings, site_toml.parent),
        # Why it cannot start may name paths, which are for this terminal and for no log.
        tempfile.TemporaryFile() as told,
    ):
        command += ["--told", str(told.fileno())]
        runner = Service("runner", command, state / "logs" / "runner.log", passed=(told.fileno(),))
        console = _console(settings, site_toml, state)
        daemon = _Daemon(name, connection, state, runner, told.fileno(), say)
        _say_it_starts(name, state)
        try:
            runner.start()
            while not stop.wait(CHECK_SECONDS):
                papers.look_if_due()
                daemon.look()
                if console is not None:
                    console.look(say)
        finally:
            if console is not None:
                console.stop()
            runner.stop()


def _console(settings: SiteSettings, site_toml: Path, state: Path) -> ConsoleKeeper | None:
    if settings.console is None:
        return None
    words = [sys.executable, "-m", "asterion_client.console.console", "--site", str(site_toml)]
    return ConsoleKeeper(Service("console", words, state / "logs" / "console.log"))


def _say_it_starts(name: str, state: Path) -> None:
    """A status until the site's process writes its own: it takes seconds to import torch."""
    now = time.time()
    write_status(
        state,
        SiteStatus(
            site=name, connected=False, last_contact=None, refused="", working="", started=now,
            written=now,
        ),
    )  # fmt: skip


def _check_own(name: str, folder: Path, connection: ConnectionSettings) -> None:
    if connection.certificate is None:
        lacks = missing_certificate()
        raise FileProblemError(folder / "site.toml", f"{lacks.where} {lacks.what}", lacks.fix)
    raise_first(own_problems(connection, name, folder))


class _Daemon:
    def __init__(
        self, name: str, connection: ConnectionSettings, state: Path, runner: Service, told: int,
        say: Say,
    ) -> None:  # fmt: skip
        self._name, self._connection, self._state = name, connection, state
        self._told_file = told
        self._runner, self._say = runner, say
        self._connected = self._was_connected = False
        self._refused = ""
        self._began = time.time()

    def look(self) -> None:
        before = self._runner.num_starts
        if not self._runner.keep_running():
            if self._runner.num_starts == before:
                self._raise_failed_start()
            else:
                self._say(f"site {self._name}: its process had ended and was started again; see "
                          f"{self._runner.log}")  # fmt: skip
                self._connected, self._began = False, time.time()
            return
        try:
            status = read_status(self._state)
        except FileProblemError:
            return
        if status.started >= self._began - 1.0:
            self._tell(status)

    def _tell(self, status: SiteStatus) -> None:
        address = self._connection.address
        if status.connected and not self._connected:
            self._say(f"site {self._name}: connected to {address}, waiting for orders")
            self._was_connected = True
        if self._connected and not status.connected and not status.refused:
            self._say(f"site {self._name}: the connection was lost; connecting again")
        if status.refused and status.refused != self._refused:
            why = f"the coordinator at {address} refuses site {self._name} ({status.refused})"
            if status.refused in FINAL and not self._was_connected:
                msg = f"{why}; {status.meaning}"
                raise ConnectionProblemError(msg)
            self._say(f"{why}; {status.meaning}; trying again")
        self._connected, self._refused = status.connected, status.refused

    def _raise_failed_start(self) -> None:
        words = os.pread(self._told_file, 2**20, 0)
        if self._was_connected or not words:
            return
        told = json.loads(words.splitlines()[0])
        error = AsterionError(told["message"])
        error.exit_code = told["exit_code"]
        raise error


def _pages(settings: SiteSettings, connection: ConnectionSettings, state: Path) -> Pages:
    silent = connection.silent_minutes
    return {
        "/health": lambda: health_page(state, silent),
        "/metrics": lambda: metrics_page(settings.name, state, silent),
    }
