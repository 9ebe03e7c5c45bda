"""Counts by site and class, by hand; the table of a terminal stays short."""

import io
import json

import numpy as np
from rich.console import Console

from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.plan import DataContract, ModelSettings, Plan
from asterion_sim.case_arrays import Pool, PoolCases
from asterion_sim.split_counts import SiteCounts, counts_of_sites, counts_table

LABELS = np.array([0, 1, 1, 2, 0, 1])
SPLIT = {"b": np.array([0, 1, 2]), "a": np.array([3, 5])}


def shown(counts: SiteCounts, most_rows: int = 20) -> list[list[str]]:
    stream = io.StringIO()
    Console(file=stream, width=100).print(counts.as_table(most_rows))
    return [line.split() for line in stream.getvalue().splitlines() if line.strip()]


def test_counts_by_hand() -> None:
    counts = counts_table(SPLIT, LABELS, ["none", "edge", "core"])
    # Example 4 is at no site.
    assert counts.sites == ("a", "b")
    assert counts.table.tolist() == [[0, 1, 1], [1, 2, 0]]
    assert json.loads(json.dumps(counts.as_json())) == {
        "classes": ["none", "edge", "core"],
        "sites": {"a": [0, 1, 1], "b": [1, 2, 0]},
    }
    rows = shown(counts)
    assert rows[1] == ["site", "none", "edge", "core", "all"]
    assert ["b", "1", "2", "0", "3"] in rows
    assert ["most", "1", "2", "1", "3"] in rows
    assert ["median", "0.5", "1.5", "0.5", "2.5"] in rows
    assert rows[-1] == ["total", "1", "3", "1", "5"]


def test_labels_name_the_classes_without_names() -> None:
    assert counts_table(SPLIT, LABELS + 5).classes == ("5", "6", "7")
    assert counts_table(SPLIT, None).table.tolist() == [[2], [3]]
    assert counts_table({}, LABELS).table.shape == (0, 3)


def test_a_class_without_example_is_counted_as_zero() -> None:
    counts = counts_table(SPLIT, LABELS, ["a", "b", "c", "d"])
    assert counts.table[:, 3].tolist() == [0, 0]


def test_many_sites_and_classes_stay_on_one_screen() -> None:
    table = np.arange(300 * 30).reshape(300, 30)
    names = tuple(f"site_{n:04d}" for n in range(300))
    rows = shown(SiteCounts(names, tuple(f"c{n}" for n in range(30)), table))
    assert len(rows) < 30
    # The most frequent classes by name, the others in one column.
    assert rows[1] == ["site", *(f"c{n}" for n in range(23, 30)), "other", "all"]
    assert rows[3][-2:] == [str(sum(range(23))), str(sum(range(30)))]
    assert ["280", "more"] in rows
    assert rows[-1][0] == "total"


PLAN = Plan(
    name="count",
    task="classification",
    model=ModelSettings(name="residual"),
    data=DataContract(classes=("well", "ill", "unseen")),
)


def site(train: CaseList) -> SiteData:
    return SiteData(site="any", train=train, test=CaseList.of([]))


def test_training_examples_of_sites_are_counted_from_cases_and_from_arrays() -> None:
    images = np.zeros((6, 1, 2, 2), np.float32)
    labels = np.array([0, 1, 1, 0, -1, 1])
    pool = PoolCases(Pool("set", images, labels), np.array([1, 2, 3, 4]))
    cases = CaseList.of([Case(id="0" * 12, image=images[0], label=n) for n in (1, 1, -1, 0)])
    counts = counts_of_sites(PLAN, {"b": site(pool), "a": site(cases)})
    assert counts.sites == ("a", "b")
    assert counts.classes == ("well", "ill", "unseen")
    assert counts.table.tolist() == [[1, 2, 0], [1, 2, 0]]


class Unread(CaseList):
    def __getitem__(self, index: int) -> Case:
        raise AssertionError(index)


def test_many_cases_are_not_read_to_be_counted() -> None:
    case = Case(id="0" * 12, image=np.zeros((1, 2, 2), np.float32))
    many = {"a": site(Unread([lambda: case] * 30_000)), "b": site(CaseList.of([]))}
    counts = counts_of_sites(PLAN, many)
    assert counts.classes == ("examples",)
    assert counts.table.tolist() == [[30_000], [0]]
