"""The site's daemon on stock Flower: keeps a SuperNode and a warm runner going.

A SuperNode that was killed leaves its session behind, and the coordinator would refuse the site
until it expires; the daemon ends that session itself. When the daemon is killed both its
processes end, so the site never looks alive while nobody would answer.
"""

import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path
from threading import Event

import httpx

from asterion_client.daemon import Connection, Say
from asterion_client.flower_client_compat import (
    ACTIVATION_FAILED,
    NOT_AUTHENTICATED,
    SUPERNODE_NUMBER,
    release_session,
)
from asterion_shared.child_process import Service, flower_environment
from asterion_shared.errors import AsterionError, ConnectionProblemError
from asterion_shared.files import make_folder

CHECK_SECONDS = 0.5
"""Pause between two looks at the processes."""

READY = "the runner is ready"
"""What the runner writes once it can answer; only then is the site called connected."""

SESSION_SECONDS = 75.0
"""After so long the coordinator has forgotten a session that nobody ended."""

MOST_STARTS = 3
"""How often a runner that was never ready is started before the daemon gives up."""


def run_on_flower(
    name: str, site_toml: Path, connection: Connection, state: Path, say: Say, stop: Event
) -> None:
    """Keep a site connected until told to stop.

    Args:
        name: of the site.
        site_toml: its settings, absolute.
        connection: its connection, checked.
        state: its state folder.
        say: is told in one line each time the site's standing changes.
        stop: set it to end.

    Raises:
        ConnectionProblemError: the certificate or the site's key is not accepted.
        AsterionError: the runner cannot start.
    """
    with tempfile.TemporaryDirectory(prefix="asterion-site-") as private:
        secret = Path(private) / "secret"
        secret.touch(0o600)
        secret.write_bytes(secrets.token_bytes(32))
        _Daemon(name, site_toml, connection, state, secret, say).run(stop)


class _Daemon:
    def __init__(
        self,
        name: str,
        site_toml: Path,
        connection: Connection,
        state: Path,
        secret: Path,
        say: Say,
    ) -> None:
        self._name, self._connection, self._say = name, connection, say
        self._session = state / "flower" / "session"
        port = _free_port()
        environment = flower_environment(state / "flower")
        supernode = [
            sys.executable, "-m", "asterion_client.supernode_entry",
            "--superlink", connection.address,
            "--root-certificates", str(connection.root_certificate),
            "--auth-supernode-private-key", str(connection.private_key),
            "--isolation", "process", "--superexec-auth-secret-file", str(secret),
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        runner = [sys.executable, "-m", "asterion_client.runner", "--site", str(site_toml),
                  "--runtime", f"127.0.0.1:{port}", "--secret", str(secret)]  # fmt: skip
        logs = state / "logs"
        self._supernode = Service("supernode", supernode, logs / "supernode.log", environment)
        self._runner = Service("runner", runner, logs / "runner.log", environment)
        self._connected = False
        self._was_connected = False
        self._seen_starts = 1
        self._refused_since: float | None = None

    def run(self, stop: Event) -> None:
        try:
            # The runner first: its imports take longer than the SuperNode's.
            self._runner.start()
            self._supernode.start()
            while not stop.wait(CHECK_SECONDS):
                self._look()
        finally:
            self._supernode.stop()
            self._runner.stop()
            self._session.unlink(missing_ok=True)

    def _look(self) -> None:
        self._runner.keep_running()
        if self._runner.num_starts > self._seen_starts:
            # The runner died, and its order with it. A new session makes the coordinator send
            # the order again, long before the task's heartbeat would run out.
            self._seen_starts = self._runner.num_starts
            if not self._was_connected and self._seen_starts > MOST_STARTS:
                msg = f"the runner of site {self._name} cannot start; see {self._runner.log}"
                raise AsterionError(msg)
            self._say(f"site {self._name}: the runner had ended; see {self._runner.log}")
            self._supernode.stop()
            self._supernode.start()
            self._connected = False
        alive = self._supernode.keep_running()
        if alive and not self._connected:
            self._notice_connection()
        elif not alive and self._connected:
            self._connected = False
            self._say(f"site {self._name}: the connection was lost; connecting again")
        if not alive and self._supernode.num_starts:
            self._after_refusal()

    def _notice_connection(self) -> None:
        found = SUPERNODE_NUMBER.search(self._supernode.last_words())
        if found is None or READY not in self._runner.last_words():
            return
        self._connected = self._was_connected = True
        make_folder(self._session.parent)
        self._session.write_text(found[1], encoding="ascii")
        self._say(f"site {self._name}: connected to {self._connection.address}, waiting for orders")

    def _after_refusal(self) -> None:
        """A SuperNode ended before it was connected: end our old session, or say why."""
        words = self._supernode.last_words()
        if NOT_AUTHENTICATED in words:
            msg = (
                f"the coordinator at {self._connection.address} does not accept the signature of "
                f"site {self._name}; set this machine's clock right, it may be 5 minutes off"
            )
            raise ConnectionProblemError(msg)
        if ACTIVATION_FAILED in words and not self._release() and not self._was_connected:
            self._refused()

    def _release(self) -> bool:
        """End the session that an earlier SuperNode of this site left behind, if there is one."""
        if not self._session.exists():
            return False
        number = int(self._session.read_text(encoding="ascii"))
        self._session.unlink()
        given = self._connection
        try:
            release_session(given.address, given.root_certificate, given.private_key, number)
        except httpx.HTTPError as error:
            self._say(f"site {self._name}: the old session stays ({type(error).__name__})")
            return False
        return True

    def _refused(self) -> None:
        why = (
            f"the coordinator at {self._connection.address} refuses site {self._name}: its key is "
            "not enrolled there, or another process uses the same key"
        )
        if self._refused_since is None:
            self._refused_since = time.monotonic()
            self._say(f"{why}; trying for {SESSION_SECONDS:.0f} s, until an old session is over")
        if time.monotonic() - self._refused_since > SESSION_SECONDS:
            msg = f"{why}; ask its operator to enrol this site, or end the other process"
            raise ConnectionProblemError(msg)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
