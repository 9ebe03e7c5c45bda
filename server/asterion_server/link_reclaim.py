"""Remove from the link all that an ended run left."""

import shutil
from contextlib import closing
from pathlib import Path

from asterion_server.link_paths import blobs_of_orders
from asterion_server.link_store import LinkStore
from asterion_server.link_wake import Bell, address_of

EVERY_ROUND = 2**31 - 1


def reclaim_run(store: LinkStore, folder: Path, run: str) -> None:
    """Remove a run's orders and reports from the queue, and its orders from the disk.

    The link is rung: the parts of reports are its own, and it removes those no longer needed.

    For a run that is over for good. Whoever is killed in here does it again: the run's folder of
    orders goes last, and while it is there :func:`runs_with_orders` names the run.

    Args:
        store: the queue.
        folder: the coordinator's.
        run: its name.

    Raises:
        DiskProblemError: the queue cannot be written.
    """
    store.reclaim(run, EVERY_ROUND)
    shutil.rmtree(blobs_of_orders(folder, run), ignore_errors=True)
    with closing(Bell()) as bell:
        bell.ring(address_of(folder))


def runs_with_orders(folder: Path) -> list[str]:
    """Names of the runs that have orders on disk, sorted."""
    return sorted(path.name for path in blobs_of_orders(folder, "").glob("*"))
