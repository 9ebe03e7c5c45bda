"""No subgroup of 1 to k - 1 patients leaves, nor can one be found as the total less the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_client.small_groups import CellPatients, shareable
from asterion_shared.metrics import Statistic, Statistics, merge
from asterion_shared.metrics.merged_bins import kept_of, name_beside

VALUES = ("female", "male", "other")
BINS = 16
LENGTHS = {"scores": 2 * BINS, "unit_moments": 4 + BINS, "confusion": 4}
WHOLES = {"scores": "score", "unit_moments": "dice", "confusion": "confusion"}

Row = tuple[int, str, int, int]
"""Patient, subgroup, stream (positive or negative, undefined or not), bin."""


def one(kind: str, stream: int, place: int) -> Statistic:
    """The statistic of one case."""
    values = np.zeros(LENGTHS[kind])
    match kind:
        case "scores":
            values[stream * BINS + place] = 1
        case "confusion":
            values[2 * stream + place % 2] = 1
        case _ if stream:
            values[3] = 1
        case _:
            share = place / BINS
            values[:3], values[4 + place] = (1, share, share**2), 1
    return Statistic(kind, values)


def measured(rows: list[Row], kind: str) -> tuple[Statistics, CellPatients]:
    noted, total = CellPatients(), {f"by_sex/{value}": one(kind, 0, 0) for value in VALUES}
    total = {name: Statistic(kind, 0 * part.values) for name, part in total.items()}
    noted.note(f"p{rows[0][0]}", total)
    for patient, value, stream, place in rows:
        part = one(kind, stream, place)
        case = {WHOLES[kind]: part, f"by_sex/{value}": part}
        noted.note(f"p{patient}", case)
        total = merge([total, case])
    return total, noted


def small(rows: list[Row], kind: str, stream: int, ranges: list[range], k: int) -> bool:
    """Whether 1 to k - 1 patients stand behind a cell, looked up in the rows themselves."""
    is_one_cell = kind == "unit_moments" and stream == 1
    return any(
        0 < len({p for p, _, s, b in rows if s == stream and (is_one_cell or b in inside)}) < k
        for inside in ranges
    )


def known_ranges(left: Statistics, names: list[str], kind: str, stream: int) -> list[range]:
    """Between the edges at which the counts of all of these statistics are known."""
    if kind == "confusion":
        return [range(start, BINS, 2) for start in (0, 1)]
    known = np.ones(BINS - 1, bool)
    for name in names:
        if kind == "unit_moments":
            kept = kept_of(left, name)
            known &= np.ones(BINS - 1, bool) if kept is None else kept
        elif moved := left.get(name_beside(name, kind)):
            taken, put = np.cumsum(moved.values.reshape(2, 2, BINS)[:, stream], axis=1)
            known &= (taken == put)[:-1]
    first = [0, *(np.flatnonzero(known) + 1).tolist()]
    return [range(start, stop) for start, stop in zip(first, [*first[1:], BINS], strict=True)]


rows_of = st.lists(
    st.tuples(
        st.integers(0, 20), st.sampled_from(VALUES), st.integers(0, 1), st.integers(0, BINS - 1)
    ),
    min_size=1,
    max_size=90,
)


@pytest.mark.parametrize("kind", ["scores", "unit_moments", "confusion"])
@given(rows=rows_of, k=st.integers(2, 5))
def test_neither_a_subgroup_nor_the_rest_of_the_total_is_small(
    kind: str, rows: list[Row], k: int
) -> None:
    raw, noted = measured(rows, kind)
    left = shareable(raw, k, noted)
    told = [value for value in VALUES if f"by_sex/{value}" in left]
    if not told:
        return
    names = [f"by_sex/{value}" for value in told]
    rest = [row for row in rows if row[1] not in told]
    for stream in (0, 1):
        for value, name in zip(told, names, strict=True):
            own = [row for row in rows if row[1] == value]
            assert not small(own, kind, stream, known_ranges(left, [name], kind, stream), k)
            assert left[name].values.sum() == pytest.approx(raw[name].values.sum())
        if WHOLES[kind] in left:
            ranges = known_ranges(left, [*names, WHOLES[kind]], kind, stream)
            assert not small(rest, kind, stream, ranges, k)


def test_a_small_subgroup_takes_the_next_one_with_it() -> None:
    rows: list[Row] = [(i, "female", i % 2, 3) for i in range(20)]
    rows += [(100 + i, "male", i % 2, 12) for i in range(10)]
    assert {"by_sex/female", "by_sex/male", "by_sex/other"} <= shareable(
        *_with(rows, "unit_moments", 3)
    ).keys()
    few = [*rows, (200, "other", 0, 3), (201, "other", 0, 3)]
    left = shareable(*_with(few, "unit_moments", 3))
    assert {name for name in left if name.startswith("by_sex/")} == {"by_sex/female"}
    lone: list[Row] = [(i, "female", 0, 3) for i in range(20)] + [(100, "male", 0, 3)]
    left = shareable(*_with(lone, "unit_moments", 3))
    assert not any(name.startswith("by_") for name in left)
    assert "dice" in left


def _with(rows: list[Row], kind: str, k: int) -> tuple[Statistics, int, CellPatients]:
    raw, noted = measured(rows, kind)
    return raw, k, noted
