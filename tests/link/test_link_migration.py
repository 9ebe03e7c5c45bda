"""A queue of an earlier version is brought to this one, on SQLite and on PostgreSQL."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from tests.link.test_link_store import BIG, SMALL, key, opened_at_once, report
from tests.link.test_link_store import server as server
from tests.link.test_link_store import url as url

from asterion_server import link_migration
from asterion_server.link_migration import REVISIONS
from asterion_server.link_store import LinkStore
from asterion_server.link_tables import META, REVISION, REVISION_TABLE
from asterion_shared.errors import DiskProblemError, PlanMismatchError
from asterion_shared.link.parcels import Parcel

HERE = Path(__file__).parent
NEXT = """
import sqlalchemy as sql
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.add_column("link_order", sql.Column("urgency", sql.Integer, server_default="7"))
    op.create_index("link_order_by_urgency", "link_order", ["urgency"])
    {then}
"""


@pytest.fixture
def old(url: str) -> str:
    """A database as version 0.1.0 wrote it: what it said itself, word for word."""
    kind = sql.make_url(url).get_backend_name()
    engine = sql.create_engine(url)
    text = (HERE / f"queue_0_1_0_{kind}.sql").read_text()
    with engine.begin() as db:
        for statement in text.split(";\n"):
            if statement.strip() not in ("", "BEGIN TRANSACTION", "COMMIT"):
                db.exec_driver_sql(statement)
    engine.dispose()
    return url


@pytest.fixture
def with_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program of the next version; gives its newest revision's file."""
    folder = tmp_path / "revisions"
    folder.mkdir()
    for path in REVISIONS.glob("revision_*.py"):
        (folder / path.name).write_text(path.read_text())
    (folder / "revision_2.py").write_text(NEXT.format(then=""))
    monkeypatch.setattr(link_migration, "REVISIONS", folder)
    monkeypatch.setattr(link_migration, "REVISION", "2")
    yield folder / "revision_2.py"
    monkeypatch.undo()


def rows(url: str, query: str) -> list[tuple]:
    engine = sql.create_engine(url)
    with engine.begin() as db:
        found = [tuple(row) for row in db.exec_driver_sql(query)]
    engine.dispose()
    return found


def tables(url: str) -> set[str]:
    engine = sql.create_engine(url)
    found = set(sql.inspect(engine).get_table_names())
    engine.dispose()
    return found


def standing(url: str) -> tuple[list[tuple], list[tuple]]:
    return rows(url, "SELECT version_num FROM link_revision"), rows(
        url, "SELECT version FROM link_version"
    )


def test_a_queue_of_0_1_0_goes_on_with_all_it_holds(old: str) -> None:
    assert REVISION_TABLE not in tables(old)
    store = LinkStore(old)
    first, second, third = (store.order(key(number)) for number in (1, 2, 3))
    assert first is not None
    assert (first.site, first.run, first.round, first.state) == ("north", "run", 1, "answered")
    assert first.content == Parcel((SMALL, BIG), True)
    assert second is not None
    assert (second.attempt, second.state, second.submission) == (1, "open", 2**62)
    assert third is not None
    assert (third.message_type, third.state, third.expires) == ("evaluate", "over", 4102444800.0)
    assert store.report(key(1)) == report()
    assert store.store_report(key(2), report(b"2")) is False
    assert [(s.site, s.version, s.is_open, s.opened) for s in store.sessions()] == [
        ("north", "0.1.0", True, 1_790_000_000.0), ("south", "0.1.0", False, 1_790_000_000.0)
    ]  # fmt: skip
    store.close()
    assert standing(old) == ([(REVISION,)], [(int(REVISION),)])
    LinkStore(old).close()  # again: nothing to do
    assert standing(old) == ([(REVISION,)], [(int(REVISION),)])


def test_the_revisions_make_the_tables_that_the_program_uses(url: str) -> None:
    LinkStore(url).close()
    scripts = ScriptDirectory(REVISIONS, version_locations=[REVISIONS])
    assert scripts.get_current_head() == REVISION
    engine = sql.create_engine(url)
    with engine.begin() as db:
        options = {"version_table": REVISION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(db, opts=options), META) == []
    engine.dispose()


@pytest.mark.parametrize("before", ["0.1.0", "now", "nothing"])
def test_the_next_revision_is_applied_to_what_was_there(
    before: str, url: str, with_next: Path, request: pytest.FixtureRequest
) -> None:
    if before == "0.1.0":
        request.getfixturevalue("old")
    elif before == "now":
        with pytest.MonkeyPatch.context() as earlier:
            earlier.setattr(link_migration, "REVISION", REVISION)
            LinkStore(url).close()
        assert standing(url)[0] == [(REVISION,)]
    store = LinkStore(url)
    assert (store.report(key(1)) == report()) == (before == "0.1.0")
    store.close()
    assert standing(url) == ([("2",)], [(2,)])
    held = rows(url, "SELECT urgency FROM link_order")
    assert held == [(7,)] * (3 if before == "0.1.0" else 0)


def test_a_program_of_before_refuses_the_next_version_s_queue(url: str, with_next: Path) -> None:
    LinkStore(url).close()
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(link_migration, "REVISIONS", REVISIONS)
        earlier.setattr(link_migration, "REVISION", REVISION)
        with pytest.raises(PlanMismatchError) as told:
            LinkStore(url)
    said = f"is of revision 2, and this program knows none after {REVISION}: a newer version"
    assert said in str(told.value)
    assert "install that version again, or a later one" in str(told.value)
    assert standing(url) == ([("2",)], [(2,)])


def test_a_number_that_no_version_wrote_is_refused(old: str) -> None:
    rows(old, "UPDATE link_version SET version = 99 RETURNING version")
    with pytest.raises(PlanMismatchError, match="is of revision 99"):
        LinkStore(old)
    assert REVISION_TABLE not in tables(old)


def test_a_revision_that_fails_or_dies_leaves_the_queue_as_it_was(
    old: str, with_next: Path
) -> None:
    with_next.write_text(NEXT.format(then='op.execute("SELECT * FROM no_such_table")'))
    with pytest.raises(DiskProblemError):
        LinkStore(old)
    killed = with_next.with_name("killed.py")
    killed.write_text(
        "import sys\nfrom pathlib import Path\nfrom asterion_server import link_migration\n"
        "from asterion_server.link_store import LinkStore\n"
        "link_migration.REVISIONS, link_migration.REVISION = Path(sys.argv[1]), '2'\n"
        "LinkStore(sys.argv[2])\n"
    )
    killed.rename(killed.parent.parent / "killed.py")
    with_next.write_text(NEXT.format(then="import os; os.kill(os.getpid(), 9)"))
    command = [sys.executable, killed.parent.parent / "killed.py", with_next.parent, old]
    assert subprocess.run(command, check=False).returncode == -9
    assert REVISION_TABLE not in tables(old)
    assert "urgency" not in {column for (column,) in columns(old)}
    with_next.write_text(NEXT.format(then=""))
    store = LinkStore(old)
    assert store.report(key(1)) == report()
    store.close()
    assert standing(old) == ([("2",)], [(2,)])


def columns(url: str) -> list[tuple[str]]:
    engine = sql.create_engine(url)
    found = [(column["name"],) for column in sql.inspect(engine).get_columns("link_order")]
    engine.dispose()
    return found


def test_several_migrate_one_queue_at_once(old: str, with_next: Path) -> None:
    assert opened_at_once(old) == []
    assert standing(old) == ([("2",)], [(2,)])
