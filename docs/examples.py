"""The examples of a document: their commands, run in order, and what they print.

In a fenced block ``console``, each line that starts with ``$ `` is run by a shell, in order, all
blocks of a file in one folder. ``# exits N`` after a command gives the exit code that it must end
with (0 without). A command that ends in ``&`` goes on in the background until the file is done. In
a block ``toml``, the first line names the file it is written to: ``# plan.toml``. The tests run the
guides with it, and the documentation site the tutorials, which it prints with what came out.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

FENCE = re.compile(r"^```(console|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*?)(?:  # exits (\d+))?$", re.MULTILINE)
LONGEST_SECONDS = 300


class ExampleError(Exception):
    """An example did not do what its page says."""


class Examples:
    """Runs the examples of one document; what was begun in the background ends with the block.

    Args:
        folder: an empty one, where all of them run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # Wide enough for tables; no colours in what is printed.
        self._environment = os.environ | {"PATH": path, "COLUMNS": "110", "NO_COLOR": "1"}
        self._background: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Nothing is begun yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what goes on in the background."""
        for process in self._background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._background:
            process.wait(timeout=30)

    def run(self, kind: str, body: str) -> str:
        """Carry out one fenced block.

        Args:
            kind: ``console`` or ``toml``.
            body: what stands between the fences.

        Returns:
            The commands of a console with what each printed; a file as it stands.

        Raises:
            ExampleError: a command ended otherwise than its line says.
        """
        if kind == "toml":
            path = self._folder / body.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
            return body
        told = []
        for command, code in COMMAND.findall(body):
            told.append(f"$ {command}\n{self._run(command, int(code or 0))}")
        return "".join(told)

    def _run(self, command: str, code: int) -> str:
        if command.startswith(("make ", "git ")):
            return ""  # .ci/run calls them on the checkout itself
        if command.endswith("&"):
            self._background.append(self._start(command.rstrip("& ")))
            return ""
        done = subprocess.run(  # noqa: S602  # of our own pages
            command, shell=True, cwd=self._folder, env=self._environment,
            timeout=LONGEST_SECONDS, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != code or "Traceback" in done.stderr:
            msg = f"{command}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
            raise ExampleError(msg)
        return done.stdout

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S602  # of our own pages
            f"exec {command}", shell=True, cwd=self._folder, env=self._environment,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(5)
        if process.poll() is not None:
            msg = f"{command} ended at once"
            raise ExampleError(msg)
        return process
