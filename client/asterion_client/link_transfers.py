"""When and how fast a site moves bytes: its rate cap, its hours, a watch over silence."""

import datetime
import threading
import time
from collections.abc import Callable, Sequence


class RateCap:
    """Holds a stream of bytes to a rate, counted over all transfers of the site.

    Args:
        bytes_per_second: the cap; None: none.
        now, pause: the clock and the sleep; tests bring their own.
    """

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._now, self._pause = bytes_per_second, now, pause
        self._free_at = now()
        self._lock = threading.Lock()

    def moved(self, num_bytes: int) -> None:
        """Note bytes that were moved; return when the next may be."""
        if self._rate is None:
            return
        with self._lock:  # two threads move bytes
            self._free_at = max(self._free_at, self._now()) + num_bytes / self._rate
            wait = self._free_at - self._now()
        if wait > 0:
            self._pause(wait)


def parse_hours(text: str) -> tuple[datetime.time, datetime.time]:
    """Begin and end of ``22:00-06:00``; over midnight when the end is the earlier.

    Raises:
        ValueError: it is not of that form, or empty of time.

    >>> parse_hours("22:00-06:30")
    (datetime.time(22, 0), datetime.time(6, 30))
    """
    begin, _, end = text.partition("-")
    found = datetime.time.fromisoformat(begin.strip()), datetime.time.fromisoformat(end.strip())
    if found[0] == found[1]:
        msg = f"{text!r} begins when it ends"
        raise ValueError(msg)
    return found


def seconds_until_open(hours: Sequence[str], now: datetime.datetime) -> float:
    """Seconds until bytes may move; 0 inside of the hours, or without any.

    >>> seconds_until_open(["22:00-06:00"], datetime.datetime(2026, 1, 1, 21, 0))
    3600.0
    >>> seconds_until_open(["22:00-06:00"], datetime.datetime(2026, 1, 1, 5, 59))
    0.0
    """
    waits: list[float] = []
    for begin, end in map(parse_hours, hours):
        at = now.time()
        inside = begin <= at < end if begin < end else at >= begin or at < end
        if inside:
            return 0.0
        opens = datetime.datetime.combine(now.date(), begin)
        if opens <= now:
            opens += datetime.timedelta(days=1)
        waits.append((opens - now).total_seconds())
    return min(waits, default=0.0)


class Watchdog:
    """Calls ``bite`` when nothing is heard for ``seconds``, which may be changed."""

    def __init__(self, bite: Callable[[], object], seconds: float) -> None:
        self.seconds = seconds
        self._bite, self._last = bite, time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        """Begin to count anew."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Bite no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            if time.monotonic() - self._last > self.seconds:
                self._bite()
                return
