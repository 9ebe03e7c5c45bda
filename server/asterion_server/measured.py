"""Metrics of a model, formed while the sites' statistics come in.

A site's statistics are summarised at once and added to the pooled ones in the order of the sites'
names, so that memory does not grow with the sites and the sums do not depend on who came first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asterion_shared.metrics import Statistics, merge, summarise
from asterion_shared.metrics.decisions import Decisions, fit_decisions
from asterion_shared.metrics.reliability import Reliability, reliability
from asterion_shared.plan import Plan
from asterion_shared.result import Metrics


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the scores of one model can be trusted, and what to decide by them.

    Attributes:
        pooled: over all sites; None where nothing was told, or the task has no confidence.
        sites: of each site that told it, sorted.
        decisions: a temperature and thresholds; None where none can be fitted.
    """

    pooled: Reliability | None
    sites: Mapping[str, Reliability]
    decisions: Decisions | None


class Measured:
    """Takes the statistics of sites; some of those expected may never come.

    Args:
        plan: under which the statistics were formed.
        sites: the sites that may come, sorted.
    """

    def __init__(self, plan: Plan, sites: Sequence[str]) -> None:
        self._plan, self._place = plan, {site: place for place, site in enumerate(sites)}
        self._next = 0
        self._pooled: Statistics = {}
        self._early: dict[int, Statistics] = {}
        self._sites: dict[str, Metrics] = {}
        self._site_calibration: dict[str, Reliability] = {}

    def add(self, site: str, statistics: Statistics) -> None:
        """Take one site's; empty when it measured nothing."""
        if statistics:
            self._sites[site] = _finite(summarise(statistics, self._plan))
            if (found := reliability(statistics)) is not None:
                self._site_calibration[site] = found
        self._early[self._place[site]] = statistics
        while self._next in self._early:
            self._merge(self._early.pop(self._next))
            self._next += 1

    def add_sum(self, statistics: Statistics) -> None:
        """Take the sum of those sites whose own nobody sees."""
        self._merge(statistics)

    def finish(self) -> tuple[Metrics, dict[str, Metrics]]:
        """The pooled metrics, empty when nothing was measured, and those by site, sorted."""
        for place in sorted(self._early):
            self._merge(self._early.pop(place))
        pooled = _finite(summarise(self._pooled, self._plan)) if self._pooled else {}
        return pooled, dict(sorted(self._sites.items()))

    def calibration(self) -> Calibration:
        """How far the model's confidence can be trusted; to be called after ``finish``."""
        return Calibration(
            reliability(self._pooled),
            dict(sorted(self._site_calibration.items())),
            fit_decisions(self._pooled, self._plan),
        )

    def _merge(self, statistics: Statistics) -> None:
        if statistics:
            parts = [self._pooled, statistics] if self._pooled else [statistics]
            self._pooled = merge(parts)


def _finite(metrics: Mapping[str, float | None]) -> Metrics:
    return {k: v if v is not None and math.isfinite(v) else None for k, v in metrics.items()}
