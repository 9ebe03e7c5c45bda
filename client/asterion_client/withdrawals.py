"""Patients who have withdrawn: from that moment their records are in no data set of the site.

They stand in one file of the state folder as salted hashes, with the moment; nothing takes one out
again. The salt keeps a stolen copy of a frozen manifest from telling who is in it; whoever has the
state folder can try out names, so its file is its owner's alone.
"""

import fcntl
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder
from asterion_shared.key_files import write_private

FILE = "withdrawals.json"
FORMAT = 1
_NOBODY = b'"withdrawn": []}'
FIX = "put it back from the newest backup; until then this site answers no order"


@dataclass(frozen=True, slots=True)
class Withdrawals:
    """Who has withdrawn.

    Attributes:
        salt: 32 secret bytes of this site; empty where nothing was ever stored.
        moments: when, UTC, ISO 8601, by mark.
    """

    salt: bytes
    moments: Mapping[str, str]

    @property
    def salt_sha256(self) -> str:
        """Names the salt, and so tells whether two marks were made with the same one."""
        return hashlib.sha256(b"asterion withdrawals\n" + self.salt).hexdigest()

    def mark_of(self, group: str) -> str:
        """The salted hash that stands for a patient or a field, 64 hex digits."""
        return hmac.digest(self.salt, group.encode(), "sha256").hex()

    def has(self, group: str) -> bool:
        """Whether a patient or a field has withdrawn."""
        return bool(self.moments) and self.mark_of(group) in self.moments


def read_withdrawals(state: Path) -> Withdrawals:
    """Who has withdrawn; nobody where nothing is stored.

    Args:
        state: the site's state folder.

    Raises:
        FileProblemError: the file is damaged, or others can read it.
    """
    path = state / FILE
    try:
        if path.stat().st_mode & 0o077:
            what = "says who has withdrawn, and others can read it"
            raise FileProblemError(path, what, f"chmod 600 {path}")
        stored = json.loads(path.read_bytes())
        if stored["format"] != FORMAT:
            raise FileProblemError(path, "is of another version of Asterion", "use that version")
        moments = {str(row["mark"]): str(row["at"]) for row in stored["withdrawn"]}
        return Withdrawals(bytes.fromhex(stored["salt"]), moments)
    except (FileNotFoundError, NotADirectoryError):  # a state folder that is a file is no state
        return Withdrawals(b"", {})
    except (OSError, ValueError, KeyError, TypeError):
        raise FileProblemError(path, "is not a file of withdrawals", FIX) from None


def ensure_salt(state: Path) -> Withdrawals:
    """The same, with a salt: made and stored where there was none.

    Raises:
        FileProblemError: the file is damaged, others can read it, or it is gone while data sets
            of runs that were made with it are here.
        DiskProblemError: the folder is not writable.
    """
    found = read_withdrawals(state)
    if found.salt:
        return found
    manifests = state.glob("runs/*/manifest.json")
    if any(b'"marks"' in path.read_bytes() for path in manifests):
        raise FileProblemError(state / FILE, "is gone, so who has withdrawn is forgotten", FIX)
    return withdraw(state, ())


def withdraw(state: Path, groups: Iterable[str], now: datetime | None = None) -> Withdrawals:
    """Store that patients have withdrawn; durable when it returns. Who had before, stays so.

    Args:
        state: the site's state folder; made when missing.
        groups: patients or fields as the manifest or the table names them.
        now: UTC; None: the clock's.

    Raises:
        FileProblemError: the file is damaged, or others can read it; nothing was stored.
        DiskProblemError: the folder is not writable; nothing was stored.
    """
    at = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with _held(state):
        before = read_withdrawals(state)
        salted = Withdrawals(before.salt or secrets.token_bytes(32), before.moments)
        new = {salted.mark_of(group): at for group in groups}
        after = Withdrawals(salted.salt, new | dict(before.moments))
        rows = [{"mark": mark, "at": moment} for mark, moment in sorted(after.moments.items())]
        stored = {"format": FORMAT, "salt": after.salt.hex(), "withdrawn": rows}
        write_private(state / FILE, json.dumps(stored).encode())
    return after


def stamp_of(state: Path) -> str:
    """Changes with each withdrawal; empty where nobody has withdrawn. Any thread may ask.

    Raises:
        DiskProblemError: the file cannot be read.
    """
    try:
        content = (state / FILE).read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DiskProblemError(state / FILE, error.strerror or "unreadable") from error
    nobody = content.endswith(_NOBODY)
    return "" if nobody else hashlib.sha256(content).hexdigest()


def forget_trained(run_folder: Path) -> int:
    """Remove what a site keeps of a run and what its patients have a part in; how many files.

    Stored reports, what rounding lost, tensors that stay at the site, and the report with its
    pictures. The site's history stays: it has means and counts alone, and never leaves.

    Raises:
        DiskProblemError: a file cannot be removed.
    """
    patterns = ("*.safetensors", "reports/*.report", "report.html")
    found = [path for pattern in patterns for path in run_folder.glob(pattern)]
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskProblemError(run_folder, error.strerror or "not writable") from error
    return len(found)


@contextmanager
def _held(state: Path) -> Iterator[None]:
    """One process changes the file at a time."""
    path = state / f".{FILE}.lock"
    try:
        make_folder(state)
        file = path.open("w")
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
