"""Histograms whose bins a site merged before they left it, and the edges that it kept.

A site where too few patients stand behind a bin adds its count to that of its neighbours. Beside
the statistic ``score`` then stands ``score_edges``, of kind ``edges``: ``[sites, kept, kept, ...]``
with one number for each inner edge between two bins. Both add over sites. An edge is true of the
sum when every site that merged kept it, so the sum is read with its bins merged between those.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from asterion_shared.metrics.statistic import Statistic, Values

Kept = npt.NDArray[np.bool_]
"""Whether each inner edge of a histogram of B bins is kept, bool ``(B - 1,)``."""

MOMENTS_HEAD = 4
"""Numbers before the histogram in a vector of moments."""

BINNED = ("scores", "calibration", "unit_moments", "distance_moments")
"""Kinds of statistic that have bins in an order."""


def edges_name(name: str) -> str:
    """Name of the edges that belong to a statistic: ``score_edges/ill`` to ``score/ill``."""
    base, slash, part = name.partition("/")
    return f"{base}_edges{slash}{part}"


def num_bins(kind: str, length: int) -> int:
    """Bins in a vector of a kind of :data:`BINNED`."""
    match kind:
        case "scores":
            return length // 2
        case "calibration":
            return length // 3
        case _:
            return length - MOMENTS_HEAD


def edges_of(kept: Kept) -> Statistic:
    """The edges that one site kept, as what travels."""
    return Statistic("edges", np.concatenate([[1.0], kept.astype(np.float64)]))


def kept_by_all(edges: Statistic) -> Kept:
    """The inner edges that every site in the sum kept."""
    return np.asarray(edges.values[1:] == edges.values[0])


def merged(statistic: Statistic, kept: Kept) -> Statistic:
    """The same statistic with the counts between two kept edges in the first bin there.

    Args:
        statistic: of a kind of :data:`BINNED`.
        kept: inner edges that stay.
    """
    if kept.all():
        return statistic
    starts = np.concatenate([[0], np.flatnonzero(kept) + 1])
    values = statistic.values.copy()
    table = _table(statistic.kind, values)
    sums = np.add.reduceat(table, starts, axis=1)
    table[:] = 0.0
    table[:, starts] = sums
    return Statistic(statistic.kind, values)


def read_merged(statistics: Mapping[str, Statistic]) -> dict[str, Statistic]:
    """Sums as they may be read: bins merged between the edges that all sites kept.

    Args:
        statistics: of one site or summed, without the prefix of the baseline; those of kind
            ``edges`` are taken out.
    """
    return {
        name: statistic if (kept := kept_of(statistics, name)) is None else merged(statistic, kept)
        for name, statistic in statistics.items()
        if statistic.kind != "edges"
    }


def kept_of(statistics: Mapping[str, Statistic], name: str) -> Kept | None:
    """The inner edges of a statistic that all sites kept; None when no site merged its bins."""
    edges = statistics.get(edges_name(name))
    return None if edges is None else kept_by_all(edges)


def edges_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    sites, kept = statistic.values[0], statistic.values[1:]
    if (statistic.values % 1).any() or sites < 1 or (kept > sites).any():
        return "edges that are not kept by a whole number of its sites"
    return None


def misplaced(statistics: Mapping[str, Statistic]) -> str | None:
    """What does not fit between the statistics of one site and their edges; None when all does.

    Args:
        statistics: each checked for itself.
    """
    told = {edges_name(name): statistic for name, statistic in statistics.items()
            if statistic.kind in BINNED}  # fmt: skip
    for name, edges in statistics.items():
        if edges.kind != "edges":
            continue
        if edges.values[0] != 1:
            return f"statistic {name} is of {edges.values[0]:g} sites"
        if name not in told:
            return f"statistic {name} has no histogram beside it"
        if (merged(told[name], kept_by_all(edges)).values != told[name].values).any():
            return f"statistic {name} has counts outside the first bin between two of its edges"
    return None


def _table(kind: str, values: Values) -> Values:
    """A view of the vector, one row a number and one column a bin."""
    match kind:
        case "scores":
            return values.reshape(2, -1)
        case "calibration":
            return values.reshape(-1, 3).T
        case _:
            return values[MOMENTS_HEAD:].reshape(1, -1)
