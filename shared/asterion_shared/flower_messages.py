"""Orders and answers as Flower records. Numbers, codes and one flat vector; never a pickle.

An order is a ``ConfigRecord`` of plain values and, unless it counts, an ``ArrayRecord`` with the
weights as raw little-endian float32. An answer is either a report (counts, the update or its codes,
statistics as lists of numbers) or a refusal (a code and a stage). Decoding is strict: unknown,
missing or oversized parts are refused, because the other side may be broken or hostile.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from asterion_shared.errors import AsterionError, OrderRefusedError, ReportRejectedError
from asterion_shared.messages import (
    REASON_CODES,
    NoReport,
    Order,
    Phase,
    Report,
    SumOrder,
    SumStep,
)
from asterion_shared.metrics import Statistic
from asterion_shared.plan import parse_plan
from asterion_shared.transport_settings import UpdateKind
from asterion_shared.vector_records import (
    MOST_WEIGHTS,
    codes_record,
    update_of,
    vector_of,
    vector_record,
)
from asterion_shared.wire_fields import (
    AUDIT_HEAD,
    LEDGER_HEAD,
    SIGNATURE,
    audit_head_of,
    ledger_head_of,
    signature_of,
)

FORMAT = 1
"""Version of the records; both sides must have the same."""

MOST_TEXT_BYTES = 2**20
"""Longest plan, in bytes of JSON."""

MOST_STATISTICS = 1024
MOST_STATISTIC_VALUES = 10_000_000
"""Most statistics of a report, and most numbers in all of them together."""

STAGES = ("", "receiving", "reading data", "training", "evaluating", "sending")
FAILURES = ("internal_error", "disk_problem", "diverged", "report_rejected")
"""Codes that mean the site tried and failed; with any other code it refused."""

MESSAGE_TYPES: dict[Phase, str] = {
    "count": "query",
    "train": "train",
    "evaluate": "evaluate",
    "sum": "query",
}
"""The kind of Flower message that carries each phase."""

_ORDER = {"format": int, "site": str, "run": str, "plan": str, "round": int, "phase": str,
          "layout_sha256": str, "evaluate": bool, "deadline_seconds": float}  # fmt: skip
_SUM = {"format": int, "id": str, "of": str, "step": str, "sites": list, "size": int,
        "content": bytes}  # fmt: skip
_COUNTS = ("num_examples", "num_test", "num_bad_files", "num_steps")
_REPORT = dict.fromkeys(_COUNTS, int) | {"format": int, "manifest_sha256": str, "seconds": float}
_SUM_MESSAGE = {"format": int, "message": bytes}
_RUN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""A run's name is a folder's at the site."""

_REFUSAL = {"format": int, "code": str, "stage": str}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a site gives no report: a code of ``REASON_CODES`` and a stage of ``STAGES``."""

    code: str
    stage: str = ""


@dataclass(frozen=True, slots=True)
class AddressedOrder:
    """An order and the name of the site it is meant for."""

    site: str
    order: Order


def encode_order(order: Order, site: str, weights: ArrayRecord | None = None) -> RecordDict:
    """An order for one site.

    Args:
        order: to send.
        site: for whom.
        weights: the record of its weights, where it was made for another site already.
    """
    content = RecordDict()
    fields: dict[str, Any] = {
        "format": FORMAT,
        "site": site,
        "run": order.run,
        "plan": order.plan.canonical(),
        "round": order.round,
        "phase": order.phase,
        "layout_sha256": order.layout_sha256,
        "evaluate": order.evaluate,
        "deadline_seconds": float(order.deadline_seconds),
    }
    if order.ledger_head is not None:
        fields["ledger_head"] = order.ledger_head
    if order.audit_head is not None:
        fields["audit_head"] = str(order.audit_head)
    if order.signature is not None:
        fields["signature"] = order.signature.model_dump_json()
    content["order"] = ConfigRecord(fields)
    if order.weights is not None:
        content["weights"] = weights or vector_record(order.weights)
    if order.sum is not None:
        content["sum"] = ConfigRecord(
            {
                "format": FORMAT,
                "id": order.sum.id,
                "of": order.sum.of,
                "step": order.sum.step,
                "sites": list(order.sum.sites),
                "size": order.sum.size,
                "content": order.sum.content.get(site, b""),
            }
        )
    return content


def decode_order(content: RecordDict) -> AddressedOrder:
    """Read an order at a site.

    Raises:
        OrderRefusedError: ``plan_invalid``: it is not an order of this version, or its plan does
            not hold here.
    """
    try:
        known = _ORDER | _present(content, "order", LEDGER_HEAD | AUDIT_HEAD | SIGNATURE)
        fields = _fields(content, "order", known, also=("weights", "sum"))
        head, audit_head = ledger_head_of(fields), audit_head_of(fields)
        if fields["phase"] not in MESSAGE_TYPES:
            _fail(f"phase is {fields['phase']!r:.40}")
        if _RUN.fullmatch(fields["run"]) is None:
            _fail("the run's name is not one")
        if len(fields["plan"]) > MOST_TEXT_BYTES:
            _fail(f"the plan has {len(fields['plan'])} bytes, allowed are {MOST_TEXT_BYTES}")
        weights = None
        if "weights" in content:
            weights = vector_of(content["weights"], "weights", None)
            if not weights.flags.writeable:  # torch wants memory that may be written to
                weights = weights.copy()
        if ("sum" in content) != (fields["phase"] == "sum"):
            _fail(f"phase is {fields['phase']!r}, which a sum's step does not fit")
        step = _sum_order(content, fields["site"]) if "sum" in content else None
        plan = parse_plan(fields["plan"], "the order's plan")
        signature = signature_of(fields)
    except (AsterionError, ValueError) as error:
        msg = f"the order cannot be read ({error}); install the coordinator's version of asterion"
        raise OrderRefusedError(msg, code="plan_invalid") from None
    order = Order(
        run=fields["run"],
        plan=plan,
        round=fields["round"],
        phase=fields["phase"],
        weights=weights,
        layout_sha256=fields["layout_sha256"],
        evaluate=fields["evaluate"],
        deadline_seconds=fields["deadline_seconds"],
        sum=step,
        ledger_head=head,
        signature=signature,
        audit_head=audit_head,
    )
    return AddressedOrder(fields["site"], order)


def _sum_order(content: RecordDict, site: str) -> SumOrder:
    fields = _typed(content, "sum", _SUM)
    if fields["of"] not in ("train", "evaluate") or fields["step"] not in get_args(SumStep):
        _fail(f"a sum of {fields['of']!r:.40}, step {fields['step']!r:.40}")
    if not all(isinstance(name, str) for name in fields["sites"]):
        _fail("a sum's sites are not names")
    if not 0 <= fields["size"] <= MOST_WEIGHTS:
        _fail(f"a sum of {fields['size']} numbers")
    return SumOrder(
        id=fields["id"],
        of=fields["of"],
        step=fields["step"],
        sites=tuple(fields["sites"]),
        size=fields["size"],
        content={site: fields["content"]},
    )


def encode_report(report: Report) -> RecordDict:
    """A report, as :mod:`asterion_client.egress` lets it out. The site's name is not in it."""
    content = RecordDict()
    fields: dict[str, Any] = {name: int(getattr(report, name)) for name in _COUNTS}
    fields |= {"format": FORMAT, "manifest_sha256": report.manifest_sha256}
    fields["seconds"] = float(report.seconds)
    if report.train_loss is not None:
        fields["train_loss"] = float(report.train_loss)
    if report.ledger_head is not None:
        fields["ledger_head"] = report.ledger_head
    content["report"] = ConfigRecord(fields)
    kinds = {name: statistic.kind for name, statistic in report.statistics.items()}
    numbers = {name: s.values.tolist() for name, s in report.statistics.items()}
    content["kinds"], content["statistics"] = ConfigRecord(dict(kinds)), MetricRecord(numbers)
    if report.encoded is not None:
        content["update"] = codes_record(report.encoded)
    elif report.update is not None:
        content["update"] = vector_record(report.update)
    if report.sum_message:
        content["sum"] = ConfigRecord({"format": FORMAT, "message": report.sum_message})
    return content


def encode_refusal(refusal: Refusal) -> RecordDict:
    """A refusal: two short words."""
    record = ConfigRecord({"format": FORMAT, "code": refusal.code, "stage": refusal.stage})
    return RecordDict({"refusal": record})


def decode_answer(
    content: RecordDict, site: str, size: int | None, kind: UpdateKind = "float32"
) -> Report | NoReport:
    """Read a site's answer at the coordinator.

    Args:
        content: what came.
        site: the name under which the sender's key is enrolled.
        size: length that an update must have; None when the order has no weights.
        kind: the form that an update must have: the plan's.

    Returns:
        A report with its update in float32, whatever the form; or the reason for none.

    Raises:
        ReportRejectedError: it is not an answer of this version, or a part is out of bounds.
    """
    try:
        if "refusal" in content:
            fields = _fields(
                content, "refusal", _REFUSAL | _present(content, "refusal", AUDIT_HEAD), also=()
            )
            return _no_report(site, fields)
        return _report(content, site, size, kind)
    except ValueError as error:
        raise ReportRejectedError(site, "report_rejected", str(error)) from None


def num_bytes(content: RecordDict) -> int:
    """Bytes of the values of all records of a message, without their names.

    flwr's own count refuses an empty text, so settings are counted here.
    """
    return sum(
        sum(map(_config_bytes, record.values()))
        if isinstance(record, ConfigRecord)
        else record.count_bytes()
        for record in content.values()
    )


def _config_bytes(value: object) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list):
        return sum(map(_config_bytes, value))
    return 1 if isinstance(value, bool) else 8


def _no_report(site: str, fields: Mapping[str, Any]) -> NoReport:
    code, stage = fields["code"], fields["stage"]
    if code not in REASON_CODES or stage not in STAGES:
        _fail(f"unknown code {code!r:.40} or stage {stage!r:.40}")
    outcome: Literal["failed", "refused"] = "failed" if code in FAILURES else "refused"
    head = audit_head_of(fields)
    return NoReport(site=site, outcome=outcome, code=code, stage=stage, audit_head=head)


def _report(content: RecordDict, site: str, size: int | None, kind: UpdateKind) -> Report:
    summed = ("sum",) if "sum" in content else ()
    known = _REPORT | _present(content, "report", {"train_loss": float} | LEDGER_HEAD | AUDIT_HEAD)
    fields = _fields(content, "report", known, also=("kinds", "statistics", "update", *summed))
    for name in _COUNTS:
        if not 0 <= fields[name] < 2**53:
            _fail(f"{name} is {fields[name]}")
    if not (np.isfinite(fields["seconds"]) and fields["seconds"] >= 0):
        _fail(f"seconds is {fields['seconds']}")
    if len(fields["manifest_sha256"]) > 64:
        _fail("manifest_sha256 is longer than 64 characters")
    return Report(
        site=site,
        num_examples=fields["num_examples"],
        num_test=fields["num_test"],
        num_bad_files=fields["num_bad_files"],
        manifest_sha256=fields["manifest_sha256"],
        update=update_of(content["update"], size, kind) if "update" in content else None,
        num_steps=fields["num_steps"],
        train_loss=fields.get("train_loss"),
        statistics=_statistics(content),
        seconds=fields["seconds"],
        bytes_up=num_bytes(content),
        sum_message=_typed(content, "sum", _SUM_MESSAGE)["message"] if summed else b"",
        ledger_head=ledger_head_of(fields),
        audit_head=audit_head_of(fields),
    )


def _statistics(content: RecordDict) -> dict[str, Statistic]:
    kinds, numbers = content.get("kinds"), content.get("statistics")
    if not isinstance(kinds, ConfigRecord) or not isinstance(numbers, MetricRecord):
        _fail("the statistics are missing")
    if kinds.keys() != numbers.keys() or len(kinds) > MOST_STATISTICS:
        _fail(f"{len(kinds)} kinds and {len(numbers)} statistics; at most {MOST_STATISTICS}")
    statistics: dict[str, Statistic] = {}
    total = 0
    for name, kind in kinds.items():
        values = numbers[name]
        if not isinstance(kind, str) or not isinstance(values, list):
            _fail("a statistic is not a kind and a list of numbers")
        total += len(values)
        if total > MOST_STATISTIC_VALUES:
            _fail(f"more than {MOST_STATISTIC_VALUES} numbers of statistics")
        statistics[name] = Statistic(kind, np.array(values, np.float64))
    return statistics


def _present(content: RecordDict, name: str, types: Mapping[str, type]) -> dict[str, type]:
    """Those fields that a record may have and has."""
    record = content.get(name)
    there = record if isinstance(record, ConfigRecord) else {}
    return {key: kind for key, kind in types.items() if key in there}


def _fields(
    content: RecordDict, name: str, types: Mapping[str, type], *, also: tuple[str, ...]
) -> dict[str, Any]:
    """The values of the main record, each of exactly its type."""
    if unknown := set(content) - {name, *also}:
        _fail(f"{len(unknown)} unknown records")
    return _typed(content, name, types)


def _typed(content: RecordDict, name: str, types: Mapping[str, type]) -> dict[str, Any]:
    """The values of one record, each of exactly its type."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        _fail(f"the record {name!r} is missing")
    if record.keys() != types.keys():
        _fail(f"record {name!r} has other fields than version {FORMAT}")
    for key, kind in types.items():
        if type(record[key]) is not kind:
            _fail(f"{key} is a {type(record[key]).__name__}, needed is {kind.__name__}")
    if record["format"] != FORMAT:
        _fail(f"the record is of format {record['format']!r}, this side has {FORMAT}")
    return dict(record)


def _fail(message: str) -> NoReturn:
    raise ValueError(message)
