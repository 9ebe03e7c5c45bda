"""The site's daemon on the link: keeps its process going, and says how the site stands."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from asterion_client.check_connection import missing_certificate, own_problems
from asterion_client.daemon import Say
from asterion_client.settings import ConnectionSettings
from asterion_client.site_standing import (
    SiteStatus,
    meaning_of,
    problem_of,
    read_status,
    write_status,
)
from asterion_shared.child_process import Service
from asterion_shared.daily_warnings import DailyWarnings
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    FileProblemError,
    PortInUseError,
)
from asterion_shared.link.certificate_check import raise_first

CHECK_SECONDS = 0.2
FAILED_START = "cannot start: "
"""What the site's process writes before its error, when it cannot run at all."""

FINAL = ("foreign", "revoked", "other_version", "second_process")
"""Refusals that no waiting mends."""


def run_on_link(
    name: str, site_toml: Path, connection: ConnectionSettings, state: Path, say: Say, stop: Event
) -> None:
    """Keep a site connected until told to stop.

    Args:
        name: of the site.
        site_toml: its settings, absolute.
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
    _check_own(name, site_toml.parent, connection)
    papers = DailyWarnings(lambda: own_problems(connection, name, site_toml.parent), say)
    papers.look_if_due()
    command = [sys.executable, "-m", "asterion_client.link_runner", "--site", str(site_toml)]
    runner = Service("runner", command, state / "logs" / "runner.log")
    daemon = _Daemon(name, connection, state, runner, say)
    with _health(connection, state):
        _say_it_starts(name, state)
        try:
            runner.start()
            while not stop.wait(CHECK_SECONDS):
                papers.look_if_due()
                daemon.look()
        finally:
            runner.stop()


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
        self, name: str, connection: ConnectionSettings, state: Path, runner: Service, say: Say
    ) -> None:
        self._name, self._connection, self._state = name, connection, state
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
                msg = f"{why}; {meaning_of(status.refused)}"
                raise ConnectionProblemError(msg)
            self._say(f"{why}; {meaning_of(status.refused)}; trying again")
        self._connected, self._refused = status.connected, status.refused

    def _raise_failed_start(self) -> None:
        words = self._runner.last_words()
        if self._was_connected or FAILED_START not in words:
            return
        told = json.loads(words.split(FAILED_START, 1)[1].splitlines()[0])
        error = AsterionError(told["message"])
        error.exit_code = told["exit_code"]
        raise error


@contextmanager
def _health(connection: ConnectionSettings, state: Path) -> Iterator[None]:
    """Answer ``/health`` on the loopback interface: 200 when the site is well, else 503.

    Raises:
        PortInUseError: the port is taken.
    """
    if connection.health_port is None:
        yield
        return

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                self.send_error(404)
                return
            problem = problem_of(state, connection.silent_minutes)
            body = json.dumps({"well": not problem, "problem": problem}).encode()
            self.send_response(503 if problem else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its own name
            """Nothing: a health check each second would fill the log."""

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", connection.health_port), Health)
    except OSError:
        address = f"127.0.0.1:{connection.health_port}"
        raise PortInUseError(address) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
