"""The subgroups that a record belongs to, in the plan's own words: nothing else is told.

What a file says and the plan does not list is ``other`` from here on, so that no free text of a
header or a table goes further.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from asterion_client.data import npz
from asterion_client.data.dicom import slice_files
from asterion_client.data.dicom_file import header_text
from asterion_client.data.fits import header_texts
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.data.records import Record
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_shared.cases import Case, CaseList
from asterion_shared.evaluation_settings import EvaluationSettings
from asterion_shared.metrics.subgroups import value_told
from asterion_shared.plan import Plan


def told_attributes(settings: SiteSettings, plan: Plan) -> tuple[str, ...]:
    """The attributes of a plan that the site tells its held-out cases apart by, sorted.

    Those that ``consent.subgroups`` names. All in a simulation, with neither ``[consent]`` nor
    ``[connection]``. None where small groups are held back and a secure sum would add up what the
    site does not hold back from it: of an attribute that no other site tells, that is its own.
    """
    asked = tuple(sorted(plan.evaluation.subgroups))
    if settings.consent is None:
        return asked if settings.connection is None else ()
    if settings.smallest_group > 1 and plan.secure_sum is not None:
        return ()
    return tuple(name for name in asked if name in settings.consent.subgroups)


def in_subgroups(
    cases: CaseList, records: Sequence[Record], settings: SiteSettings, plan: Plan
) -> CaseList:
    """Held-out cases with the subgroups that they belong to; the same list where none is told.

    Raises:
        MissingExtraError: the reader's package is not installed.
    """
    if not told_attributes(settings, plan):
        return cases
    readers = [partial(_in_subgroups, cases, number, subgroups_of(record, settings, plan))
               for number, record in enumerate(records)]  # fmt: skip
    return CaseList(readers, memory_bytes=0)


def _in_subgroups(cases: CaseList, index: int, subgroups: Mapping[str, str]) -> Case:
    return replace(cases[index], subgroups=subgroups)


def subgroups_of(record: Record, settings: SiteSettings, plan: Plan) -> dict[str, str]:
    """The record's value of each attribute that is told, or ``other``.

    Raises:
        MissingExtraError: the reader's package is not installed.
    """
    return {
        attribute: _value(record, attribute, settings.data, plan.evaluation)
        for attribute in told_attributes(settings, plan)
    }


def _value(
    record: Record, attribute: str, settings: SiteDataSettings, evaluation: EvaluationSettings
) -> str:
    try:
        text = _text(record, attribute, settings)
    except (UnreadableFileError, OSError):
        text = ""  # the image is counted as a bad file, if it is one
    return value_told(text, attribute, evaluation, settings.subgroup_values)


def _text(record: Record, attribute: str, settings: SiteDataSettings) -> str:
    """What the site's data say, word for word; empty for nothing."""
    key, path = settings.subgroup_keys.get(attribute), record.path
    if key is not None and settings.format == "fits":
        # of the image, where the file's first header says something else
        return next(reversed(header_texts(path, settings, key)), "")
    if key is not None and settings.format == "dicom":
        return header_text(_first_file(path), key)
    if settings.format == "npz":
        texts = npz.column(path, attribute)
        return texts[record.index or 0] if texts else ""
    theirs = {ours: name for name, ours in settings.columns.items()}
    return record.row.get(theirs.get(attribute, attribute)) or ""


def _first_file(path: Path) -> Path:
    """The file, or one of a series: all of them are of one device and one patient."""
    return slice_files(path)[0] if path.is_dir() else path
