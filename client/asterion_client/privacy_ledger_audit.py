"""Look at a ledger as a stranger would: verify every hash in it, export it for others to verify."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from asterion_client.privacy_entries import Entry, Head, hash_units, next_entry
from asterion_client.privacy_ledger_store import RESTORE, Store
from asterion_shared.errors import FileProblemError, Problem
from asterion_shared.files import write_atomically


def verify_ledger(folder: Path) -> tuple[Head, list[Problem]]:
    """Walk the whole chain and every data set.

    Args:
        folder: of the ledger.

    Returns:
        Where the ledger ends, or where its whole part does; and what is wrong with it: an entry
        that was edited, removed, moved or cut off, a data set that lost or gained people.

    Raises:
        FileProblemError: there is no ledger, or its file is damaged.
        DiskProblemError: it cannot be read.
    """
    store = Store(folder, create=False)
    try:
        with store.transaction():
            hashes, data_sets, problem = [store.start.sha256], dict[str, Entry](), ""
            for row in store.rows():
                entry = next_entry(row, Head(len(hashes) - 1, hashes[-1]))
                if isinstance(entry, str):
                    problem = entry
                    break
                hashes.append(row.sha256)
                if entry.unit_kind != "site":
                    data_sets.setdefault(entry.units_sha256, entry)
            # After a break in the chain the rest would only repeat it.
            found = [problem] if problem else [
                *filter(None, [store.witness_problem(hashes), store.told_problem(hashes)]),
                *_data_set_problems(store, data_sets),
            ]  # fmt: skip
    finally:
        store.close()
    problems = [Problem(where=str(store.path), what=what, fix=RESTORE) for what in found]
    return Head(len(hashes) - 1, hashes[-1]), problems


def _data_set_problems(store: Store, data_sets: dict[str, Entry]) -> Iterator[str]:
    for number, (sha256, entry) in enumerate(data_sets.items()):
        units = store.units_of(number)
        if hash_units(units) != sha256:
            yield (
                f"the data set that entry {entry.number} charged first had {entry.num_units} "
                f"{entry.unit_kind}s; the {len(units)} that are stored are not the same"
            )


def export_ledger(folder: Path, out: Path, *, unit_ids: bool = False) -> Head:
    """Write a whole ledger as lines of JSON that anybody can verify.

    A line is an entry, in order; its hash is the SHA-256 of its bytes without the line's end, and
    the next line holds that hash as ``previous``. The last line has ``count`` and ``head``.

    Args:
        folder: of the ledger.
        out: the file, made with mode 0600; one that is there is replaced.
        unit_ids: also write, before the last line, one line for each data set with ``units`` (the
            sorted hashed ids) and ``units_sha256``.

    Returns:
        The head that the last line holds.

    Raises:
        FileProblemError: there is no ledger, or it is not whole.
        DiskProblemError: it cannot be read, or ``out`` not written.
    """
    head, problems = verify_ledger(folder)
    if problems:
        raise FileProblemError(folder, problems[0].what, problems[0].fix)
    store = Store(folder, create=False)
    try:
        with store.transaction():
            lines = [row.content for row in store.rows()][: head.count]
            # The order in which data sets appear is their number.
            seen = dict.fromkeys(
                entry.units_sha256
                for entry in map(Entry.model_validate_json, lines)
                if entry.unit_kind != "site"
            )
            people = [
                json.dumps({"units": store.units_of(number), "units_sha256": sha256})
                for number, sha256 in enumerate(seen)
                if unit_ids
            ]
    finally:
        store.close()
    last = json.dumps({"count": head.count, "head": head.sha256})
    content = "".join(f"{line}\n" for line in chain(lines, people, [last]))
    write_atomically(out, content.encode())
    out.chmod(0o600)
    return head
