"""The numbered steps of the protocol. The code names each where it has been taken.

``docs/protocol.md`` says for each what is durable. A fault harness stops a process at a step: with
``ASTERION_STOP_FOLDER`` set, a file in that folder that is named like a step and holds a number N
kills the process the Nth time that it takes the step; the file is removed first. Without the
variable a step costs one comparison.
"""

import os
import signal
from pathlib import Path
from threading import Lock

STOP_VARIABLE = "ASTERION_STOP_FOLDER"

STEPS: dict[str, str] = {
    "C1": "the asking is on record",
    "C2": "the order's large parts are stored",
    "C3": "the orders are posted",
    "L1": "the site's session is open",
    "L2": "the order is sent to the site",
    "S1": "the site has the order",
    "S2": "the order's chunks are stored at the site",
    "S3": "the site has trained",
    "S4": "the site's report is stored, nothing is charged",
    "S5": "the report is charged",
    "S6": "the report is offered",
    "L3": "some chunks of the report are stored",
    "L4": "all chunks of the report are stored",
    "L5": "the report is stored",
    "S7": "the site knows that its report is stored",
    "C4": "the report is pulled",
    "C5": "the round is folded",
    "C6": "the checkpoint is stored",
    "C7": "the round's orders and reports are reclaimed",
    "C8": "the result is written",
}
"""C: the run's process at the coordinator; L: the link's; S: the site's runner. In the order of an
undisturbed round."""

_folder = os.environ.get(STOP_VARIABLE, "")
_counting = Lock()


def reached(step: str) -> None:
    """Name a step that was just taken."""
    if _folder:
        with _counting:  # threads of one process take the same step
            _stop(Path(_folder) / step)


def _stop(armed: Path) -> None:
    try:
        times = int(armed.read_text())
    except FileNotFoundError:
        return
    if times > 1:
        left = armed.with_name(f"{armed.name}.left")
        left.write_text(str(times - 1))
        left.replace(armed)  # whoever is killed in between leaves a whole number
        return
    armed.unlink()
    os.kill(os.getpid(), signal.SIGKILL)
