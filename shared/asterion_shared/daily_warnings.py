"""What a daemon says of things that will soon be wrong: at its start, and then once a day."""

import time
from collections.abc import Callable, Iterable

from asterion_shared.errors import AsterionError, Problem

DAY_SECONDS = 86_400.0


class DailyWarnings:
    """Looks at once and then each day; says each problem in a line.

    Args:
        look: finds problems.
        say: is told each in words.
    """

    def __init__(self, look: Callable[[], Iterable[Problem]], say: Callable[[str], None]) -> None:
        self._look, self._say = look, say
        self._next = time.monotonic()

    def look_if_due(self) -> None:
        """Look, if the last time is a day ago; call it as often as you like."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + DAY_SECONDS
        try:
            for problem in self._look():
                self._say(f"{'problem' if problem.fatal else 'warning'}: {problem}")
        except AsterionError as error:
            self._say(f"problem: {error}")
