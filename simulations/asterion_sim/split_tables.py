"""How many units of each class every site gets: whole numbers that keep every total exactly.

A unit is an example, or a patient (group) where groups stay whole. A table is int64, shape (S, K):
S sites, K classes; its column sums are the classes' totals, so no unit is lost or counted twice.
"""

import heapq

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ONE = 2**30
"""One unit in the fixed-point numbers of the rounding: exact sums, no float at a boundary."""

_FIT_SWEEPS, _REFIT_SWEEPS, _FIT_TOLERANCE = 200, 10, 1e-6


def apportion(total: int, weights: Floats, fewest: int, draws: np.random.Generator) -> Counts:
    """Share out whole units in proportion to weights, but at least ``fewest`` to each.

    Args:
        total: units to share out, >= ``fewest * len(weights)``.
        weights: shape (S,), finite, > 0.
        fewest: least share, >= 0.
        draws: decides who gets one of the units that are left over by rounding down.

    Returns:
        int64, shape (S,); its sum is ``total``. Equal weights give shares that differ by 1 at most.
    """
    order = draws.permutation(len(weights))
    if (weights == weights[0]).all():
        each, left = divmod(total, len(weights))
        shares = np.full(len(weights), each, np.int64)
        shares[order[:left]] += 1
        return shares
    low, high = 0.0, (total + 1) / weights.min()
    for _ in range(200):  # the scale at which max(fewest, scale * weight) adds up to the total
        middle = (low + high) / 2
        if np.maximum(fewest, middle * weights).sum() <= total:
            low = middle
        else:
            high = middle
    wanted = np.maximum(fewest, low * weights)
    shares = np.floor(wanted).astype(np.int64)
    left = total - int(shares.sum())
    largest = order[np.argsort((shares - wanted)[order], kind="stable")]
    shares[largest[:left]] += 1
    return shares


def iid_table(class_totals: Counts, sizes: Counts, draws: np.random.Generator) -> Counts:
    """Shuffle all units and deal them out by the sites' sizes.

    Args:
        class_totals: shape (K,), units of each class.
        sizes: shape (S,), units of each site; the same sum.
        draws: the shuffle.

    Returns:
        The table, shape (S, K), with both margins exact.
    """
    num_sites, num_classes = len(sizes), len(class_totals)
    classes = draws.permutation(np.repeat(np.arange(num_classes), class_totals))
    cells = np.repeat(np.arange(num_sites), sizes) * num_classes + classes
    table = np.bincount(cells, minlength=num_sites * num_classes)
    return table.reshape(num_sites, num_classes).astype(np.int64)


def dirichlet_table(
    class_totals: Counts,
    sizes: Counts,
    floors: Counts,
    alpha: float,
    draws: np.random.Generator,
) -> Counts:
    """Each site draws its class proportions from a Dirichlet distribution; the totals are kept.

    The scheme is that of Hsu, Qi and Brown (arXiv 1909.06335, section 3): a site's proportions
    q ~ Dir(concentration * prior), sizes being set apart. Concentration is ``alpha * K``, so that
    balanced classes give Dir(alpha, ..., alpha), the common convention; their own alpha is K times
    ours. In the other scheme (Yurochkin et al., ICML 2019; Li et al., ICDE 2022) each class draws
    its proportions over the sites: sizes then follow from alpha, sites come out empty, and the
    draw is repeated until none is.

    Drawn proportions do not add up to the classes' totals. They are brought to both margins by
    iterative proportional fitting (Deming and Stephan 1940), and rounded class by class by
    systematic sampling, each rounding being followed by another fit of what is left.

    Args:
        class_totals: shape (K,), units of each class.
        sizes: shape (S,), units of each site; the same sum.
        floors: shape (S, K), least units of each class at each site; sums within both margins.
        alpha: concentration for each class, > 0; small: few classes at a site.
        draws: all randomness.

    Returns:
        The table, shape (S, K), at least ``floors``, with both margins exact.
    """
    present = np.flatnonzero(class_totals)
    totals = class_totals[present]
    concentration = alpha * len(present) * totals / totals.sum()
    proportions = draws.dirichlet(concentration, size=len(sizes))
    table = floors.copy()
    free_totals = totals - floors[:, present].sum(axis=0)
    free_sizes = sizes - floors.sum(axis=1)
    classes = draws.permutation(len(present))
    # Far below any proportion that matters, but above 0: a class can go to every site if it must.
    wanted = np.maximum(proportions[:, classes], 1e-12)
    left, sweeps = free_totals[classes], _FIT_SWEEPS
    for number, class_ in enumerate(present[classes]):
        wanted = _fit(wanted, free_sizes, left[number:], sweeps)
        taken = _round(wanted[:, 0], free_sizes, int(left[number]), draws)
        table[:, class_] += taken
        free_sizes = free_sizes - taken
        wanted, sweeps = wanted[:, 1:], _REFIT_SWEEPS
    return table


def _fit(wanted: Floats, sizes: Counts, totals: Counts, sweeps: int) -> Floats:
    """Scale rows and columns in turn until they add up to ``sizes`` and nearly to ``totals``."""
    for _ in range(sweeps):
        columns = wanted.sum(axis=0)
        wanted = wanted * np.divide(totals, columns, out=np.zeros_like(columns), where=columns > 0)
        rows = wanted.sum(axis=1)
        # A row that lost everything (only classes without units were likely) starts level again.
        wanted[(rows == 0) & (sizes > 0)] = totals
        rows = wanted.sum(axis=1)
        wanted *= np.divide(sizes, rows, out=np.zeros_like(rows), where=rows > 0)[:, None]
        if np.allclose(wanted.sum(axis=0), totals, rtol=_FIT_TOLERANCE, atol=_FIT_TOLERANCE):
            break
    return wanted


def _round(wanted: Floats, most: Counts, total: int, draws: np.random.Generator) -> Counts:
    """Round each number up or down so that they add up to ``total`` and none exceeds ``most``.

    Systematic sampling: the numbers lie end to end on a line, in random order, and a comb of
    teeth one unit apart counts how many fall into each; a number x is hit floor(x) or ceil(x)
    times, on average x.
    """
    order = draws.permutation(len(wanted))
    ceiling = most[order] * _ONE
    parts = np.minimum((wanted[order] * _ONE).astype(np.int64), ceiling)
    gap = total * _ONE - int(parts.sum())
    parts = parts + _fill(ceiling - parts, gap) if gap >= 0 else parts - _fill(parts, -gap)
    ends = (np.cumsum(parts) + int(draws.integers(_ONE))) // _ONE
    rounded = np.empty(len(wanted), np.int64)
    rounded[order] = np.diff(ends, prepend=0)
    return rounded


def _fill(room: Counts, amount: int) -> Counts:
    """Pour an amount into vessels one after the other; shape of ``room``."""
    before = np.cumsum(room) - room
    poured: Counts = np.clip(amount - before, 0, room)
    return poured


def classes_table(
    class_totals: Counts,
    weights: Floats,
    classes_per_site: int,
    floor: int,
    draws: np.random.Generator,
) -> Counts:
    """Each site holds a few classes; every class is shared out among the sites that hold it.

    A class is held by a number of sites in proportion to its size (D'Hondt's divisors), so that
    equal weights give nearly equal sites, as the shards of McMahan et al. (AISTATS 2017) do.

    Args:
        class_totals: shape (K,), units of each class, each > 0.
        weights: shape (S,), relative sizes of the sites, > 0.
        classes_per_site: classes at each site, 1 .. K.
        floor: least units of a class at a site that holds it, >= 1.
        draws: which sites hold which classes, and the rounding.

    Returns:
        The table, shape (S, K), with exactly ``classes_per_site`` non-zero entries in each row.

    Raises:
        ValueError: the sites have more places than the classes have units, or fewer places than
            there are classes.
    """
    num_sites, num_classes = len(weights), len(class_totals)
    holders = _holders(class_totals // floor, num_sites, classes_per_site)
    table = np.zeros((num_sites, num_classes), np.int64)
    held = np.zeros((num_sites, num_classes), bool)
    need = holders.copy()
    for site in draws.permutation(num_sites):
        # The most needed classes first: then the last sites always find enough different ones.
        ties = draws.random(num_classes)
        chosen = np.lexsort((ties, -need))[:classes_per_site]
        held[site, chosen] = True
        need[chosen] -= 1
    for class_ in range(num_classes):
        sites = np.flatnonzero(held[:, class_])
        table[sites, class_] = apportion(int(class_totals[class_]), weights[sites], floor, draws)
    return table


def _holders(most: Counts, num_sites: int, classes_per_site: int) -> Counts:
    """How many sites hold each class: at least 1, at most ``most`` and the number of sites."""
    places, num_classes = num_sites * classes_per_site, len(most)
    allowed = np.minimum(most, num_sites)
    if places < num_classes or int(allowed.sum()) < places or int(allowed.min()) < 1:
        msg = f"{places} places for {num_classes} classes of which {allowed.tolist()} can be filled"
        raise ValueError(msg)
    holders = np.ones(num_classes, np.int64)
    queue = [(-units / 2, class_) for class_, units in enumerate(most) if allowed[class_] > 1]
    heapq.heapify(queue)
    for _ in range(places - num_classes):
        _, class_ = heapq.heappop(queue)
        holders[class_] += 1
        if holders[class_] < allowed[class_]:
            heapq.heappush(queue, (-most[class_] / (holders[class_] + 1), class_))
    return holders
