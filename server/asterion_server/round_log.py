"""The rounds that will not change any more, one JSON line each, in a file that only grows.

A checkpoint names how many bytes of it hold and has the newest rounds itself, so that neither its
size grows with the rounds nor every round has to bring a second file to the disk.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import make_folder, sync_folder
from asterion_shared.result import RoundResult

MOST_PENDING = 2**16
"""Characters of rounds that a checkpoint carries before they go to the log."""


@dataclass(frozen=True, slots=True)
class FinalRounds:
    """Where the rounds before the last are.

    Attributes:
        log_bytes: how much of the log holds the first of them.
        pending: the others, one JSON line each.
    """

    log_bytes: int = 0
    pending: str = ""

    def followed_by(self, one: RoundResult) -> "FinalRounds":
        """The same and one more round."""
        return FinalRounds(self.log_bytes, f"{self.pending}{one.model_dump_json()}\n")


def logged(final: FinalRounds, path: Path) -> FinalRounds:
    """Bring pending rounds to the log when they are many.

    What an interrupted run left there beyond ``log_bytes`` goes.

    Raises:
        DiskProblemError: the disk is full or not writable; the first ``log_bytes`` still hold.
    """
    if len(final.pending) < MOST_PENDING:
        return final
    lines = final.pending.encode()
    try:
        make_folder(path.parent)
        with path.open("ab") as file:
            file.truncate(final.log_bytes)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)  # a checkpoint that names these bytes comes next
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    return FinalRounds(final.log_bytes + len(lines))


def read_final(final: FinalRounds, path: Path) -> tuple[RoundResult, ...]:
    """The rounds, oldest first."""
    text = final.pending
    if final.log_bytes:
        with path.open("rb") as file:
            text = file.read(final.log_bytes).decode() + text
    return tuple(RoundResult.model_validate_json(line) for line in text.splitlines())
