"""System calls as effects on one folder.

Keeps what the kernel keeps: descriptors of each process with the offset of each open file, the
current folder, the names below the recorded folder. Reads count because they move offsets. What
cannot be followed raises; what was missed without that shows in `recording`, which compares the
outcome with the folder.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.power.effects import (
    ROOT,
    Effect,
    Entered,
    Mapped,
    Moved,
    Removed,
    Resized,
    Said,
    Synced,
    Wrote,
)
from tests.power.strace_log import Birth, Call, RecordError, descriptor, strings

_IGNORED = {"fork", "vfork", "clone", "clone3"}
_CONTENT_UNKNOWN = {"sendfile": 0, "copy_file_range": 2, "splice": 2}


@dataclass(slots=True)
class _Open:
    """An open file description: duplicates and forked processes share it."""

    inode: int
    appends: bool
    synced: bool
    offset: int = 0


@dataclass(slots=True)
class _Process:
    """What threads share: descriptors (with their close-on-exec) and, in a box, the folder."""

    files: dict[int, tuple[_Open, bool]]
    current: list[str]


@dataclass(slots=True)
class Interpreter:
    """Feed it calls in order; ``effects`` and ``times_seconds`` grow.

    Attributes:
        folder: resolved path of the recorded folder.
        current: the first process's current folder.
        inodes: relative path to number of what stood there before; empty path: the folder.
        sizes: bytes of the files among them.
        births: from `strace_log.births`.
        streams: path to number (1, 2) of the files that take what the process says.
        may_be_mapped: names end like this when mapping them for shared writing is harmless.
    """

    folder: str
    current: str
    inodes: dict[str, int]
    sizes: dict[int, int]
    births: Mapping[int, Birth]
    streams: Mapping[str, int]
    may_be_mapped: tuple[str, ...]
    effects: list[Effect] = field(default_factory=list)
    times_seconds: list[float] = field(default_factory=list)
    _processes: dict[int, _Process] = field(default_factory=dict)
    _begun: dict[int, int] = field(default_factory=dict)
    _next_inode: int = 0

    def __post_init__(self) -> None:
        self._next_inode = max(self.inodes.values()) + 1

    def run(self, calls: Iterable[Call]) -> None:
        """Interpret all calls.

        Raises:
            RecordError: something that cannot be followed.
        """
        for call in calls:
            process = self._process(call.thread)
            if call.result is None:
                self._begun[call.line] = len(self.effects)
            elif call.name not in _IGNORED:
                self._interpret(call, call.result, process)

    def _process(self, thread: int) -> _Process:
        if thread not in self._processes:
            if not self._processes:
                self._processes[thread] = _Process({}, [self.current])
            elif thread in self.births:
                birth = self.births[thread]
                parent = self._process(birth.parent)
                self._processes[thread] = _Process(
                    parent.files if birth.shares_files else dict(parent.files),
                    parent.current if birth.shares_folder else list(parent.current),
                )
            else:
                msg = f"thread {thread} was started by nobody who was recorded"
                raise RecordError(msg)
        return self._processes[thread]

    def _interpret(self, call: Call, result: int, process: _Process) -> None:
        words = call.words
        match call.name:
            case "open" | "openat" | "openat2" | "creat":
                self._open(call, result, process)
            case "close":
                process.files.pop(descriptor(words[0]).number or 0, None)
            case "close_range":
                self._close_range(words, process)
            case "dup" | "dup2" | "dup3":
                self._duplicate(words[0], result, process, closing="CLOEXEC" in words[-1])
            case "fcntl" if words[1].startswith("F_DUPFD"):
                self._duplicate(words[0], result, process, closing="CLOEXEC" in words[1])
            case "fcntl" if words[1] == "F_SETFD":
                number = descriptor(words[0]).number or 0
                if number in process.files:
                    process.files[number] = process.files[number][0], "CLOEXEC" in words[2]
            case "execve":
                kept = {n: held for n, held in process.files.items() if not held[1]}
                self._processes[call.thread] = _Process(kept, list(process.current))
            case "chdir":
                process.current[0] = self._absolute(strings(words[0]), process)
            case "fchdir":
                process.current[0] = descriptor(words[0]).path
            case "read" | "readv":
                if (number := int(words[0], 0)) in process.files:
                    process.files[number][0].offset += result
            case "lseek":
                if (opened := self._opened(words[0], process)) is not None:
                    opened.offset = result
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                self._write(call, result, process)
            case "ftruncate" | "fallocate":
                if (opened := self._opened(words[0], process)) is not None:
                    self._resize(call, opened.inode)
            case "truncate":
                if (inode := self._inode(strings(words[0]), process)) is not None:
                    self._resize(call, inode)
            case "fsync" | "fdatasync":
                if (opened := self._opened(words[0], process)) is not None:
                    self._sync(call, opened.inode)
            case "sync" | "syncfs":
                self._sync(call, None)
            case "mmap":
                self._map(call, process)
            case "io_uring_setup":
                msg = "io_uring writes without system calls: start the program without it"
                raise RecordError(msg)
            case "sendfile" | "copy_file_range" | "splice":
                word = words[_CONTENT_UNKNOWN[call.name]]
                if self._opened(word, process) is not None:
                    msg = f"{call.name} fills {descriptor(word).path} with bytes nobody wrote out"
                    raise RecordError(msg)
            case _:
                self._change_names(call, process)

    def _happen(self, call: Call, effect: Effect) -> None:
        self.effects.append(effect)
        self.times_seconds.append(call.time_seconds)

    # Descriptors

    def _open(self, call: Call, number: int, process: _Process) -> None:
        process.files.pop(number, None)
        path = self._inside(call.place or "")
        if path is None:
            return
        flags = call.words[2 if call.name.startswith("openat") else 1]
        if call.name == "creat":
            flags = "O_WRONLY|O_CREAT|O_TRUNC"
        if "O_TMPFILE" in flags:
            msg = f"O_TMPFILE in {call.place}: files without names are not followed"
            raise RecordError(msg)
        if path not in self.inodes:
            self._enter(call, path, self._new_inode(), is_folder=False)
        inode = self.inodes[path]
        if "O_TRUNC" in flags and self.sizes[inode]:
            self.sizes[inode] = 0
            self._happen(call, Resized(inode, 0))
        opened = _Open(inode, appends="O_APPEND" in flags, synced="SYNC" in flags)
        process.files[number] = opened, "O_CLOEXEC" in flags

    def _close_range(self, words: tuple[str, ...], process: _Process) -> None:
        first, last = int(words[0], 0), int(words[1], 0)
        for number in [n for n in process.files if first <= n <= last]:
            if "CLOEXEC" in words[2]:
                process.files[number] = process.files[number][0], True
            else:
                del process.files[number]

    def _duplicate(self, word: str, number: int, process: _Process, *, closing: bool) -> None:
        opened = self._opened(word, process)
        process.files.pop(number, None)
        if opened is not None:
            process.files[number] = opened, closing

    def _opened(self, word: str, process: _Process) -> _Open | None:
        """The open file behind a descriptor; None when it lies outside of the folder."""
        said = descriptor(word)
        number = -1 if said.number is None else said.number
        if self._inside(said.path) is None:
            process.files.pop(number, None)
            return None
        if number not in process.files:
            msg = (
                f"{said.path} was opened before the recording or passed by another process: let "
                "the recorded process open it itself"
            )
            raise RecordError(msg)
        return process.files[number][0]

    # Content

    def _write(self, call: Call, count: int, process: _Process) -> None:
        said = descriptor(call.words[0])
        if said.path in self.streams:
            content = strings(", ".join(call.words[1:]))[:count]
            self._happen(call, Said(self.streams[said.path], content))
            return
        opened = self._opened(call.words[0], process)
        if opened is None or count == 0:
            return
        content = strings(", ".join(call.words[1:]))[:count]
        # pwritev2 has flags behind its offset; an offset of -1 means that of the file.
        offset = -1
        if call.name != "write" and call.name != "writev":
            offset = int(call.words[-2 if call.name == "pwritev2" else -1])
        moves = offset < 0
        if opened.appends:
            offset = self.sizes[opened.inode]
        elif moves:
            offset = opened.offset
        if moves:
            opened.offset = offset + count
        self.sizes[opened.inode] = max(self.sizes[opened.inode], offset + count)
        synced = opened.synced or (call.name == "pwritev2" and "SYNC" in call.words[-1])
        self._happen(call, Wrote(opened.inode, offset, content, synced))

    def _resize(self, call: Call, inode: int) -> None:
        if call.name == "fallocate":
            if call.words[1] != "0":
                msg = f"fallocate with {call.words[1]} is not followed"
                raise RecordError(msg)
            size = max(self.sizes[inode], int(call.words[2]) + int(call.words[3]))
        else:
            size = int(call.words[1])
        if size != self.sizes[inode]:
            self.sizes[inode] = size
            self._happen(call, Resized(inode, size))

    def _sync(self, call: Call, inode: int | None) -> None:
        before = self._begun.get(call.line, len(self.effects))
        self._happen(call, Synced(inode, before))

    def _map(self, call: Call, process: _Process) -> None:
        _, _, protection, kind, word, _ = call.words
        if "MAP_SHARED" in kind and "PROT_WRITE" in protection and "ANONYMOUS" not in kind:
            opened = self._opened(word, process)
            if opened is None:
                return
            path = descriptor(word).path
            if not path.endswith(self.may_be_mapped):
                msg = f"{path} is mapped for shared writing: its content cannot be followed"
                raise RecordError(msg)
            self._happen(call, Mapped(opened.inode))

    # Names

    def _change_names(self, call: Call, process: _Process) -> None:
        words = call.words
        match call.name:
            case "mkdir" | "mkdirat":
                path = self._named(words, 0, process)
                if path is not None:
                    self._enter(call, path, self._new_inode(), is_folder=True)
            case "unlink" | "unlinkat" | "rmdir":
                path = self._named(words, 0, process)
                if path is not None:
                    del self.inodes[path]
                    self._happen(call, Removed(*self._entry(path)))
            case "link" | "linkat":
                old, new = self._pair(call, process)
                if new is not None and old is not None:
                    self._enter(call, new, self.inodes[old], is_folder=False)
            case "rename" | "renameat" | "renameat2":
                self._rename(call, process)
            case "symlink" | "symlinkat":
                if self._named(words, 1, process) is not None:
                    msg = "symbolic links in the recorded folder are not followed"
                    raise RecordError(msg)

    def _rename(self, call: Call, process: _Process) -> None:
        old, new = self._pair(call, process)
        if old is None or new is None or self.inodes[old] == self.inodes.get(new):
            return
        if "RENAME_EXCHANGE" in call.words[-1]:
            msg = "RENAME_EXCHANGE is not followed"
            raise RecordError(msg)
        for path in [p for p in self.inodes if p == new or p.startswith(f"{new}/")]:
            del self.inodes[path]
        for path in [p for p in self.inodes if p == old or p.startswith(f"{old}/")]:
            self.inodes[new + path.removeprefix(old)] = self.inodes.pop(path)
        moved = Moved(*self._entry(old), *self._entry(new), self.inodes[new])
        self._happen(call, moved)

    def _pair(self, call: Call, process: _Process) -> tuple[str | None, str | None]:
        """Old and new path; one alone inside is a move that cannot be followed."""
        second = 2 if call.name in {"renameat", "renameat2", "linkat"} else 1
        old = self._named(call.words, 0, process)
        new = self._named(call.words, second, process)
        if (old is None) != (new is None):
            msg = f"{call.name} across the border of {self.folder}: {old} to {new}"
            raise RecordError(msg)
        return old, new

    def _named(self, words: tuple[str, ...], place: int, process: _Process) -> str | None:
        """The path at a place of the words, relative to a descriptor where one stands there."""
        if words[place].startswith('"'):
            return self._inside(self._absolute(strings(words[place]), process))
        base = descriptor(words[place]).path
        path = strings(words[place + 1]).decode()
        return self._inside(posixpath.normpath(posixpath.join(base, path)))

    def _absolute(self, path: bytes, process: _Process) -> str:
        return posixpath.normpath(posixpath.join(process.current[0], path.decode()))

    def _inside(self, path: str) -> str | None:
        if path == self.folder:
            return ""
        prefix = f"{self.folder}/"
        return path.removeprefix(prefix) if path.startswith(prefix) else None

    def _inode(self, path: bytes, process: _Process) -> int | None:
        inside = self._inside(self._absolute(path, process))
        return None if inside is None else self.inodes[inside]

    def _enter(self, call: Call, path: str, inode: int, *, is_folder: bool) -> None:
        self.inodes[path] = inode
        if not is_folder:
            self.sizes.setdefault(inode, 0)
        self._happen(call, Entered(*self._entry(path), inode, is_folder))

    def _entry(self, path: str) -> tuple[int, str]:
        parent, name = posixpath.split(path)
        return (self.inodes[parent] if parent else ROOT), name

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1
