"""The data part of the site's self-check: every record is looked at, and every problem told.

What it says names files: it is for the eyes of the site, on the site's own terminal.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from asterion_client.data import table
from asterion_client.data.admission import admission_of
from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_client.data.records import Record, find_records
from asterion_client.data.site_data import class_of, divide, read_case, read_raw
from asterion_client.data.subgroups import subgroups_of, told_attributes
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_shared.errors import (
    DataProblemError,
    FileProblemError,
    MissingExtraError,
    Problem,
    SettingsError,
)
from asterion_shared.evaluation_settings import OTHER
from asterion_shared.plan import DataContract, Plan


def check_data(settings: SiteSettings, folder: Path, plan: Plan | None) -> Iterator[Problem]:
    """Every problem of a site's data; with a plan also of what the plan makes of them.

    Args:
        settings: the site's settings.
        folder: where ``site.toml`` lies.
        plan: when None, images are read as stored and their dimensions are tried.
    """
    if plan is not None and plan.task != settings.task:
        yield Problem(
            where="task",
            what=f"the plan is for {plan.task} and site.toml says {settings.task}",
            fix="ask for a plan of the right kind, or correct task in site.toml",
        )
        return
    place = folder / settings.data.folder
    try:
        records = find_records(settings.data, place, settings.task)
    except FileProblemError as error:
        yield Problem(where=error.path, what=error.what, fix=error.fix)
        return
    if not records:
        yield Problem(
            where="data.folder",
            what=f"{place} holds no {settings.data.format} data",
            fix="correct data.folder or data.format in site.toml",
        )
        return
    try:
        records, left_out = _admitted(settings, folder, records)
    except SettingsError as error:
        yield from error.problems
        return
    except FileProblemError as error:
        yield Problem(where=error.path, what=error.what, fix=error.fix)
        return
    except MissingExtraError as error:
        yield Problem(where="data.format", what=str(error), fix="install it")
        return
    yield from left_out
    if not records:
        return
    yield from _check_smallest_group(settings, records)
    broken = list(_check_groups(records))
    yield from broken
    if plan is None:
        yield from _check_files(settings, records)
        yield from _check_labels(settings, Counter(r.label for r in records if not r.problem))
        return
    if (settings.data.format == "table") != (plan.data.kind == "table"):
        yield Problem(
            where="data.format",
            what=f"got {settings.data.format!r}, and the plan's data.kind is {plan.data.kind!r}",
            fix="ask for a plan for these data",
        )
        return
    if not broken:
        try:
            records = divide(records, settings.data, plan)
        except (DataProblemError, MissingExtraError) as error:
            yield Problem(where="data", what=str(error), fix="mend the data or the settings")
    yield from _check_against(settings, records, plan)


def _check_smallest_group(settings: SiteSettings, records: Sequence[Record]) -> Iterator[Problem]:
    if settings.data.format == "fits":
        return
    if settings.smallest_group == 1:
        yield Problem(
            where="egress.smallest_group",
            what="is 1, so counts and metrics of single patients may leave",
            fix="remove it, unless these data are of no persons",
            fatal=False,
        )
    unnamed = sum(not record.group_named for record in records)
    if settings.smallest_group > 1 and unnamed:
        yield Problem(
            where="data",
            what=f"{unnamed} of {len(records)} records name no patient; each counts as one",
            fix="name the patients, unless no patient has two records",
            fatal=False,
        )


def _admitted(
    settings: SiteSettings, folder: Path, records: Sequence[Record]
) -> tuple[list[Record], list[Problem]]:
    """The records that a new data set would have, and how many it would not."""
    admission, count = admission_of(settings, folder, records), len(records)
    agreed = [record for record in records if admission.has_consent(record)]
    staying = [record for record in agreed if admission.may_stay(record)]
    entering = [record for record in staying if not admission.is_embargoed(record)]
    problems: list[Problem] = []
    if len(agreed) < count:
        what = f"{count - len(agreed)} of {count} records are left out: they name none of these"
        fix = "nothing, if that is right; else correct the column of consents"
        problems.append(Problem(where="consent.protocols", what=what, fix=fix, fatal=False))
    if len(staying) < len(agreed):
        what = f"{len(agreed) - len(staying)} of {count} records are left out: withdrawn"
        problems.append(Problem(where="withdrawals", what=what, fix="nothing", fatal=False))
    if len(entering) < len(staying):
        num = len(staying) - len(entering)
        what = f"{num} of {count} records are left out: under embargo, or without a date"
        fix = "nothing, if that is right; else correct days, programme_key or date_key"
        problems.append(Problem(where="consent.embargo", what=what, fix=fix, fatal=False))
    if not entering:
        what, fix = f"none of {count} records may be used", "correct the settings or the records"
        problems.append(Problem(where="consent", what=what, fix=fix))
    return entering, problems


def _check_groups(records: Sequence[Record]) -> Iterator[Problem]:
    splits: dict[str, set[str]] = {}
    for record in records:
        splits.setdefault(record.group, set()).add(record.split)
    for group, found in sorted(splits.items()):
        if len(found) > 1:
            example = next(r.path.name for r in records if r.group == group)
            yield Problem(
                where=example,
                what=f"the patient or field {group!r} is in more than one split",
                fix="put all of its records on one side",
            )


def _check_labels(settings: SiteSettings, counts: Counter[str]) -> Iterator[Problem]:
    if settings.task == "segmentation":
        return
    if settings.data.labels:
        for label in sorted(set(counts) - set(settings.data.labels)):
            yield Problem(
                where="data.labels",
                what=f"the label {label!r} of {counts[label]} records is not mapped",
                fix="add it to data.labels with the plan's class name, or mend the records",
            )
    if len(counts) == 1:
        yield Problem(
            where="data",
            what=f"all {counts.total()} records have the label {next(iter(counts))!r}",
            fix="check the labels; a site with one class can take part, but its metrics say little",
            fatal=False,
        )


def _check_files(settings: SiteSettings, records: Sequence[Record]) -> Iterator[Problem]:
    """Read every image as stored; without a plan its dimensions are tried."""
    if settings.data.format == "table":
        return
    num_bad = 0
    for record in records:
        try:
            raw = _read_any(record, settings.data)
        except UnreadableFileError as error:
            num_bad += 1
            yield _skipped(record, str(error))
            continue
        except DataProblemError as error:
            yield Problem(where=record.path.name, what=str(error), fix="mend it")
            continue
        except MissingExtraError as error:
            yield Problem(where="data.format", what=str(error), fix="install it")
            return
        if raw.mask is None and settings.task == "segmentation":
            num_bad += 1
            yield _skipped(record, "it has no mask")
        elif raw.mask is not None and raw.mask.shape != raw.image.shape[1:]:
            yield Problem(
                where=record.path.name,
                what=f"its mask has shape {raw.mask.shape} and the image {raw.image.shape[1:]}",
                fix="make them equal",
            )
    yield from _check_share(settings, num_bad, len(records))


def _read_any(record: Record, settings: SiteDataSettings) -> RawImage:
    """Read as 3D or as 2D: as what fits its mask, else what has fewest channels.

    Raises:
        UnreadableFileError: it can be read as neither.
        DataProblemError: its mask has another shape.
    """
    found: list[RawImage] = []
    reason = ""
    for dimensions in (2, 3):
        contract = DataContract(dimensions=dimensions, patch_size=(8,) * dimensions)
        try:
            found.append(read_raw(record, settings, contract))
        except UnreadableFileError as error:
            reason = str(error)
    if not found:
        raise UnreadableFileError(reason)
    fitting = [raw for raw in found if raw.mask is None or raw.mask.shape == raw.image.shape[1:]]
    return min(fitting or found, key=lambda raw: raw.image.shape[0])


def _skipped(record: Record, reason: str) -> Problem:
    return Problem(
        where=record.path.name,
        what=reason,
        fix="mend or remove it; it will be skipped and counted",
        fatal=False,
    )


def _check_share(settings: SiteSettings, num_bad: int, count: int) -> Iterator[Problem]:
    if num_bad > settings.data.max_bad_fraction * count:
        yield Problem(
            where="data.max_bad_fraction",
            what=f"{num_bad} of {count} records cannot be used",
            fix=f"mend them; at most {settings.data.max_bad_fraction:g} may be bad",
        )


def _check_against(
    settings: SiteSettings, records: Sequence[Record], plan: Plan
) -> Iterator[Problem]:
    """Read every record as the plan will, and count what is left."""
    counts: Counter[int] = Counter()
    num_bad, said = 0, set[str]()
    for number, record in enumerate(records):
        try:
            label = class_of(record, settings.data, plan)
            if settings.data.format == "table":
                table.feature_values(record.path, record.index or 0, plan.data, settings.data)
            else:
                read_case(record, f"{number:012x}", label, settings.data, plan)
        except UnreadableFileError as error:
            num_bad += 1
            yield _skipped(record, str(error))
        except MissingExtraError as error:
            yield Problem(where="data.format", what=str(error), fix="install it")
            return
        except (DataProblemError, FileProblemError) as error:
            if str(error) not in said:  # one wrong label may stand in a thousand rows
                yield Problem(where=record.path.name, what=str(error), fix="mend it")
            said.add(str(error))
        else:
            counts[label] += record.split != "test"
    yield from _check_share(settings, num_bad, len(records))
    yield from _check_classes(counts, plan)
    yield from _check_subgroups(settings, records, plan)
    if settings.data.format == "table":
        yield from _check_columns(settings, records[0], plan)


def _check_classes(counts: Counter[int], plan: Plan) -> Iterator[Problem]:
    normals_only = plan.task == "anomaly"
    if (counts[0] if normals_only else counts.total()) == 0 and plan.kind == "train":
        yield Problem(
            where="data",
            what=f"no {'normal ' if normals_only else ''}record is left to train on",
            fix="add training data, or correct the labels or the split",
        )
    absent = [name for number, name in enumerate(plan.data.classes) if not counts[number]]
    if plan.task == "classification" and absent:
        yield Problem(
            where="data",
            what=f"no training record is of class {', '.join(absent)}",
            fix="check the labels; a site that lacks a class can take part, but pulls the model",
            fatal=False,
        )


def _check_subgroups(
    settings: SiteSettings, records: Sequence[Record], plan: Plan
) -> Iterator[Problem]:
    """Attributes that would be told, and of which the records say nothing that the plan lists."""
    told = [subgroups_of(record, settings, plan) for record in records]
    for attribute in told_attributes(settings, plan):
        if all(values[attribute] == OTHER for values in told):
            wanted = ", ".join(plan.evaluation.subgroups[attribute])
            yield Problem(
                where=f"subgroups by {attribute}",
                what=f"none of {len(told)} records says one of: {wanted}; all count as {OTHER}",
                fix="correct data.subgroup_keys or the column of that name, or map the site's own "
                "words in data.subgroup_values",
                fatal=False,
            )


def _check_columns(settings: SiteSettings, record: Record, plan: Plan) -> Iterator[Problem]:
    header = set(table.read_rows(record.path)[0])
    theirs = {ours: name for name, ours in settings.data.columns.items()}
    for feature in plan.data.features:
        if theirs.get(feature, feature) not in header:
            yield Problem(
                where=record.path.name,
                what=f"has no column {theirs.get(feature, feature)!r}",
                fix="map it in data.columns if it has another name; else it counts as missing",
                fatal=False,
            )
