"""The log of a site's processes: codes, hashes and places in the code, no text from data.

Readers of medical and sky images warn with the value of a header, and an exception that nobody
caught is printed with its text. Neither reaches the log of a process that called
:func:`keep_log_clean`.
"""

import logging
import sys
import threading
import warnings
from types import TracebackType

from asterion_client.egress import describe

OURS = "asterion"
"""What the names of our own loggers start with."""

LOG = logging.getLogger("asterion.site")


def keep_log_clean() -> None:
    """Log our own lines to standard error; of others only that they said something, and who."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(without_foreign_text)
    LOG.setLevel(logging.INFO)
    warnings.showwarning = _warned
    sys.excepthook = _ended
    threading.excepthook = _thread_ended
    sys.unraisablehook = _unraisable


def without_foreign_text(record: logging.LogRecord) -> bool:
    """Take the text from a record that is not ours; it always passes."""
    # Tracebacks end with the exception's text, also where the line is ours.
    record.exc_info = record.exc_text = record.stack_info = None
    if record.name.split(".")[0] != OURS:
        record.msg, record.args = "%s said something at line %d", (record.name, record.lineno)
    return True


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: object = None, line: str | None = None) -> None:  # fmt: skip
    name = filename.replace("\\", "/").rpartition("/")[2]
    LOG.warning("a warning (%s at %s:%d)", category.__name__, name, lineno)


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    LOG.critical("the process ended: %s", describe(error, "internal_error"))


def _thread_ended(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None:
        LOG.critical("a thread ended: %s", describe(given.exc_value, "internal_error"))


def _unraisable(given: "sys.UnraisableHookArgs") -> None:
    if given.exc_value is not None:
        LOG.error("an error as something was put away: %s", describe(given.exc_value, ""))
