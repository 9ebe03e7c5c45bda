"""A live run's folder at the coordinator: what was asked for, and what became of it."""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import Field

from asterion_shared.errors import (
    AsterionError,
    DiskProblemError,
    FileProblemError,
    UserInputError,
)
from asterion_shared.events import told_the_end
from asterion_shared.files import sync_folder, write_atomically
from asterion_shared.plan import Name, Plan, parse_plan
from asterion_shared.result import read_result
from asterion_shared.settings_files import AnySettings, Settings, validate
from asterion_shared.signed_plan import PlanSignature, read_signature


class Launch(Settings):
    """``launch.json``: how the run was asked for."""

    format: Literal[1] = 1
    """Of this file; the first ones name none."""

    sites: tuple[Name, ...]
    """Sites that shall take part."""

    left: tuple[Name, ...] = ()
    """Sites that have withdrawn from the run; no launch brings them back."""

    wait_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long to wait for them at the start."""

    plan_folder: str = "."
    """Where the plan's ``init.file`` is looked up."""

    flower_run: int = 0
    """Flower's number of the last submission; 0 before the first."""


class Trouble(Settings):
    """``problem.json``: why a run ended early, in the words of the error tree."""

    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of one run lies."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan in its canonical form."""
        return self.path / "plan.json"

    @property
    def launch_file(self) -> Path:
        """See :class:`Launch`."""
        return self.path / "launch.json"

    @property
    def signature_file(self) -> Path:
        """An operator's signature under the plan; absent when nobody signed."""
        return self.path / "signature.json"

    @property
    def withdrawal_file(self) -> Path:
        """What this run was begun without (:mod:`asterion_server.receipts`); absent for others."""
        return self.path / "withdrawal.json"

    @property
    def receipt(self) -> Path:
        """The signed receipt for that withdrawal, written when the run has finished."""
        return self.path / "receipt.json"

    @property
    def events(self) -> Path:
        """JSON lines, one an event."""
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        """The result, written when the run ends in any way."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def problem_file(self) -> Path:
        """See :class:`Trouble`; absent when there is none."""
        return self.path / "problem.json"

    @property
    def stop_file(self) -> Path:
        """While it exists the run ends at its next look."""
        return self.path / "stop"

    @property
    def process_file(self) -> Path:
        """Machine and number of the process that carries the run out."""
        return self.path / "process"

    @property
    def log(self) -> Path:
        """The run's own log."""
        return self.path / "server.log"

    @property
    def newest_checkpoint(self) -> str:
        """Name of the newest stored round's file; empty before the first."""
        stored = (self.path / "checkpoints").glob("round-*.safetensors")
        return max((path.name for path in stored), default="")

    @property
    def has_ended(self) -> bool:
        """Whether the run reached its end: with a result, or with a problem that a person sees.

        A process that died after it wrote the result and before it told so has not: another one
        writes the report and tells it.
        """
        if self.problem_file.exists():
            return True
        if not (self.result.exists() and told_the_end(self.events)):
            return False
        return read_result(self.result).status in ("finished", "failed")

    @property
    def is_carried_out(self) -> bool:
        """Whether a process carries the run out now (under the link)."""
        try:
            with self._lock_file.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def carried_out_here(self) -> Iterator[None]:
        """Be the one process that carries the run out; the system lets go when it dies.

        Raises:
            UserInputError: another process does.
            DiskProblemError: the folder is not writable.
        """
        try:
            file = self._lock_file.open("w")
        except OSError as error:
            raise DiskProblemError(self._lock_file, error.strerror or "open failed") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                msg = f"another process carries out run {self.path.name!r}; let it, or end it"
                raise UserInputError(msg) from None
            self.write_process()
            yield

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    def forget_ending(self) -> None:
        """Make a run that ended early one that goes on."""
        for path in (self.stop_file, self.process_file, self.problem_file):
            path.unlink(missing_ok=True)
        sync_folder(self.path)  # else a power cut could end it again

    def kill_process(self) -> None:
        """End the process that carries the run out, when it runs on this machine."""
        number = self._process_number()
        if number is not None and self.is_carried_out:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def read_plan(self) -> Plan:
        """The plan of the run.

        Raises:
            FileProblemError: the file is missing or not JSON.
            SettingsError: it does not hold for this version.
        """
        try:
            return parse_plan(_read(self.plan_file), str(self.plan_file))
        except ValueError as error:
            what = f"is not JSON ({error})"
            raise FileProblemError(self.plan_file, what, "launch the run again") from None

    def read_launch(self) -> Launch:
        """How the run was asked for.

        Raises:
            FileProblemError: the file is missing, not JSON, or of a newer version.
            SettingsError: it was edited and does not hold.
        """
        return _load(Launch, self.launch_file)

    def read_signature(self) -> PlanSignature | None:
        """The operator's signature; None when nobody signed.

        Raises:
            FileProblemError: the file is not JSON.
            SettingsError: it was edited and does not hold.
        """
        return read_signature(self.signature_file) if self.signature_file.exists() else None

    def write_launch(self, launch: Launch) -> None:
        """Store how the run was asked for.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        write_atomically(self.launch_file, launch.model_dump_json().encode())

    def write_problem(self, error: AsterionError) -> None:
        """Store why the run ended early.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        trouble = Trouble(exit_code=error.exit_code, message=str(error))
        write_atomically(self.problem_file, trouble.model_dump_json().encode())

    def write_process(self) -> None:
        """Store which process carries the run out: this one.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        write_atomically(self.process_file, f"{socket.gethostname()} {os.getpid()}".encode())

    def process_is_gone(self) -> bool:
        """Whether the process that carried the run out ran on this machine and is dead."""
        number = self._process_number()
        if number is None:
            return False
        try:
            # Flower's SuperExec collects its dead children late: a zombie is dead.
            return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def _process_number(self) -> int | None:
        """Of the process that carried the run out last, if that was on this machine."""
        try:
            host, number = self.process_file.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return None
        return int(number) if host == socket.gethostname() else None

    def problem(self) -> AsterionError | None:
        """Why the run ended early, as an error with its exit code; None when it did not."""
        if not self.problem_file.exists():
            return None
        trouble = _load(Trouble, self.problem_file)
        error = AsterionError(trouble.message)
        error.exit_code = trouble.exit_code
        return error


def _load(model: type[AnySettings], path: Path) -> AnySettings:
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise FileProblemError(path, f"is not JSON ({error})", "launch the run again") from None
    if isinstance(values, dict) and values.get("format", 1) != 1:
        what = f"is of format {values['format']}, and this version of Asterion knows 1"
        raise FileProblemError(path, what, "use the version that launched the run, or a later one")
    return validate(model, values, str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fix = "launch the run again"
        raise FileProblemError(path, error.strerror or "unreadable", fix) from None
