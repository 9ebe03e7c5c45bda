"""The part of the site's self-check that concerns its connection: files, dates, way, admission."""

from collections.abc import Iterator
from pathlib import Path

from asterion_client.identities import read_identities
from asterion_client.settings import ConnectionSettings
from asterion_client.site_standing import meaning_of
from asterion_shared.connection_check import check_connection as shake_hands
from asterion_shared.errors import ConnectionProblemError, FileProblemError, Problem
from asterion_shared.key_files import check_private
from asterion_shared.link.admission_check import check_admission
from asterion_shared.link.certificate_check import certificate_problems
from asterion_shared.link.identity import read_identity
from asterion_shared.link.refusals import LinkRefusedError

RENEW = "ask the coordinator's operator to enrol this site again, and join with the answer"


def check_connection(
    connection: ConnectionSettings | None, site: str, folder: Path
) -> Iterator[Problem]:
    """Look at everything between the site and its coordinator, as the daemon will use it.

    Over the link the last step is a call over mutual TLS, through the proxy where there is one. It
    opens no session, so a daemon that runs is not disturbed.

    Args:
        connection: of the site's settings; None is a warning.
        site: the site's name.
        folder: where ``site.toml`` lies.

    Yields:
        Problems in the order in which they would be met; nothing when all is well.
    """
    if connection is None:
        yield Problem(
            where="connection",
            what="there is no [connection]",
            fix="add it before asterion site start; a simulation needs none",
            fatal=False,
        )
        return
    on_link = connection.carrier == "link"
    problems = list(_file_problems(connection, folder))
    if on_link and connection.certificate is None:
        problems.append(missing_certificate())
    if not problems and connection.peers is not None:
        try:
            read_identities(connection, site, folder)
        except FileProblemError as error:
            yield Problem(
                where="connection.peers", what=f"{error.path} {error.what}", fix=error.fix
            )
    if not problems and on_link:
        problems += own_problems(connection, site, folder)
    yield from problems
    if (folder / connection.root_certificate).is_file():
        reached = list(_handshake_problems(connection, folder))
        yield from reached
        if on_link and not reached and not any(problem.fatal for problem in problems):
            yield from _admission_problems(connection, folder)


def missing_certificate() -> Problem:
    """What is wrong with a connection over the link that names no certificate."""
    return Problem(
        where="connection.certificate",
        what="is not set, and the link needs it",
        fix="add certificate = 'site.pem', which asterion site join writes; or carrier = 'flower' "
        "if the coordinator has that",
    )


def own_problems(connection: ConnectionSettings, site: str, folder: Path) -> list[Problem]:
    """What is wrong with the certificate, its key and its authority, or will soon be.

    Args:
        connection: of the link, with a certificate.
        site: the site's name.
        folder: where ``site.toml`` lies.
    """
    assert connection.certificate is not None  # noqa: S101  # said above
    return list(
        certificate_problems(
            folder / connection.root_certificate,
            folder / connection.certificate,
            folder / connection.private_key,
            site=site,
            renew=RENEW,
        )
    )


def _file_problems(connection: ConnectionSettings, folder: Path) -> Iterator[Problem]:
    for field in ("root_certificate", "private_key", "certificate"):
        named = getattr(connection, field)
        if named is None or (field == "certificate" and connection.carrier == "flower"):
            continue
        path = folder / named
        if not path.is_file():
            yield Problem(
                where=f"connection.{field}",
                what=f"{path} does not exist",
                fix="make the key with asterion site init, the rest comes with asterion site join",
            )
        elif field == "private_key":
            try:
                check_private(path)
            except FileProblemError as error:
                what = f"{error.path} {error.what}"
                yield Problem(where=f"connection.{field}", what=what, fix=error.fix)


def _handshake_problems(connection: ConnectionSettings, folder: Path) -> Iterator[Problem]:
    """Connect and look at the coordinator's certificate as the daemon will: name, port, dates."""
    try:
        shake_hands(
            connection.address, folder / connection.root_certificate, proxy=connection.proxy
        )
    except FileProblemError as error:
        yield Problem(
            where="connection.root_certificate", what=f"{error.path} {error.what}", fix=error.fix
        )
    except ConnectionProblemError as error:
        where = "connection.proxy" if "proxy" in str(error) else "connection.address"
        what, _, fix = str(error).partition("; ")
        yield Problem(where=where, what=what, fix=fix)


def _admission_problems(connection: ConnectionSettings, folder: Path) -> Iterator[Problem]:
    assert connection.certificate is not None  # noqa: S101  # the caller has looked
    identity = read_identity(
        folder / connection.root_certificate,
        folder / connection.certificate,
        folder / connection.private_key,
    )
    try:
        check_admission(connection.address, identity, proxy=connection.proxy)
    except LinkRefusedError as error:
        what = f"the coordinator at {connection.address} refuses this site ({error.code})"
        yield Problem(where="connection", what=what, fix=meaning_of(error.code))
    except ConnectionProblemError as error:
        what, _, fix = str(error).partition("; ")
        yield Problem(where="connection", what=what, fix=fix)
