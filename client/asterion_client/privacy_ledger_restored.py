"""A ledger that was put back from a backup: nothing is released until a person has compared it.

A backup has forgotten what was charged after it. It cannot know that by itself, so the restore
leaves a note beside the ledger. The coordinators know the newest head that they were told.
"""

from collections.abc import Sequence
from pathlib import Path

from asterion_client.privacy_entries import Head, next_entry
from asterion_client.privacy_ledger_store import RESTORED, Store, restored_problem
from asterion_client.settings import SiteSettings
from asterion_shared.errors import DiskProblemError, LedgerStoppedError
from asterion_shared.files import sync_folder
from asterion_shared.key_files import write_private

COMPARE = (
    "enter the withdrawals since then again, compare the ledger with what the coordinators know, "
    "and end with: asterion site ledger accept; see 'After a restore' in the guide for sites"
)


def note_restored(folder: Path, at: str) -> None:
    """Leave the note.

    Args:
        folder: of the ledger; made when missing.
        at: when the backup was made, UTC, ISO 8601.

    Raises:
        DiskProblemError: the folder is not writable.
    """
    write_private(folder / RESTORED, f"{at}\n".encode())


def require_accepted(settings: SiteSettings, folder: Path) -> None:
    """See to it that no note is there: withdrawals may be forgotten as well as charges.

    Args:
        settings: the site's.
        folder: of ``site.toml``.

    Raises:
        LedgerStoppedError: there is one.
    """
    ledger = folder / settings.state_folder / "ledger"
    if problem := restored_problem(ledger):
        raise LedgerStoppedError(ledger, problem, COMPARE)


def accept_restored(folder: Path, heads: Sequence[str]) -> Head:
    """Remove the note, once the ledger has every head that a coordinator knows.

    Args:
        folder: of the ledger.
        heads: 64 hex digits each; none: no coordinator was ever told one.

    Returns:
        Where the ledger ends; 0 entries where there is none.

    Raises:
        LedgerStoppedError: it lacks one of them, so charges are forgotten; or it is not whole.
        DiskProblemError: the note cannot be removed.
    """
    hashes, path = [""], folder
    if (folder / "ledger.sqlite").exists():
        store = Store(folder, create=False)
        try:
            hashes, path = _hashes(store), store.path
        finally:
            store.close()
    for head in heads:
        if head not in hashes:
            what = f"lacks the head {head}: what was charged after the backup is forgotten"
            fix = "put a newer one back, or see step 3 of 'When the ledger stops' in the guide"
            raise LedgerStoppedError(path, what, fix)
    try:
        (folder / RESTORED).unlink(missing_ok=True)
        if folder.exists():
            sync_folder(folder)
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or "not writable") from error
    return Head(len(hashes) - 1, hashes[-1])


def _hashes(store: Store) -> list[str]:
    hashes = [store.start.sha256]
    with store.transaction():
        for row in store.rows():
            entry = next_entry(row, Head(len(hashes) - 1, hashes[-1]))
            if isinstance(entry, str):
                fix = "put another backup back"
                raise LedgerStoppedError(store.path, entry, fix)
            hashes.append(row.sha256)
        if problem := store.witness_problem(hashes):
            fix = "put another backup back"
            raise LedgerStoppedError(store.path, problem, fix)
    return hashes
