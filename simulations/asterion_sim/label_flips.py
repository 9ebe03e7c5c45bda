"""Sites that train on false labels: a fault in the data, so it lasts the whole run."""

from dataclasses import replace
from functools import partial

import numpy as np

from asterion_shared.cases import Case, CaseList, Mask, SiteData
from asterion_shared.errors import Problem, SettingsError
from asterion_shared.plan import Plan
from asterion_sim.faults import FaultSchedule

Flip = tuple[int, ...]
"""The new number of each class, by its true number."""


def label_flips(schedule: FaultSchedule, plan: Plan) -> dict[str, Flip]:
    """The flip of every site that trains on false labels, by site, sorted.

    Raises:
        SettingsError: a map does not fit the plan's classes, or the task trains without labels.
    """
    count = len(plan.data.classes)
    flips = {site: f or tuple(reversed(range(count))) for site, f in schedule.label_flips().items()}
    problems = []
    if flips and plan.task == "anomaly":
        what = "kind is 'label_flip' and the task is 'anomaly', which trains on normals alone"
        problems.append(Problem(where="faults", what=what, fix="remove it, or use 'wrong_update'"))
    for flip in sorted(set(flips.values())):
        if len(flip) != count or max(flip) >= count:
            fix = f"give {count} numbers from 0 to {count - 1}"
            problems.append(Problem(where="faults.labels", what=f"got {list(flip)}", fix=fix))
    if problems:
        raise SettingsError("the faults", problems)  # noqa: EM101  # the source, no message
    return flips


def flipped_site(site: SiteData, flip: Flip) -> SiteData:
    """A site whose training cases carry false labels; its test cases stay true.

    Cases are still read when they are needed. Classes outside the map (such as -1 for no label)
    stay as they are.

    Args:
        site: its ``train`` may be pickled afterwards if it could before.
        flip: the new number of each class.
    """
    # Nothing is kept twice: the list underneath keeps the true cases.
    readers = [partial(_read_flipped, site.train, index, flip) for index in range(len(site.train))]
    return replace(site, train=CaseList(readers, memory_bytes=0))


def _read_flipped(cases: CaseList, index: int, flip: Flip) -> Case:
    case = cases[index]
    return replace(
        case,
        label=flip[case.label] if 0 <= case.label < len(flip) else case.label,
        mask=None if case.mask is None else _flipped_mask(case.mask, flip),
        native_mask=None if case.native_mask is None else _flipped_mask(case.native_mask, flip),
    )


def _flipped_mask(mask: Mask, flip: Flip) -> Mask:
    known = (mask >= 0) & (mask < len(flip))
    new = np.asarray(flip, np.int16)[np.where(known, mask, 0)]
    return np.where(known, new, mask)
