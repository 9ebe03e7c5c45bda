"""Fields that an order or an answer has only where they mean something, each in its strict form."""

import json
import re
from collections.abc import Mapping
from typing import Any

from asterion_shared.audit_records import Head, head_of
from asterion_shared.settings_files import validate
from asterion_shared.signed_plan import PlanSignature

LEDGER_HEAD: dict[str, type] = {"ledger_head": str}
"""In an order or a report of a private run."""

AUDIT_HEAD: dict[str, type] = {"audit_head": str}
"""In an order or an answer of a side that keeps an audit trail."""

SIGNATURE: dict[str, type] = {"signature": str}
"""In an order of a signed plan."""

MOST_SIGNATURE_BYTES = 1024


def ledger_head_of(fields: Mapping[str, Any]) -> str | None:
    """The head of a site's privacy ledger; None where there is none.

    Raises:
        ValueError: it is not one.
    """
    head: str | None = fields.get("ledger_head")
    if head is not None and re.fullmatch(r"[0-9a-f]{64}", head) is None:
        msg = "ledger_head is not 64 hexadecimal digits"
        raise ValueError(msg)
    return head


def audit_head_of(fields: Mapping[str, Any]) -> Head | None:
    """The head of the sender's audit trail; None where there is none.

    Raises:
        ValueError: it is not one.
    """
    text: str | None = fields.get("audit_head")
    head = None if text is None else head_of(text)
    if text is not None and head is None:
        msg = "audit_head is not a record's number and 64 hexadecimal digits"
        raise ValueError(msg)
    return head


def signature_of(fields: Mapping[str, Any]) -> PlanSignature | None:
    """The operator's signature under the plan; None where there is none.

    Raises:
        ValueError: it is too long or not a table.
        SettingsError: a field of it is wrong.
    """
    text: str | None = fields.get("signature")
    if text is None:
        return None
    if len(text) > MOST_SIGNATURE_BYTES:
        msg = f"the signature has {len(text)} bytes, allowed are {MOST_SIGNATURE_BYTES}"
        raise ValueError(msg)
    values = json.loads(text)
    if not isinstance(values, dict):
        msg = "the signature is not a table"
        raise ValueError(msg)  # noqa: TRY004  # decoding has one kind of error
    return validate(PlanSignature, values, "the order's signature")
