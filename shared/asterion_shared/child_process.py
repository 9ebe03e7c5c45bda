"""Processes that belong to a daemon: they end with it, and are started again when they die."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import make_folder

BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Pauses before a dead process is started again; the last one repeats."""

HEALTHY_SECONDS = 60.0
"""A process that lived so long begins at the first pause again."""

STOP_SECONDS = 8.0
"""How long a process may take to end itself before it is killed."""

MOST_LOG_BYTES = 20 * 2**20
"""A log that is longer is put aside; the one put aside before is removed."""

_PARENT = "ASTERION_PARENT_PID"


def watch_parent() -> None:
    """End this process, as ``kill`` would, when the daemon that started it is gone.

    Without it a SuperNode would outlive its killed daemon and keep the site's session.
    """
    parent = int(os.environ.get(_PARENT, "0"))
    if parent:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def flower_environment(home: Path) -> dict[str, str]:
    """Settings under which Flower neither phones home nor installs anything.

    Args:
        home: where Flower keeps its own files.
    """
    programs = str(Path(sys.executable).parent)
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "FLWR_HOME": str(home),
        "NO_PROXY": local,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }


@dataclass
class Service:
    """A process that is kept running.

    Attributes:
        name: for messages.
        command: its command line.
        log: where its output goes, at most about :data:`MOST_LOG_BYTES` and as much once more
            that was put aside.
        environment: added to this process's own.
        passed: open files that it gets besides, under their own numbers.
    """

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    passed: Sequence[int] = ()
    num_starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _failures: int = 0
    _log_begin: int = 0

    def start(self) -> None:
        """Start the process.

        Raises:
            DiskProblemError: its log cannot be written.
        """
        try:
            make_folder(self.log.parent)
            self.bound_log()
            with self.log.open("ab") as log:
                self._log_begin = log.tell()
                self._process = subprocess.Popen(  # our own command line, no shell
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment, _PARENT: str(os.getpid())},
                    # Ctrl-C goes to the daemon alone; it ends its processes in order.
                    start_new_session=True,
                    pass_fds=self.passed,
                )
        except OSError as error:
            raise DiskProblemError(self.log, error.strerror or type(error).__name__) from error
        self._started = time.monotonic()
        self.num_starts += 1

    @property
    def pid(self) -> int | None:
        """Its process number while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def keep_running(self) -> bool:
        """Start it again when it died and its pause is over; True when it is running."""
        self.bound_log()
        if self.pid is not None:
            return True
        lived = time.monotonic() - self._started
        if self._process is not None:
            self._failures = 1 if lived > HEALTHY_SECONDS else self._failures + 1
            self._process, self._started = None, time.monotonic()
            return False
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS)) - 1]
        if lived >= pause:
            self.start()
        return False

    def bound_log(self) -> None:
        """Put a long log aside and begin it anew, also while the process writes to it.

        The process holds the file open to append, so it is copied and emptied in place. What is
        written between the two is lost. On a full disk there is no copy, and the log is emptied
        all the same.
        """
        try:
            if self.log.stat().st_size <= MOST_LOG_BYTES:
                return
        except FileNotFoundError:
            return
        aside = self.log.with_suffix(".1.log")
        aside.unlink(missing_ok=True)
        try:
            shutil.copyfile(self.log, aside)
        except OSError:
            aside.unlink(missing_ok=True)
        os.truncate(self.log, 0)
        self._log_begin = 0

    def last_words(self) -> str:
        """What it wrote since its last start, at most 20 kB of it."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_begin, log.seek(0, os.SEEK_END) - 20_000))
            return log.read().decode(errors="replace")

    def stop(self) -> None:
        """End it, gently first."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
