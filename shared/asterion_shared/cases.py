"""One example, as every task sees it whatever file it came from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image, volume, region of a field, or row of a table.

    Attributes:
        id: a hash (12 hex digits) of the record; never a name or a path.
        image: float32, finite, ``(C, *spatial)`` on the plan's grid and normalised, or
            ``(table_width,)`` for a table (:mod:`asterion_shared.table_columns`).
        label: class number for classification and anomaly (0 is normal); -1 when there is none.
        mask: segmentation: int16 class numbers, shape ``image.shape[1:]``; anomaly: 1 where
            anomalous, when known; else None.
        native_mask: the mask on the native grid, where metrics are computed; None when the
            plan's grid is the native one.
        native_shape: shape of the native grid: that of the stored image, without channels, and
            for a volume with its axes in the order right, anterior, superior.
        native_spacing: voxel size, or pixel size, on the native grid; ones when unknown.
        spacing_unit: ``mm`` or ``arcsec``; empty when the file does not say, and then no distance
            is stated.
        group: a hash (12 hex digits) of the patient or field that the case belongs to; equal
            within a site only, and never sent. Empty when nobody knows.
        group_named: whether the site named that patient or field; else each file counts as one.
        subgroups: of a test case, its value of each attribute of ``evaluation.subgroups`` that is
            told, or ``other``; empty when none is told.
    """

    id: str
    image: Image
    label: int = -1
    mask: Mask | None = None
    native_mask: Mask | None = None
    native_shape: tuple[int, ...] = ()
    native_spacing: tuple[float, ...] = ()
    spacing_unit: str = ""
    group: str = ""
    group_named: bool = False
    subgroups: Mapping[str, str] = field(default_factory=dict)


Predict = Callable[[Iterable[Case]], Iterator[npt.NDArray[np.float32]]]
"""Turns cases into predictions, one each, in order.

Segmentation: class probabilities ``(K, *native spatial)``. Classification: class probabilities
``(K,)``. Anomaly: a map of squared error ``(*spatial)``, its mean being the score.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """A site's data set as training sees it.

    Attributes:
        site: the site's name.
        train: cases to train on; reading one may touch the disk, so iterate, do not copy.
        test: cases to evaluate on; no patient or field is on both sides.
        num_bad_files: files that could not be read and were skipped.
        manifest_sha256: hash of the frozen list of records; keyed by the site in a private run.
        bad_files: hashed id of each skipped file to the reason, for the site's own eyes.
        num_train_patients, num_test_patients: groups that the cases belong to; a case whose group
            nobody named counts as one. 0 where they were not counted.
    """

    site: str
    train: "CaseList"
    test: "CaseList"
    num_bad_files: int = 0
    manifest_sha256: str = ""
    bad_files: Mapping[str, str] = field(default_factory=dict)
    num_train_patients: int = 0
    num_test_patients: int = 0


def _itself(case: Case) -> Case:
    return case


class CaseList:
    """A sequence of cases that are read when needed and kept in memory up to a limit."""

    def __init__(
        self, readers: Iterable[Callable[[], Case]], *, memory_bytes: int = 4 * 2**30
    ) -> None:
        self._readers = tuple(readers)
        self._kept: dict[int, Case] = {}
        self._free_bytes = memory_bytes

    @classmethod
    def of(cls, cases: Iterable[Case]) -> "CaseList":
        """A list of cases that are in memory already."""
        return cls([partial(_itself, case) for case in cases])

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, index: int) -> Case:
        if index in self._kept:
            return self._kept[index]
        case = self._readers[index]()
        size = case.image.nbytes + sum(
            m.nbytes for m in (case.mask, case.native_mask) if m is not None
        )
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[index] = case
        return case

    def __iter__(self) -> Iterator[Case]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of all cases, int64 (n,); -1 where there is none. Reads every case."""
        return np.array([case.label for case in self], np.int64)
