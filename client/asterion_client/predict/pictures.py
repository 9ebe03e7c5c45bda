"""Pictures of the least certain cases with what was predicted. They stay at the site."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.data.records import mask_beside
from asterion_client.data.site_data import class_mask, read_raw
from asterion_client.predict.inputs import Input, Member, read_member
from asterion_client.predict.one_case import Judge, called_mask
from asterion_client.predict.results import CaseResult, by_certainty, write_csv
from asterion_shared.errors import DataProblemError
from asterion_shared.files import write_atomically
from asterion_shared.metrics.overlap import Labels, overlaps
from asterion_shared.reports import drawing

LIST = "pictures.csv"
MOST_SIDE = 512
"""Pixels of a side of the part of a large flat image that is drawn."""

WORST = 99.0
"""From this percentile of its errors on, points of a volume say which slice is drawn."""


def write_pictures(
    judge: Judge, members: Mapping[str, Member], results: Sequence[CaseResult], most: int
) -> list[str]:
    """Write a picture for each of the least certain cases, and ``pictures.csv``.

    A segmentation has its outline on the image, and beside it the errors where the site has a mask
    of the image; a classification the probabilities; an anomaly the map of errors.

    Args:
        judge: of the whole folder.
        members: by id; images.
        results: of the whole folder.
        most: how many pictures.

    Returns:
        What to know about them, in sentences; empty when there is nothing.

    Raises:
        DiskProblemError: a file cannot be written.
    """
    desk, plan = judge.desk, judge.released.plan
    rows: list[list[object]] = []
    gone = 0
    for result in by_certainty(results)[:most]:
        member = members[result.id]
        try:
            read = read_member(member, desk.settings, plan, None)
        except UnreadableFileError:
            gone += 1
            continue
        png, words, reference = _draw(judge, member, read)
        name = f"pictures/{member.stem}.png"
        write_atomically(desk.out / name, png)
        rows.append([result.id, words, "yes" if reference else "no", name])
    write_csv(desk.out / LIST, ["file", "shown", "reference", "picture"], rows)
    return [f"{gone} files went away before they were drawn"] if gone else []


def _draw(judge: Judge, member: Member, read: Input) -> tuple[bytes, str, bool]:
    """PNG, what it shows in words, and whether a reference is in it."""
    plan, case = judge.released.plan, read.case
    (alone,) = judge.predict([case])
    if plan.task == "segmentation":
        mask, truth = called_mask(judge, read, alone), _reference(judge, member)
        wanted = mask if truth is None or mask.any() else truth
        cut, place = (
            drawing.fullest_slice(wanted, case.native_spacing)
            if mask.ndim == 3
            else drawing.fullest_window(wanted, MOST_SIDE)
        )
        view = drawing.view(plan, case, mask.shape, cut)
        seen = None if truth is None else truth[cut]
        png = drawing.segmentation(view, seen, mask[cut], len(plan.data.classes))
        words = [
            "the image, and the outline of what was predicted"
            if truth is None
            else "the image, the outlines of prediction and reference, and where they differ "
            f"(Dice of the whole file: {_dice(truth, mask, plan.data.classes)})",
            place,
        ]
        return png, "; ".join(filter(None, words)), truth is not None
    cut, shape = drawing.middle_slice(case), case.image.shape[1:]
    if plan.task == "anomaly":
        place = ""
        if len(shape) == 3:
            worst = alone >= np.percentile(alone, WORST)
            cut, place = drawing.fullest_slice(worst, case.native_spacing)
        png = drawing.anomaly(drawing.view(plan, case, shape, cut), alone[cut], None)
        words = ["the image, and how far it is from what was rebuilt", place]
    else:
        view = drawing.view(plan, case, shape, cut)
        png = drawing.classification(view, plan.data.classes, -1, alone)
        words = ["the image, and the most probable classes", "the middle slice" if cut else ""]
    return png, "; ".join(filter(None, words)), False


def _dice(truth: Labels, mask: Labels, classes: Sequence[str]) -> str:
    values, _ = overlaps(truth, mask, len(classes))
    each = zip(classes[1:], values.tolist(), strict=True)
    return ", ".join(f"{name} {value:.3f}" for name, value in each)


def _reference(judge: Judge, member: Member) -> npt.NDArray[np.int16] | None:
    """The site's own mask of an image; None where there is none that can be used."""
    settings, plan = judge.desk.settings, judge.released.plan
    record = replace(member.record, mask_path=mask_beside(member.record.path))
    try:
        raw = read_raw(record, settings, plan.data)
        if raw.mask is None:
            return None
        return class_mask(raw, raw.mask, record.path.name, settings, plan)
    except (UnreadableFileError, DataProblemError):
        return None
