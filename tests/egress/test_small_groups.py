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
from asterion_shared.metrics.merged_bins import edges_of, kept_of, merged, read_merged
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


@given(rows_of(2), st.integers(2, 7))
def test_no_bin_that_leaves_has_fewer_than_k_patients(rows: list[Row], k: int) -> None:
    plan = plan_of()
    raw, noted = measured(rows, plan)
    left = shareable(raw, k, noted)
    check_statistics(left, plan, num_cases=len(rows))
    size = raw["score"].values.size // 2
    bins = [int(np.flatnonzero(measured([row], plan)[0]["score"].values)[0] % size) for row in rows]
    if "score" not in left:
        halves = [patients_in(rows, (r[1] == c and (b < size // 2) == low
                                     for r, b in zip(rows, bins, strict=True)))
                  for c in (0, 1) for low in (True, False)]  # fmt: skip
        assert any(0 < count < k for count in halves)
        return
    # The slow twin: each range between two edges, looked up in the rows themselves.
    kept = kept_of(left, "score")
    assert kept is None or kept.any()
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
    plan, parts, pooled = plan_of(), [], []
    for rows, k in zip(sites, ks, strict=False):
        raw, noted = measured(rows, plan)
        left = shareable(raw, k, noted)
        parts.append(left)
        pooled += rows if "score" in left else []
    found = summarise(merge(parts), plan)
    ill = [np.float32(p) for _, label, p in pooled if label == 1]
    well = [np.float32(p) for _, label, p in pooled if label == 0]
    if not ill or not well:
        assert found["auroc"] is None
        return
    exact = float(np.mean([(a > b) + 0.5 * (a == b) for a in ill for b in well]))
    assert found["auroc"] is not None  # who tells scores at all tells on which half they are
    assert found["auroc_bound"] is not None
    assert abs(found["auroc"] - exact) <= found["auroc_bound"] + 1e-9
    count = found.get("auroc_cases", found["num_cases"])
    assert count == len(pooled)


def test_the_bound_is_wrong_without_the_edges_of_the_other_site() -> None:
    """Why edges travel: counts in the first bin of a range would pass for low scores."""
    plan = plan_of()
    scores = [(1, 0.05)] * 3 + [(1, 0.2)] * 3 + [(0, 0.9)] * 6
    small, noted = measured([(i, *row) for i, row in enumerate(scores)], plan)
    large, _ = measured([(i, i % 2, 0.1 + 0.12 * (i % 2)) for i in range(40)], plan)
    both = merge([large, shareable(small, 5, noted)])
    assert both["score_edges"].values[0] == 1
    found = summarise(both, plan)
    blind = summarise({name: s for name, s in both.items() if s.kind != "edges"}, plan)
    exact = (3 * 20 + 20 * 20) / 26**2  # all pairs, by hand
    for said, is_true in ((found, True), (blind, False)):
        assert said["auroc"] is not None
        assert said["auroc_bound"] is not None
        assert (abs(said["auroc"] - exact) <= said["auroc_bound"]) is is_true
    assert 1 < (found["auroc_bins"] or 0) < 42


def test_scores_in_one_bin_stay_and_do_not_mute_those_of_other_sites() -> None:
    """A good classifier at a small site: too few false alarms to say where they lie."""
    plan = plan_of()
    scores = [(0, 0.1)] * 20 + [(0, 0.9)] * 2 + [(1, 0.9)] * 20
    good, noted = measured([(i, *row) for i, row in enumerate(scores)], plan)
    left = shareable(good, 5, noted)
    assert not {"score", "score_edges"} & left.keys()
    other, _ = measured([(i, i % 2, 0.3 + 0.1 * (i % 2)) for i in range(40)], plan)
    found = summarise(merge([left, other]), plan)
    assert (found["auroc"], found["auroc_bound"], found["num_cases"]) == (1.0, 0.0, 40)


def test_one_bin_is_no_area() -> None:
    """Half of all pairs would be said to be in order where nothing is known of any."""
    plan = plan_of()
    raw, _ = measured([(i, i % 2, 0.2 + 0.6 * (i % 2)) for i in range(40)], plan)
    none = np.zeros(41, np.bool_)
    found = summarise({"score": merged(raw["score"], none), "score_edges": edges_of(none)}, plan)
    unknown = ("auroc", "auroc_bound", "auprc", "sensitivity")
    assert [found[name] for name in unknown] == [None] * 4
    assert (found["prevalence"], found["auroc_bins"]) == (0.5, 1)


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
    assert read_merged({"dice": statistic, "dice_edges": edges_of(only_middle)}).keys() == {"dice"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2, *[1] * 41], "is of 2 sites"),
        ([1, *[2] * 41], "not kept by a whole number"),
        ([0, *[0] * 41], "not kept by a whole number"),
        ([1, *[0] * 41], "outside the first bin"),
        ([1, *[0] * 40], "shape"),
    ],
)
def test_edges_that_do_not_fit_are_refused(values: list[float], words: str) -> None:
    plan = plan_of()
    raw, _ = measured([(i, i % 2, 0.7) for i in range(8)], plan)
    edges = {"score_edges": Statistic("edges", np.array(values, np.float64))}
    with pytest.raises(ValueError, match=words):
        check_statistics(raw | edges, plan)
    if words == "is of 2 sites":
        with pytest.raises(ValueError, match="no histogram"):
            check_statistics({"score_edges": edges_of(np.ones(41, np.bool_))}, plan)


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
