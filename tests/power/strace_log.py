"""Lines of strace as system calls.

Every string is asked for in hexadecimal, so that nothing inside one can look like strace's own
punctuation; `TRACED` and `OPTIONS` are what `recording` runs strace with.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# `?`: a call that this processor's kernel does not have is no error.
TRACED = [
    *("open", "openat", "openat2", "creat", "close", "close_range", "dup", "dup2", "dup3", "fcntl"),
    *("read", "readv", "write", "writev", "pwrite64", "pwritev", "pwritev2", "lseek"),
    *("truncate", "ftruncate", "fallocate", "sendfile", "copy_file_range", "splice"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "chdir", "fchdir"),
    *("fsync", "fdatasync", "sync", "syncfs", "mmap", "io_uring_setup"),
    *("fork", "vfork", "clone", "clone3", "execve"),
]
MOST_BYTES_OF_A_WRITE = 1 << 26
OPTIONS = [
    *("--daemonize", "--follow-forks", "--seccomp-bpf", "--decode-fds=path"),
    *("--quiet=attach,personality", "--strings-in-hex=all"),
    # Of reads only the number of bytes counts; raw, they are not written out.
    *(f"--trace={','.join(f'?{name}' for name in TRACED)}", "--raw=read,readv"),
    *(f"--string-limit={MOST_BYTES_OF_A_WRITE}", "--absolute-timestamps=format:unix,precision:us"),
]

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d\w*|\?)(.*)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<([^>]*)>)?(\(deleted\))?")
_STRING = re.compile(r'"([^"]*)"(\.\.\.)?')
_FORKS = {"fork", "vfork", "clone", "clone3"}


class RecordError(Exception):
    """What a process did cannot be followed; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that succeeded, or the beginning of one.

    ``result`` is None at the beginning; ``line`` is where it began. ``place`` is the path behind
    a descriptor that it returned.
    """

    thread: int
    time_seconds: float
    line: int
    name: str
    words: tuple[str, ...]
    result: int | None
    place: str | None


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An argument that is a file descriptor; ``number`` is None for the current folder."""

    number: int | None
    path: str
    deleted: bool


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Successful calls as they return; of one that others overtook also the beginning.

    Calls that failed, or never returned because the process was killed, are left away.

    Raises:
        RecordError: a line that is none of strace's, or a write longer than strace was told to
            write out.
    """
    begun: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        thread, time, text = _split(line)
        if text.startswith(("+++", "---")):
            continue
        start = number
        if text.endswith(_UNFINISHED):
            begun[thread] = number, text.removesuffix(_UNFINISHED)
            name, _, words = begun[thread][1].partition("(")
            yield Call(thread, time, number, name, tuple(words.split(", ")), None, None)
            continue
        if resumed := _RESUMED.fullmatch(text):
            start, beginning = begun.pop(thread)
            text = beginning + resumed[1]
        call = _CALL.fullmatch(text)
        if call is None:
            msg = f"not a line of strace: {line[:200]!r}"
            raise RecordError(msg)
        name, words, result, rest = call.groups()
        if result == "?" or result.startswith("-"):
            continue
        place = re.match(r"<([^>]*)>", rest)
        yield Call(
            thread,
            time,
            start,
            name,
            tuple(words.split(", ")),
            int(result, 0),
            _bytes_of(place[1]).decode() if place else None,
        )


def ended(lines: Iterable[str]) -> bool:
    """Whether the end of every thread that appears has been written; False without any."""
    alive: dict[int, bool] = {}
    for line in lines:
        thread, _, text = _split(line)
        alive[thread] = not text.startswith("+++")
    return bool(alive) and not any(alive.values())


@dataclass(frozen=True, slots=True)
class Birth:
    """Who started a thread or process, and whether they share descriptors and current folder."""

    parent: int
    shares_files: bool
    shares_folder: bool


def births(lines: Iterable[str]) -> dict[int, Birth]:
    """Parents of every thread that was started.

    A child's first call can be written before the call that made it returns; so these are looked
    up beforehand.

    Raises:
        RecordError: the kernel gave one number to two threads.
    """
    found: dict[int, Birth] = {}
    for call in calls(line for line in lines if _may_be_birth(line)):
        if call.result:
            flags = " ".join(call.words)
            if call.result in found:
                msg = f"thread number {call.result} came twice: record a shorter run"
                raise RecordError(msg)
            birth = Birth(call.thread, "CLONE_FILES" in flags, "CLONE_FS" in flags)
            found[call.result] = birth
    return found


def _may_be_birth(line: str) -> bool:
    text = _split(line)[2]
    name = text.removeprefix("<... ")
    return any(name.startswith((f"{fork}(", f"{fork} resumed")) for fork in _FORKS)


def descriptor(word: str) -> Descriptor:
    """Parse ``3<path>``, ``3<path>(deleted)`` or ``AT_FDCWD<path>``."""
    match = _DESCRIPTOR.fullmatch(word)
    if match is None:
        msg = f"not a descriptor: {word[:200]!r}"
        raise RecordError(msg)
    number = None if match[1] == "AT_FDCWD" else int(match[1])
    return Descriptor(number, _bytes_of(match[2] or "").decode(), match[3] is not None)


def strings(word: str) -> bytes:
    """All quoted strings in a word, joined: a path, the content of a write or a writev.

    Raises:
        RecordError: strace cut one off.
    """
    parts = []
    for string, cut_off in _STRING.findall(word):
        if cut_off:
            msg = f"a write of more than {MOST_BYTES_OF_A_WRITE} bytes was not written out"
            raise RecordError(msg)
        parts.append(_bytes_of(string))
    return b"".join(parts)


def _bytes_of(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _split(line: str) -> tuple[int, float, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        msg = f"not a line of strace: {line[:200]!r}"
        raise RecordError(msg)
    return int(match[1]), float(match[2]), match[3]
