"""Remove from the link what nobody needs: parts of folded rounds, all that an ended run left."""

import shutil
from pathlib import Path

from asterion_server.link_paths import blobs_of_orders, blobs_of_reports
from asterion_server.link_store import LinkStore
from asterion_shared.link.blobs import remove_whole_but

EVERY_ROUND = 2**31 - 1


def reclaim_run(store: LinkStore, folder: Path, run: str) -> None:
    """Remove a run's orders and reports from the queue and from the disk.

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
    collect_reports(store, folder)
    shutil.rmtree(blobs_of_orders(folder, run), ignore_errors=True)


def collect_reports(store: LinkStore, folder: Path) -> None:
    """Remove the parts of reports that are no longer in the queue, of every site.

    Raises:
        DiskProblemError: the queue cannot be read.
    """
    for reports in blobs_of_reports(folder, "").glob("*"):
        with store.settled_reports(reports.name) as parts:
            remove_whole_but(reports, parts)


def runs_with_orders(folder: Path) -> list[str]:
    """Names of the runs that have orders on disk, sorted."""
    return sorted(path.name for path in blobs_of_orders(folder, "").glob("*"))
