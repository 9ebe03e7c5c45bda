"""Orders of late sites that stay open beyond their round, for ``rounds.late = "carry_over"``.

They stand in a file of the run's folder, so that a run that is taken up again knows which answer
belongs to which round. An order is written before its round is closed. It is closed when a later
round begins, and not when its answer comes: until then that later round may have to begin again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically

FILE = "open_orders.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrder:
    """One order that a site has not answered.

    Attributes:
        site: who works on it.
        round: that it was made for.
        message: by which its answer is pulled.
        session: of the site, that it was sent to.
        sent: when, seconds since 1970.
        num_bytes: its size.
    """

    site: str
    round: int
    message: str
    session: str
    sent: float
    num_bytes: int


class OpenOrders:
    """The open orders of a run, at most one a site.

    Args:
        path: where they are kept; None: in memory alone.

    Raises:
        FileProblemError: the file is there and cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._orders = {} if path is None else _read(path)
        self._answered: set[str] = set()

    def begin(self, round_: int, most_stale: int) -> Mapping[str, OpenOrder]:
        """Close what was answered and what is not from the ``most_stale`` rounds before this one.

        Returns:
            Those that stay open, by site.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        kept = {
            site: order
            for site, order in self._orders.items()
            if site not in self._answered and 1 <= round_ - order.round <= most_stale
        }
        self._answered = set()
        self._write(kept)
        return dict(kept)

    def keep(self, order: OpenOrder) -> None:
        """Leave an order open, durably.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        self._write(self._orders | {order.site: order})

    def answered(self, site: str) -> None:
        """The site's order has its answer, or can have none any more."""
        self._answered.add(site)

    def _write(self, orders: dict[str, OpenOrder]) -> None:
        if orders != self._orders and self._path is not None:
            text = json.dumps([asdict(order) for _, order in sorted(orders.items())])
            write_atomically(self._path, text.encode())
        self._orders = orders


def _read(path: Path) -> dict[str, OpenOrder]:
    if not path.exists():
        return {}
    try:
        return {entry["site"]: OpenOrder(**entry) for entry in json.loads(path.read_text())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = "remove it; late reports of before are then not used"
        raise FileProblemError(path, f"cannot be read ({type(error).__name__})", fix) from None
