"""The fold: a weighted sum of updates that does not depend on the order of arrival.

Floating-point sums depend on their order, so updates are added in the order of the sites' names.
Memory never holds more than one update beside the sum, however many sites there are:

- an update in memory whose turn it is goes into a float64 sum at once; one that comes early waits
  on disk;
- an update over a mapped file is only noted, and the sum is formed at the end, block by block.
  Then there is no whole sum either.

For each coordinate both do the same additions in the same order, so that they give the same bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_shared.blocks import is_mapped, let_go, map_numbers, through
from asterion_shared.errors import DiskProblemError
from asterion_shared.parameters import Vector

Sum = npt.NDArray[np.float64]
WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class Part:
    """An update as it counts in a fold.

    Attributes:
        update: shape ``(size,)``.
        weight: > 0.
        factor: what the update is multiplied by first, in (0, 1]; below 1 where it was clipped.
    """

    update: Vector
    weight: float
    factor: float

    def shortened(self, block: slice) -> Vector:
        """A block of the clipped update, float32; a view where nothing was clipped."""
        return shortened(self.update[block], self.factor)

    def weighted(self, block: slice) -> Sum:
        """A block of the clipped update times its weight."""
        return np.multiply(self.weight, self.shortened(block), dtype=np.float64)


def shortened(update: Vector, factor: float) -> Vector:
    """An update times its clip factor, float32; itself where the factor is 1."""
    return update if factor == 1 else (factor * update).astype(np.float32)


def spill(path: Path, update: Vector) -> Vector:
    """Put an update on disk; return a mapped view that outlives the file's name.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.ascontiguousarray(update).tofile(path)
        mapped = map_numbers(path, update.size)
        path.unlink()
    except OSError as error:
        raise DiskProblemError(path, error.strerror or "write failed") from error
    return mapped


class Fold:
    """Adds updates in the order of ``sites``; every site is either added or left out, once."""

    def __init__(self, sites: Sequence[str], size: int, spill_folder: Path) -> None:
        self._waiting_for = list(sites)
        self._size, self._folder = size, spill_folder
        self._sum: Sum | None = None
        self._noted: list[Part] = []
        """Parts over mapped files, whose turn was before any other's: the sum is not begun."""
        self._weight = 0.0
        self._early: dict[str, Part | None] = {}
        self._spilled: set[str] = set()

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        """Take a site's update, shape ``(size,)``, with its weight > 0 and its clip factor.

        An update over a mapped file is read again until the fold is done.

        Raises:
            DiskProblemError: the update came early and the spill folder cannot be written.
        """
        if self._waiting_for and self._waiting_for[0] == site:
            self._waiting_for.pop(0)
            self._take(site, Part(update, weight, factor))
            self._catch_up()
            return
        if not is_mapped(update):
            update = spill(self._folder / f"early-{site}", update)
            self._spilled.add(site)
        self._early[site] = Part(update, weight, factor)

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        """Take the sum of several sites' weighted updates, float64 ``(size,)``.

        Sums are added as they come: whoever makes them has to give them in a fixed order.
        """
        self._begun()[:] += total
        self._weight += weight
        folded = set(sites)
        self._waiting_for = [site for site in self._waiting_for if site not in folded]
        self._catch_up()

    def leave_out(self, site: str) -> None:
        """Go on without a site: it refused, failed or was late."""
        self._early[site] = None
        self._catch_up()

    def mean(self, block: slice = WHOLE) -> Vector:
        """Weighted mean of what was added, float32; of a block of the coordinates.

        Raises:
            ValueError: sites are outstanding, or nothing was added.
        """
        return (self.total(block) / self._weight).astype(np.float32)

    def total(self, block: slice = WHOLE) -> Sum:
        """Weighted sum of what was added, float64; of a block of the coordinates.

        Raises:
            ValueError: sites are outstanding, or nothing was added.
        """
        if self._waiting_for or self._weight <= 0:
            msg = f"the fold still waits for {self._waiting_for} and holds weight {self._weight}"
            raise ValueError(msg)
        if self._sum is not None:
            return self._sum[block]
        start, stop, _ = block.indices(self._size)
        total: Sum = np.zeros(stop - start, np.float64)
        for part in self._noted:
            total += part.weighted(block)
            let_go(part.update, slice(start, stop))
        return total

    def _catch_up(self) -> None:
        while self._waiting_for and self._waiting_for[0] in self._early:
            site = self._waiting_for.pop(0)
            part = self._early.pop(site)
            if part is not None:
                self._take(site, part)

    def _take(self, site: str, part: Part) -> None:
        """Add a part whose turn it is."""
        self._weight += part.weight
        if self._sum is None and (self._noted or site not in self._spilled):
            if is_mapped(part.update):
                self._noted.append(part)
                return
            if self._noted:
                kept = spill(self._folder / f"noted-{site}", part.update)
                self._noted.append(Part(kept, part.weight, part.factor))
                return
        self._accumulate(self._begun(), part)

    def _begun(self) -> Sum:
        """The whole sum, with what was only noted so far."""
        if self._sum is None:
            self._sum = np.zeros(self._size, np.float64)
            for part in self._noted:
                self._accumulate(self._sum, part)
            self._noted.clear()
        return self._sum

    def _accumulate(self, total: Sum, part: Part) -> None:
        for block in through(self._size, part.update):
            there = total[block]
            there += part.weighted(block)


def empty_fold() -> Fold:
    """A fold of no sites, which holds nothing."""
    return Fold((), 0, Path())
