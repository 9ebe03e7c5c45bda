"""Whatever is done to the files behind the ledger's back is noticed."""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from asterion_client.privacy_ledger_audit import export_ledger, verify_ledger
from asterion_shared.errors import DiskProblemError, FileProblemError, LedgerStoppedError


@pytest.fixture
def folder(open_ledger, release, tmp_path: Path) -> Path:
    """A ledger of five entries and two data sets, closed."""
    ledger = open_ledger()
    for number in range(5):
        members = [hashlib.sha256(f"{number % 2}{i}".encode()).hexdigest() for i in range(2)]
        shared = hashlib.sha256(b"shared").hexdigest()
        ledger.charge(release(f"{number}", round=number, units=frozenset([*members, shared])))
    ledger.close()
    return tmp_path / "ledger"


def alter(folder: Path, *statements: str, values: tuple[str, ...] = ()) -> None:
    database = sqlite3.connect(folder / "ledger.sqlite")
    for statement in statements:
        database.execute(statement, values)
    database.commit()
    database.close()


def problems(folder: Path) -> list[str]:
    return [problem.what for problem in verify_ledger(folder)[1]]


def test_a_whole_ledger_is_whole(folder: Path, open_ledger) -> None:
    head, found = verify_ledger(folder)
    assert (head.count, found) == (5, [])
    assert open_ledger().head() == head
    assert (folder / "ledger.head").read_text() == f"5 {head.sha256}\n"


CHANGES = {
    "an edit": (
        ["UPDATE entry SET content = replace(content, '\"round\":2', '\"round\":7')"],
        "entry 3 was changed after it was written",
    ),
    "a deletion": (["DELETE FROM entry WHERE number = 3"], "entry 3 is missing"),
    "a deletion that is closed up": (
        ["DELETE FROM entry WHERE number = 3", "UPDATE entry SET number = 3 WHERE number = 4",
         "UPDATE entry SET number = 4 WHERE number = 5"],
        "entry 4 stands in the place of entry 3",
    ),
    "another order": (
        ["UPDATE entry SET number = 9 WHERE number = 3",
         "UPDATE entry SET number = 3 WHERE number = 4",
         "UPDATE entry SET number = 4 WHERE number = 9"],
        "entry 4 stands in the place of entry 3",
    ),
    "a cut": (["DELETE FROM entry WHERE number > 3"], "the ledger ends at 3 "),
    "everything": (["DELETE FROM entry"], "the ledger ends at 0 "),
    "no entry": (
        ["UPDATE entry SET content = '{}' , "
         "sha256 = '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a' "
         "WHERE number = 3"],
        "entry 3 is not an entry",
    ),
    "the salt": (["UPDATE ledger SET salt = x'00'"], "entry 1 belongs to another ledger"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_stops_everything(
    folder: Path, open_ledger, release, change: str
) -> None:
    statements, words = CHANGES[change]
    alter(folder, *statements)
    assert [what[: len(words)] for what in problems(folder)] == [words]
    with pytest.raises(FileProblemError, match=words):
        open_ledger()


def test_an_edit_with_its_hash_mended_breaks_the_next_link(folder: Path) -> None:
    database = sqlite3.connect(folder / "ledger.sqlite")
    [line] = database.execute("SELECT content FROM entry WHERE number = 3").fetchone()
    database.close()
    forged = line.replace('"round":2', '"round":7')
    assert forged != line
    sha256 = hashlib.sha256(forged.encode()).hexdigest()
    forgery = "UPDATE entry SET content = ?, sha256 = ? WHERE number = 3"
    alter(folder, forgery, values=(forged, sha256))
    assert problems(folder) == ["entry 4 does not follow from the one before it, which was changed"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM unit WHERE id = (SELECT min(id) FROM unit)",
        "UPDATE unit_group SET data_sets = x'00'",
    ],
)
def test_people_cannot_be_taken_out_of_a_data_set(folder: Path, statement: str) -> None:
    alter(folder, statement)
    assert "3 patients; the" in problems(folder)[0]


def test_a_charge_notices_that_its_people_are_gone(folder: Path, open_ledger, release) -> None:
    alter(folder, "UPDATE unit_group SET data_sets = x'00'")
    members = [hashlib.sha256(text).hexdigest() for text in (b"00", b"01", b"shared")]
    with pytest.raises(FileProblemError, match="do not fit its entries"):
        open_ledger().charge(release("new", units=frozenset(members)))


def test_a_database_from_a_backup_is_noticed_at_open(
    folder: Path, open_ledger, release, tmp_path: Path
) -> None:
    shutil.copy(folder / "ledger.sqlite", tmp_path / "backup")
    ledger = open_ledger()
    told = ledger.charge(release("6")).entry
    ledger.close()
    shutil.copy(tmp_path / "backup", folder / "ledger.sqlite")
    with pytest.raises(FileProblemError, match=rf"ends at 5 [0-9a-f]+, .* has seen {told}"):
        open_ledger()


def test_a_whole_folder_from_a_backup_is_noticed_by_the_other_side(
    folder: Path, open_ledger, release, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "backup")
    ledger = open_ledger()
    told = ledger.charge(release("6")).entry
    ledger.close()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    restored = open_ledger()
    ours = restored.head()
    with pytest.raises(LedgerStoppedError, match="the coordinator of run 'lungs' was told") as seen:
        restored.require_head(told.sha256, run="lungs")
    assert f"ends at {ours}, " in seen.value.what
    assert told.sha256 in seen.value.what
    assert seen.value.code == "ledger_stopped"
    assert stat.S_IMODE((folder / "ledger.told").stat().st_mode) == 0o600
    # It stops for everybody, also for a coordinator whose head is older than the backup.
    for refused in (
        lambda: restored.charge(release("another")),
        lambda: restored.require_head(ours.sha256, run="hearts"),
        restored.head,
        open_ledger,
    ):
        with pytest.raises(LedgerStoppedError, match="was told"):
            refused()
    assert [what.partition(" (seen")[0] for what in problems(folder)] == [
        f"the ledger ends at {ours}, but the coordinator of run 'lungs' was told the head "
        f"{told.sha256}, which is not in it"
    ]


def test_the_newest_ledger_put_back_goes_on(
    folder: Path, open_ledger, release, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "backup")
    ledger = open_ledger()
    told = ledger.charge(release("6")).entry
    ledger.close()
    folder.rename(tmp_path / "newest")
    shutil.copytree(tmp_path / "backup", folder)
    restored = open_ledger()
    with pytest.raises(LedgerStoppedError):
        restored.require_head(told.sha256, run="lungs")
    restored.close()
    for name in ("ledger.sqlite", "ledger.head"):
        shutil.copy(tmp_path / "newest" / name, folder / name)
    assert problems(folder) == []
    back = open_ledger()
    back.require_head(told.sha256, run="lungs")
    assert not back.charge(release("7")).free
    # An older copy a second time is remembered, even if the coordinator says nothing.
    back.close()
    shutil.copy(tmp_path / "backup/ledger.sqlite", folder / "ledger.sqlite")
    shutil.copy(tmp_path / "backup/ledger.head", folder / "ledger.head")
    with pytest.raises(LedgerStoppedError, match="was told"):
        open_ledger()


def test_every_head_that_the_ledger_ever_had_is_in_it(open_ledger, release) -> None:
    ledger = open_ledger()
    heads = [ledger.head()]
    for number in range(3):
        ledger.charge(release(f"{number}", round=number))
        heads.append(ledger.head())
    for head in heads:
        ledger.require_head(head.sha256, run="r")
    again = open_ledger()
    assert again.head() == heads[-1]


def test_a_made_up_head_only_stops_and_a_person_lifts_it(
    folder: Path, open_ledger, release
) -> None:
    ledger = open_ledger()
    before = ledger.head()
    run = "x\x1b[2J" + "y" * 10_000
    with pytest.raises(LedgerStoppedError) as seen:
        ledger.require_head("0" * 64, run=run)
    assert "\x1b" not in str(seen.value)
    assert len(str(seen.value)) < 1000
    (folder / "ledger.told").write_text("{")
    with pytest.raises(LedgerStoppedError, match="is not what a coordinator was told"):
        open_ledger()
    (folder / "ledger.told").unlink()
    assert ledger.head() == before
    assert not ledger.charge(release("6")).free


def test_a_lost_witness_or_database_is_noticed(folder: Path, open_ledger) -> None:
    (folder / "ledger.head").rename(folder / "kept")
    with pytest.raises(FileProblemError, match=r"its witness ledger\.head is gone"):
        open_ledger()
    (folder / "kept").rename(folder / "ledger.head")
    (folder / "ledger.sqlite").unlink()
    with pytest.raises(FileProblemError, match="the database is gone"):
        open_ledger()
    (folder / "ledger.head").write_text("not a head")
    with pytest.raises(FileProblemError):
        open_ledger()


def test_a_witness_one_behind_is_what_a_crash_leaves(folder: Path, open_ledger) -> None:
    database = sqlite3.connect(folder / "ledger.sqlite")
    [four] = database.execute("SELECT sha256 FROM entry WHERE number = 4").fetchone()
    database.close()
    (folder / "ledger.head").write_text(f"4 {four}\n")
    assert problems(folder) == []
    head = open_ledger().head()
    assert (folder / "ledger.head").read_text() == f"{head}\n"


def test_files_are_for_the_site_alone(folder: Path, open_ledger) -> None:
    ledger = open_ledger()
    ledger.head()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert {"ledger.sqlite", "ledger.head"} <= set(modes)
    ledger.close()
    (folder / "ledger.sqlite").chmod(0o640)
    with pytest.raises(FileProblemError, match="chmod 600"):
        open_ledger()


def test_commits_are_durable(open_ledger) -> None:
    database = open_ledger()._store._db
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_another_version_or_another_file_is_named(folder: Path, open_ledger) -> None:
    alter(folder, "PRAGMA user_version = 2")
    with pytest.raises(FileProblemError, match="of version 2; this program reads 1"):
        open_ledger()
    (folder / "ledger.sqlite").write_bytes(b"not a database, " * 300)
    with pytest.raises(FileProblemError, match="is damaged"):
        open_ledger()


def test_a_full_disk_charges_nothing_and_then_once(open_ledger, release) -> None:
    ledger = open_ledger()
    ledger.charge(release("1"))
    database = ledger._store._db
    [pages] = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    many = frozenset(hashlib.sha256(f"{i}".encode()).hexdigest() for i in range(3000))
    with pytest.raises(DiskProblemError, match="full"):
        ledger.charge(release("2", units=many))
    assert ledger.head().count == 1
    database.execute("PRAGMA max_page_count = 100000")
    assert not ledger.charge(release("2", units=many)).free
    assert ledger.head().count == 2


def test_a_full_disk_under_the_witness_lets_nothing_leave(
    open_ledger, release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = open_ledger()
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskProblemError, match="No space left"):
        ledger.charge(release("1"))
    monkeypatch.setattr(os, "fsync", real)
    assert ledger.charge(release("1")).free
    assert ledger.head().count == 1
    assert (tmp_path / "ledger/ledger.head").read_text() == f"{ledger.head()}\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, open_ledger) -> None:
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(DiskProblemError):
        open_ledger()


@pytest.mark.parametrize("unit_ids", [False, True])
def test_a_stranger_verifies_an_export(folder: Path, tmp_path: Path, unit_ids: bool) -> None:
    out = tmp_path / "ledger.jsonl"
    head = export_ledger(folder, out, unit_ids=unit_ids)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    *lines, last = out.read_bytes().splitlines()
    people = [json.loads(line) for line in lines if b'"units":' in line]
    lines = lines[: len(lines) - len(people)]
    for before, line in pairwise(lines):
        assert json.loads(line)["previous"] == hashlib.sha256(before).hexdigest()
    assert json.loads(last) == {"count": 5, "head": hashlib.sha256(lines[-1]).hexdigest()}
    assert json.loads(last)["head"] == head.sha256
    assert len(people) == (2 if unit_ids else 0)
    committed = {json.loads(line)["units_sha256"] for line in lines}
    for one in people:
        text = "".join(f"{unit}\n" for unit in one["units"])
        assert hashlib.sha256(text.encode()).hexdigest() == one["units_sha256"]
        assert one["units_sha256"] in committed
    if not unit_ids:
        shared = hashlib.sha256(b"shared").hexdigest()
        assert shared not in out.read_text()
        assert json.loads(lines[0])["num_units"] == 3


def test_a_broken_ledger_is_not_exported(folder: Path, tmp_path: Path) -> None:
    alter(folder, "DELETE FROM entry WHERE number = 2")
    with pytest.raises(FileProblemError, match="entry 2 is missing"):
        export_ledger(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_ledger_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="no such ledger"):
        verify_ledger(tmp_path / "ledger")
    assert not (tmp_path / "ledger").exists()
