"""Folds that hold when a site is wrong, by blocks of coordinates.

None of them weighs sites: the proofs are of equal votes, and a liar chooses its own number of
examples. Memory holds one block of every update, never a second whole one.

- Median and trimmed mean of each coordinate: Yin et al., ICML 2018, definitions 1 and 2.
- Krum: Blanchard et al., NeurIPS 2017, section 4. The update with the smallest sum of squared
  distances to its n - f - 2 nearest others; 2 f + 2 < n. Multi-Krum, of the same paper: the mean
  of the m updates with the smallest sums; m <= n - f - 2 as in Damaskinos et al., SysML 2019.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_server.fold import Part, spill
from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.blocks import BLOCK, is_mapped, let_go
from asterion_shared.errors import PlanMismatchError
from asterion_shared.fold_rules import fewest_for_krum
from asterion_shared.parameters import Vector

MOST_STACKED = 2**17
"""Numbers of all updates together in a block: 512 KiB of float32, which a core's cache holds."""

FEWEST_STACKED = 2**10
"""Coordinates in a block, however many updates there are."""

MOST_MEMORY_BYTES = 2**28
"""Updates that are kept in memory; those beyond wait on disk."""

Combine = Callable[[slice], Vector]


class KeptUpdates:
    """Updates by name until a round is finished: in memory while they are few and small.

    Args:
        folder: where those go that are neither mapped files nor fit into memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, Part] = {}
        self._memory_bytes = 0

    def add(self, name: str, update: Vector, weight: float, factor: float) -> None:
        """Keep an update, which must not change.

        Raises:
            DiskProblemError: it does not fit into memory and the folder cannot be written.
        """
        if not is_mapped(update):
            if self._memory_bytes + update.nbytes > MOST_MEMORY_BYTES:
                update = spill(self._folder / f"kept-{name}", update)
            else:
                self._memory_bytes += update.nbytes
        self._parts[name] = Part(update, weight, factor)

    @property
    def parts(self) -> dict[str, Part]:
        """All of them, sorted by name."""
        return dict(sorted(self._parts.items()))


def block_size(num_updates: int) -> int:
    """Coordinates in a block of so many updates, >= 1."""
    return min(BLOCK, max(FEWEST_STACKED, MOST_STACKED // max(num_updates, 1)))


def robust_fold(settings: AlgorithmSettings, parts: Sequence[Part], size: int) -> Combine:
    """How to combine updates, a block of coordinates at a time.

    Args:
        settings: name the fold and its arguments.
        parts: the updates ``(size,)``, in the order of the sites' names, at least one; ties of
            Krum go to the first.
        size: of each update.

    Returns:
        A function from a slice of the coordinates to the combined update there, float32.

    Raises:
        PlanMismatchError: they are too few for what the plan assumes of the sites.
    """
    if settings.fold == "median":
        return lambda block: median(stacked(parts, block))
    if settings.fold == "trimmed_mean":
        return lambda block: trimmed_mean(stacked(parts, block), settings.trim_fraction)
    wrong = settings.num_malicious
    if len(parts) < fewest_for_krum(wrong):
        msg = (
            f"{len(parts)} reports are to be folded and algorithm.num_malicious is {wrong}; krum "
            f"needs {fewest_for_krum(wrong)}: raise rounds.quorum, or release what is held"
        )
        raise PlanMismatchError(msg)
    most = len(parts) - wrong - 2
    num_kept = 1 if settings.fold == "krum" else min(settings.num_kept or most, most)
    chosen = [parts[i] for i in nearest(squared_distances(parts, size), wrong, num_kept)]
    return lambda block: mean(stacked(chosen, block))


def stacked(parts: Sequence[Part], block: slice) -> npt.NDArray[np.float32]:
    """A block of each update, clipped, float32 ``(len(parts), numbers in the block)``."""
    found = np.empty((len(parts), block.stop - block.start), np.float32)
    for row, part in zip(found, parts, strict=True):
        row[:] = part.shortened(block)
        let_go(part.update, block)
    return found


def median(updates: npt.NDArray[np.float32]) -> Vector:
    """The median of each column; of an even number of rows the mean of the middle two.

    >>> median(np.float32([[1, 9], [2, 7], [50, 8], [4, -50]]))
    array([3. , 7.5], dtype=float32)
    """
    count = len(updates)
    return mean(in_order(updates)[(count - 1) // 2 : count // 2 + 1])


def trimmed_mean(updates: npt.NDArray[np.float32], fraction: float) -> Vector:
    """The mean of each column without its ``int(fraction * rows)`` lowest and highest numbers.

    >>> trimmed_mean(np.float32([[1], [2], [50], [3]]), 0.25)
    array([2.5], dtype=float32)
    """
    cut = int(fraction * len(updates))
    return mean(in_order(updates)[cut : len(updates) - cut])


def in_order(updates: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each column sorted by itself, in a new array; the numbers are finite.

    By a network of minima and maxima of whole rows, which takes a twentieth of the time that
    ``numpy.sort`` takes for the columns of five rows.
    """
    rows = list(updates)
    for low, high in _comparisons(len(rows)):
        one, other = rows[low], rows[high]
        rows[low], rows[high] = np.minimum(one, other), np.maximum(one, other)
    return np.stack(rows)


@lru_cache(maxsize=64)
def _comparisons(count: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort: which rows change places where they are not in order.

    Knuth, The Art of Computer Programming 3, algorithm 5.2.2M.
    """
    found: list[tuple[int, int]] = []
    width = 1
    while width < count:
        step = width
        while step >= 1:
            for begin in range(step % width, count - step, 2 * step):
                for i in range(begin, min(begin + step, count - step)):
                    if i // (2 * width) == (i + step) // (2 * width):
                        found.append((i, i + step))
            step //= 2
        width *= 2
    return tuple(found)


def mean(updates: npt.NDArray[np.float32]) -> Vector:
    """The plain mean of each column, added in float64 in the order of the rows."""
    total = np.zeros(updates.shape[1], np.float64)
    for row in updates:
        total += row
    total /= len(updates)
    return total.astype(np.float32)


def squared_distances(parts: Sequence[Part], size: int) -> npt.NDArray[np.float64]:
    """Squared Euclidean distance of each two clipped updates, float64 ``(n, n)``.

    From the differences, not from products of the updates: those lose all digits of the distances
    between honest sites beside one update that is long enough.
    """
    count = len(parts)
    found = np.zeros((count, count), np.float64)
    for block in blocks_of(size, count):
        rows = stacked(parts, block).astype(np.float64)
        for i in range(count - 1):
            apart = rows[i + 1 :] - rows[i]
            found[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)
    return found + found.T


def blocks_of(size: int, num_updates: int) -> Iterator[slice]:
    """The blocks in which so many updates are gone through, small enough for a core's cache."""
    step = max(FEWEST_STACKED, 2**17 // max(num_updates, 1))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def nearest(
    distances: npt.NDArray[np.float64], num_malicious: int, num_kept: int
) -> tuple[int, ...]:
    """Which updates Krum keeps, in the order of their numbers.

    Args:
        distances: squared, symmetric ``(n, n)``, n >= 2 f + 3.
        num_malicious: f.
        num_kept: how many, 1 to n.
    """
    count = len(distances)
    scores = []
    for i in range(count):
        others = np.sort(np.delete(distances[i], i))
        scores.append(float(others[: count - num_malicious - 2].sum()))
    best = np.argsort(scores, kind="stable")[:num_kept]
    return tuple(sorted(int(i) for i in best))
