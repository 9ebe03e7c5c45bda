"""Programs that promise to survive a power cut do, at every moment; those that only seem to do not.

Each program tells on standard output what it holds for stored. A cut is judged by that: what was
told must be there, what was not told may be, and nothing may be broken.
"""

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tests.power.effects import Record
from tests.power.judging import Judge, broken
from tests.power.power_cut import Keep
from tests.power.recording import record_run, require


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    require()
    (made := tmp_path / "recorded").mkdir()
    return made


WRITES = """
import os, sys
from pathlib import Path
from asterion_shared.files import sync_folder, write_atomically

def without_file_sync(path, content):
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.replace(path)
    sync_folder(path.parent)

def without_folder_sync(path, content):
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

def in_place(path, content):
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

write = globals()[sys.argv[1]]
for number in range(6):
    write(Path(sys.argv[2]), b"%d" % number * 10_000)
    print(number, flush=True)
"""


def judge_file(path: str) -> Judge:
    def judge(after: Path, told: list[int]) -> str | None:
        file = after / path
        if not file.exists():
            return "the file is missing" if told else None
        content = file.read_bytes()
        if len(content) != 10_000 or content.strip(content[:1]) or content[0] == 0:
            return f"{len(content)} bytes of {set(content)}"
        number = int(content[:1])
        newest = told[-1] if told else -1
        return None if number in (newest, newest + 1) else f"version {number}"

    return judge


def record_writes(how: str, folder: Path, path: str = "file") -> Record:
    words = [sys.executable, "-c", WRITES, how, str(folder / path)]
    return record_run(words, folder, folder.parent / "notes")


@pytest.mark.parametrize("path", ["file", "new/folder/file"])
def test_write_atomically_survives_every_cut(folder: Path, tmp_path: Path, path: str) -> None:
    record = record_writes("write_atomically", folder, path)
    assert record.said(len(record.effects)).split() == ["0", "1", "2", "3", "4", "5"]
    keeps: tuple[Keep, ...] = ("synced", "everything", *range(8))
    assert list(broken(record, tmp_path / "after", keeps, judge_file(path))) == []


@pytest.mark.parametrize(
    ("how", "keeps", "complaint"),
    [
        ("without_file_sync", ("synced",), "0 bytes"),
        ("without_folder_sync", ("synced",), "version|missing"),
        ("in_place", tuple(range(12)), "bytes of"),
    ],
)
def test_writing_without_care_is_caught(
    folder: Path, tmp_path: Path, how: str, keeps: tuple[Keep, ...], complaint: str
) -> None:
    record = record_writes(how, folder)
    found = list(broken(record, tmp_path / "after", keeps, judge_file("file")))
    assert any(re.search(complaint, line) for line in found)
    # A test that only kills finds nothing wrong with leaving the syncs away.
    killed = list(broken(record, tmp_path / "after", ("everything",), judge_file("file")))
    assert bool(killed) == (how == "in_place")


# A checkpoint in the middle, so that the database file is written too.
TRANSACTIONS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + "/store.db", isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
connection.execute(f"PRAGMA synchronous = {sys.argv[3]}")
connection.execute("PRAGMA wal_autocheckpoint = 12")
connection.execute("CREATE TABLE stored (number INTEGER PRIMARY KEY, content BLOB)")
for number in range(6):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO stored VALUES (?, ?)", (number, bytes([number]) * 9000))
    connection.execute("COMMIT")
    print(number, flush=True)
if sys.argv[4] == "close":
    connection.close()
else:
    import os
    os._exit(0)
"""


def judge_database(after: Path, told: list[int]) -> str | None:
    try:
        with closing(sqlite3.connect(after / "store.db")) as connection:
            # Only the outcome of the recovery is looked at; its own syncs would take long.
            connection.execute("PRAGMA synchronous = OFF")
            (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
            if whole != "ok":
                return f"integrity: {whole}"
            exists = "SELECT count(*) FROM sqlite_master WHERE name = 'stored'"
            rows = []
            if connection.execute(exists).fetchone()[0]:
                rows = connection.execute("SELECT * FROM stored ORDER BY number").fetchall()
    except sqlite3.DatabaseError as error:
        return f"{type(error).__name__}: {error}"
    numbers = [number for number, _ in rows]
    if numbers not in (told, [*told, len(told)]):
        return f"holds {numbers}"
    if any(content != bytes([number]) * 9000 for number, content in rows):
        return "wrong content"
    return None


def record_transactions(folder: Path, journal: str, synchronous: str, end: str) -> Record:
    words = [sys.executable, "-c", TRANSACTIONS, str(folder), journal, synchronous, end]
    return record_run(words, folder, folder.parent / "notes")


@pytest.mark.parametrize(
    ("journal", "synchronous", "end"),
    [("WAL", "FULL", "close"), ("WAL", "FULL", "exit"), ("DELETE", "EXTRA", "exit")],
)
def test_sqlite_with_full_sync_loses_no_transaction_it_reported(
    folder: Path, tmp_path: Path, journal: str, synchronous: str, end: str
) -> None:
    record = record_transactions(folder, journal, synchronous, end)
    assert record.said(len(record.effects)).split() == [str(number) for number in range(6)]
    keeps: tuple[Keep, ...] = ("synced", "everything", *range(3))
    assert list(broken(record, tmp_path / "after", keeps, judge_database)) == []


@pytest.mark.parametrize(
    ("journal", "synchronous"),
    [("WAL", "OFF"), ("WAL", "NORMAL"), ("DELETE", "OFF"), ("DELETE", "FULL")],
)
def test_sqlite_with_less_sync_is_caught(
    folder: Path, tmp_path: Path, journal: str, synchronous: str
) -> None:
    """Also FULL without a write-ahead log: the journal's removal, which commits, is not synced.

    https://www.sqlite.org/pragma.html#pragma_synchronous says so under EXTRA.
    """
    record = record_transactions(folder, journal, synchronous, "exit")
    assert any(broken(record, tmp_path / "after", ("synced",), judge_database))
    # As after a kill nothing is missing: this is what a kill matrix alone would have found.
    assert not any(broken(record, tmp_path / "after", ("everything",), judge_database))


def test_a_program_that_tells_before_it_syncs_is_caught(folder: Path, tmp_path: Path) -> None:
    program = """
import os, sys
file = os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_WRONLY)
here = os.open(sys.argv[1], os.O_RDONLY)
os.fsync(here)
os.write(file, b"0" * 10_000)
if sys.argv[2] == "early":
    print(0, flush=True)
os.fsync(file)
if sys.argv[2] == "late":
    print(0, flush=True)
"""

    def judge(after: Path, told: list[int]) -> str | None:
        stored = (after / "file").exists() and (after / "file").read_bytes() == b"0" * 10_000
        return "told and not stored" if told and not stored else None

    def found(when: str) -> list[str]:
        words = [sys.executable, "-c", program, str(folder), when]
        (folder / "file").unlink(missing_ok=True)
        record = record_run(words, folder, tmp_path / f"notes {when}")
        return list(broken(record, tmp_path / "after", ("synced",), judge))

    assert found("late") == []
    early = found("early")
    assert len(early) >= 1
    assert all("told and not stored" in complaint for complaint in early)
