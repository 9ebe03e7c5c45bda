"""``/metrics`` of the coordinator under the link: sites, runs, queue, disk, certificate."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import get_args

from cryptography import x509

from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.launch import run_states
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.run_folder import RunFolder
from asterion_server.run_queue import LinkQueue
from asterion_shared import __version__
from asterion_shared.errors import AsterionError
from asterion_shared.prometheus_text import CONTENT_TYPE, Figure, exposition
from asterion_shared.result import Status
from asterion_shared.status_pages import Page, serve_pages

RUN_STATES = ("waiting", "running", "interrupted", *get_args(Status))


@contextmanager
def metrics_served(made: Provisioned) -> Iterator[None]:
    """Answer ``/metrics`` at the address of the settings, if they name a port.

    Raises:
        PortInUseError: another process holds the port.
        ConnectionProblemError: the address is none of this machine's.
    """
    settings = made.settings
    pages = {"/metrics": lambda: metrics_page(made)}
    with serve_pages(settings.metrics_address, settings.metrics_port, pages):
        yield


def metrics_page(made: Provisioned) -> Page:
    """How the coordinator stands now; 503 with the reason when its files cannot be read."""
    try:
        return Page(200, CONTENT_TYPE, exposition(list(_figures(open_provisioned(made.folder)))))
    except (AsterionError, OSError, ValueError) as error:
        # The text of the error names files: it is in the coordinator's own logs.
        return Page(503, "text/plain", f"# not known now ({type(error).__name__})\n")


def _figures(made: Provisioned) -> Iterator[Figure]:
    yield Figure("asterion_coordinator_info", "The program.", 1, {"version": __version__})
    free = shutil.disk_usage(made.folder).free
    yield Figure("asterion_coordinator_disk_free_bytes", "On the disk of its folder.", free)
    for name, path in (("server", made.certificate), ("authority", made.root_certificate)):
        yield Figure("asterion_coordinator_certificate_seconds_left", "Until it ends.",
                     _seconds_left(path.read_bytes()), {"certificate": name})  # fmt: skip
    yield from _site_figures(made)
    yield from _run_figures(made)


def _site_figures(made: Provisioned) -> Iterator[Figure]:
    store = LinkStore(database_url(made))
    try:
        sessions = {session.site: session for session in store.sessions()}
        work, orders = store.orders_at_work(), store.num_orders()
    finally:
        store.close()
    for state, count in orders.items():
        yield Figure("asterion_coordinator_orders", "In the queue.", count, {"state": state})
    for site in made.settings.sites:
        session, label = sessions.get(site), {"site": site}
        is_open = session is not None and session.is_open
        yield Figure("asterion_coordinator_site_connected", "Whether it has a session.",
                     is_open, label)  # fmt: skip
        yield Figure("asterion_coordinator_site_working", "Whether it has an order in work.",
                     is_open and site in work, label)  # fmt: skip
        if session is not None:
            yield Figure("asterion_coordinator_site_last_contact_timestamp_seconds",
                         "Its last word.", session.last_contact, label)  # fmt: skip
        kept = made.certificates(site)
        if kept.is_file():
            yield Figure("asterion_coordinator_site_certificate_seconds_left",
                         "Until the newest certificate that it was given ends.",
                         _seconds_left(kept.read_bytes()), label)  # fmt: skip


def _run_figures(made: Provisioned) -> Iterator[Figure]:
    states = run_states(made, LinkQueue(made))
    for status in dict.fromkeys(RUN_STATES):
        count = sum(state.status == status for state in states)
        yield Figure("asterion_coordinator_runs", "Runs by how they stand.",
                     count, {"state": status})  # fmt: skip
    for state in states:
        done = RunFolder(made.runs / state.name).newest_checkpoint
        if done:
            number = int(done.removeprefix("round-").partition(".")[0])
            yield Figure("asterion_coordinator_run_rounds_done", "Rounds that are stored.",
                         number, {"run": state.name})  # fmt: skip


def _seconds_left(certificate: bytes) -> float:
    ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return (ends - datetime.now(UTC)).total_seconds()
