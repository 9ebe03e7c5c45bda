"""The database that ``coordinator.toml`` names: which URLs hold, and where a password may be.

A password belongs into a file that its owner alone can read: one of libpq's own (``~/.pgpass`` or
the file that ``PGPASSFILE`` names, a service of ``~/.pg_service.conf`` or ``PGSERVICEFILE``), or
``coordinator.toml`` itself with mode 0600.
"""

import importlib.util
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from asterion_shared.errors import FileProblemError, MissingExtraError

DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql+psycopg")
_SECRETS = ("password", "sslpassword")


def problem_of_url(url: str) -> str:
    """Why a URL cannot be the link's database, in one line without the URL; empty when it can."""
    try:
        found = make_url(url)
    except ArgumentError:
        return "is not a URL of SQLAlchemy"
    if found.drivername not in DRIVERS:
        return f"begins with {found.drivername!r}; known are {', '.join(DRIVERS)}"
    if any(name in found.query for name in _SECRETS):
        return "has a password after the '?', where logs would show it"
    if found.get_backend_name() == "sqlite" and found.database in (None, "", ":memory:"):
        return "names no file, so the queue would end with the process"
    return ""


def has_password(url: str | None) -> bool:
    """Whether a URL holds a password."""
    return url is not None and make_url(url).password is not None


def check_database(url: str | None, source: Path) -> None:
    """Refuse a password that others can read, and a database whose driver is not installed.

    Args:
        url: one that :func:`problem_of_url` has nothing against, or None.
        source: the file that holds it.

    Raises:
        FileProblemError: the URL has a password and the file can be read by others.
        MissingExtraError: psycopg is not installed.
    """
    if url is None:
        return
    found: URL = make_url(url)
    if found.password is not None and source.stat().st_mode & 0o077:
        what = "holds the password of the database, and others can read it"
        fix = f"chmod 600 {source}, or leave the password to PGPASSFILE or a service file"
        raise FileProblemError(source, what, fix)
    missing = importlib.util.find_spec("psycopg") is None
    if found.get_backend_name() == "postgresql" and missing:
        raise MissingExtraError(package="psycopg", extra="postgres", distribution="asterion")
