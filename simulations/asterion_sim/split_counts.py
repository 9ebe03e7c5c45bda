"""Examples of each class at each site: for a terminal and for a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.markup import escape
from rich.table import Table

from asterion_shared.cases import CaseList, SiteData
from asterion_shared.plan import Plan
from asterion_sim.case_arrays import PoolCases
from asterion_sim.split_tables import Counts

Indices = npt.NDArray[np.int64]

_MOST_READ = 20_000
"""Cases that are read to count their classes; of more, only the examples are counted."""

_MOST_COLUMNS = 8
"""Classes shown one by one; of more, the most frequent, and the others as one."""


@dataclass(frozen=True, slots=True)
class SiteCounts:
    """Examples of each class at each site.

    Attributes:
        sites: the sites' names, S of them, sorted.
        classes: the classes' names, K of them.
        table: int64, shape (S, K), examples.
    """

    sites: tuple[str, ...]
    classes: tuple[str, ...]
    table: Counts

    def as_json(self) -> dict[str, Any]:
        """For a file: ``{"classes": [...], "sites": {name: [count of each class]}}``."""
        rows = self.table.tolist()
        return {"classes": list(self.classes), "sites": dict(zip(self.sites, rows, strict=True))}

    def as_table(self, most_rows: int = 20) -> Table:
        """For a terminal: the first sites, then the spread over all of them and the total.

        Args:
            most_rows: sites shown one by one.
        """
        names, rows = _columns(self)
        shown = Table(title="Examples of each site", box=box.SIMPLE)
        shown.add_column("site", no_wrap=True)
        for name in names:
            shown.add_column(escape(name), justify="right")
        for site, row in list(zip(self.sites, rows, strict=True))[:most_rows]:
            shown.add_row(escape(site), *(str(count) for count in row))
        if len(self.sites) > most_rows:
            shown.add_row(f"{len(self.sites) - most_rows} more")
        shown.add_section()
        for name, row in _summary(rows):
            shown.add_row(name, *(f"{count:g}" for count in row))
        return shown


def _columns(counts: SiteCounts) -> tuple[list[str], Counts]:
    """Names and numbers of the table's columns, shape (S, columns); the last is all examples."""
    table, names = counts.table, list(counts.classes)
    everything = table.sum(axis=1, keepdims=True)
    if len(names) > _MOST_COLUMNS:
        first = np.sort(np.argsort(-table.sum(axis=0), kind="stable")[: _MOST_COLUMNS - 1])
        shown = table[:, first]
        names = [names[column] for column in first] + ["other"]
        table = np.hstack([shown, everything - shown.sum(axis=1, keepdims=True)])
    return [*names, "all"], np.hstack([table, everything])


def _summary(rows: Counts) -> list[tuple[str, npt.NDArray[np.float64]]]:
    """Rows below the sites; a single site needs none of the spread."""
    total = ("total", rows.sum(axis=0).astype(np.float64))
    if len(rows) < 2:
        return [total]
    quantiles = np.quantile(rows, [0, 0.5, 1], axis=0)
    return [*zip(("least", "median", "most"), quantiles, strict=True), total]


def counts_table(
    split: Mapping[str, Indices],
    labels: Indices | None,
    class_names: Sequence[str] | None = None,
) -> SiteCounts:
    """Count examples by site and class.

    Args:
        split: example numbers by site.
        labels: shape (N,); None counts examples only, as one class ``examples``.
        class_names: names of labels 0, 1, ...; absent: the labels themselves.
    """
    sites = sorted(split)
    if labels is None:
        sizes = np.array([[len(split[site])] for site in sites], np.int64).reshape(len(sites), 1)
        return SiteCounts(tuple(sites), ("examples",), sizes)
    values, codes = np.unique(labels, return_inverse=True)
    if class_names is not None:
        values, codes = np.arange(len(class_names)), labels
    names = tuple(str(value) for value in values) if class_names is None else tuple(class_names)
    site_of = np.repeat(np.arange(len(sites)), [len(split[site]) for site in sites])
    chosen = codes[np.concatenate([split[site] for site in sites])] if sites else codes[:0]
    cells = np.bincount(site_of * len(values) + chosen, minlength=len(sites) * len(values))
    table = cells.reshape(len(sites), len(values)).astype(np.int64)
    return SiteCounts(tuple(sites), names, table)


def counts_of_sites(plan: Plan, sites: Mapping[str, SiteData]) -> SiteCounts:
    """Count the training examples of sites, by class in a classification.

    Classes are looked up in arrays, or read case by case as long as that is quick; where it is
    not, and in other tasks, examples alone are counted, as one class ``examples``.

    Args:
        plan: its task and classes.
        sites: data by name.
    """
    names = sorted(sites)
    lists = [sites[name].train for name in names]
    to_read = sum(len(cases) for cases in lists if not isinstance(cases, PoolCases))
    if plan.task != "classification" or to_read > _MOST_READ:
        sizes = np.array([[len(cases)] for cases in lists], np.int64).reshape(len(names), 1)
        return SiteCounts(tuple(names), ("examples",), sizes)
    rows = [class_counts(cases, len(plan.data.classes)) for cases in lists]
    table = np.array(rows, np.int64).reshape(len(names), len(plan.data.classes))
    return SiteCounts(tuple(names), plan.data.classes, table)


def class_counts(cases: CaseList, num_classes: int) -> Counts:
    """Cases of each class, int64 (num_classes,); those without a label are not counted."""
    labels = cases.labels()
    return np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.int64)
