"""Who is held out: groups stay whole, every site has both sides, no pixel is on two."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_client.data.records import Record
from asterion_client.data.splits import split_field, split_records
from asterion_shared.errors import DataProblemError


def record(number: int, group: str, label: str = "", split: str = "") -> Record:
    return Record(path=Path(f"{number:03d}.fits"), group=group, label=label, split=split)


RECORDS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "a", "b"])), max_size=40)


@given(RECORDS, st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_groups_stay_whole_and_both_sides_have_one(
    pairs: list[tuple[int, str]], fraction: float, seed: int
) -> None:
    records = [record(i, f"g{group}", label) for i, (group, label) in enumerate(pairs)]
    done = split_records(records, fraction, seed)
    assert [replace(r, split="") for r in done] == records
    train = {r.group for r in done if r.split == "train"}
    test = {r.group for r in done if r.split == "test"}
    assert not train & test
    if len(train | test) >= 2:
        assert train
        assert test


@given(RECORDS, st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(
    pairs: list[tuple[int, str]], seed: int, random: st.DrawFn
) -> None:
    # One label a group: with several, the first record of a group decides.
    records = [record(i, f"g{g}", "ab"[g % 2]) for i, (g, _) in enumerate(pairs)]
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    wanted = {r.path: r.split for r in split_records(records, 0.3, seed)}
    assert {r.path: r.split for r in split_records(shuffled, 0.3, seed)} == wanted


def test_two_patients_of_two_classes_are_not_both_for_training() -> None:
    done = split_records([record(0, "p", "a"), record(1, "q", "b")], 0.25, 1)
    assert sorted(r.split for r in done) == ["test", "train"]


def test_each_class_is_held_out_in_its_share() -> None:
    records = [record(i, f"g{i}", "ill" if i < 20 else "well") for i in range(100)]
    done = split_records(records, 0.25, 3)
    held_out = [r.label for r in done if r.split == "test"]
    assert (held_out.count("ill"), held_out.count("well")) == (5, 20)


def test_the_seed_moves_the_split() -> None:
    records = [record(i, f"g{i}") for i in range(20)]
    first, second = (split_records(records, 0.5, seed) for seed in (1, 2))
    assert first != second
    assert split_records(records, 0.5, 1) == first


def test_given_splits_are_kept_and_the_rest_is_split() -> None:
    given_ = [record(0, "a", split="test"), record(1, "b", split="train")]
    free = [record(i, f"g{i}") for i in range(2, 10)]
    done = split_records(given_ + free, 0.25, 1)
    assert done[:2] == given_
    assert [r.split for r in done[2:]].count("test") == 2


def test_a_patient_on_both_sides_is_refused() -> None:
    records = [record(0, "p", split="train"), record(1, "p", split="test")]
    with pytest.raises(DataProblemError, match=r"000\.fits") as caught:
        split_records(records, 0.25, 1)
    assert caught.value.code == "settings_invalid"


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "train"), (1.0, "test")])
def test_nothing_or_all_may_be_held_out(fraction: float, split: str) -> None:
    records = [record(i, f"g{i}") for i in range(5)]
    assert {r.split for r in split_records(records, fraction, 1)} == {split}


@given(
    shape=st.lists(st.integers(1, 400), min_size=2, max_size=3),
    tile=st.integers(1, 64),
    fraction=st.floats(0.01, 0.99),
)
def test_no_pixel_of_a_field_is_on_two_sides(shape: list[int], tile: int, fraction: float) -> None:
    whole = record(0, "field")
    try:
        parts = split_field(whole, shape, (tile,) * len(shape), fraction)
    except DataProblemError as error:
        assert error.code == "no_data"  # noqa: PT017
        return
    axis = int(np.argmax(shape))
    seen = [np.zeros(n, np.int8) for n in shape]
    for part in parts:
        for counts, (start, stop) in zip(seen, part.region, strict=True):
            assert 0 <= start < stop <= len(counts)
            counts[start:stop] += 1
    assert seen[axis].max() == 1
    # Between the two sides lies at least one tile that neither has.
    (_, train_stop), (test_start, _) = (part.region[axis] for part in parts)
    assert test_start - train_stop >= tile
    assert not seen[axis][train_stop:test_start].any()
    assert [part.split for part in parts] == ["train", "test"]


def test_a_short_field_is_refused_with_its_numbers() -> None:
    with pytest.raises(DataProblemError, match=r"80 pixels long.*gap of 64"):
        split_field(record(0, "f"), (80, 50), (64, 64), 0.25)
