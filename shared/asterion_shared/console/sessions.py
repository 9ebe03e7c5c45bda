"""Sessions of signed-in people, and how often somebody may try to sign in; in memory alone."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from asterion_shared.console.people import Person, Role

IDLE_SECONDS = 30 * 60.0
"""A session nobody used for so long has ended."""

LONGEST_SECONDS = 10 * 3600.0
"""A session ends so long after it began, used or not."""

MOST_SESSIONS = 500
FREE_TRIES = 5
"""Failed tries, by name and by address, before each further one has to wait."""

LONGEST_WAIT_SECONDS = 60.0
FORGET_SECONDS = 15 * 60.0
_MOST_KEYS = 10_000

Clock = Callable[[], float]


@dataclass
class Session:
    """Somebody who has signed in.

    Attributes:
        name: of the person.
        person: as they were when they signed in.
        csrf: what every form of theirs must bring back.
        began, seen: of the clock.
        said: is shown on the next page, once.
        kept: what a form has to hold between two pages, such as a plan that was checked.
    """

    name: str
    person: Person
    csrf: str
    began: float
    seen: float
    said: str = ""
    kept: dict[str, object] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        """What the person may do."""
        return self.person.role


class Sessions:
    """The open sessions, by the hash of their token.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, name: str, person: Person) -> str:
        """Open a session; returns its token, 256 random bits."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._open[_key(token)] = Session(name, person, secrets.token_urlsafe(32), now, now)
            while len(self._open) > MOST_SESSIONS:
                self._open.popitem(last=False)
        return token

    def find(self, token: str, *, used: bool) -> Session | None:
        """The open session of a token; None where there is none.

        Args:
            token: of the cookie.
            used: whether a person does something; a page that looks by itself keeps nobody in.
        """
        key, now = _key(token), self._clock()
        with self._lock:
            found = self._open.get(key)
            if found is None:
                return None
            if now - found.seen > IDLE_SECONDS or now - found.began > LONGEST_SECONDS:
                del self._open[key]
                return None
            if used:
                found.seen = now
            return found

    def end(self, token: str) -> None:
        """Close a session, if it is open."""
        with self._lock:
            self._open.pop(_key(token), None)


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass
class _Tries:
    failed: int = 0
    last: float = 0.0


class Attempts:
    """How often it was tried to sign in, by name and by address.

    A try counts as failed when it begins, so that many at once do not pass together.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, keys: Sequence[str]) -> float:
        """Begin a try; 0.0: go on, else the seconds to wait, and nothing was counted."""
        now = self._clock()
        with self._lock:
            wait = max(self._wait(key, now) for key in keys)
            if wait > 0:
                return wait
            for key in keys:
                tries = self._tries.setdefault(key, _Tries())
                self._tries.move_to_end(key)
                if now - tries.last > FORGET_SECONDS:
                    tries.failed = 0
                tries.failed, tries.last = tries.failed + 1, now
            while len(self._tries) > _MOST_KEYS:
                self._tries.popitem(last=False)
        return 0.0

    def succeeded(self, name: str, others: Sequence[str]) -> None:
        """The try was right: the name begins anew, the other keys lose this one try."""
        with self._lock:
            self._tries.pop(name, None)
            for key in others:
                tries = self._tries.get(key)
                if tries is not None:
                    tries.failed = max(tries.failed - 1, 0)

    def _wait(self, key: str, now: float) -> float:
        tries = self._tries.get(key)
        if tries is None or tries.failed < FREE_TRIES:
            return 0.0
        pause = min(2.0 ** (tries.failed - FREE_TRIES + 1), LONGEST_WAIT_SECONDS)
        return max(tries.last + pause - now, 0.0)
