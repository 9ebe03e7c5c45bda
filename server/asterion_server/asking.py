"""Orders to a cohort: each site answers once, and only with what holds to the order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from asterion_server.report_check import check_bare, check_report, check_round
from asterion_server.secure_round import SecureRound, summed_here, summed_live
from asterion_shared.errors import PlanMismatchError, ReportRejectedError
from asterion_shared.messages import (
    Answer,
    Cohort,
    FoldingCohort,
    NoReport,
    Order,
    PartialFold,
    Report,
)
from asterion_shared.parameters import Layout
from asterion_shared.privacy.secure_sum import Verify

NOTHING_OPEN: Mapping[str, int] = MappingProxyType({})
"""No site has an order of an earlier round."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a run's orders are sent.

    Attributes:
        cohort: who answers.
        layout: of the run's network.
        verify: by the sites' identities, for secure sums over messages; None in a simulation.
    """

    cohort: Cohort
    layout: Layout
    verify: Verify | None

    def ask(
        self, order: Order, sites: Sequence[str], open_orders: Mapping[str, int] = NOTHING_OPEN
    ) -> Iterator[Answer]:
        """Send an order; yield one answer for each site, with only valid reports among them.

        Args:
            order: the order.
            sites: that are asked.
            open_orders: those of them that answer an order of an earlier round, with that round;
                any other report of an earlier round is refused.
        """
        waiting = set(sites)
        for answer in self.cohort.ask(order, sites):
            if answer.site in waiting:
                waiting.remove(answer.site)
                yield self._checked(answer, order, open_orders)
        for site in sorted(waiting):
            yield NoReport(site=site, outcome="late")

    def fold(
        self,
        cohort: FoldingCohort,
        order: Order,
        times: Mapping[str, int],
        open_orders: Mapping[str, int] = NOTHING_OPEN,
    ) -> Iterator[Answer | PartialFold]:
        """The same for a train order whose updates the cohort may add up itself.

        Raises:
            ReportRejectedError: a partial fold has a report that breaks its order; a cohort that
                folds is our own.
        """
        waiting = set(times)
        for part in cohort.fold(order, times):
            if isinstance(part, PartialFold):
                for report in part.answers:
                    if isinstance(report, Report):
                        check_round(report, order, None)
                        check_report(report, order, self.layout)
                waiting.difference_update(answer.site for answer in part.answers)
                yield part
            elif part.site in waiting:
                waiting.remove(part.site)
                yield self._checked(part, order, open_orders)
        for site in sorted(waiting):
            yield NoReport(site=site, outcome="late")

    def sum_securely(self, order: Order, sites: Sequence[str]) -> SecureRound:
        """Carry out an order under the plan's secure sum.

        Raises:
            PlanMismatchError: fewer sites take part than the plan's thresholds are for.
        """
        needed = order.plan.rounds.sites_per_round
        if len(sites) != needed:
            msg = (
                f"rounds.sites_per_round is {needed} and {len(sites)} sites take part; a secure "
                "sum needs exactly as many: change the plan or the sites"
            )
            raise PlanMismatchError(msg)
        if self.verify is None:
            return summed_here(order, sites, self.ask)
        return summed_live(order, sites, self.ask, self.verify)

    def _checked(self, answer: Answer, order: Order, open_orders: Mapping[str, int]) -> Answer:
        """A report that holds to its order, or why it is not used."""
        if isinstance(answer, NoReport):
            return answer
        try:
            check_round(answer, order, open_orders.get(answer.site))
            # In a simulation of a secure sum the reports are whole: they are summed here.
            if order.plan.secure_sum is not None and self.verify is not None:
                check_bare(answer, order)
            else:
                check_report(answer, order, self.layout)
        except ReportRejectedError as error:
            return NoReport(site=answer.site, outcome="failed", code=error.code, stage="receiving")
        return answer
