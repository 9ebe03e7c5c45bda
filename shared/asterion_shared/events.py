"""What a running federation tells whoever watches: a value an event, a JSON line each."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter, ValidationError

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, sync_folder
from asterion_shared.messages import Phase
from asterion_shared.plan import Name, TaskName
from asterion_shared.result import Count, Result, RoundResult, Seconds, UtcTime
from asterion_shared.settings_files import Settings


class RunStarted(Settings):
    """A run began, or went on after a stop."""

    event: Literal["run_started"] = "run_started"
    run: str
    plan: Name
    """The plan's name."""

    task: TaskName
    sites: tuple[Name, ...]
    """Sites that can be asked, sorted."""

    rounds: Count
    """Rounds that the plan asks for."""


class DeadlineDerived(Settings):
    """A live round begins whose deadline the plan leaves open."""

    event: Literal["deadline_derived"] = "deadline_derived"
    round: Count
    phase: Phase
    deadline_seconds: Seconds
    site: Name | None = None
    """The slowest of the sites that are asked; None where nothing is measured yet."""

    site_seconds: Seconds = 0.0
    """What it took in this run: its median of work and its median of transfer."""


class SiteAwaited(Settings):
    """A round that waits for a site says so, and when it waits no more."""

    event: Literal["site_awaited"] = "site_awaited"
    round: Count
    phase: Phase
    site: Name
    state: Literal["away", "late", "back"]
    """It is away, it is there and past the deadline, or it was away and is there again."""

    since: UtcTime
    """Since when it is, or was, away; of a late one, when its order was sent."""


class RoundFinished(Settings):
    """A round is folded and stored, and the model after it is measured."""

    event: Literal["round_finished"] = "round_finished"
    round_result: RoundResult


class RunFinished(Settings):
    """A run ended, in whatever way its result's status says."""

    event: Literal["run_finished"] = "run_finished"
    result: Result


Event = RunStarted | DeadlineDerived | SiteAwaited | RoundFinished | RunFinished
Listener = Callable[[Event], None]
"""What the loop calls with each event, such as ``reports.terminal.RoundPrinter``."""


def ignore(event: Event) -> None:
    """Tell nobody."""


_BLOCK_BYTES = 2**16
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def event_line(event: Event) -> str:
    """An event as one line of JSON, without the line's end."""
    return event.model_dump_json()


def append_event(path: Path, event: Event) -> None:
    """Add an event to a file of JSON lines and bring it to the disk.

    A last line that an earlier process left half-written is removed first. One process writes,
    any number may read.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    try:
        make_folder(path.parent)
        new = not path.exists()
        with path.open("a+b") as file:
            file.truncate(_whole_bytes(file))
            file.write(event_line(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def told_the_end(path: Path) -> bool:
    """Whether the last whole event of a file is a :class:`RunFinished`; False without a file.

    Raises:
        DiskProblemError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            end = _whole_bytes(file) - 1  # without the last line's end
            start = _line_start(file, end)
            file.seek(start)
            line = file.read(max(end - start, 0))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    return bool(line) and isinstance(_ADAPTER.validate_json(line), RunFinished)


def _whole_bytes(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = _line_start(file, file.seek(0, os.SEEK_END))
    start = _line_start(file, end - 1)
    file.seek(start)
    return start if _is_torn(file.read(max(end - start, 0))) else end


def _is_torn(line: bytes) -> bool:
    """Whether a power cut left zeros in a line, whose end it may have kept; only of the last."""
    return b"\0" in line


def _line_start(file: BinaryIO, end: int) -> int:
    """Where the line begins that ends at ``end``; looks from there, as the file grows."""
    while end > 0:
        start = max(end - _BLOCK_BYTES, 0)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def read_events(path: Path) -> list[Event]:
    """Read the whole events of a file; a half-written last line is left for the next time.

    A file that does not exist yet has none.

    Raises:
        FileProblemError: the file cannot be read, or a whole line of it is not an event.
    """
    return read_events_from(path, 0)[0]


def read_events_from(path: Path, begin: int) -> tuple[list[Event], int]:
    """The whole events of a file from a line's begin on, and where the next will begin.

    Args:
        path: the file; one that does not exist yet has no events.
        begin: in bytes: 0, or what an earlier call gave for the same file.

    Raises:
        FileProblemError: as :func:`read_events`; the line's number counts from ``begin``.
    """
    try:
        with path.open("rb") as file:
            file.seek(begin)
            content = file.read()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise FileProblemError(path, error.strerror or "unreadable", "check the path") from None
    content = content[: content.rfind(b"\n") + 1]
    lines = content.splitlines()
    end = begin + len(content)
    if lines and _is_torn(lines[-1]):
        end -= len(lines.pop()) + 1
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)], end


def _parse(path: Path, number: int, line: bytes) -> Event:
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        what = f"line {number} is not an event ({error.error_count()} problems)"
        fix = "remove the file; the run writes it anew when it goes on"
        raise FileProblemError(path, what, fix) from None
