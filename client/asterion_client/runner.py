"""The site's warm runner: one long-lived process that answers orders.

It loads only the installed app, once, so torch, the data and the model stay in memory between
rounds; Flower's own way starts a new Python for every message. It is started by the daemon.
An order of a run whose bundle is not this installation's own is refused before the app sees it.
"""

import argparse
import hashlib
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from threading import Event

import httpx
from flwr.app import Context, Message

from asterion_client.app import SITE_VARIABLE, app, refuse_unread
from asterion_client.day_book import DayBook, day_book
from asterion_client.egress import LOG, describe, refusal, reply
from asterion_client.flower_client_compat import Submission, TaskSource
from asterion_client.flower_daemon import READY
from asterion_client.settings import read_site_settings
from asterion_client.site_log import keep_log_clean
from asterion_shared import __version__
from asterion_shared.bundle import NAME, bundle_sha256
from asterion_shared.child_process import watch_parent
from asterion_shared.errors import DiskProblemError
from asterion_shared.flower_messages import num_bytes

POLL_SECONDS = 0.25
"""Pause between two looks for a task."""


def serve(source: TaskSource, stop: Event, days: DayBook) -> None:
    """Take and carry out tasks until told to stop; survives anything but that.

    Args:
        source: of tasks.
        stop: set it to end.
        days: where the bytes of orders and replies are noted.
    """
    work = partial(counted, days=days)
    while not stop.is_set():
        try:
            task = source.take()
            if task is not None:
                source.carry_out(task, work)
                continue
        except httpx.TransportError:
            time.sleep(1.0)  # the SuperNode is starting; the daemon takes care of it
        except Exception as error:  # one broken task must not end the warm process
            LOG.warning("a task was lost: %s", describe(error, "internal_error"))
            time.sleep(1.0)
        stop.wait(POLL_SECONDS)


def counted(message: Message, context: Context, submission: Submission, days: DayBook) -> Message:
    """What :func:`answer` says, with its bytes and the order's noted before it leaves.

    Flower has fetched the order by then, so what passes ``consent.bytes_a_day`` is refused, and
    not kept from coming.
    """
    try:
        days.moved(num_bytes(message.content))
        said = answer(message, context, submission)
        days.moved(num_bytes(said.content))
    except DiskProblemError as error:
        LOG.warning("bytes cannot be noted: %s", describe(error, "disk_problem"))
        return Message(reply(refusal("disk_problem")), reply_to=message)
    return said


def answer(message: Message, context: Context, submission: Submission) -> Message:
    """The app's answer, or the refusal ``foreign_bundle``, under which the app sees nothing.

    Such a refusal is on record like all others, without the run: nobody has read the order.

    Args:
        message: the order.
        context: of the site's node.
        submission: what the order's run says it is made of. It is hashed and never opened.
    """
    if why := _foreign(submission):
        LOG.warning("the order is not of this installation: %s", why)
        return Message(refuse_unread("foreign_bundle"), reply_to=message)
    return app(message, context)


def _foreign(submission: Submission) -> str:
    """Why a submission is not this installation's own; empty when it is."""
    if submission.version != __version__:
        stated = submission.version
        shown = stated if re.fullmatch(r"[0-9][0-9a-z.+]{0,30}", stated) else "not a version"
        return f"the run states version {shown}, installed is {__version__}"
    if submission.name != NAME:
        return "the run is of another project"
    if hashlib.sha256(submission.bundle).hexdigest() != bundle_sha256():
        return "the bundle has other bytes than this version's"
    return ""


def main() -> None:
    """Run from the daemon's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", required=True, type=Path)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--secret", required=True, type=Path)
    given = parser.parse_args()
    watch_parent()
    os.environ[SITE_VARIABLE] = str(given.site)
    keep_log_clean()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _load()
    LOG.info(READY)
    settings = read_site_settings(given.site)
    connection = settings.connection
    assert connection is not None  # noqa: S101  # the daemon starts no runner without one
    days = day_book((given.site.resolve().parent / settings.state_folder).resolve())
    serve(TaskSource(given.runtime, given.secret, connection.message_seconds), stop, days)


def _load() -> None:
    """Import what the first order needs now, not while the coordinator waits."""
    import asterion_client.site_desk  # noqa: F401


if __name__ == "__main__":
    main()
