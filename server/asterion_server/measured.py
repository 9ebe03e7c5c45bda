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
from asterion_shared.result import Metrics, RoundResult


@dataclass(frozen=True, slots=True)
class Found:
    """What the statistics of one model say.

    Attributes:
        pooled: metrics over all sites; empty when nothing was measured.
        sites: the same of each site that measured, sorted.
        calibration: how far the model's confidence can be trusted, over all sites; None where
            nothing was told, or the task has no confidence.
        site_calibration: the same of each site that told it, sorted.
        decisions: a temperature and thresholds; None where none can be fitted.
    """

    pooled: Metrics
    sites: dict[str, Metrics]
    calibration: Reliability | None
    site_calibration: dict[str, Reliability]
    decisions: Decisions | None

    def told_beside(self, round_: RoundResult) -> RoundResult:
        """A round with what was found of the model after it, but not ``site_calibration``."""
        changes = {
            "pooled": self.pooled,
            "sites": self.sites,
            "calibration": self.calibration,
            "decisions": self.decisions,
        }
        return round_.model_copy(update=changes)


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

    def finish(self) -> Found:
        """What all of them say, with those that never came left out."""
        for place in sorted(self._early):
            self._merge(self._early.pop(place))
        return Found(
            pooled=_finite(summarise(self._pooled, self._plan)) if self._pooled else {},
            sites=dict(sorted(self._sites.items())),
            calibration=reliability(self._pooled),
            site_calibration=dict(sorted(self._site_calibration.items())),
            decisions=fit_decisions(self._pooled, self._plan),
        )

    def _merge(self, statistics: Statistics) -> None:
        if statistics:
            parts = [self._pooled, statistics] if self._pooled else [statistics]
            self._pooled = merge(parts)


def _finite(metrics: Mapping[str, float | None]) -> Metrics:
    return {k: v if v is not None and math.isfinite(v) else None for k, v in metrics.items()}
