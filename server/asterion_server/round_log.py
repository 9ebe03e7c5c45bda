"""The rounds that will not change any more, one JSON line each, in a file that only grows.

A checkpoint names how many bytes of it hold, so that its own size does not grow with the rounds.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.result import RoundResult


def append_rounds(path: Path, num_bytes: int, rounds: Iterable[RoundResult]) -> int:
    """Add rounds after the first ``num_bytes``; what an interrupted run left there goes.

    Returns:
        The bytes that hold now, on the disk.

    Raises:
        DiskProblemError: the disk is full or not writable; the first ``num_bytes`` still hold.
    """
    lines = "".join(f"{one.model_dump_json()}\n" for one in rounds).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(num_bytes)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    return num_bytes + len(lines)


def read_rounds(path: Path, num_bytes: int) -> tuple[RoundResult, ...]:
    """The rounds in the first ``num_bytes``; none when that is 0."""
    if num_bytes == 0:
        return ()
    with path.open("rb") as file:
        lines = file.read(num_bytes).splitlines()
    return tuple(RoundResult.model_validate_json(line) for line in lines)
