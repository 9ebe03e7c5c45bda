"""Work that a page asks for and that takes minutes: in a thread, one of a name at a time."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from asterion_shared.errors import AsterionError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """How a piece of work stands.

    Attributes:
        began: UTC in seconds since 1970.
        result: what came out; None while it goes on, or where it failed.
        failure: why it failed; empty when it did not.
        goes_on: whether it has not ended.
    """

    began: float
    result: Result | None = None
    failure: str = ""
    goes_on: bool = False


class Works(Generic[Result]):
    """Pieces of work by name; the last of each name is kept, in memory."""

    def __init__(self) -> None:
        self._known: dict[str, Done[Result]] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, work: Callable[[], Result]) -> None:
        """Begin a piece of work, unless one of this name goes on."""
        with self._lock:
            known = self._known.get(name)
            if known is not None and known.goes_on:
                return
            self._known[name] = Done(time.time(), goes_on=True)
        threading.Thread(target=self._carry_out, args=(name, work), daemon=True).start()

    def of(self, name: str) -> Done[Result] | None:
        """The last piece of work of a name; None where there was none."""
        with self._lock:
            return self._known.get(name)

    def _carry_out(self, name: str, work: Callable[[], Result]) -> None:
        began = time.time()
        done: Done[Result]
        try:
            done = Done(began, result=work())
        except AsterionError as error:
            done = Done(began, failure=str(error))
        except Exception as error:
            # The text of it may name files; the person has the command line for more.
            done = Done(began, failure=f"it failed ({type(error).__name__})")
        with self._lock:
            self._known[name] = done
