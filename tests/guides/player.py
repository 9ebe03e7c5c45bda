"""Carries out a guide as it stands, each block on the machine that it names.

The fences of such a guide say what a block is and where it belongs::

    ```console clinic            lines after "$ " are typed at the clinic, in order
    ```console install clinic    the same, before the network is cut off; sites share the result
    ```toml clinic               the first line names the file, "# clinic/site.toml"
    ```hand coordinator          files carried there: "clinic: clinic/clinic.request.json"

A command that ends in ``&`` goes on in the background; ``# exits N`` gives the code that it must
end with. Questions are answered with yes.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.network.namespaces import Host

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^```(console install|console|toml|hand) ([a-z ]+)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^\$ (.*?)(?:  # exits (\d+))?$", re.MULTILINE)
UP = ("listens on", "waiting for orders")
"""What a daemon says when it stands."""

SECONDS = 420
Hook = Callable[[], None]


@dataclass
class Machine:
    """One machine of a guide: a folder of its own, and a namespace.

    Attributes:
        folder: where its commands are typed.
        host: its namespace.
        said: what each command wrote, by command, the last time that it ran.
    """

    folder: Path
    host: Host
    said: dict[str, str] = field(default_factory=dict)


class Player:
    """Plays one guide.

    Args:
        machines: by the names that the guide gives them.
        wheels: folder of the wheels, which each machine sees as ``wheels``.
        name: the coordinator's name in the guide, for the machines' ``/etc/hosts``.
        address: what it stands for.
    """

    def __init__(
        self, machines: Mapping[str, Machine], wheels: Path, name: str, address: str
    ) -> None:
        self.machines = machines
        self._background: list[subprocess.Popen[bytes]] = []
        for machine in machines.values():
            machine.folder.mkdir(parents=True, exist_ok=True)
            (machine.folder / "wheels").symlink_to(wheels)
            hosts = Path("/etc/netns", machine.host.namespace, "hosts")
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{address} {name}\n")

    def play(
        self,
        guide: Path,
        before: Mapping[str, Hook] | None = None,
        after: Mapping[str, Hook] | None = None,
    ) -> None:
        """Carry out a guide.

        Args:
            guide: a document with such fences.
            before: called before the command of that text, once each.
            after: called after it.
        """
        hooks = dict(before or {}), dict(after or {})
        for kind, names, body in FENCE.findall(guide.read_text(encoding="utf-8")):
            machines = [self.machines[name] for name in names.split()]
            match kind:
                case "console install":
                    self._install(machines, body)
                case "console":
                    for command, code in COMMAND.findall(body):
                        hooks[0].pop(command, _nothing)()
                        self._type(machines[0], command, int(code or 0))
                        hooks[1].pop(command, _nothing)()
                case "toml":
                    path = machines[0].folder / body.partition("\n")[0].removeprefix("# ")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(body, encoding="utf-8")
                case "hand":
                    for source, path in _handed(body):
                        shutil.copy(self.machines[source].folder / path, machines[0].folder)
        assert hooks == ({}, {}), "the guide lacks commands that the test knows"

    def type(self, machine: str, command: str, code: int = 0) -> None:
        """Carry out one command on a machine; it must end with the code."""
        self._type(self.machines[machine], command, code)

    def stop(self) -> None:
        """End what goes on in the background, and remove the names of the machines."""
        for process in self._background:
            process.terminate()
        for process in self._background:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for machine in self.machines.values():
            shutil.rmtree(Path("/etc/netns", machine.host.namespace))

    def _install(self, machines: list[Machine], body: str) -> None:
        first, *others = machines
        for command, code in COMMAND.findall(body):
            done = subprocess.run(
                ["bash", "-c", command], cwd=first.folder, env=_environment(first, installing=True),
                capture_output=True, text=True, timeout=900, check=False,
            )  # fmt: skip
            assert done.returncode == int(code or 0), f"{command}\n{done.stdout}{done.stderr}"
        for machine in others:
            (machine.folder / "asterion").symlink_to(first.folder / "asterion")

    def _type(self, machine: Machine, command: str, code: int) -> None:
        words = ["bash", "-c", f"exec {command}" if command.endswith("&") else command]
        environment = _environment(machine)
        if command.endswith("&"):
            words[-1] = f"exec {command.rstrip('& ')}"
            log = machine.folder / f"background-{len(self._background)}.log"
            with log.open("wb") as out:
                process = machine.host.start(
                    words, cwd=machine.folder, env=environment, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            self._background.append(process)
            if " start " in command:
                _wait_until_up(process, log, command)
            machine.said[command] = str(log)
            return
        done = machine.host.run(
            words, cwd=machine.folder, env=environment, input="y\n" * 4, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        machine.said[command] = done.stdout + done.stderr
        assert done.returncode == code, (
            f"{machine.host.name}$ {command}\nended with {done.returncode}\n{machine.said[command]}"
        )
        assert "Traceback" not in machine.said[command]


def _nothing() -> None:
    """What happens before and after most commands."""


def _handed(body: str) -> Iterator[tuple[str, str]]:
    for line in body.splitlines():
        source, _, path = line.partition(": ")
        yield source, path


def _environment(machine: Machine, *, installing: bool = False) -> dict[str, str]:
    """A machine's own home and programs; of this machine's environment only what installs need."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if installing and (name.startswith(("PIP_", "SSL_")) or name.lower().endswith("proxy"))
    }
    search = [str(machine.folder / "asterion/bin")]
    if installing:
        search.append(str(Path(sys.executable).parent))
        kept["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    return kept | {
        "PATH": ":".join([*search, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]),
        # What pip keeps and is set to do is this user's.
        "HOME": os.environ["HOME"] if installing else str(machine.folder),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }


def _wait_until_up(process: "subprocess.Popen[bytes]", log: Path, command: str) -> None:
    until = time.monotonic() + 180
    while not any(words in log.read_text() for words in UP):
        assert process.poll() is None, f"{command} ended\n{log.read_text()}"
        assert time.monotonic() < until, f"{command} does not stand\n{log.read_text()}"
        time.sleep(0.2)
