"""A site's table as cases: each row in the network's columns, scaled as in training."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asterion_client.data import table
from asterion_client.data.manifest import Frozen
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.data.records import Record
from asterion_client.settings import SiteSettings
from asterion_shared.cases import Case, CaseList
from asterion_shared.plan import Plan
from asterion_shared.table_columns import Scale, scale_of, to_columns


def read_table(
    frozen: Frozen, labels: Sequence[int], settings: SiteSettings, plan: Plan, salt: str
) -> tuple[CaseList, dict[str, str]]:
    """Every row as a case, and the ids of those that cannot be read with the reason.

    Raises:
        FileProblemError: the table is missing or broken.
    """
    rows, reasons = _feature_rows(frozen.records, settings, plan)
    columns = to_columns(rows, plan.data, _scale(rows, frozen.records, reasons, plan))
    cases = [
        Case(
            id=case_id,
            image=values,
            label=label,
            group=group_hash(record, salt),
            group_named=record.group_named,
        )
        for record, case_id, values, label in zip(
            frozen.records, frozen.ids, columns, labels, strict=True
        )
    ]
    return CaseList.of(cases), {frozen.ids[i]: why for i, why in reasons.items()}


def training_scale(records: Sequence[Record], settings: SiteSettings, plan: Plan) -> Scale:
    """Mean and deviation over the training rows that can be read.

    Raises:
        FileProblemError: the table is missing or broken.
    """
    rows, reasons = _feature_rows(records, settings, plan)
    return _scale(rows, records, reasons, plan)


def group_hash(record: Record, salt: str) -> str:
    """Which cases belong to one patient, without the patient's name."""
    return hashlib.sha256(f"{salt}\x1f{record.group}".encode()).hexdigest()[:12]


def _feature_rows(
    records: Sequence[Record], settings: SiteSettings, plan: Plan
) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Features by record, NaN where missing, and why a row cannot be read, by its number."""
    rows = np.full((len(records), len(plan.data.features)), np.nan)
    reasons: dict[int, str] = {}
    for number, record in enumerate(records):
        try:
            rows[number] = table.feature_values(
                record.path, record.index or 0, plan.data, settings.data
            )
        except UnreadableFileError as error:
            reasons[number] = str(error)
    return rows, reasons


def _scale(
    rows: npt.NDArray[np.float64],
    records: Sequence[Record],
    reasons: dict[int, str],
    plan: Plan,
) -> Scale:
    training = [i for i, r in enumerate(records) if r.split == "train" and i not in reasons]
    return scale_of(rows[training], plan.data)
