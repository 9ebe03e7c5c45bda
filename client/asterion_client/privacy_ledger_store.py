"""The files under the privacy ledger: entries in order, and who was in which data set.

One SQLite database, and one small file beside it, the witness, which holds the newest head; a
second one where a coordinator was told a head that the ledger did not have. The people stand in
two tables as a partition: a group is all people who were in exactly the same data sets, so that
each group, however large, is accounted once.
"""

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from asterion_client.privacy_entries import Head, Row, Told, hash_line
from asterion_shared.errors import DiskProblemError, FileProblemError, LedgerStoppedError
from asterion_shared.files import make_folder, sync_folder, write_atomically

SCHEMA_VERSION = 1
DATABASE = "ledger.sqlite"
WITNESS = "ledger.head"
TOLD = "ledger.told"
RESTORED = "ledger.restored"
WAIT_SECONDS = 300.0
"""How long one process waits for another to finish its charge."""

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE ledger (salt BLOB NOT NULL);
CREATE TABLE entry (number INTEGER PRIMARY KEY, content TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE unit (id TEXT PRIMARY KEY, group_number INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX unit_of_group ON unit (group_number);
CREATE TABLE unit_group (
    number INTEGER PRIMARY KEY, num_units INTEGER NOT NULL, data_sets BLOB NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Group:
    """People who were in exactly the same data sets; bit ``i`` stands for data set ``i``."""

    number: int
    num_units: int
    data_sets: int


class Store:
    """An open ledger file. Serves one thread; any number of processes may have it open.

    Args:
        folder: of the ledger; made with mode 0700 when missing.
        create: whether to start a ledger where there is none.

    Raises:
        FileProblemError: there is none, it is not one, others can read it, it is of another
            version, or its database is gone while its witness is there.
        DiskProblemError: the folder is not writable.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.path, self._witness, self._told = (folder / n for n in (DATABASE, WITNESS, TOLD))
        self._folder = folder
        if not self.path.exists():
            if problem := restored_problem(folder):
                raise LedgerStoppedError(self.path, problem, RESTORE)
            if self._witness.exists():
                what = f"the database is gone, its witness {WITNESS} is here"
                raise LedgerStoppedError(self.path, what, RESTORE)
            if not create:
                raise FileProblemError(
                    self.path, "no such ledger", "check the path; nothing was charged here yet"
                )
            _create(self.path)
        if self.path.stat().st_mode & 0o077:
            raise FileProblemError(
                self.path, "others can read this ledger", f"chmod 600 {self.path}"
            )
        with _translated(self.path):
            self._db = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=rw",
                uri=True, timeout=WAIT_SECONDS, isolation_level=None,
            )  # fmt: skip
            try:
                self.salt = self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> bytes:
        """Make every commit durable; check the format; return the salt."""
        self._db.execute("PRAGMA synchronous = FULL")
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            what = f"a ledger of version {version}; this program reads {SCHEMA_VERSION}"
            raise FileProblemError(self.path, what, "use the program that wrote it")
        [mode] = self._db.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            what = f"its journal is {mode!r}, not a write-ahead log"
            raise FileProblemError(self.path, what, "put the ledger on a local disk")
        [salt] = self._db.execute("SELECT max(salt) FROM ledger").fetchone()
        return bytes(salt or b"")

    @property
    def start(self) -> Head:
        """The head of this ledger before its first entry; it commits to the salt."""
        label = f"asterion privacy ledger {SCHEMA_VERSION}\n".encode()
        return Head(0, hashlib.sha256(label + self.salt).hexdigest())

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and no other process writes meanwhile.

        Raises:
            DiskProblemError: the disk is full or not writable, or another process holds the
                ledger for longer than :data:`WAIT_SECONDS`; nothing was written.
            FileProblemError: the database is damaged.
        """
        with _translated(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.commit()
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def commit(self) -> None:
        """Bring the transaction to the disk."""
        self._db.execute("COMMIT")

    def rows(self, after: int = 0) -> Iterator[Row]:
        """The entries after a number, in order."""
        query = "SELECT number, content, sha256 FROM entry WHERE number > ? ORDER BY number"
        for values in self._db.execute(query, (after,)):
            yield Row(*values)

    def append(self, line: str, number: int) -> Head:
        """Write an entry; within a transaction."""
        head = Head(number, hash_line(line))
        self._db.execute("INSERT INTO entry VALUES (?, ?, ?)", (number, line, head.sha256))
        return head

    def groups(self) -> list[Group]:
        """Every group of people."""
        rows = self._db.execute("SELECT number, num_units, data_sets FROM unit_group").fetchall()
        return [Group(number, size, int.from_bytes(sets, "little")) for number, size, sets in rows]

    def units_of(self, data_set: int) -> list[str]:
        """The hashed ids of a data set, sorted."""
        found: list[str] = []
        for group in self.groups():
            if group.data_sets >> data_set & 1:
                query = "SELECT id FROM unit WHERE group_number = ?"
                found += [unit for [unit] in self._db.execute(query, (group.number,))]
        return sorted(found)

    def add_data_set(self, data_set: int, units: Iterable[str]) -> None:
        """Refine the partition by a new data set; within a transaction.

        Args:
            data_set: its number, the next free one.
            units: hashed ids, without repetition.
        """
        known, bit = {group.number: group for group in self.groups()}, 1 << data_set
        members: dict[int | None, list[str]] = {}
        found = self._db.execute(
            "SELECT value, group_number FROM json_each(?) LEFT JOIN unit ON unit.id = value",
            (json.dumps(list(units)),),
        )
        for unit, number in found:
            members.setdefault(number, []).append(unit)
        next_number = max(known, default=0) + 1
        for number, ids in members.items():
            old = known[number] if number is not None else Group(0, 0, 0)
            if old.num_units == len(ids):
                self._put(Group(old.number, old.num_units, old.data_sets | bit))
                continue
            if number is not None:
                self._put(Group(number, old.num_units - len(ids), old.data_sets))
            self._put(Group(next_number, len(ids), old.data_sets | bit))
            rows = ((unit, next_number) for unit in ids)
            self._db.executemany("INSERT OR REPLACE INTO unit VALUES (?, ?)", rows)
            next_number += 1

    def _put(self, group: Group) -> None:
        sets = group.data_sets.to_bytes(group.data_sets.bit_length() // 8 + 1, "little")
        self._db.execute(
            "INSERT OR REPLACE INTO unit_group VALUES (?, ?, ?)",
            (group.number, group.num_units, sets),
        )

    def read_witness(self) -> Head | None:
        """The head beside the database; None when the file is missing.

        Raises:
            FileProblemError: it cannot be read, or is not a head.
        """
        try:
            count, sha256 = self._witness.read_text(encoding="ascii").split()
            return Head(int(count), sha256)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            what = "is not the head of a ledger"
            raise LedgerStoppedError(self._witness, what, RESTORE) from None

    def keep_witness(self) -> None:
        """Bring the newest head to the witness and to the disk, unless it stands there already.

        Raises:
            DiskProblemError: the folder is not writable.
        """
        # In a transaction, so that of two processes the later head is written last.
        with self.transaction():
            last = self._db.execute("SELECT max(number), sha256 FROM entry").fetchone()
            head = Head(*last) if last[0] is not None else self.start
            if self.read_witness() != head:
                self.write_witness(head)

    def write_witness(self, head: Head) -> None:
        """Replace the witness."""
        write_atomically(self._witness, f"{head}\n".encode())
        self._witness.chmod(0o600)

    def witness_problem(self, hashes: list[str]) -> str:
        """Whether the witness fits a chain; empty when it does.

        Args:
            hashes: of the start and of every entry, in order.
        """
        witness = self.read_witness()
        ours = Head(len(hashes) - 1, hashes[-1])
        if witness is None:
            return f"its witness {WITNESS} is gone" if ours.count else ""
        # A witness that is behind is what a crash after the commit leaves.
        if witness.count <= ours.count and hashes[witness.count] == witness.sha256:
            return ""
        return f"the ledger ends at {ours}, but its witness {WITNESS} has seen {witness}"

    def write_told(self, told: Told) -> None:
        """Keep a head that a coordinator was told; while the ledger lacks it, nothing leaves.

        Raises:
            DiskProblemError: the folder is not writable.
        """
        write_atomically(self._told, (told.model_dump_json() + "\n").encode())
        self._told.chmod(0o600)

    def told_problem(self, hashes: list[str]) -> str:
        """Whether a chain is of a backup, or lacks what a coordinator was told; empty when not.

        Args:
            hashes: of the start and of every entry, in order.

        Raises:
            LedgerStoppedError: the file of what it was told cannot be read.
        """
        if problem := restored_problem(self._folder):
            return problem
        try:
            told = Told.model_validate_json(self._told.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            what = "is not what a coordinator was told"
            raise LedgerStoppedError(self._told, what, RESTORE) from None
        if told.head in hashes:
            return ""
        ours = Head(len(hashes) - 1, hashes[-1])
        return (
            f"the ledger ends at {ours}, but the coordinator of run {told.run!r} was told the head "
            f"{told.head}, which is not in it (seen {told.seen_at})"
        )


def restored_problem(folder: Path) -> str:
    """Whether a ledger was put back from a backup and nobody has compared it; empty when not."""
    try:
        at = (folder / RESTORED).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError):
        at = "an unknown time"
    return f"it was put back from a backup of {at}, so charges since then may be forgotten"


RESTORE = (
    "no private release leaves this site until a person decides: put the newest ledger back, see "
    "'When the ledger stops' in the guide for sites"
)


_DISK_CODES = (
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
)  # fmt: skip


def _create(path: Path) -> None:
    """Make an empty ledger under a temporary name and link it into place; the first one wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(path.parent, 0o700)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with _translated(path), closing(sqlite3.connect(temporary)) as database:
                database.executescript(_SCHEMA)
                database.execute("INSERT INTO ledger VALUES (?)", (secrets.token_bytes(32),))
                database.commit()
            # A link, unlike a rename, never replaces a ledger that another process just made.
            path.hardlink_to(temporary)
            sync_folder(path.parent)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors in our words."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = error.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            reason = f"another process has held the ledger for {WAIT_SECONDS:.0f} s"
            raise DiskProblemError(path, reason) from error
        if code in _DISK_CODES:
            raise DiskProblemError(path, str(error)) from error
        raise LedgerStoppedError(path, f"is damaged ({error})", RESTORE) from error
