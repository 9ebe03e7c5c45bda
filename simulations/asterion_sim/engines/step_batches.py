"""The batches of several sites side by side, one optimiser step after another.

Every site gets the very examples, in the very order, that the hospital's step would draw for it.
Sites are sorted by their number of steps, so that those still at work are always the first ones,
and batches are filled up with examples of weight 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor

from asterion_client.local_round import draws_of
from asterion_shared.cases import CaseList, SiteData
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch
from asterion_shared.tasks.batches import (
    batch_positions,
    draw_batches,
    epoch_steps,
    require_usable,
)
from asterion_sim.case_arrays import CaseArrays, case_arrays
from asterion_sim.engines.kernel import Ints


def num_steps(plan: Plan, cases: CaseList) -> int:
    """Optimiser steps of one round at a site.

    Raises:
        DataProblemError: ``no_data``: the site has no case that the task can learn from.
    """
    usable = len(require_usable(plan, cases))
    if plan.local.unit == "steps":
        return plan.local.amount
    return plan.local.amount * epoch_steps(plan, usable)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of the first A sites of a chunk.

    Attributes:
        active: A, the number of sites that still train.
        batch: as in :class:`Batch`, with a first axis of A sites and a second of B examples.
    """

    active: int
    batch: Batch


def longest_first(plan: Plan, sites: Sequence[SiteData]) -> tuple[Ints, Ints]:
    """The order of the sites in a chunk, longest work first, and their steps in that order."""
    steps = np.array([num_steps(plan, site.train) for site in sites], np.int64)
    order = np.argsort(-steps, kind="stable")
    return order, steps[order]


def step_batches(
    plan: Plan, round_: int, sites: Sequence[SiteData], steps: Ints, device: str
) -> Iterator[StepBatch]:
    """One :class:`StepBatch` for each step of the longest site.

    Args:
        plan: says how batches are drawn.
        round_: addresses the draws.
        sites: sorted by ``steps``, the longest first.
        steps: optimiser steps of each site, shape (S,), not growing.
        device: where the batches go.
    """
    arrays = [case_arrays(plan, site.train, device) for site in sites]
    resident = [found for found in arrays if found is not None]
    if len(resident) == len(sites):
        return _gathered(plan, round_, sites, resident, steps)
    return _drawn(plan, round_, sites, steps, device)


def _gathered(
    plan: Plan, round_: int, sites: Sequence[SiteData], arrays: Sequence[CaseArrays], steps: Ints
) -> Iterator[StepBatch]:
    """From arrays in memory: one gather a step for all sites."""
    whole, rows = _side_by_side(arrays)
    positions = _positions(plan, round_, sites, [len(own) for own in rows], steps)
    for step, active in enumerate(_active(steps)):
        chosen, sizes = _chosen(rows[:active], positions, step)
        batch = whole.batch(plan, torch.from_numpy(chosen.reshape(-1)))
        inputs, targets, weights = (
            part.view(*chosen.shape, *part.shape[1:])
            for part in (batch.inputs, batch.targets, batch.weights)
        )
        if sizes is not None:
            for own, size in zip(weights, sizes, strict=True):
                own[size:] = 0
        yield StepBatch(active, Batch(inputs, targets, weights))


def _active(steps: Ints) -> list[int]:
    """How many of the sites, the longest first, do each step."""
    return [int(count) for count in (steps[:, None] > np.arange(steps[0])).sum(0)]


def _chosen(
    rows: Sequence[Ints], positions: Sequence[list[Ints]], step: int
) -> tuple[Ints, list[int] | None]:
    """Rows that the sites take in a step, (A, B), and their numbers where not all are B."""
    places = [own[step] for own in positions[: len(rows)]]
    sizes = [place.size for place in places]
    longest = max(sizes)
    chosen = np.empty((len(rows), longest), np.int64)
    for line, own, place in zip(chosen, rows, places, strict=True):
        own.take(place, out=line[: place.size])
        line[place.size :] = line[0]
    return chosen, None if min(sizes) == longest else sizes


def _positions(
    plan: Plan, round_: int, sites: Sequence[SiteData], sizes: Sequence[int], steps: Ints
) -> list[list[Ints]]:
    """Which of its cases each site takes in each step; drawn once where nothing is random."""
    known: dict[tuple[int, int], list[Ints]] = {}
    found = []
    for site, size, count in zip(sites, sizes, steps.tolist(), strict=True):
        if (size, count) not in known or plan.local.shuffle:
            draws = draws_of(plan, round_, site.site)
            known[size, count] = list(islice(batch_positions(plan, size, draws), count))
        found.append(known[size, count])
    return found


def _side_by_side(arrays: Sequence[CaseArrays]) -> tuple[CaseArrays, list[Ints]]:
    """All sites' examples as one array, and the rows of each site in it."""
    first = arrays[0]
    if all(one.inputs is first.inputs for one in arrays):
        return first, [one.rows for one in arrays]
    starts = np.cumsum([0, *(len(one.rows) for one in arrays)])
    own_rows = [torch.from_numpy(one.rows).to(one.inputs.device) for one in arrays]
    together = list(zip(arrays, own_rows, strict=True))
    joined = CaseArrays(
        torch.cat([one.inputs[rows] for one, rows in together]),
        None if first.truth is None else torch.cat([_truth(one)[rows] for one, rows in together]),
        np.arange(int(starts[-1])),
    )
    return joined, [np.arange(a, b) for a, b in pairwise(starts.tolist())]


def _truth(arrays: CaseArrays) -> Tensor:
    assert arrays.truth is not None  # noqa: S101  # one task, so all have it or none
    return arrays.truth


def _drawn(
    plan: Plan, round_: int, sites: Sequence[SiteData], steps: Ints, device: str
) -> Iterator[StepBatch]:
    """By the hospital's own drawing of patches, site by site."""
    streams = [draw_batches(plan, site.train, draws_of(plan, round_, site.site)) for site in sites]
    for active in _active(steps):
        batches = [next(stream) for stream in streams[:active]]
        longest = max(len(batch.inputs) for batch in batches)
        yield StepBatch(
            active,
            Batch(
                torch.stack([_filled(batch.inputs, longest) for batch in batches]),
                torch.stack([_filled(batch.targets, longest) for batch in batches]),
                torch.stack([_filled(batch.weights, longest) for batch in batches]),
            ).to(device),
        )


def _filled(part: Tensor, longest: int) -> Tensor:
    """Filled up with zeros to ``longest`` examples: zero weights, and harmless inputs."""
    if len(part) == longest:
        return part
    filled = part.new_zeros((longest, *part.shape[1:]))
    filled[: len(part)] = part
    return filled
