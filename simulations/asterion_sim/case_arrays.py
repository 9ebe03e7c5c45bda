"""Cases as arrays: what a batched engine gathers from without touching one case at a time."""

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, finalize

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asterion_shared.cases import Case, CaseList, Mask
from asterion_shared.plan import Plan
from asterion_shared.tasks.batch import Batch
from asterion_shared.tasks.batches import require_usable

KEPT_BYTES = 2 * 2**30
"""Most memory for arrays that were stacked from single cases; beyond it they are stacked anew
each time, so that memory does not grow without end with the number of sites."""

MAPPED_BYTES = 16 * 2**20
"""Memory-mapped data of a large pool that may be read before it is let go of. The system maps the
neighbours of what is read as well, and each worker maps its own."""

WHOLE_BYTES = 256 * 2**20
"""Size of a pool that may stay in memory as a whole."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CaseArrays:
    """A site's usable training cases inside arrays of N examples.

    Attributes:
        inputs: float32 (N, C, *S), or (N, columns) for a table.
        truth: labels int64 (N,) in classification, masks int16 (N, *S) in segmentation, None
            in anomaly, which learns from the inputs alone.
        rows: rows of the site's usable cases, int64 (n,).
    """

    inputs: Tensor
    truth: Tensor | None
    rows: Ints

    def batch(self, plan: Plan, rows: Tensor) -> Batch:
        """The batch of these rows, int64 (B,), as the task's own drawing would collate it."""
        on = self.inputs.device
        rows = rows.to(on)
        inputs = self.inputs.index_select(0, rows)
        if self.truth is None:
            return Batch(inputs, inputs, torch.ones_like(inputs[:, 0]))
        truth = self.truth.index_select(0, rows)
        if plan.task == "classification":
            return Batch(inputs, truth, torch.ones(len(truth), device=on))
        return Batch(inputs, truth.clamp(min=0).long(), (truth >= 0).float())


@dataclass(eq=False)
class Pool:
    """Examples of all sites in arrays; a virtual site is a choice of rows.

    Attributes:
        name: what the ids of the cases are made from.
        inputs: float32 (N, C, *S), or (N, columns), normalised; may be memory-mapped
            (copy on write, because torch does not take read-only arrays).
        labels: int64 (N,), -1 where unknown; None when there are none.
        masks: int16 (N, *S), -1 where unknown; None when there are none.
        subgroups: for each attribute of the plan the value of each example, (N,), or ``other``.
    """

    name: str
    inputs: npt.NDArray[np.float32]
    labels: Ints | None = None
    masks: npt.NDArray[np.int16] | None = None
    subgroups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _tensors: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)
    _read_bytes: int = 0

    def tensors(self, plan: Plan, device: str) -> tuple[Tensor, Tensor | None]:
        """Inputs and truth on a device, as :class:`CaseArrays` has them; moved there once."""
        if device not in self._tensors:
            truth = {"classification": self.labels, "segmentation": self.masks, "anomaly": None}
            wanted = truth[plan.task]
            self._tensors[device] = (
                torch.from_numpy(self.inputs).to(device),
                None if wanted is None else torch.from_numpy(wanted).to(device),
            )
        return self._tensors[device]

    def note_reading(self, num_rows: int) -> None:
        """Say that rows are about to be read; what was read long before is let go of.

        A page of a memory-mapped file that was read once counts as this process's memory until
        somebody wants it back, and then a run over many sites looks as large as its data.
        """
        num_bytes = self.inputs.nbytes
        self._read_bytes += num_rows * (num_bytes // max(1, len(self.inputs)))
        if num_bytes <= WHOLE_BYTES or self._read_bytes < MAPPED_BYTES:
            return
        self._read_bytes = 0
        for array in (self.inputs, self.labels, self.masks):
            mapped = getattr(array, "_mmap", None)
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


class PoolCases(CaseList):
    """Cases that are rows of a pool."""

    def __init__(self, pool: Pool, rows: Ints) -> None:
        super().__init__(())
        self.pool, self.rows = pool, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Case:
        pool, row = self.pool, int(self.rows[index])
        pool.note_reading(1)
        image = np.array(pool.inputs[row])
        spatial = image.shape[1:]
        return Case(
            id=hashlib.sha256(f"{pool.name}/{row}".encode()).hexdigest()[:12],
            image=image,
            label=-1 if pool.labels is None else int(pool.labels[row]),
            mask=None if pool.masks is None else np.array(pool.masks[row]),
            native_shape=spatial,
            native_spacing=(1.0,) * len(spatial),
            subgroups={name: values[row] for name, values in pool.subgroups.items()},
        )

    def labels(self) -> Ints:
        """Labels of all cases, int64 (n,); -1 where there is none."""
        if self.pool.labels is None:
            return np.full(len(self.rows), -1)
        return np.asarray(self.pool.labels[self.rows])


class _Stacked:
    """Arrays made from single cases, by device, for as long as the cases live."""

    def __init__(self) -> None:
        self._arrays: WeakKeyDictionary[CaseList, dict[str, CaseArrays]] = WeakKeyDictionary()
        self._num_bytes = 0

    def get(self, cases: CaseList, device: str) -> CaseArrays | None:
        return self._arrays.get(cases, {}).get(device)

    def keep(self, cases: CaseList, device: str, arrays: CaseArrays) -> None:
        """Keep them if there is room."""
        size = arrays.inputs.nbytes + (0 if arrays.truth is None else arrays.truth.nbytes)
        if self._num_bytes + size > KEPT_BYTES:
            return
        self._num_bytes += size
        self._arrays.setdefault(cases, {})[device] = arrays
        finalize(cases, self._release, size)

    def _release(self, size: int) -> None:
        self._num_bytes -= size


_stacked = _Stacked()


def case_arrays(plan: Plan, cases: CaseList, device: str) -> CaseArrays | None:
    """A site's training cases as arrays, when an example is always the whole case.

    Returns:
        None when the plan draws patches or augments, or when the images have other sizes than
        the plan's patch: then every batch has to be drawn.

    Raises:
        DataProblemError: ``no_data``: the site has no case that the task can learn from.
    """
    if isinstance(cases, PoolCases):
        return _pooled(plan, cases, device)
    usable = np.array(require_usable(plan, cases), np.int64)
    if plan.local.augment or _cuts_patches(plan, cases[int(usable[0])]):
        return None
    known = _stacked.get(cases, device)
    if known is not None:
        return known
    chosen = [cases[int(index)] for index in usable]
    if any(_cuts_patches(plan, case) for case in chosen):
        return None
    found = CaseArrays(
        torch.from_numpy(np.stack([case.image for case in chosen])).to(device),
        _truth(plan, chosen, device),
        np.arange(len(chosen)),
    )
    _stacked.keep(cases, device, found)
    return found


def _pooled(plan: Plan, cases: PoolCases, device: str) -> CaseArrays | None:
    usable = require_usable(plan, cases)
    if plan.local.augment:
        return None
    if plan.data.kind == "image" and cases.pool.inputs.shape[2:] != plan.data.patch_size:
        return None
    cases.pool.note_reading(len(usable))
    inputs, truth = cases.pool.tensors(plan, device)
    if len(usable) == len(cases.rows):
        return CaseArrays(inputs, truth, cases.rows)
    return CaseArrays(inputs, truth, cases.rows[np.array(usable)])


def _cuts_patches(plan: Plan, case: Case) -> bool:
    """Whether an example is a part of the case; a case without a mask is left to the drawing."""
    if plan.data.kind == "table":
        return False
    lacks_mask = plan.task == "segmentation" and case.mask is None
    return lacks_mask or case.image.shape[1:] != plan.data.patch_size


def _truth(plan: Plan, cases: list[Case], device: str) -> Tensor | None:
    match plan.task:
        case "classification":
            return torch.tensor([case.label for case in cases]).to(device)
        case "segmentation":
            return torch.from_numpy(np.stack([_mask(case) for case in cases])).to(device)
        case "anomaly":
            return None


def _mask(case: Case) -> Mask:
    assert case.mask is not None  # noqa: S101  # cases without are left to the drawing
    return case.mask
