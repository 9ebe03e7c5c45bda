"""What may leave a site. The only functions that put something into a reply.

Every field of a report is checked here for its type and its bound, and every failure is turned
into a code: an exception's text may hold a path, a name or a header value, so it never leaves,
and the site's own log gets only the kind of exception, where it was raised, and a hashed run.
"""

import errno
import hashlib
import logging
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from asterion_shared.errors import (
    DiskProblemError,
    FileProblemError,
    MissingExtraError,
    PlanMismatchError,
    SettingsError,
)
from asterion_shared.flower_messages import Refusal, encode_refusal, encode_report
from asterion_shared.messages import REASON_CODES, Order, Report
from asterion_shared.metrics import check_statistics
from asterion_shared.update_codec import check

LOG = logging.getLogger("asterion.site")
MOST_COUNT = 10**9
"""Largest count (examples, files, steps) that leaves."""

_STAGES = {
    "wrong_task": "receiving",
    "plan_invalid": "receiving",
    "layout_mismatch": "receiving",
    "stale_order": "receiving",
    "no_data": "reading data",
    "too_many_bad_files": "reading data",
    "unknown_patients": "reading data",
    "too_few_patients": "reading data",
    "no_privacy_budget": "receiving",
    "coordinator_not_trusted": "receiving",
    "budget_spent": "sending",
    "ledger_stopped": "receiving",
    "no_roster": "receiving",
    "secure_sum_malformed": "receiving",
    "secure_sum_forged": "receiving",
    "secure_sum_too_few": "receiving",
    "secure_sum_two_sets": "receiving",
    "secure_sum_out_of_step": "receiving",
    "secure_sum_out_of_range": "sending",
    "data_withdrawn": "reading data",
    "label_outside_classes": "reading data",
    "mask_shape_mismatch": "reading data",
    "settings_invalid": "reading data",
    "missing_package": "reading data",
    "diverged": "training",
    "report_rejected": "sending",
}
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (DiskProblemError, "disk_problem"),
    (MissingExtraError, "missing_package"),
    (SettingsError, "settings_invalid"),
    (FileProblemError, "settings_invalid"),
    (PlanMismatchError, "layout_mismatch"),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def reply(answer: Report | Refusal, order: Order | None = None) -> RecordDict:
    """The records of a reply: a report that was checked, or a refusal.

    A report that breaks the contract of its order does not leave; the refusal
    ``report_rejected`` does, or ``diverged`` when a number is not finite.

    Args:
        answer: what the site's work gave.
        order: what it answers; None for a refusal of an order that could not be read.
    """
    if isinstance(answer, Report):
        problem = "report_rejected" if order is None else _problem(answer, order)
        if not problem:
            return encode_report(answer)
        answer = refusal(problem)
    code = answer.code if answer.code in REASON_CODES else "internal_error"
    return encode_refusal(Refusal(code, answer.stage))


def guarded(work: Callable[[], Report], *, about: str = "") -> Report | Refusal:
    """Do the work; turn any exception into a refusal.

    Args:
        work: the site's work.
        about: which run and round, for the site's own log; it is hashed there.
    """
    try:
        return work()
    except Exception as error:  # the last guard: whatever it is, only a code may leave
        code = code_of(error)
        LOG.warning("order %s: %s", hashed(about), describe(error, code))
        if code == "ledger_stopped":
            LOG.warning("the privacy ledger stopped; 'asterion site ledger verify' says what to do")
        return refusal(code)


def refusal(code: str) -> Refusal:
    """A refusal with the stage that belongs to its code."""
    return Refusal(code, _STAGES.get(code, ""))


def code_of(error: BaseException) -> str:
    """The reason code of an exception; ``internal_error`` for any that is not known."""
    code = getattr(error, "code", None)
    if isinstance(code, str) and code in REASON_CODES:
        return code
    if isinstance(error, OSError) and error.errno in _FULL:
        return "disk_problem"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")


def describe(error: BaseException, code: str) -> str:
    """An exception without its text: its kind, its code and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{code} ({type(error).__name__}{where})"


def hashed(text: str) -> str:
    """The first 12 hex digits of a text's SHA-256, for logs."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _problem(report: Report, order: Order) -> str:
    """Why a report may not leave: a code, or an empty text when it may."""
    counts = (report.num_examples, report.num_test, report.num_bad_files, report.num_steps)
    # A bool is an int in Python, so the exact type is asked for.
    if any(type(count) is not int or not 0 <= count <= MOST_COUNT for count in counts):
        return "report_rejected"
    if re.fullmatch(r"[0-9a-f]{64}|", report.manifest_sha256) is None:
        return "report_rejected"
    if not _head_is_right(report, order):
        return "report_rejected"
    if not (math.isfinite(report.seconds) and report.seconds >= 0):
        return "report_rejected"
    if report.train_loss is not None and not math.isfinite(report.train_loss):
        return "diverged"
    try:
        check_statistics(report.statistics, order.plan, num_cases=report.num_test)
    except ValueError as error:
        LOG.warning("%s", describe(error, "report_rejected"))
        return "report_rejected"
    if order.plan.secure_sum is not None or order.phase == "sum":
        return _secure_problem(report, order)
    return "report_rejected" if report.sum_message else _update_problem(report, order)


def _secure_problem(report: Report, order: Order) -> str:
    """Of a report under a secure sum: nothing leaves but the sum's own messages."""
    fits = bool(report.sum_message) == (order.phase == "sum")
    return "" if report.is_bare and fits else "report_rejected"


def _head_is_right(report: Report, order: Order) -> bool:
    """What is charged leaves with the head of the ledger that charged it; nothing else has one."""
    charged = False
    if order.plan.privacy is not None and order.phase == "sum" and order.sum is not None:
        charged = (order.sum.of, order.sum.step) == ("train", "masked")
    elif order.plan.privacy is not None:
        charged = order.phase == "train" and order.plan.secure_sum is None
    if not charged:
        return report.ledger_head is None
    return re.fullmatch(r"[0-9a-f]{64}", report.ledger_head or "") is not None


def _update_problem(report: Report, order: Order) -> str:
    update, encoded = report.update, report.encoded
    if order.phase != "train" or order.weights is None:
        unasked = (
            update is not None
            or encoded is not None
            or (order.phase == "count" and bool(report.statistics))
        )
        return "report_rejected" if unasked else ""
    if update is None or update.dtype != np.float32 or update.shape != order.weights.shape:
        return "report_rejected"
    if ("float32" if encoded is None else encoded.kind) != order.plan.transport.update:
        return "report_rejected"
    if encoded is not None:
        try:
            check(encoded, update.size)
        except ValueError as error:
            LOG.warning("%s", describe(error, "report_rejected"))
            return "report_rejected"
    return "" if bool(np.isfinite(update).all()) else "diverged"
