"""Who is for training and who is held out: by patient or field, never by image."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from asterion_client.data.records import Record
from asterion_shared.errors import DataProblemError


def split_records(records: Sequence[Record], test_fraction: float, seed: int) -> list[Record]:
    """Give each record without a split one, by its group; given splits are kept.

    Groups are ordered by a hash of seed and group within their class (that of their first
    record), and the first ``test_fraction`` of each class are held out: at least one group and at
    most all but one, when a class has two groups or more; and so over all classes together. Equal
    input, equal output.

    Raises:
        DataProblemError: a group has records on both sides of the given splits, or is half given.
    """
    _check_groups(records)
    free: dict[str, dict[str, None]] = {}  # groups by class; a dict keeps their order
    placed: set[str] = set()
    for record in records:
        if not record.split and record.group not in placed:
            placed.add(record.group)
            free.setdefault(record.label, {})[record.group] = None
    test: set[str] = set()
    cut = 0 < test_fraction < 1
    for label in sorted(free):
        groups = sorted(free[label], key=lambda group: _hash(seed, group))
        wanted = round(test_fraction * len(groups))
        if cut and len(groups) >= 2:
            wanted = min(max(wanted, 1), len(groups) - 1)
        test.update(groups[:wanted])
    if cut and len(placed) >= 2 and all(not record.split for record in records):
        ordered = sorted(placed, key=lambda group: _hash(seed, group))
        if not test:
            test.add(ordered[0])
        elif len(test) == len(placed):
            test.discard(ordered[-1])
    return [
        r if r.split else replace(r, split="test" if r.group in test else "train") for r in records
    ]


def split_field(
    record: Record, shape: Sequence[int], tile: Sequence[int], test_fraction: float
) -> tuple[Record, Record]:
    """Cut one field into a training and a test region with a gap of at least one tile.

    The cut is across the longer axis; the test region is at its end. The pixels between belong to
    neither.

    Args:
        record: the whole field.
        shape: its spatial shape, pixels.
        tile: size of a training patch, pixels of the field.
        test_fraction: share of the field that is held out, > 0.

    Raises:
        DataProblemError: the field is too short for a gap and something on both sides.
    """
    axis = max(range(len(shape)), key=lambda i: shape[i])
    length, gap = shape[axis], tile[axis]
    test_start = length - round(test_fraction * length)
    train_stop = test_start - gap
    if train_stop <= 0 or test_start >= length:
        msg = (
            f"the field of {record.path.name} is {length} pixels long: too short for a test region "
            f"of {test_fraction:g} and a gap of {gap}; lower data.test_fraction or the patch size"
        )
        raise DataProblemError(msg, code="no_data")

    def part(start: int, stop: int, split: str) -> Record:
        region = tuple((start, stop) if i == axis else (0, n) for i, n in enumerate(shape))
        return replace(record, region=region, split=split)

    return part(0, train_stop, "train"), part(test_start, length, "test")


def _check_groups(records: Sequence[Record]) -> None:
    given: dict[str, set[str]] = {}
    for record in records:
        given.setdefault(record.group, set()).add(record.split)
    both = sorted(group for group, splits in given.items() if len(splits) > 1)
    if both:
        msg = (
            f"{len(both)} groups have records in more than one split, the first in "
            f"{next(r.path.name for r in records if r.group == both[0])}; put each patient or "
            "field on one side"
        )
        raise DataProblemError(msg, code="settings_invalid")


def _hash(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{group}".encode()).hexdigest()
