"""Record what a process and its children do to a folder.

strace records, because it stands at the border of the kernel: it sees every system call of every
thread, also of libraries and of static or restarted programs. An LD_PRELOAD library would be
faster but sees only calls that go through the C library's public names: not those inside of the C
library (``fflush`` writes through a private one), not raw ones; it has to be compiled, and a
program that clears its environment loses it. The kernel here has no device-mapper to record
blocks (dm-log-writes). What strace cannot see is writing through shared memory and io_uring.
So such a file raises (but SQLite's ``-shm``, which SQLite makes anew after a crash and which is
left away), and at the end the replayed folder is compared with the real one, byte for byte: a
record that missed anything is refused.

Every system call of the list in `strace_log` costs the process some 0.1 ms; others cost nothing.
Every byte written becomes four in the log, and reading the log takes longer than the run, some
0.05 s for a megabyte: record small models.

A program that ends::

    record = record_run([sys.executable, "program.py", str(folder)], folder, notes)

A server that is killed; ``process.pid`` is the server itself and not strace::

    recording = Recording(words, folder, notes)
    ...
    recording.process.kill()
    record = recording.finish()

What `power_cut` makes of a record stands there. What the process writes to standard output and
error is in the record between the effects, and in ``notes/stdout`` and ``notes/stderr``: so a
program proves with one line, ``print("stored 7", flush=True)``, what it held for durable when.
Tests call `require` first: without strace they fail.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.power.effects import Record
from tests.power.interpreter import Interpreter
from tests.power.power_cut import Disk, number_of
from tests.power.strace_log import OPTIONS, RecordError, births, calls, ended

FLUSH_SECONDS = 20.0


def require() -> None:
    """Fail without strace.

    Raises:
        RuntimeError: strace is not installed.
    """
    if shutil.which("strace") is None:
        msg = "no `strace` on the PATH: install it to test power cuts"
        raise RuntimeError(msg)


class Recording:
    """A process being recorded.

    Args:
        words: its command line. It must be given the folder's resolved path, and open the
            folder's files itself.
        folder: what is recorded; may hold files, which count as durable.
        notes: a new folder outside for strace's log and what the process says.
        may_be_mapped: endings of files whose shared memory is harmless.
        options: of ``subprocess.Popen``; not ``stdout`` and ``stderr``.

    Raises:
        ValueError: ``folder`` has a symbolic link in its path, or ``notes`` lies in it.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        notes: Path,
        *,
        may_be_mapped: tuple[str, ...] = ("-shm",),
        **options: Any,
    ) -> None:
        if folder != folder.resolve() or folder in notes.resolve().parents:
            msg = f"{folder} must be a resolved path, and {notes} must lie outside of it"
            raise ValueError(msg)
        notes = notes.resolve()
        notes.mkdir()
        self.folder, self.notes, self._may_be_mapped = folder, notes, may_be_mapped
        self._before = contents_of(folder)
        self._current = str(Path(options.get("cwd") or Path.cwd()).resolve())
        self._log = notes / "strace.log"
        with (notes / "stdout").open("wb") as out, (notes / "stderr").open("wb") as errors:
            self.process = subprocess.Popen[bytes](
                ["strace", *OPTIONS, f"--output={self._log}", *words],
                stdout=out,
                stderr=errors,
                **options,
            )

    def finish(self, timeout_seconds: float = 60.0) -> Record:
        """Wait for the process and all of its children to end; interpret the log.

        Raises:
            subprocess.TimeoutExpired: the process goes on; kill it.
            RecordError: something cannot be followed, or the replayed folder is not the real one.
        """
        self.process.wait(timeout_seconds)
        lines = self._lines()
        empty = Record(self._before, (), ())
        numbers = number_of(empty)
        interpreter = Interpreter(
            folder=str(self.folder),
            current=self._current,
            inodes={"": 0, **numbers},
            sizes={numbers[p]: len(c) for p, c in self._before.items() if c is not None},
            births=births(lines),
            streams={str(self.notes / name): n for n, name in ((1, "stdout"), (2, "stderr"))},
            may_be_mapped=self._may_be_mapped,
        )
        interpreter.run(calls(lines))
        record = Record(self._before, tuple(interpreter.effects), tuple(interpreter.times_seconds))
        self._compare(record)
        return record

    def _lines(self) -> list[str]:
        """The log, complete: strace goes on for a moment after the process has ended."""
        until = time.monotonic() + FLUSH_SECONDS
        while True:
            lines = self._log.read_text().splitlines() if self._log.exists() else []
            if self._log.exists() and ended(lines):
                return lines
            if time.monotonic() > until:
                said = (self.notes / "stderr").read_text()
                msg = f"strace has not seen every child end; a child lives on? It wrote: {said}"
                raise RecordError(msg)
            time.sleep(0.01)

    def _compare(self, record: Record) -> None:
        disk = Disk(record)
        disk.advance_to(len(record.effects))
        replayed, real = disk.contents("everything"), contents_of(self.folder)
        mapped = {path for path in real if path.endswith(self._may_be_mapped)}
        nothing = object()
        wrong = [
            path
            for path in sorted({*replayed, *real} - mapped)
            if replayed.get(path, nothing) != real.get(path, nothing)
        ]
        if wrong:
            msg = f"the record missed something: replayed, {wrong} differ from the folder"
            raise RecordError(msg)


def record_run(
    words: Sequence[str],
    folder: Path,
    notes: Path,
    *,
    timeout_seconds: float = 60.0,
    **options: Any,
) -> Record:
    """Run a command to its end and record it; ``options`` as in `Recording`.

    Raises:
        subprocess.CalledProcessError: it ended with an error, which it has told on stderr.
        RecordError: see `Recording.finish`.
    """
    recording = Recording(words, folder, notes, **options)
    try:
        status = recording.process.wait(timeout_seconds)
    finally:
        recording.process.kill()
    if status != 0:
        errors = (notes / "stderr").read_text()
        raise subprocess.CalledProcessError(status, list(words), stderr=errors)
    return recording.finish()


def contents_of(folder: Path) -> Mapping[str, bytes | None]:
    """Relative path to content of everything in a folder; None for folders."""
    found: dict[str, bytes | None] = {}
    for place, folders, files in os.walk(folder):
        for name in folders:
            found[str(Path(place, name).relative_to(folder))] = None
        for name in files:
            path = Path(place, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
