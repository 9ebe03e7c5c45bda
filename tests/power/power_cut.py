"""A folder as it stands after a power cut.

A file's bytes survive when fsync, fdatasync or O_SYNC covered them; a creation, a rename or a
removal survives when its folder was synced; nothing else needs to (POSIX promises no more, and
file systems differ in what they add: Pillai et al., "All file systems are not created equal",
OSDI 2014). So there are many possible folders after one cut, and a program must live with each::

    record = record_run([sys.executable, "program.py", str(folder)], folder, notes)
    disk = Disk(record)
    for moment in disk.moments():           # every effect, in order
        disk.advance_to(moment)
        disk.rebuild(after, "synced")       # or "everything", or a seed
        check(after, told=record.said(moment))

What is kept:

- ``"synced"``: only what must survive. Whoever told the world something too early is caught.
- ``"everything"``: as after ``kill -9``.
- a seed: besides what must survive, some of the rest: writes torn at pages of 4 KiB, lengths
  without content (zeros), entries and sizes, each at random and in no order. Whoever relies on an
  order that nobody promised is caught: by many seeds, not by one.

Not modelled: a disk that lies about a flush, bit rot, sectors torn within a page, times of files
and permissions (what is rebuilt belongs to the caller alone: 0600 and 0700). A file that was
mapped for shared writing is left away.
"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.power.effects import (
    ROOT,
    Effect,
    Entered,
    Mapped,
    Moved,
    Record,
    Removed,
    Resized,
    Said,
    Synced,
    Wrote,
)

PAGE_BYTES = 4096
Keep = Literal["synced", "everything"] | int


@dataclass(slots=True)
class _Change:
    number: int
    effect: Effect
    durable: bool = False


@dataclass(slots=True)
class _File:
    content: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)
    mapped: bool = False

    def settle(self) -> None:
        """Fold leading durable changes in; a later one waits for the ones before it."""
        while self.changes and self.changes[0].durable:
            _change_content(self.content, self.changes.pop(0).effect)


@dataclass(slots=True)
class _Folder:
    entries: dict[str, int] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)

    def settle(self, number: int) -> None:
        while self.changes and self.changes[0].durable:
            _change_entries(self.entries, number, self.changes.pop(0).effect)


class Disk:
    """A record replayed; goes forward only."""

    def __init__(self, record: Record) -> None:
        self._record, self._moment = record, 0
        self._files: dict[int, _File] = {}
        self._folders: dict[int, _Folder] = {ROOT: _Folder()}
        numbers = number_of(record)
        for path, inode in numbers.items():
            content = record.before[path]
            if content is None:
                self._folders[inode] = _Folder()
            else:
                self._files[inode] = _File(bytearray(content))
        for path, inode in numbers.items():
            parent, _, name = path.rpartition("/")
            self._folders[numbers.get(parent, ROOT)].entries[name] = inode

    def moments(self) -> range:
        """From before the first effect to after the last one."""
        return range(len(self._record.effects) + 1)

    def advance_to(self, moment: int) -> None:
        """Let the first ``moment`` effects have happened.

        Raises:
            ValueError: the moment is past already or after the record's end.
        """
        if not self._moment <= moment <= len(self._record.effects):
            end = len(self._record.effects)
            msg = f"moment {moment} is not between now, {self._moment}, and the end, {end}"
            raise ValueError(msg)
        for number in range(self._moment, moment):
            self._happen(number, self._record.effects[number])
        self._moment = moment

    def rebuild(self, folder: Path, keep: Keep) -> None:
        """Write the folder as it may stand after a cut now; what stood there is removed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        linked: dict[int, Path] = {}
        for path, inode in self._tree(keep):
            place = folder / path
            if inode in self._folders:
                place.mkdir(mode=0o700)
            elif inode in linked:
                os.link(linked[inode], place)
            elif not self._files[inode].mapped:
                place.write_bytes(self._content(inode, keep))
                place.chmod(0o600)
                linked[inode] = place

    def contents(self, keep: Keep) -> dict[str, bytes | None]:
        """The same folder as values: relative path to content, None for a folder."""
        return {
            path: None if inode in self._folders else self._content(inode, keep)
            for path, inode in self._tree(keep)
            if inode in self._folders or not self._files[inode].mapped
        }

    def _happen(self, number: int, effect: Effect) -> None:
        match effect:
            case Wrote(inode, _, _, synced):
                self._files[inode].changes.append(_Change(number, effect, durable=synced))
                self._files[inode].settle()
            case Resized(inode, _):
                self._files[inode].changes.append(_Change(number, effect))
            case Entered(folder, _, inode, is_folder):
                if is_folder:
                    self._folders[inode] = _Folder()
                else:
                    self._files.setdefault(inode, _File())
                self._folders[folder].changes.append(_Change(number, effect))
            case Removed(folder, _):
                self._folders[folder].changes.append(_Change(number, effect))
            case Moved(folder, _, to_folder, _, _):
                for each in {folder, to_folder}:
                    self._folders[each].changes.append(_Change(number, effect))
            case Synced(inode, before):
                self._sync(inode, before)
            case Mapped(inode):
                self._files[inode].mapped = True
            case Said():
                pass

    def _sync(self, inode: int | None, before: int) -> None:
        for number, file in self._files.items():
            if inode in (None, number):
                _mark(file.changes, before)
                file.settle()
        for number, folder in self._folders.items():
            if inode in (None, number):
                _mark(folder.changes, before)
                folder.settle(number)

    def _tree(self, keep: Keep) -> Iterator[tuple[str, int]]:
        """Relative paths with their inodes, a folder before what is in it."""
        waiting = [("", ROOT)]
        while waiting:
            path, inode = waiting.pop()
            for name, entry in sorted(self._entries(inode, keep).items()):
                yield path + name, entry
                if entry in self._folders:
                    waiting.append((f"{path}{name}/", entry))

    def _entries(self, inode: int, keep: Keep) -> dict[str, int]:
        folder = self._folders[inode]
        entries = dict(folder.entries)
        for change in folder.changes:
            if change.durable or _survives(keep, change.number):
                _change_entries(entries, inode, change.effect)
        return entries

    def _content(self, inode: int, keep: Keep) -> bytes:
        file = self._files[inode]
        content = bytearray(file.content)
        for change in file.changes:
            if isinstance(keep, int) and isinstance(change.effect, Wrote) and not change.durable:
                _tear(content, change.effect, random.Random(f"{keep}/{change.number}"))  # noqa: S311
            elif change.durable or _survives(keep, change.number):
                _change_content(content, change.effect)
        return bytes(content)


def number_of(record: Record) -> dict[str, int]:
    """Numbers of what stood there before, by relative path, beginning with 1."""
    return {path: number for number, path in enumerate(sorted(record.before), start=1)}


def _mark(changes: list[_Change], before: int) -> None:
    for change in changes:
        change.durable = change.durable or change.number < before


def _survives(keep: Keep, number: int) -> bool:
    """One answer for each change and seed, so that both ends of a move agree."""
    if isinstance(keep, str):
        return keep == "everything"
    return _share(keep) > random.Random(f"{keep}/{number}").random()  # noqa: S311


def _share(seed: int) -> float:
    """What fraction survives with this seed: some cuts lose little, some most."""
    return random.Random(seed).random()  # noqa: S311


def _tear(content: bytearray, wrote: Wrote, chance: random.Random) -> None:
    """Keep some of a write's pages, and perhaps the length it gave the file."""
    end = wrote.offset + len(wrote.content)
    share = chance.random()
    if chance.random() < share and len(content) < end:
        content.extend(bytes(end - len(content)))
    start = wrote.offset
    while start < end:
        stop = min(end, (start // PAGE_BYTES + 1) * PAGE_BYTES)
        if chance.random() < share:
            piece = wrote.content[start - wrote.offset : stop - wrote.offset]
            _put(content, start, piece)
        start = stop


def _change_content(content: bytearray, effect: Effect) -> None:
    match effect:
        case Wrote(_, offset, written, _):
            _put(content, offset, written)
        case Resized(_, size_bytes):
            del content[size_bytes:]
            content.extend(bytes(size_bytes - len(content)))


def _put(content: bytearray, offset: int, written: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(written)] = written


def _change_entries(entries: dict[str, int], folder: int, effect: Effect) -> None:
    match effect:
        case Entered(_, name, inode, _):
            entries[name] = inode
        case Removed(_, name):
            entries.pop(name, None)
        case Moved(source, name, target, to_name, inode):
            if folder == source and entries.get(name) == inode:
                del entries[name]
            if folder == target:
                entries[to_name] = inode
