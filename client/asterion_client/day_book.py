"""What a site did today: runs, rounds, bytes and hours of work, durable over restarts.

Days are those of UTC. That a round begins is on the disk before it does. Bytes and seconds are
written as they come, so that a process that is killed again and again gets no second helping; only
a power cut may lose the last of them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import append_lines, make_folder

FOLDER = "consent/days"
DAY_SECONDS = 86_400
Round = tuple[str, int]


@dataclass(slots=True)
class Day:
    """Sums of one day.

    Attributes:
        runs: names of those that began.
        rounds: of all runs, each with the orders of it that were carried out.
        num_bytes: moved, both ways.
        seconds: of work on orders.
    """

    runs: set[str] = field(default_factory=set)
    rounds: dict[Round, set[str]] = field(default_factory=dict)
    num_bytes: int = 0
    seconds: float = 0.0


class DayBook:
    """The book of one state folder. Any thread may use it; another process must not write.

    Args:
        state: the site's state folder.
        clock: UTC, seconds since 1970.
    """

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = state / FOLDER, clock
        self._lock = Lock()
        self._name, self._day = "", Day()
        self._before: dict[Round, set[str]] = {}

    def today(self) -> Day:
        """The sums of today; do not change them."""
        with self._lock:
            return self._turned()

    def orders_of(self, run: str, round_: int) -> frozenset[str] | None:
        """Orders of a round that were carried out today or yesterday; None: it has not begun.

        Of yesterday too, for midnight does not end a round.
        """
        with self._lock:
            found = [day[run, round_] for day in (self._turned().rounds, self._before)
                     if (run, round_) in day]  # fmt: skip
        return frozenset().union(*found) if found else None

    def begin(self, run: str, round_: int, order: str | None = None) -> None:
        """Note that a round begins here, or an order of it.

        Args:
            run: its name.
            round_: its number.
            order: hash of the order; None: a step of a sum, which is not counted.

        Raises:
            DiskProblemError: it cannot be written; then nothing may begin.
        """
        with self._lock:
            known = self._turned().rounds.get((run, round_))
            if known is None or (order is not None and order not in known):
                entry = {"run": run, "round": round_} | ({"order": order} if order else {})
                append_lines(self._folder / self._name, [json.dumps(entry)])
                _count(self._day, entry)

    def moved(self, num_bytes: int) -> None:
        """Note bytes that an order brings or a report takes.

        Raises:
            DiskProblemError: it cannot be written.
        """
        with self._lock:
            self._note({"bytes": num_bytes})

    def worked(self, seconds: float) -> None:
        """Note seconds of work.

        Raises:
            DiskProblemError: it cannot be written.
        """
        with self._lock:
            self._note({"seconds": round(seconds, 3)})

    def _note(self, entry: dict[str, Any]) -> None:
        """Add a line that need not be on the disk at once."""
        day, path = self._turned(), self._folder / self._name
        try:
            make_folder(path.parent)
            with path.open("a", encoding="ascii") as file:
                file.write(f"\n{json.dumps(entry)}\n")  # the line before may be torn
        except OSError as error:
            raise DiskProblemError(path, error.strerror or type(error).__name__) from error
        _count(day, entry)

    def _turned(self) -> Day:
        """Today's sums; read from the disk when this is the first look at this day."""
        now = self._clock()
        name, before = _file_of(now), _file_of(now - DAY_SECONDS)
        if name != self._name:
            self._name, self._day = name, read_day(self._folder / name)
            self._before = read_day(self._folder / before).rounds
        return self._day


def _file_of(moment: float) -> str:
    return time.strftime("%Y-%m-%d.jsonl", time.gmtime(moment))


@cache
def day_book(state: Path) -> DayBook:
    """The one book of this process for a state folder (absolute)."""
    return DayBook(state)


def read_day(path: Path) -> Day:
    """The sums of a day's file; nothing when it is not there. A torn line never began."""
    day = Day()
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
        try:
            _count(day, json.loads(line))
        except ValueError:
            continue
    return day


def _count(day: Day, entry: dict[str, Any]) -> None:
    if "run" in entry:
        day.runs.add(entry["run"])
        orders = day.rounds.setdefault((entry["run"], entry["round"]), set())
        orders.update({entry["order"]} if "order" in entry else ())
    day.num_bytes += entry.get("bytes", 0)
    day.seconds += entry.get("seconds", 0.0)
