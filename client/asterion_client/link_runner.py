"""The site's process on the link: ``python -m asterion_client.link_runner --site SITE_TOML``.

One long-lived process: torch is imported once, data and model stay warm, and an order starts when
it arrives. The app that answers is the same ``ClientApp`` that stock Flower drives. The daemon
starts it, and starts it again when it dies.
"""

import argparse
import fcntl
import json
import logging
import os
import secrets
import signal
import time
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from flwr.app import Context, RecordDict

from asterion_client.app import SITE_VARIABLE, app, refuse_unread
from asterion_client.coordinator_words import LinkOrder
from asterion_client.day_book import day_book
from asterion_client.egress import code_of, describe
from asterion_client.flower_client_compat import order_message
from asterion_client.link_session import LinkSession, Standing
from asterion_client.order_chunks import ByteQuota
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_client.site_audit import place_of
from asterion_client.site_log import keep_log_clean
from asterion_client.site_standing import SiteStatus, write_status
from asterion_client.stored_reports import site_blobs, stored_parts
from asterion_client.withdrawals import stamp_of
from asterion_shared.child_process import watch_parent
from asterion_shared.errors import AsterionError, DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, write_atomically
from asterion_shared.link.identity import read_identity
from asterion_shared.link.parcels import Parcel
from asterion_shared.link.records import pack, unpack

LOG = logging.getLogger("asterion.site")
READY = "the runner is ready"
AGAIN_SECONDS = 15.0
"""Pause before an order is tried again that could not be answered, such as on a full disk."""

STATUS_SECONDS = 5.0
"""How often the status file is written at least."""


class LinkRunner:
    """Takes orders from a session and answers them with the app.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.

    Raises:
        FileProblemError: a key or a certificate is missing or wrong.
        DiskProblemError: the state folder is not writable.
    """

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        connection = settings.connection
        if connection is None or connection.certificate is None:
            what = "has no connection.certificate, which the link needs"
            fix = "join the federation: asterion site join"
            raise FileProblemError(folder / "site.toml", what, fix)
        self._settings = settings
        self._state = (folder / settings.state_folder).resolve()
        self._blobs = site_blobs(self._state)
        identity = read_identity(
            folder / connection.root_certificate,
            folder / connection.certificate,
            folder / connection.private_key,
        )
        self._lock = _lock(self._state)
        consent = settings.consent
        quota = ByteQuota(day_book(self._state), None if consent is None else consent.bytes_a_day)
        self.session = LinkSession(
            connection, identity, self._blobs, _state_id(self._state), self._told, quota,
            lambda: stamp_of(self._state),
        )  # fmt: skip
        self._working, self._started = "", time.time()
        self._last: list[LinkOrder] = []

    def serve(self, stop: Event) -> None:
        """Answer orders until told to stop, or the session is broken."""
        self.session.start()
        over = Event()
        # Beside the work: training for minutes is no sign of a dead process.
        teller = Thread(target=self._tell_until, args=(over,), daemon=True, name="status")
        teller.start()
        try:
            while not (stop.is_set() or self.session.broken.is_set()):
                order = self.session.next_order(0.5)
                if order is not None and not order.over.is_set():
                    self._answer(order)
        finally:
            over.set()
        self.session.stop()

    def _tell_until(self, over: Event) -> None:
        while not over.is_set():
            self._write_status(self.session.standing)
            over.wait(STATUS_SECONDS)

    def _answer(self, order: LinkOrder) -> None:
        self._working = f"{order.order.message_type} of round {order.order.round}"
        self._write_status(self.session.standing)
        try:
            stamp = stamp_of(self._state)
            reply = self._reply_to(order)
            report = pack(reply, self._blobs.add, lossless=order.content.lossless)
        except (AsterionError, ValueError, OSError) as error:
            # The app answers for its own mistakes; this is the disk's, or a hostile order's.
            why = describe(error, "internal_error")
            LOG.warning("an order waits for %.0f s: %s", AGAIN_SECONDS, why)
            self.session.again(order, AGAIN_SECONDS)
            return
        finally:
            self._working = ""
            self._write_status(self.session.standing)
        self.session.send(order, report, stamp)
        self._collect(order, report)

    def _reply_to(self, order: LinkOrder) -> RecordDict:
        if order.refused:
            return refuse_unread(order.refused, place_of(order.order.run, order.order.round))
        content = unpack(order.content, self._blobs.private_view)
        message = order_message(
            content, order.order.message_type, order.order.submission, order.order.round
        )
        context = Context(message.metadata.run_id, 1, {}, RecordDict(), {})
        return app(message, context).content

    def _collect(self, order: LinkOrder, report: Parcel) -> None:
        """Keep what is in use, and the last weights: the next ones may share chunks."""
        if not order.refused:
            self._last = [*self._last[-1:], order]
        used = [*self.session.parts_in_use(), *stored_parts(self._state), *report.stored]
        self._blobs.keep_only([*used, *(p for o in self._last for p in o.content.stored)])

    def _told(self, standing: Standing) -> None:
        if standing.connected:
            LOG.info("the session is open")
        elif standing.refused:
            LOG.warning("the session is refused (%s)", standing.refused)
        else:
            LOG.warning("the session is cut")
        self._write_status(standing)

    def _write_status(self, standing: Standing) -> None:
        status = SiteStatus(
            site=self._settings.name,
            connected=standing.connected,
            last_contact=standing.last_contact,
            refused=standing.refused,
            coordinator_version=standing.coordinator_version,
            working=self._working,
            started=self._started,
            written=time.time(),
        )
        try:
            write_status(self._state, status)
        except DiskProblemError as error:
            # The session goes on; a status that nobody writes says by its age that it is not well.
            why = describe(error, "disk_problem")
            LOG.error("the status cannot be written: %s", why)  # noqa: TRY400  # no text of errors


def _lock(state: Path) -> TextIO:
    """Hold the state folder: two processes on one ledger and one identity are one too many."""
    path = state / "link" / "lock"
    try:
        make_folder(path.parent)
        file = path.open("w")
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        what = "another process of this site runs on it"
        raise FileProblemError(state, what, "stop that one first") from None
    return file


def _state_id(state: Path) -> bytes:
    path = state / "link" / "state_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(16).encode())
    return bytes.fromhex(path.read_text(encoding="ascii"))


def main() -> None:
    """Run from the daemon's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", required=True, type=Path)
    parser.add_argument("--told", type=int, help="open file that takes why it cannot start")
    given = parser.parse_args()
    watch_parent()
    os.environ[SITE_VARIABLE] = str(given.site)
    keep_log_clean()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    import asterion_client.site_desk  # noqa: F401  # now, not while the coordinator waits

    try:
        runner = LinkRunner(read_site_settings(given.site), given.site.resolve().parent)
    except AsterionError as error:
        told = {"exit_code": error.exit_code, "message": str(error)}
        LOG.error("cannot start: %s", describe(error, code_of(error)))  # noqa: TRY400  # no text
        if given.told is not None:
            os.pwrite(given.told, f"{json.dumps(told)}\n".encode(), 0)
        raise SystemExit(error.exit_code) from None
    LOG.info(READY)
    runner.serve(stop)


if __name__ == "__main__":
    main()
