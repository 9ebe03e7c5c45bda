"""Histograms whose bins a site merged before they left it, and what leaves beside them.

A site where too few patients stand behind a bin adds its count to that of its neighbours: the
first bin of a range of bins holds the counts of all. What stands beside the statistic adds over
sites like itself, and there are two sorts:

* Beside ``dice`` stands ``dice_edges``, of kind ``edges``: ``[sites, kept, kept, ...]`` with one
  number for each inner edge between two bins. An edge is true of the sum when every site that
  merged kept it, so the sum is read with its bins merged between those.
* Beside ``score`` stands ``score_moved``, of kind ``moved``: the counts to take from the first bin
  of each range, and in which bin to put them to have them in its last. A score lies between where
  it is counted with none moved and with all. So sites need no edge in common for a ranking.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from asterion_shared.metrics.statistic import Statistic, Values

Kept = npt.NDArray[np.bool_]
"""Whether each inner edge of a histogram of B bins is kept, bool ``(B - 1,)``."""

MOMENTS_HEAD = 4
"""Numbers before the histogram in a vector of moments."""

BESIDE = {
    "scores": "moved",
    "calibration": "edges",
    "unit_moments": "edges",
    "distance_moments": "edges",
}
"""Kinds of statistic that have bins in an order, and the kind that stands beside merged ones."""


def name_beside(name: str, kind: str) -> str:
    """Name of what stands beside a statistic of a kind: ``score_moved/ill`` to ``score/ill``."""
    base, slash, part = name.partition("/")
    return f"{base}_{BESIDE[kind]}{slash}{part}"


def num_bins(kind: str, length: int) -> int:
    """Bins in a vector of a kind of :data:`BESIDE`."""
    match kind:
        case "scores":
            return length // 2
        case "calibration":
            return length // 3
        case _:
            return length - MOMENTS_HEAD


def length_beside(kind: str, length: int) -> int:
    """Length of the vector beside a merged statistic of a kind and length."""
    return 2 * length if kind == "scores" else num_bins(kind, length)


def beside(whole: Statistic, kept: Kept) -> Statistic:
    """What one site that merged a statistic sends beside it.

    Args:
        whole: before its bins were merged, or after.
        kept: inner edges that stayed.
    """
    if whole.kind != "scores":
        return Statistic("edges", np.concatenate([[1.0], kept.astype(np.float64)]))
    table = _table("scores", merged(whole, kept).values)
    starts = np.concatenate([[0], np.flatnonzero(kept) + 1])
    stops = np.append(starts[1:], table.shape[1]) - 1
    starts, stops = starts[starts < stops], stops[starts < stops]
    taken, put = np.zeros_like(table), np.zeros_like(table)
    taken[:, starts] = put[:, stops] = table[:, starts]
    return Statistic("moved", np.concatenate([taken, put]).reshape(-1))


def with_all_moved(scores: Statistic, moved: Statistic | None) -> Statistic:
    """Histograms of scores with each count in the last bin that its scores may lie in.

    Args:
        scores: with each in the first.
        moved: what stands beside it; None where no site merged bins.
    """
    if moved is None:
        return scores
    taken, put = moved.values.reshape(2, -1)
    return Statistic("scores", scores.values - taken + put)


def edges_between(scores: Statistic, moved: Statistic) -> Kept:
    """The inner edges of which it is known on which side each score lies."""
    first = np.cumsum(_table("scores", scores.values), axis=1)
    last = np.cumsum(_table("scores", with_all_moved(scores, moved).values), axis=1)
    return np.asarray((first == last).all(axis=0)[:-1])


def kept_by_all(edges: Statistic) -> Kept:
    """The inner edges that every site in the sum kept."""
    return np.asarray(edges.values[1:] == edges.values[0])


def merged(statistic: Statistic, kept: Kept) -> Statistic:
    """The same statistic with the counts between two kept edges in the first bin there.

    Args:
        statistic: of a kind of :data:`BESIDE`.
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

    Histograms of scores stay as they are: :func:`asterion_shared.metrics.scores.rank` reads them
    with what stands beside them.

    Args:
        statistics: of one site or summed, without the prefix of the baseline; what stands beside
            others is taken out.
    """
    return {
        name: statistic
        if statistic.kind == "scores" or (kept := kept_of(statistics, name)) is None
        else merged(statistic, kept)
        for name, statistic in statistics.items()
        if statistic.kind not in BESIDE.values()
    }


def kept_of(statistics: Mapping[str, Statistic], name: str) -> Kept | None:
    """The inner edges of a statistic that hold for all sites; None when no site merged its bins."""
    statistic = statistics[name]
    if statistic.kind not in BESIDE:
        return None
    found = statistics.get(name_beside(name, statistic.kind))
    if found is None:
        return None
    return edges_between(statistic, found) if found.kind == "moved" else kept_by_all(found)


def edges_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    sites, kept = statistic.values[0], statistic.values[1:]
    if (statistic.values % 1).any() or sites < 1 or (kept > sites).any():
        return "edges that are not kept by a whole number of its sites"
    return None


def moved_problem(statistic: Statistic) -> str | None:
    """What contradicts itself in a vector of finite numbers >= 0; None when it holds."""
    taken, put = np.cumsum(statistic.values.reshape(2, 2, -1), axis=2)
    if (statistic.values % 1).any() or (put > taken).any() or (put[:, -1] != taken[:, -1]).any():
        return "counts that are not moved to a later bin, each to one"
    return None


def misplaced(statistics: Mapping[str, Statistic]) -> str | None:
    """What does not fit between the statistics of one site and what stands beside them.

    Args:
        statistics: each checked for itself.

    Returns:
        None when all does.
    """
    told = {name_beside(name, statistic.kind): statistic
            for name, statistic in statistics.items() if statistic.kind in BESIDE}  # fmt: skip
    for name, other in statistics.items():
        if other.kind not in BESIDE.values():
            continue
        if name not in told:
            return f"statistic {name} has no histogram beside it"
        if wrong := _unlike(told[name], other):
            return f"statistic {name} {wrong}"
    return None


def _unlike(whole: Statistic, other: Statistic) -> str | None:
    if other.kind == "moved":
        is_more = other.values.reshape(2, -1)[0] > whole.values
        return "moves more counts than there are" if is_more.any() else None
    if other.values[0] != 1:
        return f"is of {other.values[0]:g} sites"
    if (merged(whole, kept_by_all(other)).values != whole.values).any():
        return "has counts outside the first bin between two of its edges"
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
