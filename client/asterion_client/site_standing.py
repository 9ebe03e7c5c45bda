"""How a site stands, in a small file that its status, its health address and its exit code read."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from asterion_shared import __version__
from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically

FILE = "status.json"
STALE_SECONDS = 30.0
"""A status that nobody wrote for so long is that of a dead process."""

MEANINGS = {
    "foreign": "ask its operator to enrol this site: it has another key, or none, of it",
    "revoked": "its certificate is revoked: ask the operator why, and to enrol this site anew",
    "other_version": "install the version of asterion that the coordinator has",
    "second_process": "another machine runs this site: end one of the two",
    "disk_problem": "its disk or its database cannot be used: tell its operator",
    "quota": "this site asks for too much at once: see whether it runs twice",
}
"""What to do about a refusal of a whole site."""


def meaning_of(code: str) -> str:
    """What a person at the site can do about the coordinator's refusal."""
    return MEANINGS.get(code, "tell its operator, and name this code")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """What the site's process wrote last.

    Attributes:
        site: its name.
        connected: whether its session is open.
        last_contact: UTC in seconds since 1970 of the coordinator's last word; None: none since
            the process started.
        refused: code of the coordinator's last refusal; empty: none.
        working: what it is doing, such as ``train of round 3``; empty: it waits.
        started, written: of the process and of this file, UTC in seconds since 1970.
        coordinator_version: as a coordinator that refused ``other_version`` states it; else empty.
    """

    site: str
    connected: bool
    last_contact: float | None
    refused: str
    working: str
    started: float
    written: float
    coordinator_version: str = ""

    @property
    def meaning(self) -> str:
        """What a person at the site can do about the last refusal."""
        if self.refused == "other_version" and self.coordinator_version:
            return (
                f"it has Asterion {self.coordinator_version}, this site {__version__}, and the two "
                f"cannot talk: install {self.coordinator_version} here"
            )
        return meaning_of(self.refused)

    def problem(self, silent_minutes: float, now: float) -> str:
        """Why the site is not well, in one line; empty when it is.

        Args:
            silent_minutes: how long without contact is too long.
            now: UTC in seconds since 1970.
        """
        if now - self.written > STALE_SECONDS:
            return f"its process has not written for {now - self.written:.0f} s: it does not run"
        if self.refused:
            return f"the coordinator refuses it ({self.refused}); {self.meaning}"
        if self.connected:
            return ""
        silent = now - max(self.started, self.last_contact or 0.0)
        if silent <= 60 * silent_minutes:
            return ""
        return f"no handshake with the coordinator for {silent / 60:.0f} minutes"


def in_words(status: SiteStatus) -> str:
    """Connected or not, and what the site is doing; for a line of the terminal."""
    if status.connected:
        return f"connected, {status.working or 'waits for orders'}"
    heard = "none yet"
    if status.last_contact is not None:
        moment = datetime.fromtimestamp(status.last_contact, UTC)
        heard = moment.strftime("%Y-%m-%d %H:%M UTC")
    return f"not connected; the coordinator's last word: {heard}"


def write_status(state: Path, status: SiteStatus) -> None:
    """Replace the status.

    Args:
        state: the site's state folder.
        status: how it stands now.

    Raises:
        DiskProblemError: the folder is not writable.
    """
    write_atomically(state / FILE, json.dumps(asdict(status)).encode())


def read_status(state: Path) -> SiteStatus:
    """Read the status.

    Raises:
        FileProblemError: the site never ran here, or the file is spoilt.
    """
    path = state / FILE
    try:
        return SiteStatus(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise FileProblemError(
            path, "the site never ran here", "start it: asterion site start"
        ) from None
    except (ValueError, TypeError):
        raise FileProblemError(path, "cannot be read", "start the site again") from None


def problem_of(state: Path, silent_minutes: float) -> str:
    """Why the site is not well now; empty when it is."""
    try:
        return read_status(state).problem(silent_minutes, time.time())
    except FileProblemError as error:
        return str(error)
