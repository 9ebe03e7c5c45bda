"""Who shares masks with whom, and how many must stay: computed from stated bounds.

Up to :data:`COMPLETE_UP_TO` sites every pair shares a mask (Bonawitz et al. 2017). Beyond, sites
stand in a ring in random order and share masks with the nearest ``neighbours`` of them, half on
each side: the Harary graph over a random permutation of Bell et al. 2020 (section 3).

In the sparse graph a dishonest server could call just those sites dropped that connect a few
others to the rest. Bell et al. bound the drop-outs by chance; here each site looks at the survivors
itself (:func:`survivor_problem`): every run of half the neighbours along the ring must hold
``window_survivors`` of them, which is more than the colluders that stand in any such run. Then
each run has an honest survivor, and the honest survivors are connected whatever the server chose.
"""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from asterion_shared.errors import UserInputError

COMPLETE_UP_TO = 32
MIN_SITES, MAX_SITES = 3, 1000

PRIVACY_FAILURE = 2.0**-40
RECOVERY_FAILURE = 2.0**-20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Thresholds of a secure sum. Made by :func:`choose_sharing`; part of every signature.

    Attributes:
        num_sites: sites that are asked, 3 to 1000.
        max_colluders: most sites that may work together with the server against another.
        max_dropouts: sites that may be lost, at any moment, with the sum still formed.
        neighbours: sites each one shares masks with: ``num_sites - 1``, or an even number below.
        share_threshold: shares of a secret, of its owner and its neighbours, that give it back.
        min_survivors: sites that every phase needs, and that must sign the same survivors.
        window_survivors: survivors in each run of ``neighbours / 2`` along the ring; 0 when
            every pair shares masks.
    """

    num_sites: int
    max_colluders: int
    max_dropouts: int
    neighbours: int
    share_threshold: int
    min_survivors: int
    window_survivors: int = 0

    def __post_init__(self) -> None:
        n, k, t, T = self.num_sites, self.neighbours, self.share_threshold, self.min_survivors
        if not MIN_SITES <= n <= MAX_SITES:
            msg = f"a secure sum of {n} sites; it works for {MIN_SITES} to {MAX_SITES}"
            raise UserInputError(msg)
        if self.max_colluders < 0 or self.max_dropouts < 0:
            msg = f"{self.max_colluders} colluders, {self.max_dropouts} drop-outs; give 0 or more"
            raise UserInputError(msg)
        if T - self.max_colluders < 2 or n + self.max_colluders >= 2 * T or n < T:
            msg = (
                f"min_survivors {T} of {n} sites with {self.max_colluders} colluders: more than "
                f"{(n + self.max_colluders) / 2:g} and at least {self.max_colluders + 2} are "
                f"needed, at most {n} are there; assume fewer colluders or ask more sites"
            )
            raise UserInputError(msg)
        if k != n - 1 and (k % 2 or not 2 <= k < n - 1 or not 1 <= self.window_survivors <= k // 2):
            msg = f"{k} neighbours of {n} sites; take an even number below {n - 1}, or {n - 1}"
            raise UserInputError(msg)
        if not (k + 1) / 2 < t <= k + 1:
            msg = f"share_threshold {t} of {k + 1} holders; take more than half of them"
            raise UserInputError(msg)

    @property
    def complete(self) -> bool:
        """Whether every pair of sites shares a mask."""
        return self.neighbours == self.num_sites - 1


def choose_sharing(
    num_sites: int,
    *,
    max_colluders: int,
    max_dropouts: int,
    privacy_failure: float = PRIVACY_FAILURE,
    recovery_failure: float = RECOVERY_FAILURE,
) -> Sharing:
    """The cheapest thresholds that hold for so many colluders and drop-outs.

    With n sites, c colluders and every pair sharing masks, the threshold is the smallest above
    (n + c)/2 (Bonawitz et al. 2017, section 6.2): two different survivor sets would need an honest
    site to sign both. It holds always; both probabilities are 0.

    Beyond :data:`COMPLETE_UP_TO` sites the smallest even number k of neighbours is taken with

    * P[some honest site has so many colluders among its neighbours that they and a server which
      shows two sets of survivors get both its secrets] at most ``privacy_failure / 2``,
    * P[some run of k/2 along the ring holds ``window_survivors`` colluders] at most the same,
    * P[after ``max_dropouts`` drop-outs at random a secret has too few holders left, or a run too
      few survivors] at most ``recovery_failure``.

    Each is a union bound over the sites of a hypergeometric tail, summed exactly: the ring's order
    is uniform and drawn after the colluders are settled. Where no k below n - 1 serves, every
    pair shares masks.

    Args:
        num_sites: sites that are asked, 3 to 1000.
        max_colluders: most of them that may work together with a dishonest server, >= 0.
        max_dropouts: most of them that may be lost, >= 0.
        privacy_failure: probability, for one instance and an unlucky order of the ring, with which
            the sum of fewer than all honest survivors may be seen.
        recovery_failure: probability with which a sum fails although enough sites remain.

    Raises:
        UserInputError: no thresholds hold, or an argument is outside its range.
    """
    if not (0 < privacy_failure < 1 and 0 < recovery_failure < 1):
        msg = f"failure probabilities {privacy_failure}, {recovery_failure}; they lie in (0, 1)"
        raise UserInputError(msg)
    n, c, d = num_sites, max_colluders, max_dropouts
    smallest = max((n + c) // 2 + 1, c + 2)
    if n - d < smallest:
        msg = (
            f"{n} sites less {d} drop-outs leave {n - d}, but with {c} colluders {smallest} are "
            f"needed; assume fewer of either or ask more sites"
        )
        raise UserInputError(msg)
    complete = Sharing(
        num_sites=n, max_colluders=c, max_dropouts=d, neighbours=n - 1,
        share_threshold=smallest, min_survivors=smallest,
    )  # fmt: skip
    if n <= COMPLETE_UP_TO:
        return complete
    for k in range(4, n - 1, 2):
        holders_lost = _surely_at_most(n - 1, c, k, privacy_failure / 2 / n)
        threshold = (k + 1 + holders_lost) // 2 + 1
        window = _surely_at_most(n, c, k // 2, privacy_failure / 2 / n) + 1
        if threshold > k or window > k // 2:
            continue
        too_few_holders = _tail(n - 1, d, k, k - threshold)
        too_few_in_run = _tail(n, d, k // 2, k // 2 - window)
        if n * (too_few_holders + too_few_in_run) <= recovery_failure:
            return Sharing(
                num_sites=n, max_colluders=c, max_dropouts=d, neighbours=k,
                share_threshold=threshold, min_survivors=smallest, window_survivors=window,
            )  # fmt: skip
    return complete


def ring_order(names: Sequence[str], seed: bytes) -> tuple[str, ...]:
    """The sites in the random order that ``seed`` gives: sorted by SHA-256 of seed and name."""
    return tuple(sorted(names, key=lambda name: hashlib.sha256(seed + name.encode()).digest()))


def neighbours_of(ring: Sequence[str], site: str, sharing: Sharing) -> tuple[str, ...]:
    """The sites that ``site`` shares masks with, sorted. Empty when it is not in the ring.

    >>> sharing = Sharing(num_sites=8, max_colluders=0, max_dropouts=0, neighbours=4,
    ...                   share_threshold=3, min_survivors=5, window_survivors=1)
    >>> neighbours_of("abcdefgh", "a", sharing)
    ('b', 'c', 'g', 'h')
    """
    if site not in ring:
        return ()
    if sharing.complete:
        return tuple(sorted(name for name in ring if name != site))
    own, half, n = ring.index(site), sharing.neighbours // 2, len(ring)
    return tuple(sorted(ring[(own + j) % n] for j in range(-half, half + 1) if j != 0))


def survivor_problem(ring: Sequence[str], survivors: Set[str], sharing: Sharing) -> str:
    """What forbids unmasking for these survivors; empty when nothing does.

    Args:
        ring: all sites that were asked, in the ring's order (any order when complete).
        survivors: names, all in ``ring``.
        sharing: the thresholds.
    """
    if len(survivors) < sharing.min_survivors:
        return f"{len(survivors)} survivors, {sharing.min_survivors} are needed"
    if sharing.complete:
        return ""
    n, half = len(ring), sharing.neighbours // 2
    alive = [int(name in survivors) for name in ring]
    in_run = sum(alive[:half])
    for start in range(n):
        if in_run < sharing.window_survivors:
            run = f"the {half} sites from {ring[start]!r} along the ring"
            return f"{in_run} of {run} survive, {sharing.window_survivors} are needed"
        in_run += alive[(start + half) % n] - alive[start]
    return ""


def _surely_at_most(population: int, marked: int, drawn: int, failure: float) -> int:
    """The smallest m with P[more than m marked ones are drawn] <= failure."""
    low, high = 0, min(marked, drawn)
    while low < high:
        middle = (low + high) // 2
        if _tail(population, marked, drawn, middle) <= failure:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=65536)
def _tail(population: int, marked: int, drawn: int, most: int) -> float:
    """P[more than ``most`` of ``drawn`` without replacement are marked], summed exactly."""
    ways = sum(
        comb(marked, i) * comb(population - marked, drawn - i)
        for i in range(max(most + 1, 0), min(marked, drawn) + 1)
    )
    return ways / comb(population, drawn)
