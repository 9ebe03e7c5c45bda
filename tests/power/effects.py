"""What a process did to a folder, as values: the record that `recording` makes.

Files and folders are numbered as they appear (like inodes; the recorded folder itself is 0), so
that a rename changes an entry and never the file. Every effect stands where its system call
returned.
"""

from collections.abc import Mapping
from dataclasses import dataclass

ROOT = 0


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes at an offset; ``synced`` when the file was opened with O_SYNC or O_DSYNC."""

    inode: int
    offset: int
    content: bytes
    synced: bool


@dataclass(frozen=True, slots=True)
class Resized:
    """The file has this many bytes now, zeros at the end where it grew."""

    inode: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Entered:
    """A folder got an entry, a new file or folder or a further link; it may replace one."""

    folder: int
    name: str
    inode: int
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """A folder lost an entry."""

    folder: int
    name: str


@dataclass(frozen=True, slots=True)
class Moved:
    """An entry changed its name or folder, in one step."""

    folder: int
    name: str
    to_folder: int
    to_name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A file or folder was synced, everything when ``inode`` is None.

    It covers the effects before number ``before``: those whose calls had returned when the sync
    was called, not those that returned while it ran.
    """

    inode: int | None
    before: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file was mapped for shared writing: its content can no longer be followed."""

    inode: int


@dataclass(frozen=True, slots=True)
class Said:
    """The process wrote to its standard output or error: what the world has been told."""

    stream: int
    content: bytes


Effect = Wrote | Resized | Entered | Removed | Moved | Synced | Mapped | Said


@dataclass(frozen=True, slots=True)
class Record:
    """A folder before, and everything that happened to it.

    Attributes:
        before: relative path to content, None for a folder; all of it counts as durable.
        effects: in the order in which their calls returned.
        times_seconds: of each effect, seconds since 1970 of this machine's clock, so that records
            of several processes can be put side by side.
    """

    before: Mapping[str, bytes | None]
    effects: tuple[Effect, ...]
    times_seconds: tuple[float, ...]

    def said(self, moment: int, stream: int = 1) -> str:
        """What had been told on a stream after the first ``moment`` effects."""
        told = (effect for effect in self.effects[:moment] if isinstance(effect, Said))
        return b"".join(t.content for t in told if t.stream == stream).decode(errors="replace")

    def moment_at(self, time_seconds: float) -> int:
        """The number of effects that had happened at a time."""
        return sum(time <= time_seconds for time in self.times_seconds)
