"""The site's daemon: keeps the site connected over its carrier, and says how it stands."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from asterion_client.settings import ConnectionSettings, SiteSettings, read_site_settings
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import (
    ConnectionProblemError,
    DiskProblemError,
    FileProblemError,
    UnreachableError,
)
from asterion_shared.files import make_folder
from asterion_shared.key_files import check_private

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Connection:
    """A site's connection with its paths made absolute."""

    address: str
    root_certificate: Path
    private_key: Path
    proxy: str | None = None


def connection_of(settings: SiteSettings, folder: Path) -> Connection:
    """The connection of a site, its files checked.

    Raises:
        ConnectionProblemError: the settings have none.
        FileProblemError: the certificate or the key is missing, or others may read the key.
    """
    given: ConnectionSettings | None = settings.connection
    if given is None:
        msg = f"site {settings.name} has no [connection]; asterion site init and join add it"
        raise ConnectionProblemError(msg)
    root, key = folder / given.root_certificate, folder / given.private_key
    if not root.is_file():
        raise FileProblemError(root, "no such file", "join the federation: asterion site join")
    check_private(key, "make it: asterion site init")
    audit_key = folder / settings.state_folder / "audit" / "audit.key"
    if audit_key.exists():
        check_private(audit_key)
    return Connection(given.address, folder / given.root_certificate, key, given.proxy)


def run_site(site_toml: Path, *, wait_seconds: float, say: Say, stop: Event) -> None:
    """Keep a site connected until told to stop.

    Args:
        site_toml: the site's settings.
        wait_seconds: how long a coordinator may stay unreachable at the start.
        say: is told in one line each time the site's standing changes.
        stop: set it to end.

    Raises:
        SettingsError, FileProblemError: the settings are wrong.
        UnreachableError: nobody answered at the address in time.
        ConnectionProblemError: the certificate or the site's key is not accepted.
        DiskProblemError: the state folder is not writable.
    """
    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    connection, given = connection_of(settings, folder), settings.connection
    assert given is not None  # noqa: S101  # it has a connection
    _wait_for_coordinator(connection, wait_seconds, say, stop)
    if stop.is_set():
        return
    state = folder / settings.state_folder
    try:
        make_folder(state)
    except OSError as error:
        raise DiskProblemError(state, error.strerror or "mkdir failed") from error
    # Here, because a site needs the modules of one carrier alone.
    if given.carrier == "flower":
        from asterion_client.flower_daemon import run_on_flower

        run_on_flower(settings.name, site_toml.resolve(), connection, state, say, stop)
    else:
        from asterion_client.link_daemon import run_on_link

        run_on_link(settings, site_toml.resolve(), given, state, say, stop)


def _wait_for_coordinator(
    connection: Connection, wait_seconds: float, say: Say, stop: Event
) -> None:
    until, told = time.monotonic() + wait_seconds, False
    while not stop.is_set():
        try:
            check_connection(
                connection.address, connection.root_certificate, proxy=connection.proxy
            )
        except UnreachableError as error:
            if time.monotonic() >= until:
                raise
            if not told:
                say(f"{error}; trying for {wait_seconds:.0f} s")
                told = True
            stop.wait(min(2.0, wait_seconds))
        else:
            return


def stop_on_signals() -> Event:
    """An event that is set when the process is asked to end (Ctrl-C, ``kill``)."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
