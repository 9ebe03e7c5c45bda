"""The deadline of a round, where the plan leaves it open: made from what the sites took so far.

Three times what the slowest site that is asked takes in the middle: its median time of work and
its median time of transfer over the last rounds of this run. All of it stands in the stored
results, so a run that is taken up again derives the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from asterion_shared.events import DeadlineDerived, Listener
from asterion_shared.messages import Phase
from asterion_shared.plan import Plan
from asterion_shared.result import RoundResult
from asterion_shared.round_settings import MOST_DEADLINE_SECONDS

FIRST_SECONDS = 3600.0
"""The deadline while nothing is measured: of the count, of round 1, and in simulations."""

FACTOR = 3.0
"""How many times what the slowest site takes."""

FLOOR_SECONDS = 60.0
"""The shortest derived deadline: a site that restarts or loses its line needs about that."""

RECENT_ROUNDS = 20
"""How many rounds back times are looked at."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a round may take.

    Attributes:
        seconds: > 0.
        derived: whether the plan left it open.
        site: whose times it is made from; empty when from none.
        site_seconds: what that site takes, >= 0.
    """

    seconds: float
    derived: bool = False
    site: str = ""
    site_seconds: float = 0.0


class Deadlines:
    """The deadlines of a run.

    Args:
        plan: whose own deadline wins.
        emit: is told of each that the plan leaves open; None in a simulation: its times are those
            of the machine that runs it, and its results shall not depend on them.
    """

    def __init__(self, plan: Plan, emit: Listener | None) -> None:
        self._plan, self._emit = plan, emit

    def of_count(self) -> float:
        """Seconds for the count, before which nothing is measured."""
        return self._told(0, "count", deadline_of(self._plan, (), {}, evaluate=False))

    def of_round(
        self, round_: int, sites: Iterable[str], rounds: Mapping[int, RoundResult]
    ) -> float:
        """Seconds for an order to train; ``sites`` and ``rounds`` as for :func:`deadline_of`."""
        known = {} if self._emit is None else rounds
        due = evaluates(self._plan, round_)
        found = deadline_of(self._plan, sites, known, evaluate=due)
        return self._told(round_, "train", found)

    def of_evaluation(
        self, round_: int, sites: Iterable[str], rounds: Mapping[int, RoundResult]
    ) -> float:
        """Seconds for the closing evaluation; ``sites`` and ``rounds`` likewise."""
        known = {} if self._emit is None else rounds
        found = deadline_of(self._plan, sites, known, evaluate=True)
        return self._told(round_, "evaluate", found)

    def _told(self, round_: int, phase: Phase, deadline: Deadline) -> float:
        if self._emit is not None and deadline.derived:
            self._emit(
                DeadlineDerived(
                    round=round_,
                    phase=phase,
                    deadline_seconds=deadline.seconds,
                    site=deadline.site or None,
                    site_seconds=deadline.site_seconds,
                )
            )
        return deadline.seconds


def deadline_of(
    plan: Plan, sites: Iterable[str], rounds: Mapping[int, RoundResult], *, evaluate: bool
) -> Deadline:
    """The deadline of an order to train or to evaluate.

    A report that was late and not used has no time; a site without any is measured by the others.

    Args:
        plan: whose own deadline wins.
        sites: that are asked.
        rounds: the results so far, by number.
        evaluate: whether the incoming weights are evaluated; then only rounds count in which they
            were, as the others took less.

    Returns:
        :data:`FIRST_SECONDS` when no site that is asked was measured; at least
        :data:`FLOOR_SECONDS`, and at most what a plan may set.
    """
    if plan.rounds.deadline_seconds is not None:
        return Deadline(plan.rounds.deadline_seconds)
    numbers = sorted((number for number in rounds if number > 0), reverse=True)
    like = [n for n in numbers if not evaluate or evaluates(plan, n)][:RECENT_ROUNDS]
    wanted = set(sites)
    times: dict[str, list[tuple[float, float]]] = {}
    for number in like:
        for site, outcome in rounds[number].outcomes.items():
            # What a carried report took tells of the round that it was made for.
            of = number if outcome.made_for is None else outcome.made_for
            counts = outcome.outcome in ("answered", "carried", "quarantined")
            if counts and site in wanted and (not evaluate or evaluates(plan, of)):
                times.setdefault(site, []).append((outcome.seconds, outcome.transfer_seconds))
    if not times:
        return Deadline(FIRST_SECONDS, derived=True)
    taken = {
        site: median(work for work, _ in pairs) + median(transfer for _, transfer in pairs)
        for site, pairs in times.items()
    }
    slowest = max(sorted(taken), key=lambda site: taken[site])
    seconds = min(max(FACTOR * taken[slowest], FLOOR_SECONDS), MOST_DEADLINE_SECONDS)
    return Deadline(seconds, derived=True, site=slowest, site_seconds=taken[slowest])


def evaluates(plan: Plan, round_: int) -> bool:
    """Whether the order of a training round, from 1, also evaluates the incoming weights."""
    return (round_ - 1) % plan.rounds.evaluate_every == 0
