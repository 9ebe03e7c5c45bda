"""What may leave a site. The only functions that put something into a reply.

Every field of a report is checked against :data:`asterion_client.egress_fields.FIELDS`, and every
failure is turned into a code: an exception's text may hold a path, a name or a header value, so it
never leaves, and the site's own log gets only the kind of exception, where it was raised, and a
hashed run.
"""

import errno
import hashlib
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import RecordDict

from asterion_client.egress_fields import problem_of, undeclared
from asterion_shared.errors import (
    DiskProblemError,
    FileProblemError,
    MissingExtraError,
    PlanMismatchError,
    SettingsError,
)
from asterion_shared.flower_messages import Refusal, encode_refusal, encode_report
from asterion_shared.messages import CONSENT_CODES, REASON_CODES, Order, Report

LOG = logging.getLogger("asterion.site")

_STAGES = dict.fromkeys(CONSENT_CODES, "receiving") | {
    "foreign_bundle": "receiving",
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
    "audit_broken": "receiving",
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
            content = encode_report(answer)
            if not undeclared(content):
                return content
            problem = "report_rejected"
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
    try:
        return problem_of(report, order)
    except ValueError as error:
        LOG.warning("%s", describe(error, "report_rejected"))
        return "report_rejected"
