"""The coordinator on stock Flower: a SuperLink and a SuperExec, kept running.

They are separate, so that a SuperLink that dies costs one pause and not the run.
"""

import sys
import time
from threading import Event
from types import TracebackType
from typing import Self

import httpx

from asterion_server.control_proof import coordinator_prover
from asterion_server.coordinator import (
    CHECK_SECONDS,
    Say,
    check_port,
    papers_warnings,
    restart,
    wait_until_up,
)
from asterion_server.flower_server_compat import Control
from asterion_server.keys import Provisioned, check_key_files, open_provisioned
from asterion_shared.child_process import Service, flower_environment
from asterion_shared.errors import AsterionError
from asterion_shared.files import make_folder

AGAIN_SECONDS = 1.0
"""Pause before a change of the sites is tried again that could not be taken up."""


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
        self._enrolled_at = (0, 0)
        self._refused: tuple[str, ...] = ()
        self._look_at, self._said = 0.0, ""
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
        papers = papers_warnings(self.made, say)
        if words := self._words_of_refused():
            say(words)
        while not stop.wait(CHECK_SECONDS):
            papers.look_if_due()
            restart((self.superlink, self.superexec), say)
            self._enrol_anew(say)

    def _stop(self) -> None:
        self.superexec.stop()
        self.superlink.stop()

    def _enrol_anew(self, say: Say) -> None:
        """Take up what ``asterion server enrol`` or ``revoke`` changed since the last look."""
        if time.monotonic() < self._look_at:
            return
        try:
            if self._stamp() == self._enrolled_at:
                return
            self._enrol()
        except httpx.TransportError:
            return  # the SuperLink is starting; the next look does it
        except (httpx.HTTPError, AsterionError, OSError) as error:
            # It may be a revocation, so it is tried until it is done.
            self._look_at = time.monotonic() + AGAIN_SECONDS
            why = str(error) if isinstance(error, AsterionError) else type(error).__name__
            words = f"a change of the sites is not taken up yet ({why}); see {self.superlink.log}"
        else:
            words = self._words_of_refused()
        if words and words != self._said:
            say(words)
        self._said = words

    def _words_of_refused(self) -> str:
        if not self._refused:
            return ""
        return f"the SuperLink does not take the keys of {', '.join(self._refused)}; see " + str(
            self.superlink.log
        )

    def _enrol(self) -> None:
        """Have the SuperLink know the enrolled keys, and no other."""
        stamp, made = self._stamp(), open_provisioned(self.made.folder)
        wanted = {made.public_key(site).read_bytes(): site for site in made.settings.sites}
        control = Control(made.address, made.root_certificate, coordinator_prover(made))
        refused: list[str] = []
        try:
            known = {node.public_key: node for node in control.nodes()}
            for key in known.keys() - wanted.keys():
                control.remove(known[key].number)
            for key in wanted.keys() - known.keys():
                try:
                    control.enrol(wanted[key], key)
                except httpx.HTTPStatusError as error:
                    status = error.response.status_code
                    if status == httpx.codes.UNAUTHORIZED or status >= 500:
                        raise
                    refused.append(wanted[key])  # it would be refused again
        finally:
            control.close()
        self._refused, self._enrolled_at = tuple(sorted(refused)), stamp

    def _stamp(self) -> tuple[int, int]:
        """When the sites or their keys changed last."""
        enrolled = self.made.folder / "enrolled"
        settings = self.made.folder / "coordinator.toml"
        return settings.stat().st_mtime_ns, enrolled.stat().st_mtime_ns if enrolled.exists() else 0
