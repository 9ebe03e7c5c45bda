"""How often each site was asked to train in a private run: written before the order leaves.

A checkpoint knows finished rounds only. An order whose round never finished may have been answered
all the same, and then the site released something; so each asking counts, also of a round that is
begun again.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import make_folder, sync_folder


def note_asked(path: Path, round_: int, sites: Sequence[str]) -> None:
    """Add a line for an order that is about to be sent, durably.

    Raises:
        DiskProblemError: the disk is full or not writable; then nothing may be sent.
    """
    line = json.dumps({"round": round_, "sites": list(sites)}) + "\n"
    try:
        make_folder(path.parent)
        with path.open("ab") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")  # a crash tore the last line, before its order was sent
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error


def times_asked(path: Path) -> dict[str, int]:
    """By site, sorted by name; empty when nobody was asked. A torn line was never sent."""
    counts: Counter[str] = Counter()
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        try:
            counts.update(json.loads(line)["sites"])
        except json.JSONDecodeError:
            continue
    return dict(sorted(counts.items()))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
