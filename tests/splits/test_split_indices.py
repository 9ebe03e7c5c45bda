"""Splits: nothing lost, nothing twice, floors kept, patients whole, the same every time."""

import time
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asterion_shared.errors import SettingsError
from asterion_shared.settings_files import validate
from asterion_sim.split_counts import counts_table
from asterion_sim.splits import SplitSettings, split_indices

Labels = npt.NDArray[np.int64]


def check(split: dict[str, Labels], num_examples: int) -> None:
    """Every example is at exactly one site; numbers are sorted."""
    assert list(split) == sorted(split)
    for indices in split.values():
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
    everything = np.concatenate(list(split.values()))
    assert np.array_equal(np.sort(everything), np.arange(num_examples))


LABELS = st.lists(st.integers(0, 4), min_size=8, max_size=200).map(np.array)
KINDS = st.one_of(
    st.just({"kind": "iid"}),
    st.floats(0.005, 50).map(lambda alpha: {"kind": "dirichlet", "alpha": alpha}),
)


@settings(max_examples=150, deadline=None)
@given(
    labels=LABELS,
    kind=KINDS,
    num_sites=st.integers(1, 12),
    floor=st.integers(0, 3),
    sigma=st.sampled_from([0.0, 0.5, 3.0]),
    fewest=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_iid_and_dirichlet_keep_every_total_and_every_floor(
    labels: Labels,
    kind: dict[str, object],
    num_sites: int,
    floor: int,
    sigma: float,
    fewest: int,
    seed: int,
) -> None:
    present = np.unique(labels)
    room = max(fewest, floor * len(present)) * num_sites <= len(labels)
    possible = all(np.count_nonzero(labels == c) >= floor * num_sites for c in present)
    scheme = SplitSettings(
        **kind, floor=floor, quantity_sigma=sigma, fewest=fewest, allow_one_class=True
    )
    if not (room and possible):
        with pytest.raises(SettingsError):
            split_indices(scheme, labels, {}, num_sites, seed)
        return
    split = split_indices(scheme, labels, {}, num_sites, seed)
    check(split, len(labels))
    counts = counts_table(split, labels)
    assert counts.table.shape == (num_sites, len(present))
    assert counts.table.min() >= floor
    sizes = counts.table.sum(axis=1)
    assert sizes.min() >= fewest
    if sigma == 0:
        assert sizes.max() - sizes.min() <= 1
    again = split_indices(scheme, labels.copy(), {}, num_sites, seed)
    assert all(np.array_equal(split[site], again[site]) for site in split)


@settings(max_examples=100, deadline=None)
@given(
    labels=LABELS,
    num_sites=st.integers(1, 12),
    classes_per_site=st.integers(1, 4),
    sigma=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**40),
)
def test_classes_per_site_is_exact(
    labels: Labels, num_sites: int, classes_per_site: int, sigma: float, seed: int
) -> None:
    scheme = SplitSettings(
        kind="classes",
        classes_per_site=classes_per_site,
        quantity_sigma=sigma,
        allow_one_class=True,
    )
    sizes = np.unique(labels, return_counts=True)[1]
    places = num_sites * classes_per_site
    fits = classes_per_site <= len(sizes) <= places
    if not (fits and np.minimum(sizes, num_sites).sum() >= places):
        with pytest.raises(SettingsError, match="classes_per_site"):
            split_indices(scheme, labels, {}, num_sites, seed)
        return
    split = split_indices(scheme, labels, {}, num_sites, seed)
    check(split, len(labels))
    held = (counts_table(split, labels).table > 0).sum(axis=1)
    assert (held == classes_per_site).all()


@settings(max_examples=100, deadline=None)
@given(
    patients=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(0, 3)), min_size=8, max_size=60
    ),
    kind=KINDS,
    num_sites=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)
def test_a_patient_is_at_one_site(
    patients: list[tuple[int, int, int]], kind: dict[str, object], num_sites: int, seed: int
) -> None:
    # One odd label within most patients, so that the majority has to be found.
    labels = np.array([c for c, n, odd in patients for c in [c] * n + [(c + odd) % 3] * (n > 2)])
    owners = [i for i, (_, n, _) in enumerate(patients) for _ in range(n + (n > 2))]
    shuffle = np.random.default_rng(seed).permutation(len(labels))
    labels = labels[shuffle]
    groups = np.array([f"patient {i}" for i in owners])[shuffle]
    scheme = SplitSettings(**kind, allow_one_class=True)
    split = split_indices(scheme, labels, {}, num_sites, seed, groups=groups)
    check(split, len(labels))
    at = [set(groups[indices]) for indices in split.values()]
    assert sum(len(here) for here in at) == len(patients)
    if scheme.quantity_sigma == 0:
        assert max(map(len, at)) - min(map(len, at)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 30), min_size=10, max_size=120),
    num_sites=st.integers(1, 12),
    seed=st.integers(0, 2**40),
)
def test_joined_values_stay_neighbours_and_no_value_is_parted(
    values: list[int], num_sites: int, seed: int
) -> None:
    column = np.array(values) / 10
    scheme = SplitSettings(kind="column", column="z")
    assume(num_sites <= len(set(values)))
    split = split_indices(scheme, None, {"z": column}, num_sites, seed)
    check(split, len(column))
    assert len(split) == num_sites
    spans = [(column[i].min(), column[i].max()) for i in split.values()]
    assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_joined_values_have_similar_sizes_by_hand() -> None:
    # 4 + 4 | 3 + 5 | 8: ends 8, 16, 24 are exactly the thirds.
    column = np.repeat(["a", "b", "c", "d", "e"], [4, 4, 3, 5, 8])
    split = split_indices(SplitSettings(kind="column", column="s"), None, {"s": column}, 3, 1)
    assert [sorted(set(column[i])) for i in split.values()] == [["a", "b"], ["c", "d"], ["e"]]


def test_a_site_for_each_value_of_a_column() -> None:
    column = np.array(["b", "a", "c", "a"], dtype=object)
    split = split_indices(SplitSettings(kind="column", column="s"), None, {"s": column}, None, 1)
    assert {name: i.tolist() for name, i in split.items()} == {
        "site_0001": [1, 3],
        "site_0002": [0],
        "site_0003": [2],
    }


def test_two_scanners_of_ten_sites_each() -> None:
    draws = np.random.default_rng(1)
    labels = draws.integers(0, 3, 1000)
    scanner = np.where(np.arange(1000) < 700, "old", "new")
    scheme = SplitSettings(kind="dirichlet", alpha=0.5, column="scanner", floor=2)
    split = split_indices(scheme, labels, {"scanner": scanner}, 20, 3)
    check(split, 1000)
    of_site = [set(scanner[indices]) for indices in split.values()]
    assert of_site == [{"new"}] * 10 + [{"old"}] * 10
    assert counts_table(split, labels).table.min() >= 2
    # 21 sites: the larger value has one more.
    odd = split_indices(scheme, labels, {"scanner": scanner}, 21, 3)
    assert [set(scanner[i]) for i in odd.values()].count({"old"}) == 11


def test_the_seed_moves_the_split() -> None:
    labels = np.arange(100) % 4
    first, second = (split_indices(SplitSettings(), labels, {}, 4, seed) for seed in (1, 2))
    assert any(not np.array_equal(first[site], second[site]) for site in first)


def test_alpha_is_the_concentration_of_the_drawn_shares() -> None:
    """Mean and variance of a class's share are those of Dir(alpha, ..., alpha)."""
    labels = np.arange(40_000) % 4
    for alpha in (0.1, 1.0, 10.0):
        scheme = SplitSettings(kind="dirichlet", alpha=alpha, allow_one_class=True)
        table = counts_table(split_indices(scheme, labels, {}, 200, 5), labels).table
        shares = table / table.sum(axis=1, keepdims=True)
        assert shares.mean() == pytest.approx(0.25)
        # Beta(alpha, 3 alpha): (1/4)(3/4) / (4 alpha + 1); 200 sites know it to some 15 %.
        assert shares.var(axis=0).mean() == pytest.approx(0.1875 / (4 * alpha + 1), rel=0.2)


def test_rare_classes_vary_around_their_pooled_share() -> None:
    labels = np.repeat([0, 1], [47_500, 2500])
    scheme = SplitSettings(kind="dirichlet", alpha=5.0, allow_one_class=True)
    table = counts_table(split_indices(scheme, labels, {}, 250, 5), labels).table
    assert table.sum(axis=0).tolist() == [47_500, 2500]
    # Beta(10 * 0.05, 10 * 0.95).
    assert (table[:, 1] / 200).var() == pytest.approx(0.05 * 0.95 / 11, rel=0.25)


def test_sizes_are_log_normal() -> None:
    labels = np.arange(100_000) % 2
    scheme = SplitSettings(quantity_sigma=0.8)
    sizes = counts_table(split_indices(scheme, labels, {}, 500, 5), None).table[:, 0]
    assert np.log(sizes).std() == pytest.approx(0.8, rel=0.1)
    logs = (np.log(sizes) - np.log(sizes).mean()) / np.log(sizes).std()
    assert abs((logs**3).mean()) < 0.4


def test_floor_share_by_hand() -> None:
    # 100 examples a site, 5 % of each of 4 classes: at least 5 each, though alpha is tiny.
    labels = np.arange(1000) % 4
    scheme = SplitSettings(kind="dirichlet", alpha=0.01, floor_share=0.05)
    table = counts_table(split_indices(scheme, labels, {}, 10, 5), labels).table
    assert (table >= 5).all()
    assert (table.max(axis=1) > 70).any()


def test_one_class_sites_are_refused_by_name_and_count() -> None:
    labels = np.arange(1000) % 2
    scheme = SplitSettings(kind="dirichlet", alpha=0.01)
    with pytest.raises(SettingsError) as caught:
        split_indices(scheme, labels, {}, 100, 1)
    first, last = caught.value.problems[0], caught.value.problems[-1]
    assert first.where.startswith("site_0")
    assert first.what in {f"all its 10 examples are of class {c}" for c in (0, 1)}
    assert "split.floor = 1" in first.fix
    assert "allow_one_class" in first.fix
    assert "more sites have a single class" in last.what
    asked = scheme.model_copy(update={"allow_one_class": True})
    check(split_indices(asked, labels, {}, 100, 1), 1000)
    mended = scheme.model_copy(update={"floor": 1})
    assert (counts_table(split_indices(mended, labels, {}, 100, 1), labels).table > 0).all()


def test_pooled_data_of_one_class_have_nothing_to_refuse() -> None:
    check(split_indices(SplitSettings(), np.zeros(10, np.int64), {}, 3, 1), 10)


def test_labels_may_be_any_numbers() -> None:
    labels = np.array([-1, 7, -1, 7, 7, -1])
    split = split_indices(SplitSettings(floor=1), labels, {}, 3, 1)
    assert all(sorted(labels[i]) == [-1, 7] for i in split.values())


def test_without_labels_the_number_of_examples_is_enough() -> None:
    scheme = SplitSettings(quantity_sigma=1.0, fewest=3)
    split = split_indices(scheme, None, {}, 4, 1, num_examples=30)
    check(split, 30)
    assert min(len(i) for i in split.values()) >= 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "dirichlet"}, "alpha"),
        ({"kind": "iid", "alpha": 1.0}, "alpha"),
        ({"kind": "classes"}, "classes_per_site"),
        ({"kind": "classes", "classes_per_site": 1}, "allow_one_class"),
        ({"kind": "column"}, "name the column"),
        ({"kind": "column", "column": "z", "floor": 1}, "as they are"),
        ({"kind": "classes", "classes_per_site": 2, "floor_share": 0.1}, "give floor instead"),
        ({"kind": "dirichlet", "alpha": -1}, "must be > 0"),
        ({"shards": 2}, "unknown key"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        validate(SplitSettings, values, "scenario")


LABELS_12 = np.arange(12) % 3
Z = np.array([0.5, np.nan] * 6)


@pytest.mark.parametrize(
    ("scheme", "labels", "num_sites", "words"),
    [
        ({"kind": "dirichlet", "alpha": 1}, None, 2, "the examples have no class"),
        ({}, LABELS_12, None, "num_sites"),
        ({}, LABELS_12, 0, "at least 1 site"),
        ({}, LABELS_12, 13, "12 units for 13 sites"),
        ({"floor": 2}, LABELS_12, 3, "12 units for 3 sites of at least 6"),
        ({"floor_share": 0.4}, LABELS_12, 3, "give at most 0.333"),
        ({"kind": "classes", "classes_per_site": 4}, LABELS_12, 3, "there are 3 classes"),
        ({"kind": "classes", "classes_per_site": 2}, LABELS_12, 1, "2 places for 3 classes"),
        ({"column": "nowhere"}, LABELS_12, 2, "known: half, z"),
        ({"column": "z"}, LABELS_12, 2, "no value for 6 of 12"),
        ({"column": "half"}, LABELS_12, 1, "has 2 values"),
        ({"kind": "column", "column": "half"}, LABELS_12, 3, "at most 2"),
        ({"kind": "column", "column": "half", "fewest": 7}, None, 2, "fewer units, the least 6"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_numbers(
    scheme: dict[str, object], labels: Labels | None, num_sites: int | None, words: str
) -> None:
    columns = {"z": Z, "half": np.arange(12) // 6}
    with pytest.raises(SettingsError, match=words):
        split_indices(SplitSettings(**scheme), labels, columns, num_sites, 1)


def test_a_floor_share_above_a_class_is_refused() -> None:
    labels = np.repeat([0, 1], [95, 5])
    with pytest.raises(SettingsError, match="class number 1 has 5 units, the floors of 2 sites"):
        split_indices(SplitSettings(floor_share=0.2), labels, {}, 2, 1)


def test_a_patient_with_two_scanners_is_refused() -> None:
    columns = {"scanner": np.array(["a", "b", "a", "a"])}
    groups = np.array([1, 1, 2, 2])
    with pytest.raises(SettingsError, match="several values within 1 groups"):
        split_indices(
            SplitSettings(kind="column", column="scanner"), None, columns, None, 1, groups=groups
        )


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(SettingsError, match="'labels': 12, 'groups': 3"):
        split_indices(SplitSettings(), LABELS_12, {}, 2, 1, groups=np.arange(3))
    with pytest.raises(SettingsError, match="numbers of examples"):
        split_indices(SplitSettings(), None, {}, 2, 1)


@pytest.mark.parametrize(
    "scheme",
    [
        {"kind": "iid"},
        {"kind": "dirichlet", "alpha": 0.3, "quantity_sigma": 1.0},
        {"kind": "classes", "classes_per_site": 2},
    ],
)
def test_ten_thousand_sites_take_about_a_second(scheme: dict[str, object]) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 50_000)
    began = time.process_time()
    split = split_indices(SplitSettings(**scheme, allow_one_class=True), labels, {}, 10_000, 1)
    assert time.process_time() - began < 2.0
    check(split, 50_000)
