"""The coordinator on stock Flower: a SuperLink and a SuperExec, kept running.

They are separate, so that a SuperLink that dies costs one pause and not the run.
"""

import sys
from threading import Event
from types import TracebackType
from typing import Self

from asterion_server.control_proof import coordinator_prover
from asterion_server.coordinator import CHECK_SECONDS, Say, check_port, restart, wait_until_up
from asterion_server.flower_server_compat import Control
from asterion_server.keys import Provisioned, check_key_files
from asterion_shared.child_process import Service, flower_environment
from asterion_shared.files import make_folder


class FlowerCoordinator:
    """A coordinator whose messages stock Flower carries.

    Args:
        made: its folder.
    """

    def __init__(self, made: Provisioned) -> None:
        self.made = made
        flower = made.folder.resolve() / "flower"
        environment = flower_environment(flower)
        secret = ["--superexec-auth-secret-file", str(made.secret)]
        superlink = [
            sys.executable, "-m", "asterion_server.superlink_entry",
            "--coordinator", str(made.folder),
            "--ssl-ca-certfile", str(made.root_certificate),
            "--ssl-certfile", str(made.certificate), "--ssl-keyfile", str(made.private_key),
            "--enable-supernode-auth", "--host", made.settings.listen,
            "--port", str(made.settings.port), "--database", str(flower / "state.db"),
            "--isolation", "process", *secret, "--disable-runtime-dependency-installation",
        ]  # fmt: skip
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
        """Start the processes, wait until they answer, and enrol the sites.

        Raises:
            FileProblemError: others can read a key.
            PortInUseError: another process listens on the port.
            ConnectionProblemError: the SuperLink did not come up; its last words are named.
            DiskProblemError: the folder is not writable.
        """
        check_key_files(self.made)
        check_port(self.made.settings.listen, self.made.settings.port)
        make_folder(self._flower)
        try:
            self.superlink.start()
            self.superexec.start()
            wait_until_up(self.made, self.superlink)
            self._enrol()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        self._stop()

    def keep_running(self, say: Say, stop: Event) -> None:
        """Start again what dies, until told to stop."""
        while not stop.wait(CHECK_SECONDS):
            restart((self.superlink, self.superexec), say)

    def _stop(self) -> None:
        self.superexec.stop()
        self.superlink.stop()

    def _enrol(self) -> None:
        control = Control(
            self.made.address, self.made.root_certificate, coordinator_prover(self.made)
        )
        try:
            known = {node.public_key: node.name for node in control.nodes()}
            for site in self.made.settings.sites:
                key = self.made.public_key(site).read_bytes()
                if key not in known:
                    control.enrol(site, key)
        finally:
            control.close()
