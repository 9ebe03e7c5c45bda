"""The one table of every field that may leave a site: its type, its bound, what it tells, who pays.

:mod:`asterion_client.egress` lets out nothing that is not declared here and within its bound.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from asterion_shared.messages import Order, Report
from asterion_shared.metrics import check_statistics
from asterion_shared.update_codec import check

MOST_COUNT = 10**9
"""Largest count (examples, files, steps) that leaves."""

REJECTED, DIVERGED = "report_rejected", "diverged"
ANY = "*"
"""Instead of a name: one for each statistic of the plan."""


def _fine(report: Report, order: Order) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Field:
    """One field that may leave.

    Attributes:
        record, name: where it stands in the reply.
        type: of its value.
        bound: what its value must keep to, in words.
        tells: what a reader learns from it.
        budget: what pays for it.
        problem: the reason code for a report whose field breaks the bound; empty when it holds.
        silent: whether the field says nothing; None: it may speak under a secure sum too.
    """

    record: str
    name: str
    type: str
    bound: str
    tells: str
    budget: str
    problem: Callable[[Report, Order], str] = _fine
    silent: Callable[[Report], bool] | None = None


def problem_of(report: Report, order: Order) -> str:
    """Why a report may not leave: a reason code, or an empty text when it may.

    Raises:
        ValueError: its statistics or codes contradict themselves; the text is for nobody else.
    """
    summed = order.plan.secure_sum is not None or order.phase == "sum"
    for field in FIELDS:
        if code := field.problem(report, order):
            return code
        if summed and field.silent is not None and not field.silent(report):
            return REJECTED
    return ""


def undeclared(content: RecordDict) -> int:
    """How many values of a reply are in no row of the table."""
    declared = {(field.record, field.name) for field in FIELDS}
    return sum(
        not declared & {(name, key), (name, ANY)}
        for name, record in content.items()
        for key in record
    )


def _count(name: str, tells: str, budget: str) -> Field:
    def problem(report: Report, order: Order) -> str:
        value = getattr(report, name)
        # A bool is an int in Python, so the exact type is asked for.
        return "" if type(value) is int and 0 <= value <= MOST_COUNT else REJECTED

    return Field("report", name, "integer", f"0 to {MOST_COUNT:,}", tells, budget, problem,
                 lambda report: getattr(report, name) == 0)  # fmt: skip


def _manifest_problem(report: Report, order: Order) -> str:
    return "" if re.fullmatch(r"[0-9a-f]{64}|", report.manifest_sha256) else REJECTED


def _head_problem(report: Report, order: Order) -> str:
    """What is charged leaves with the head of the ledger that charged it; nothing else has one."""
    charged = False
    if order.plan.privacy is not None and order.phase == "sum" and order.sum is not None:
        charged = (order.sum.of, order.sum.step) == ("train", "masked")
    elif order.plan.privacy is not None:
        charged = order.phase == "train" and order.plan.secure_sum is None
    if not charged:
        return "" if report.ledger_head is None else REJECTED
    return "" if re.fullmatch(r"[0-9a-f]{64}", report.ledger_head or "") else REJECTED


def _seconds_problem(report: Report, order: Order) -> str:
    return "" if math.isfinite(report.seconds) and report.seconds >= 0 else REJECTED


def _loss_problem(report: Report, order: Order) -> str:
    return "" if report.train_loss is None or math.isfinite(report.train_loss) else DIVERGED


def _statistics_problem(report: Report, order: Order) -> str:
    check_statistics(report.statistics, order.plan, num_cases=report.num_test)
    return REJECTED if order.phase == "count" and report.statistics else ""


def _update_problem(report: Report, order: Order) -> str:
    update, encoded = report.update, report.encoded
    if order.plan.secure_sum is not None or order.phase != "train" or order.weights is None:
        return "" if update is None and encoded is None else REJECTED
    if update is None or update.dtype != np.float32 or update.shape != order.weights.shape:
        return REJECTED
    if ("float32" if encoded is None else encoded.kind) != order.plan.transport.update:
        return REJECTED
    if encoded is not None:
        check(encoded, update.size)
    return "" if bool(np.isfinite(update).all()) else DIVERGED


def _message_problem(report: Report, order: Order) -> str:
    return "" if bool(report.sum_message) == (order.phase == "sum") else REJECTED


_FREE = "none: not of the data"
_GROUP = "the smallest group"

FIELDS: tuple[Field, ...] = (
    Field("report", "format", "integer", "1", "version of the records", _FREE),
    _count("num_examples", "training examples; the weight of the update", _GROUP),
    _count("num_test", "test examples behind the statistics; 0 also when too few patients", _GROUP),
    _count("num_bad_files", "files that could not be read; of files, not of persons", "none"),
    _count("num_steps", "optimiser steps done", "the smallest group"),
    Field("report", "manifest_sha256", "text", "64 hexadecimal digits, or empty",
          "whether the frozen list of records is the same; keyed in a private run", "none",
          _manifest_problem),
    Field("report", "ledger_head", "text", "64 hexadecimal digits, only with what was charged",
          "whether the privacy ledger still holds its newest entry", _FREE, _head_problem),
    Field("report", "seconds", "number", "finite, 0 or more", "how long the work took", _FREE,
          _seconds_problem),
    Field("report", "train_loss", "number", "finite; absent where the site adds noise",
          "mean training loss", _GROUP, _loss_problem, lambda report: report.train_loss is None),
    Field("kinds", ANY, "text", "a kind of the plan's statistic", "how a statistic is read", _FREE),
    Field("statistics", ANY, "numbers", "of the plan's names and lengths, finite, 0 or more; no "
          "cell of 1 to k - 1 patients", "sums, counts and histograms over the test data, also of "
          "subgroups that consent.subgroups names", _GROUP,
          _statistics_problem, lambda report: not report.statistics),
    Field("update", "vector", "float32 numbers", "finite, as many as the network's weights",
          "local less global weights", "the privacy ledger, where the plan is private",
          _update_problem, lambda report: report.update is None),
    Field("update", "codes", "bfloat16 or int8 numbers", "as many as the network's weights",
          "the same, rounded", "the privacy ledger, where the plan is private",
          silent=lambda report: report.encoded is None),
    Field("update", "scales", "float32 numbers", "finite, one for each block of codes",
          "what the codes are multiplied by", "the privacy ledger, where the plan is private"),
    Field("sum", "format", "integer", "1", "version of the records", _FREE),
    Field("sum", "message", "bytes", "only in a step of a secure sum",
          "keys and shares, or the masked vector: the sum over the sites alone",
          "the privacy ledger, where the plan is private", _message_problem),
    Field("refusal", "format", "integer", "1", "version of the records", _FREE),
    Field("refusal", "code", "text", "a word of a fixed list", "why there is no report", "none"),
    Field("refusal", "stage", "text", "a word of a fixed list", "where the site stopped", "none"),
)  # fmt: skip
"""Every field that may leave, in the order in which they are looked at."""
