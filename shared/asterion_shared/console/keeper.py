"""A daemon's console: a process beside it, whose faults the daemon only tells of."""

from collections.abc import Callable

from asterion_shared.child_process import Service
from asterion_shared.console.settings import GREETING
from asterion_shared.errors import DiskProblemError


class ConsoleKeeper:
    """Starts a console's process, and again when it dies; says each reason once.

    Args:
        service: the process, not started yet.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._told = ""
        self._deaths_of = 0

    def look(self, say: Callable[[str], None]) -> None:
        """See to it that it runs; call it as often as you like. Nothing is raised."""
        try:
            if self._service.num_starts == 0:
                self._service.start()
            if self._service.pid is None and self._deaths_of < self._service.num_starts:
                self._deaths_of = self._service.num_starts
                self._tell(say)
            self._service.keep_running()
        except DiskProblemError as error:
            if self._told != str(error):
                self._told = str(error)
                say(f"the console does not run: {error}")

    def stop(self) -> None:
        """End it."""
        self._service.stop()

    def _tell(self, say: Callable[[str], None]) -> None:
        lines = [line.strip() for line in self._service.last_words().splitlines()]
        last = [line for line in lines if line and not line.startswith(GREETING)]
        words = last[-1] if last else "no word"
        if words != self._told:
            self._told = words
            say(f"the console has ended ({words}) and is started again; see {self._service.log}")
