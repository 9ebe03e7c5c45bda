"""Bring the link's database to this program's tables, revision after revision, by Alembic."""

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from asterion_server.link_tables import REVISION, REVISION_TABLE, VERSION
from asterion_shared.errors import PlanMismatchError

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, MigrationStep

REVISIONS = Path(__file__).parent / "link_revisions"
STAMP = sql.table(REVISION_TABLE)
_ONE_AT_A_TIME = Lock()
"""Alembic's ``op``, which the revisions use, is one for the whole process."""


def migrate(db: sql.Connection, name: str) -> None:
    """Make the tables, or change those that an earlier version made; mostly there is nothing to do.

    All of it is one transaction, so a database is of one revision whatever happens.

    Args:
        db: in a transaction that keeps other processes out of the database's shape.
        name: of the database, for messages.

    Raises:
        PlanMismatchError: a newer version of Asterion made it.
    """
    tables = set(sql.inspect(db).get_table_names())
    if REVISION_TABLE in tables:
        found = db.scalar(sql.select(sql.column("version_num")).select_from(STAMP))
        is_stamped = found is not None
    else:  # version 0.1.0 kept the number in a table of its own
        number = db.scalar(sql.select(VERSION.c.version)) if VERSION.name in tables else None
        found, is_stamped = None if number is None else str(number), False
    if found != REVISION or not is_stamped:
        with _ONE_AT_A_TIME:
            _upgrade(db, name, found, is_stamped=is_stamped)


def _upgrade(db: sql.Connection, name: str, found: str | None, *, is_stamped: bool) -> None:
    # Imported here: it takes time, and almost no process needs it.
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext, MigrationStep
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(REVISIONS, version_locations=[REVISIONS])
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        msg = (
            f"{name} is of revision {found}, and this program knows none after {REVISION}: a newer "
            "version of Asterion made it; install that version again, or a later one"
        )
        raise PlanMismatchError(msg)

    def steps(heads: Any, context: "MigrationContext") -> Iterator["MigrationStep"]:
        after = scripts.iterate_revisions(REVISION, heads or None, implicit_base=True)
        for script in reversed(list(after)):
            yield MigrationStep.upgrade_from_script(scripts.revision_map, script)

    context = MigrationContext.configure(db, opts={"version_table": REVISION_TABLE, "fn": steps})
    if found is not None and not is_stamped:
        context.stamp(scripts, found)
    with Operations.context(context):
        context.run_migrations()
    # Programs from before the revisions look here, and refuse what they do not know.
    db.execute(VERSION.update().values(version=int(REVISION)))
