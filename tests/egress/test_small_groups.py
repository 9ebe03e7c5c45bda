"""No cell of 1 to k - 1 patients leaves, and what leaves stays true when sites are pooled."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_client.small_groups import (
    CellPatients,
    _also_withheld,
    dyadic_edges,
    refuse_few,
    scores_by_patient,
    shareable,
    without_small_groups,
)
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.messages import Report
from asterion_shared.metrics import Statistic, check_statistics, merge, summarise
from asterion_shared.metrics.merged_bins import beside, kept_of, merged, read_merged
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module

Row = tuple[int, int, float]
"""Patient, class, probability of the last class."""


def plan_of(num_classes: int = 2, **other: object) -> Plan:
    values: dict[str, object] = {
        "name": "groups",
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": list("pqrs"[:num_classes])},
        "model": {"name": "logistic"},
        "evaluation": {"score_bins": 40},
    }
    return validate(Plan, values | other, "plan")


def measured(rows: list[Row], plan: Plan) -> tuple[dict[str, Statistic], CellPatients]:
    """The statistics of these rows, and who stands behind them."""
    cases = [Case(id=f"{i:012x}", image=np.zeros(1, np.float32), label=label, group=f"p{patient}")
             for i, (patient, label, _) in enumerate(rows)]  # fmt: skip
    rest = len(plan.data.classes) - 1

    def predict(_: object) -> Iterator[np.ndarray]:
        return (np.array([(1 - p) / rest] * rest + [p], np.float32) for _, _, p in rows)

    noted = CellPatients()
    found = scores_by_patient(task_module(plan.task).scores, predict, cases, plan, noted)
    return found, noted


def rows_of(num_classes: int, most: int = 80) -> st.SearchStrategy[list[Row]]:
    row = st.tuples(st.integers(0, 25), st.integers(0, num_classes - 1), st.floats(0, 1, width=32))
    return st.lists(row, min_size=1, max_size=most)


def patients_in(rows: list[Row], holds: Iterator[bool]) -> int:
    return len({row[0] for row, wanted in zip(rows, holds, strict=True) if wanted})


def bins_of(rows: list[Row], plan: Plan) -> list[int]:
    """Of each row by itself."""
    found = [measured([row], plan)[0]["score"].values for row in rows]
    return [int(np.flatnonzero(values)[0] % (values.size // 2)) for values in found]


def ranges_of(rows: list[Row], bins: list[int], k: int, start: int, stop: int) -> list[range]:
    """The slow twin of the halving: in which range of bins each row is told."""
    middle, told = (start + stop) // 2, [range(start, stop)] * len(rows)
    if stop - start < 2:
        return told
    for label in (0, 1):
        for half in (range(start, middle), range(middle, stop)):
            inside = (r[1] == label and b in half for r, b in zip(rows, bins, strict=True))
            if 0 < patients_in(rows, inside) < k:
                return told
    halves = [(start, middle), (middle, stop)]
    below, above = (ranges_of(rows, bins, k, *half) for half in halves)
    chosen = [below[i] if bins[i] < middle else above[i] for i in range(len(rows))]
    return [inner if b in range(start, stop) else told[0]
            for inner, b in zip(chosen, bins, strict=True)]  # fmt: skip


def pairs_of(rows: list[Row], told: list[range]) -> list[float]:
    """Of each positive and negative: 1 in order, 0 out of it, 0.5 where nobody can know."""
    ill = [t for t, row in zip(told, rows, strict=True) if row[1] == 1]
    well = [t for t, row in zip(told, rows, strict=True) if row[1] == 0]
    return [1.0 if p[0] > n[-1] else 0.0 if p[-1] < n[0] else 0.5 for p in ill for n in well]


@given(rows_of(2), st.integers(2, 7))
def test_no_bin_that_leaves_has_fewer_than_k_patients(rows: list[Row], k: int) -> None:
    plan = plan_of()
    raw, noted = measured(rows, plan)
    left = shareable(raw, k, noted)
    check_statistics(left, plan, num_cases=len(rows))
    size, bins = raw["score"].values.size // 2, bins_of(rows, plan)
    is_few = any(0 < patients_in(rows, (r[1] == c for r in rows)) < k for c in (0, 1))
    told = ranges_of(rows, bins, k, 0, size)
    is_merged = any(len(t) > 1 for t in told)
    says_nothing = is_merged and set(pairs_of(rows, told)) == {0.5}
    assert ("score" not in left) is (is_few or says_nothing)
    if "score" not in left:
        return
    assert ("score_moved" in left) is is_merged
    # The slow twin: each range between two edges, looked up in the rows themselves.
    kept = kept_of(left, "score")
    starts = np.arange(size) if kept is None else np.r_[0, np.flatnonzero(kept) + 1]
    for stream in (0, 1):
        for start, stop in zip(starts, [*starts[1:], size], strict=True):
            inside = [r[1] == 1 - stream and start <= b < stop
                      for r, b in zip(rows, bins, strict=True)]  # fmt: skip
            assert not 0 < patients_in(rows, iter(inside)) < k
            assert left["score"].values[stream * size + start] == sum(inside)
    assert left["score"].values.sum() == len(rows)


@given(rows_of(2), st.integers(2, 7))
def test_no_cell_of_the_other_statistics_has_fewer_than_k_patients(rows: list[Row], k: int) -> None:
    raw, noted = measured(rows, plan_of())
    left = shareable(raw, k, noted)
    called = [int(np.float32(p) > np.float32(1 - p)) for _, _, p in rows]
    for truth in (0, 1):
        for call in (0, 1):
            inside = (r[1] == truth and c == call for r, c in zip(rows, called, strict=True))
            if "confusion" in left:
                assert not 0 < patients_in(rows, inside) < k
    if "calibration" in left:
        assert left["calibration"].values[::3].sum() == len(rows)
        for start in range(0, 45, 3):
            cases, _, right = left["calibration"].values[start : start + 3]
            assert not 0 < right < k  # a patient is at least one case
            assert not 0 < cases - right < k


@given(st.lists(rows_of(2), min_size=1, max_size=4), st.lists(st.integers(1, 6), min_size=4))
def test_the_bound_holds_for_the_exact_auroc_of_all_rows_pooled(
    sites: list[list[Row]], ks: list[int]
) -> None:
    plan, parts = plan_of(), []
    pooled: list[Row] = []
    told: list[range] = []
    for rows, k in zip(sites, ks, strict=False):
        raw, noted = measured(rows, plan)
        left = shareable(raw, k, noted)
        parts.append(left)
        if "score" in left:
            pooled += rows
            size = raw["score"].values.size // 2
            bins = bins_of(rows, plan)
            told += [range(b, b + 1) for b in bins] if k == 1 else ranges_of(rows, bins, k, 0, size)
    whole = merge(parts)
    found = summarise(whole, plan)
    ill = [np.float32(p) for _, label, p in pooled if label == 1]
    well = [np.float32(p) for _, label, p in pooled if label == 0]
    pairs = pairs_of(pooled, told)
    if not pairs or ("score_moved" in whole and set(pairs) == {0.5}):
        assert found["auroc"] is None
        return
    exact = float(np.mean([(a > b) + 0.5 * (a == b) for a in ill for b in well]))
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["auroc_bound"] is not None
    assert abs(found["auroc"] - exact) <= found["auroc_bound"] + 1e-9
    count = found.get("auroc_cases", found["num_cases"])
    assert count == len(pooled)


def test_the_bound_is_wrong_without_what_was_moved() -> None:
    """Why it travels: counts in the first bin of a range would pass for low scores."""
    plan = plan_of()
    scores = [(1, 0.05)] * 3 + [(1, 0.2)] * 3 + [(0, 0.9)] * 6
    small, noted = measured([(i, *row) for i, row in enumerate(scores)], plan)
    large, _ = measured([(i, i % 2, 0.1 + 0.12 * (i % 2)) for i in range(40)], plan)
    both = merge([large, shareable(small, 5, noted)])
    found = summarise(both, plan)
    blind = summarise({name: s for name, s in both.items() if s.kind != "moved"}, plan)
    exact = (3 * 20 + 20 * 20) / 26**2  # all pairs, by hand
    for said, is_true in ((found, True), (blind, False)):
        assert said["auroc"] is not None
        assert said["auroc_bound"] is not None
        assert (abs(said["auroc"] - exact) <= said["auroc_bound"]) is is_true


def test_sites_that_cut_at_different_places_lose_nothing_by_it() -> None:
    """Two sites that each know the order of all their pairs, and of all pairs with the other."""
    plan = plan_of()
    low = [(i, i % 2, (0.02 + 0.002 * i, 0.1 + 0.03 * i)[i % 2]) for i in range(12)]
    high = [(i, i % 2, (0.52 + 0.03 * i, 0.94 + 0.005 * i)[i % 2]) for i in range(12)]
    parts = [shareable(raw, 6, noted) for raw, noted in (measured(r, plan) for r in (low, high))]
    assert all("score_moved" in part for part in parts)
    found = summarise(merge(parts), plan)
    # negatives near 0 and 0.7, positives near 0.3 and 0.97: one sort of pair in four is reversed
    assert (found["auroc"], found["auroc_bound"]) == (0.75, 0.0)


def test_scores_in_one_bin_stay_and_do_not_mute_those_of_other_sites() -> None:
    """A good classifier at a small site: too few false alarms to say where they lie."""
    plan = plan_of()
    scores = [(0, 0.1)] * 20 + [(0, 0.9)] * 2 + [(1, 0.9)] * 20
    good, noted = measured([(i, *row) for i, row in enumerate(scores)], plan)
    left = shareable(good, 5, noted)
    assert not {"score", "score_moved"} & left.keys()
    other, _ = measured([(i, i % 2, 0.3 + 0.1 * (i % 2)) for i in range(40)], plan)
    found = summarise(merge([left, other]), plan)
    assert (found["auroc"], found["auroc_bound"], found["num_cases"]) == (1.0, 0.0, 40)


def test_one_bin_is_no_area() -> None:
    """Half of all pairs would be said to be in order where nothing is known of any."""
    plan = plan_of()
    raw, _ = measured([(i, i % 2, 0.2 + 0.6 * (i % 2)) for i in range(40)], plan)
    none = np.zeros(41, np.bool_)
    told = {"score": merged(raw["score"], none), "score_moved": beside(raw["score"], none)}
    check_statistics(told, plan)
    found = summarise(told, plan)
    unknown = ("auroc", "auroc_bound", "auprc", "sensitivity")
    assert [found[name] for name in unknown] == [None] * 4
    assert found["prevalence"] == 0.5


def test_with_k_of_one_all_leaves_as_it_is() -> None:
    raw, _ = measured([(0, 1, 0.7), (1, 0, 0.2)], plan_of())
    assert shareable(raw, 1, CellPatients()) == raw


def test_a_statistic_that_nobody_was_noted_for_does_not_leave() -> None:
    raw, _ = measured([(i, i % 2, 0.7) for i in range(40)], plan_of())
    with pytest.raises(KeyError):
        shareable(raw, 2, CellPatients())


def test_a_patient_counts_once_however_many_rows() -> None:
    raw, noted = measured([(i % 3, i % 2, 0.7) for i in range(60)], plan_of())
    assert shareable(raw, 4, noted) == {}
    assert "score" in shareable(raw, 3, noted)


@given(rows_of(4, 60), st.integers(2, 6))
def test_a_class_that_stays_is_not_the_total_less_the_others(rows: list[Row], k: int) -> None:
    plan = plan_of(4)
    raw, noted = measured(rows, plan)
    left = shareable(raw, k, noted)
    of_class = {f"score/{c}": {r[0] for r in rows if r[1] == i} for i, c in enumerate("pqrs")}
    withheld = [of_class[name] for name in of_class if name not in left]
    shown = [who for name, who in of_class.items() if name in left]
    filled = [who for who in withheld if who]
    assert all(not who or len(who) >= k for who in shown)
    # A class of k patients may be given away: its scores stayed because they rank nothing.
    if any(shown) and any(len(who) < k for who in filled):
        assert len(filled) >= 2
        assert len(set().union(*filled)) >= k


def test_classes_are_added_until_the_withheld_ones_hide_each_other() -> None:
    of = {"a": frozenset({1}), "b": frozenset(range(2, 9)), "c": frozenset(range(9, 15)),
          "d": frozenset[int]()}  # fmt: skip
    assert _also_withheld(of, [], 5) == []
    assert _also_withheld(of, ["a"], 5) == ["c"]
    assert _also_withheld(of, ["a", "b"], 5) == []
    two = {"a": frozenset({1}), "b": frozenset({2}), "c": frozenset(range(3, 9))}
    assert _also_withheld(two, ["a", "b"], 5) == ["c"]


def test_edges_are_those_of_a_halving_tree() -> None:
    patients = np.arange(8)
    streams, bins = np.zeros(8, np.int64), np.array([0, 0, 1, 1, 2, 2, 7, 7])
    kept = dyadic_edges(patients, streams, bins, 8, 2)
    assert kept is not None
    assert kept.tolist() == [True, True, True, True, True, True, True]
    kept = dyadic_edges(patients, streams, bins, 8, 3)
    assert kept is not None
    assert kept.tolist() == [False] * 7  # the upper half would hold two
    assert dyadic_edges(patients, streams, bins, 8, 9) is None
    statistic = Statistic("unit_moments", np.r_[np.zeros(4), np.arange(8.0)])
    only_middle = np.array([False, False, False, True, False, False, False])
    assert merged(statistic, only_middle).values[4:].tolist() == [6, 0, 0, 0, 22, 0, 0, 0]
    edges = beside(statistic, only_middle)
    assert read_merged({"dice": statistic, "dice_edges": edges}).keys() == {"dice"}


def test_what_is_moved_goes_from_the_first_bin_of_a_range_to_its_last() -> None:
    scores = Statistic("scores", np.array([1.0, 2, 0, 3, 0, 0, 4, 5]))
    moved = beside(scores, np.array([False, True, False]))
    assert moved.values.reshape(2, 2, 4).tolist() == [
        [[3, 0, 3, 0], [0, 0, 9, 0]],
        [[0, 3, 0, 3], [0, 0, 0, 9]],
    ]
    none_moved = beside(scores, np.ones(3, np.bool_))
    assert not none_moved.values.any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2, *[1] * 14], "is of 2 sites"),
        ([1, *[2] * 14], "not kept by a whole number"),
        ([0, *[0] * 14], "not kept by a whole number"),
        ([1, *[0] * 14], "outside the first bin"),
        ([1, *[0] * 13], "shape"),
    ],
)
def test_edges_that_do_not_fit_are_refused(values: list[float], words: str) -> None:
    plan = plan_of()
    raw, _ = measured([(i, i % 2, 0.7) for i in range(8)], plan)
    edges = {"calibration_edges": Statistic("edges", np.array(values, np.float64))}
    with pytest.raises(ValueError, match=words):
        check_statistics(raw | edges, plan)
    if words == "is of 2 sites":
        with pytest.raises(ValueError, match="no histogram"):
            check_statistics(edges | {"calibration_edges": Statistic("edges", np.ones(15))}, plan)


@pytest.mark.parametrize(
    ("taken", "put", "words"),
    [
        ({0: 1}, {1: 1}, "more counts than there are"),
        ({4: 1.5}, {5: 1.5}, "not moved to a later bin"),
        ({4: 1}, {3: 1}, "not moved to a later bin"),
        ({4: 2}, {5: 1}, "not moved to a later bin"),
        ({4: 1}, {50: 1}, "not moved to a later bin"),
    ],
)
def test_moves_that_do_not_fit_are_refused(
    taken: dict[int, float], put: dict[int, float], words: str
) -> None:
    plan = plan_of()
    raw = {"score": Statistic("scores", np.r_[np.full(42, 0.0), np.full(42, 0.0)])}
    raw["score"].values[[4, 50]] = 3.0
    values = np.zeros((2, 84))
    values[0, list(taken)], values[1, list(put)] = list(taken.values()), list(put.values())
    moved = {"score_moved": Statistic("moved", values.reshape(-1))}
    with pytest.raises(ValueError, match=words):
        check_statistics(raw | moved, plan)


def data_of(train: int, test: int) -> SiteData:
    return SiteData(site="s", train=CaseList([]), test=CaseList([]), num_train_patients=train,
                    num_test_patients=test)  # fmt: skip


def test_an_order_for_too_few_patients_is_refused_before_anything_is_done() -> None:
    for kind in ("train", "count"):
        with pytest.raises(OrderRefusedError, match="4 training patients") as caught:
            refuse_few(data_of(4, 9), plan_of(kind=kind), 5)
        assert caught.value.code == "too_few_patients"
        refuse_few(data_of(5, 0), plan_of(kind=kind), 5)
    refuse_few(data_of(4, 9), plan_of(kind="evaluate", init={"file": "m", "sha256": "0" * 64}), 5)


def test_counts_below_k_leave_as_none() -> None:
    raw, noted = measured([(i, i % 2, 0.7) for i in range(20)], plan_of())
    report = Report(site="s", num_examples=30, num_test=20, num_bad_files=2, manifest_sha256="",
                    statistics=raw)  # fmt: skip
    few = without_small_groups(report, data_of(3, 4), 5, noted)
    assert (few.num_examples, few.num_test, few.statistics) == (0, 0, {})
    enough = without_small_groups(report, data_of(5, 5), 5, noted)
    assert (enough.num_examples, enough.num_test) == (30, 20)
    assert "score" in enough.statistics
