"""No report is folded before it was checked: layout, finite numbers, bounds, statistics."""

import numpy as np

from asterion_shared.blocks import all_finite
from asterion_shared.errors import ReportRejectedError
from asterion_shared.messages import Order, Report
from asterion_shared.metrics import check_statistics
from asterion_shared.parameters import Layout

MOST_EXAMPLES = 10**9
"""Largest number of examples a site may claim."""


def check_report(report: Report, order: Order, layout: Layout) -> None:
    """Refuse a report that breaks the contract of the order.

    Raises:
        ReportRejectedError: the update is missing, has another shape or is not finite, a count is
            out of range, or a statistic is not the plan's.
    """
    for name in ("num_examples", "num_test", "num_bad_files", "num_steps"):
        value = getattr(report, name)
        if not 0 <= value <= MOST_EXAMPLES:
            raise _rejected(report, f"{name} is {value}, allowed are 0 to {MOST_EXAMPLES}")
    try:
        check_statistics(report.statistics, order.plan, num_cases=report.num_test)
    except ValueError as error:
        raise _rejected(report, str(error)) from None
    if order.phase != "train":
        return
    if report.num_examples == 0 or report.num_steps == 0:
        raise _rejected(report, "an update without examples or steps")
    if report.update_norm is not None:  # the update itself is in a partial fold
        return
    update = report.update
    if update is None or update.shape != (layout.size,) or update.dtype != np.float32:
        found = "missing" if update is None else f"{update.dtype}{update.shape}"
        raise _rejected(report, f"the update is {found}, needed is float32({layout.size},)")
    if not all_finite(update):
        raise _rejected(report, "the update has a number that is not finite")


def check_round(report: Report, order: Order, made_for: int | None) -> None:
    """Refuse a report of another round than the one that is due.

    Args:
        report: what came.
        order: of the round that is folded.
        made_for: the earlier round whose order the site has open; None: it has none.

    Raises:
        ReportRejectedError: an older report came unasked, the plan carries none over, or it is
            too old.
    """
    if report.made_for is None and made_for is None:
        return
    rounds = order.plan.rounds
    due = report.made_for is not None and report.made_for == made_for
    if not due or rounds.late != "carry_over" or order.phase != "train":
        raise _rejected(report, f"it was made for round {report.made_for}, due is round {made_for}")
    assert report.made_for is not None  # noqa: S101  # it is due
    if not 1 <= order.round - report.made_for <= rounds.most_stale:
        raise _rejected(
            report, f"it is {order.round - report.made_for} rounds old, at most {rounds.most_stale}"
        )


def check_bare(report: Report, order: Order) -> None:
    """Refuse a report under a secure sum that says more than that the site is ready.

    Raises:
        ReportRejectedError: it does, or it lacks the message of the step that was due.
    """
    if not report.is_bare or bool(report.sum_message) != (order.phase == "sum"):
        raise _rejected(report, "it says more, or less, than the plan's secure sum wants")


def _rejected(report: Report, message: str) -> ReportRejectedError:
    return ReportRejectedError(report.site, "report_rejected", message)
