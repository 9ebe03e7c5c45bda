"""The coordinator's processes: Flower's SuperLink and SuperExec, kept running.

They are separate, so that a SuperLink that dies costs one pause and not the run.
"""

import socket
import sys
import time
from collections.abc import Callable
from threading import Event
from types import TracebackType
from typing import Self

from asterion_server.flower_server_compat import Control
from asterion_server.keys import Provisioned
from asterion_shared.child_process import Service, flower_command, flower_environment
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    PortInUseError,
    UnreachableError,
)

START_SECONDS = 90.0
"""How long the SuperLink may take to answer; a slow machine needs a quarter of it."""

CHECK_SECONDS = 0.5


class Coordinator:
    """A coordinator on this machine; use it in a ``with`` block, or call start and stop.

    Args:
        made: its folder.
    """

    def __init__(self, made: Provisioned) -> None:
        self.made = made
        flower = made.folder.resolve() / "flower"
        environment = flower_environment(flower)
        secret = ["--superexec-auth-secret-file", str(made.secret)]
        superlink = flower_command(
            "flower-superlink",
            ["--ssl-ca-certfile", str(made.root_certificate),
             "--ssl-certfile", str(made.certificate), "--ssl-keyfile", str(made.private_key),
             "--enable-supernode-auth", "--host", made.settings.listen,
             "--port", str(made.settings.port), "--database", str(flower / "state.db"),
             "--isolation", "process", *secret, "--disable-runtime-dependency-installation"],
        )  # fmt: skip
        superexec = [
            sys.executable, "-m", "asterion_server.superexec",
            "--root-certificates", str(made.root_certificate),
            "--runtime-api-address", made.address, *secret,
        ]  # fmt: skip
        logs = made.folder / "logs"
        here = {"ASTERION_COORDINATOR": str(made.folder.resolve())}
        self._flower = flower
        self.superlink = Service("superlink", superlink, logs / "superlink.log", environment)
        self.superexec = Service("superexec", superexec, logs / "superexec.log", environment | here)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the processes, wait until they answer, and enrol the sites.

        Raises:
            PortInUseError: another process listens on the port.
            ConnectionProblemError: the SuperLink did not come up; its last words are named.
            DiskProblemError: the folder is not writable.
        """
        check_port(self.made.settings.listen, self.made.settings.port)
        self._flower.mkdir(parents=True, exist_ok=True)
        try:
            self.superlink.start()
            self.superexec.start()
            self._wait()
            self._enrol()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes."""
        self.superexec.stop()
        self.superlink.stop()

    def keep_running(self, say: Callable[[str], None], stop: Event) -> None:
        """Start again what dies, until told to stop."""
        while not stop.wait(CHECK_SECONDS):
            for service in (self.superlink, self.superexec):
                before = service.num_starts
                if not service.keep_running() and service.num_starts > before:
                    say(f"the {service.name} had ended and was started again; see {service.log}")

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                check_connection(self.made.address, self.made.root_certificate)
            except UnreachableError:
                if self.superlink.pid is None or time.monotonic() > until:
                    raise self._not_up() from None
                time.sleep(0.2)
            else:
                return

    def _not_up(self) -> AsterionError:
        lines = [line for line in self.superlink.last_words().splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no word"
        msg = f"the SuperLink did not come up ({last}); {self.superlink.log} has the details"
        return ConnectionProblemError(msg)

    def _enrol(self) -> None:
        control = Control(self.made.address, self.made.root_certificate)
        try:
            known = {node.public_key: node.name for node in control.nodes()}
            for site in self.made.settings.sites:
                key = self.made.public_key(site).read_bytes()
                if key not in known:
                    control.enrol(site, key)
        finally:
            control.close()


def check_port(host: str, port: int) -> None:
    """Find out whether a port can be listened on.

    Raises:
        PortInUseError: another process holds it.
        ConnectionProblemError: it cannot be used for another reason.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the SuperLink will: connections of a stopped one may still be closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            address = f"{host}:{port}"
            if isinstance(error, PermissionError):
                msg = f"{address} needs more rights; choose a port above 1023"
                raise ConnectionProblemError(msg) from None
            if error.errno is not None and "in use" in (error.strerror or ""):
                raise PortInUseError(address) from None
            msg = f"cannot listen on {address} ({error.strerror}); correct listen or port"
            raise ConnectionProblemError(msg) from None
