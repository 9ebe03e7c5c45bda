"""Distances by hand, against scipy, and over sites whose difference is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from asterion_shared.cases import Case, CaseList, SiteData
from asterion_sim.case_arrays import Pool, PoolCases
from asterion_sim.heterogeneity import (
    CASES_PER_SITE,
    MOST_SITES,
    PooledValues,
    chance_distance,
    heterogeneity,
    intensity_distances,
    label_distances,
    wasserstein,
)
from asterion_sim.splits import SplitSettings, split_indices

VALUES = st.lists(st.integers(-6, 6).map(float) | st.floats(-9, 9), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES, st.integers(0, 2**32))
def test_wasserstein_equals_scipy(values: list[float], other: list[float], seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(other))
    oracle = wasserstein_distance(values, other, None, weights)
    got = wasserstein(np.array(values), PooledValues(np.array(other), weights))
    assert got == pytest.approx(oracle, abs=1e-9)


def test_total_variation_by_hand() -> None:
    # Pooled shares 0.6, 0.4. Site a: 0.8, 0.2 is 0.2 away; b: 0.4, 0.6 as well; c is empty.
    found = label_distances(["b", "a", "c"], np.array([[4, 6], [8, 2], [0, 0]]))
    assert found.by_site == pytest.approx({"a": 0.2, "b": 0.2})
    assert found.mean == pytest.approx(0.2)
    assert found.largest == pytest.approx(0.2)
    assert label_distances([], np.zeros((0, 2), np.int64)).mean == 0


def test_total_variation_is_the_earth_movers_distance_of_a_unit_cost() -> None:
    """Against a linear programme: move shares between classes, 1 for each move."""
    from scipy.optimize import linprog

    shares, pooled = np.array([0.5, 0.1, 0.4]), np.array([0.2, 0.5, 0.3])
    cost = (1 - np.eye(3)).ravel()
    rows = [np.kron(np.eye(3)[i], np.ones(3)) for i in range(3)]
    columns = [np.kron(np.ones(3), np.eye(3)[j]) for j in range(3)]
    flow = linprog(cost, A_eq=np.array(rows + columns), b_eq=np.concatenate([shares, pooled]))
    assert flow.fun == pytest.approx(np.abs(shares - pooled).sum() / 2)


@pytest.mark.parametrize("size", [1, 3, 10, 40])
def test_chance_by_summing_over_every_outcome(size: int) -> None:
    from scipy.stats import binom

    shares = np.array([0.5, 0.3, 0.2, 0.0])
    counts = np.arange(size + 1)
    oracle = sum((binom.pmf(counts, size, p) * abs(counts / size - p)).sum() for p in shares) / 2
    assert chance_distance(shares, size) == pytest.approx(oracle)
    assert chance_distance(np.array([1.0, 0.0]), size) == 0


def test_an_iid_split_scores_what_chance_gives_and_dirichlet_more() -> None:
    labels = np.arange(5000) % 5

    def score(**scheme: object) -> tuple[float, float]:
        split = split_indices(SplitSettings(**scheme), labels, {}, 100, 1)
        table = np.array([np.bincount(labels[i], minlength=5) for i in split.values()])
        found = label_distances(list(split), table)
        assert found.chance is not None
        return found.mean, found.chance

    iid, chance = score(allow_one_class=True)
    assert iid == pytest.approx(chance, rel=0.1)
    even, _ = score(kind="dirichlet", alpha=1e6)
    mild, _ = score(kind="dirichlet", alpha=1.0, allow_one_class=True)
    strong, _ = score(kind="dirichlet", alpha=0.1, allow_one_class=True)
    # Rounded shares are nearer to the pooled ones than a shuffle brings them.
    assert even < iid < mild < strong < 0.8


def test_a_shift_is_measured_in_pooled_deviations() -> None:
    draws = np.random.default_rng(0)
    # Two sites 4 apart, deviation 1: pooled deviation sqrt(1 + 4); each is 2 from the pooled mean,
    # and the pooled data are half at the site itself: the mean move is 4 * 1/2 = 2.
    samples = {"a": draws.normal(0, 1, (1, 20_000)), "b": draws.normal(4, 1, (1, 20_000))}
    found = intensity_distances(samples, {"a": 10, "b": 10})
    assert found.by_site == pytest.approx(dict.fromkeys("ab", 2 / np.sqrt(5)), rel=0.02)
    # A second channel that is equal everywhere halves it.
    flat = {name: np.vstack([values, np.ones((1, 20_000))]) for name, values in samples.items()}
    half = intensity_distances(flat, {"a": 10, "b": 10})
    assert half.mean == pytest.approx(found.mean / 2)
    # A site of nine tenths of the data is near to the pooled ones.
    heavy = intensity_distances(samples, {"a": 90, "b": 10})
    assert heavy.by_site["a"] < heavy.by_site["b"]


def site(name: str, brightness: float, labels: list[int], *, masks: bool = False) -> SiteData:
    cases = []
    for number, label in enumerate(labels):
        image = np.random.default_rng([number, len(name)]).normal(brightness, 1, (1, 8, 8))
        mask = np.full((8, 8), label, np.int16)
        cases.append(
            Case(
                id=f"{number:012d}",
                image=image.astype(np.float32),
                label=-1 if masks else label,
                mask=mask if masks else None,
            )
        )
    return SiteData(site=name, train=CaseList.of(cases), test=CaseList.of([]))


@pytest.mark.parametrize("masks", [False, True])
def test_sites_that_are_bright_or_have_other_classes_score_high(masks: bool) -> None:
    alike = {n: site(n, 0, [0, 1] * 8, masks=masks) for n in ("a", "b")}
    apart = {"a": site("a", 0, [0] * 16, masks=masks), "b": site("b", 5, [1] * 16, masks=masks)}
    low, high = (heterogeneity(sites, 2, 1) for sites in (alike, apart))
    assert low.labels.mean == 0
    assert high.labels.mean == pytest.approx(0.5)
    # 5 apart, as above: 2.5 / sqrt(1 + 6.25).
    assert high.intensities.mean == pytest.approx(2.5 / np.sqrt(7.25), rel=0.05)
    assert low.intensities.mean < 0.1 < high.intensities.mean
    assert high.intensities.chance is not None
    assert high.intensities.chance < high.intensities.mean / 2
    assert json.loads(json.dumps(high.as_json()))["labels"]["mean"] == high.labels.mean
    assert heterogeneity(apart, 2, 1) == high
    assert high.words.startswith("labels differ from the pooled ones by 0.50 on average (")


def test_rows_of_a_table_are_scored_by_column() -> None:
    def rows(name: str, shift: float) -> SiteData:
        draws = np.random.default_rng(len(name))
        table = draws.normal(size=(16, 3)) + np.array([0, shift, 0])
        cases = [Case(id="0" * 12, image=row.astype(np.float32), label=0) for row in table]
        return SiteData(site=name, train=CaseList.of(cases), test=CaseList.of([]))

    near = heterogeneity({"a": rows("a", 0), "bb": rows("bb", 0)}, 2, 1).intensities.mean
    far = heterogeneity({"a": rows("a", 0), "bb": rows("bb", 50)}, 2, 1).intensities.mean
    assert far - near > 0.2


def test_labels_in_arrays_are_all_counted() -> None:
    labels = np.array([0] * 150 + [1] * 50 + [0] * 50 + [1] * 150)
    pool = Pool("set", np.zeros((400, 1, 2, 2), np.float32), labels)
    sites = {
        name: SiteData(site=name, train=PoolCases(pool, rows), test=CaseList.of([]))
        for name, rows in (("a", np.arange(200)), ("b", np.arange(200, 400)))
    }
    found = heterogeneity(sites, 2, 1)
    assert found.labels.by_site == pytest.approx({"a": 0.25, "b": 0.25})
    assert found.intensities.mean == 0


class CountingCases(CaseList):
    reads = 0

    def __getitem__(self, index: int) -> Case:
        type(self).reads += 1
        return super().__getitem__(index)


def test_the_number_of_cases_that_are_read_is_bounded() -> None:
    case = Case(id="0" * 12, image=np.zeros((1, 2, 2), np.float32), label=0)
    cases = CountingCases([lambda: case] * 100)
    sites = {
        f"s{n}": SiteData(site=f"s{n}", train=cases, test=CaseList.of([]))
        for n in range(MOST_SITES + 50)
    }
    counts = np.tile([60, 40], (MOST_SITES + 50, 1))
    found = heterogeneity(sites, 2, 1, counts=counts)
    assert CountingCases.reads == MOST_SITES * CASES_PER_SITE
    assert len(found.intensities.by_site) == MOST_SITES
    assert len(found.labels.by_site) == found.num_sites == MOST_SITES + 50
