"""Choosing an algorithm without a look at the test: on held-out cases of the training data.

Each site gives up a part of its own training cases, whole groups of them. A site whose training
data are one field gives up one end of it, with a gap of a patch.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.bootstrap import at_site, draw, mean_of, together
from asterion_client.held_out_scores import held_out_of
from asterion_shared.bracket_result import MetricName, Over
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import DataProblemError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream
from asterion_sim.bracket_arms import arms_of, train_piece
from asterion_sim.virtual_cohort import VirtualSites


@dataclass(frozen=True, slots=True)
class Choice:
    """What each algorithm reached on the validation cases.

    Attributes:
        best: the algorithm with the highest number; the first of equal ones.
        algorithms: the number by algorithm.
        pooled: the number of the pooled model.
    """

    best: str
    algorithms: dict[str, float]
    pooled: float


def choose_algorithm(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    *,
    algorithms: Sequence[str],
    seed: int,
    metric: MetricName,
    over: Over,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Train each algorithm, and pooled, once on the sites' reduced training data, and compare.

    The sites' test cases are not looked at. Writes ``choice.json``; what is finished in the
    folder is not repeated.

    Args:
        plan: the federation's plan.
        sites: as they were read.
        out: folder of the runs.
        algorithms: see :func:`asterion_sim.bracket_arms.arms_of`.
        seed: of the runs; one that the bracket itself does not use.
        metric: what is compared.
        over: how the number over all sites is formed.
        say: is told each arm as it begins.

    Raises:
        SettingsError, PlanMismatchError, QuorumLostError, DiskProblemError: as ``run_bracket``.
        DataProblemError: the metric is undefined, or a site's one field is too short.
    """
    reduced = validation_sites(sites, plan)
    arms = arms_of(plan, tuple(reduced.data), algorithms, leave_one_site_out=False)
    held_out = {name: held_out_of(data, plan) for name, data in sorted(reduced.data.items())}
    draws = draw(held_out, 1, 0, plan.seed)
    values: dict[str, float] = {}
    for arm in arms:
        if arm.kind == "alone":
            continue
        say(f"validation: {arm.name}")
        piece = train_piece(arm, seed, reduced.data, held_out, out / arm.name)
        if over == "mean of sites":
            parts = [at_site(metric, units, [piece.scores[name]], draws)
                     for name, units in held_out.items()]  # fmt: skip
            value = mean_of(parts).value
        else:
            scores = [[piece.scores[name] for name in held_out]]
            value = together(metric, list(held_out.values()), scores, draws).value
        if value is None:
            msg = f"{metric} is undefined on the validation cases; give the sites more data"
            raise DataProblemError(msg, code="no_data")
        values[arm.algorithm] = round(value, 6)
    pooled = values.pop("")
    best = max(values, key=lambda text: values[text])
    written = {"metric": metric, "over": over, "seed": seed, "pooled": pooled,
               "algorithms": values, "best": best}  # fmt: skip
    write_atomically(out / "choice.json", (json.dumps(written, indent=1) + "\n").encode())
    return Choice(best, values, pooled)


def validation_sites(sites: VirtualSites, plan: Plan, fraction: float = 0.25) -> VirtualSites:
    """The same sites with a part of their training cases as the test; the real test is dropped.

    Args:
        sites: as they were read.
        plan: its seed draws the groups, its patch is the gap.
        fraction: share of the groups (or of the one field) that is held out, in (0, 1).

    Raises:
        DataProblemError: ``no_data``: the one field of a site is too short to be cut.
    """
    data = {name: _divided(site, plan, fraction) for name, site in sites.data.items()}
    return VirtualSites(data, sites.refused)


def _divided(site: SiteData, plan: Plan, fraction: float) -> SiteData:
    names = [case.group or f"case {case.id}" for case in site.train]
    groups = sorted(set(names))
    if len(groups) == 1 and plan.task == "segmentation":
        cut = [_cut(case, plan, fraction) for case in site.train]
        parts = [CaseList.of(part) for part in zip(*cut, strict=True)]
        return replace(site, train=parts[0], test=parts[1])
    draws = stream(plan.seed, round_=0, site=site.site, purpose="validation")
    wanted = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    held = {groups[number] for number in draws.permutation(len(groups))[:wanted]}
    sides: dict[bool, list[int]] = {False: [], True: []}
    for number, name in enumerate(names):
        sides[name in held].append(number)
    return replace(site, train=_part(site.train, sides[False]), test=_part(site.train, sides[True]))


def _part(cases: CaseList, numbers: Sequence[int]) -> CaseList:
    readers = [partial(cases.__getitem__, number) for number in numbers]
    return CaseList(readers, memory_bytes=0)


def _cut(case: Case, plan: Plan, fraction: float) -> tuple[Case, Case]:
    """The case's two ends along its longest axis, with a gap of a patch between."""
    shape = case.image.shape[1:]
    axis = int(np.argmax(shape))
    start = shape[axis] - math.ceil(fraction * shape[axis])
    stop = start - plan.data.patch_size[axis]
    if stop <= 0 or case.native_mask is not None:
        msg = (
            f"a field of {shape} points on the plan's grid cannot be cut into {1 - fraction:g} "
            f"and {fraction:g} with a gap of {plan.data.patch_size[axis]}; give site "
            "data of more than one field, or the plan no other grid than the stored one"
        )
        raise DataProblemError(msg, code="no_data")
    return _end(case, axis, slice(0, stop), "a"), _end(case, axis, slice(start, None), "b")


def _end(case: Case, axis: int, kept: slice, side: str) -> Case:
    def take(array: npt.NDArray[np.generic], along: int) -> npt.NDArray[np.generic]:
        place = [slice(None)] * array.ndim
        place[along] = kept
        return np.ascontiguousarray(array[tuple(place)])

    image = take(case.image, axis + 1)
    mask = None if case.mask is None else take(case.mask, axis)
    return replace(
        case,
        id=f"{case.id}{side}",
        image=image,  # type: ignore[arg-type]  # a slice has the type of the whole
        mask=mask,  # type: ignore[arg-type]
        native_shape=image.shape[1:],
    )
