"""The fold: a weighted sum of updates that streams and does not depend on the order of arrival.

Floating-point sums depend on their order, so updates are added in the order of the sites' names.
An update that comes early waits on disk, so that memory never holds more than the accumulator
and one update, however many sites there are.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import DiskProblemError
from asterion_shared.parameters import Vector


class Fold:
    """Adds updates in the order of ``sites``; every site is either added or left out, once."""

    def __init__(self, sites: Sequence[str], size: int, spill_folder: Path) -> None:
        self._waiting_for = list(sites)
        self._sum: npt.NDArray[np.float64] = np.zeros(size, np.float64)
        self._weight = 0.0
        self._folder = spill_folder
        self._early: dict[str, tuple[Path, float] | None] = {}

    def add(self, site: str, update: Vector, weight: float) -> None:
        """Take a site's update, shape ``(size,)``, with its weight > 0.

        Raises:
            DiskProblemError: the update came early and the spill folder cannot be written.
        """
        if self._waiting_for and self._waiting_for[0] == site:
            self._waiting_for.pop(0)
            self._accumulate(update, weight)
            self._catch_up()
            return
        path = self._folder / f"early-{site}.npy"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, update, allow_pickle=False)
        except OSError as error:
            raise DiskProblemError(path, error.strerror or "write failed") from error
        self._early[site] = (path, weight)

    def add_sum(self, sites: Iterable[str], total: npt.NDArray[np.float64], weight: float) -> None:
        """Take the sum of several sites' weighted updates, float64 ``(size,)``.

        Sums are added as they come: whoever makes them has to give them in a fixed order.
        """
        self._sum += total
        self._weight += weight
        folded = set(sites)
        self._waiting_for = [site for site in self._waiting_for if site not in folded]
        self._catch_up()

    def leave_out(self, site: str) -> None:
        """Go on without a site: it refused, failed or was late."""
        self._early[site] = None
        self._catch_up()

    def mean(self) -> Vector:
        """Weighted mean of what was added, float32.

        Raises:
            ValueError: sites are outstanding, or nothing was added.
        """
        return (self.total() / self._weight).astype(np.float32)

    def total(self) -> npt.NDArray[np.float64]:
        """Weighted sum of what was added, float64.

        Raises:
            ValueError: sites are outstanding, or nothing was added.
        """
        if self._waiting_for or self._weight <= 0:
            msg = f"the fold still waits for {self._waiting_for} and holds weight {self._weight}"
            raise ValueError(msg)
        return self._sum

    def _catch_up(self) -> None:
        while self._waiting_for and self._waiting_for[0] in self._early:
            stored = self._early.pop(self._waiting_for.pop(0))
            if stored is not None:
                path, weight = stored
                self._accumulate(np.load(path, allow_pickle=False), weight)
                path.unlink()

    def _accumulate(self, update: Vector, weight: float) -> None:
        self._sum += weight * update.astype(np.float64)
        self._weight += weight
