"""What happens at a site when patients withdraw: stored, and what they had a part in removed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asterion_client.data.records import Record, find_records
from asterion_client.settings import SiteSettings
from asterion_client.withdrawals import (
    Withdrawals,
    ensure_salt,
    forget_trained,
    withdraw,
)
from asterion_shared.errors import FileProblemError, UserInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """What came of a withdrawal; counts alone.

    Attributes:
        num_new, num_known: patients who had not, and who had, withdrawn before.
        num_unknown: patients of whom the site has no record now, and had none in a run.
        num_records: records of the present data that are left out for them.
        num_runs: runs whose data sets had them.
        num_files: files of those runs that were removed.
    """

    num_new: int
    num_known: int
    num_unknown: int
    num_records: int
    num_runs: int
    num_files: int


def withdraw_groups(settings: SiteSettings, folder: Path, groups: Sequence[str]) -> Withdrawn:
    """Take patients out of every later order, and remove what they had a part in.

    A site that runs sees it with its next order, and with the report that it is about to send.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        groups: patients or fields, as the manifest or the table names them.

    Raises:
        UserInputError: the name is a row's number, which may be another's tomorrow.
        FileProblemError: the file of withdrawals is damaged, or others can read it.
        DiskProblemError: the state folder is not writable.
    """
    state, wanted = folder / settings.state_folder, set(groups)
    records = [record for record in _present(settings, folder) if record.group in wanted]
    if any(record.index is not None and not record.group_named for record in records):
        msg = (
            "rows are named by their numbers here, which may be other patients' tomorrow; name the "
            "column of patients in data.group_column (npz: an array 'group') and withdraw by that"
        )
        raise UserInputError(msg)
    before = ensure_salt(state)
    after = withdraw(state, wanted)
    marks = {after.mark_of(group) for group in wanted}
    found, num_runs, num_files = {after.mark_of(record.group) for record in records}, 0, 0
    for manifest in sorted(state.glob("runs/*/manifest.json")):
        if here := marks & _marks(manifest, after):
            found |= here
            num_runs += 1
            num_files += forget_trained(manifest.parent)
    num_known = len(marks & set(before.moments))
    return Withdrawn(
        num_new=len(marks) - num_known,
        num_known=num_known,
        num_unknown=len(marks - found),
        num_records=len(records),
        num_runs=num_runs,
        num_files=num_files,
    )


def _present(settings: SiteSettings, folder: Path) -> list[Record]:
    """The site's records; none where the data cannot be had now: who withdraws need not wait."""
    try:
        return find_records(settings.data, folder / settings.data.folder, settings.task)
    except FileProblemError:
        return []


def _marks(manifest: Path, withdrawals: Withdrawals) -> set[str]:
    """The marks of a run's data set; none where the run cannot go on with it anyway."""
    try:
        stored = json.loads(manifest.read_bytes())
        same = stored["marks"] == withdrawals.salt_sha256
        return {row["mark"] for row in stored["records"]} if same else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()
