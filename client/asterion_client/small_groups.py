"""The rule of small groups: no number leaves that stands on fewer than k patients.

It is counted per patient, never per row: the statistics of each test case are looked at on their
own, and who stands behind each of their cells is noted. A case whose patient the site does not name
counts as a patient of its own; ``asterion site check`` says so.

* Training: with fewer than k patients nothing is done and the order is refused.
* Testing: with fewer than k patients no statistic leaves, and the count of test cases is 0.
* A cell with 1 to k - 1 patients never leaves. Bins are merged with their neighbours until each is
  empty or holds k; what cannot be merged (a confusion matrix, a class) stays as a whole. So do
  scores of which no pair of cases is known to be in order.
* When classes stay, the total less the others must not give them away: together they stand for k
  patients at least, and there are two of them, else more stay.
* The subgroups of one attribute are merged alike, and those that stay are taken for one: so in each
  range of bins nobody can tell fewer than k by the total less the subgroups that leave.

Nothing of this is done before a secure sum: there only sums over sites are seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import tee

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Case, Predict, SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.messages import Report
from asterion_shared.metrics import BASELINE, Statistic, Statistics, merge
from asterion_shared.metrics.merged_bins import (
    BESIDE,
    MOMENTS_HEAD,
    Kept,
    beside,
    merged,
    name_beside,
    num_bins,
)
from asterion_shared.metrics.scores import rank
from asterion_shared.metrics.subgroups import is_subgroup
from asterion_shared.plan import Plan

Numbers = npt.NDArray[np.int64]
Scores = Callable[[Predict, Iterable[Case], Plan], dict[str, Statistic]]

TOO_FEW = "too_few_patients"


class CellPatients:
    """Which patients stand behind each cell of each statistic.

    A cell is a number of ``confusion``; positives or negatives in a bin of ``scores``; right or
    wrong calls in a bin of ``calibration``; a bin of moments, and their undefined cases.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._cells: dict[str, list[Numbers]] = {}
        self._patients: dict[str, list[Numbers]] = {}

    def note(self, patient: str, statistics: Statistics) -> None:
        """Take the statistics of one case.

        Args:
            patient: the case's group.
            statistics: of this case alone.
        """
        number = self._numbers.setdefault(patient, len(self._numbers))
        for name, statistic in statistics.items():
            cells = _filled(statistic)
            self._cells.setdefault(name, []).append(cells)
            self._patients.setdefault(name, []).append(np.full(cells.size, number, np.int64))

    def of(self, name: str) -> tuple[Numbers, Numbers]:
        """Patients and the cells that they stand behind, int64 ``(n,)`` each.

        Raises:
            KeyError: nobody was noted for this statistic, so it may not leave.
        """
        return np.concatenate(self._patients[name]), np.concatenate(self._cells[name])

    def take(self, other: "CellPatients", prefix: str) -> None:
        """Add what another noted, under names that begin with the prefix."""
        self._cells |= {f"{prefix}{name}": cells for name, cells in other._cells.items()}
        self._patients |= {f"{prefix}{name}": who for name, who in other._patients.items()}


def scores_by_patient(
    scores: Scores, predict: Predict, cases: Iterable[Case], plan: Plan, noted: CellPatients
) -> dict[str, Statistic]:
    """The task's statistics, formed case by case so that who stands behind them is known.

    Equal to those formed at once, up to the rounding of sums.
    """
    asked, kept = tee(cases)
    total: dict[str, Statistic] = {}
    for prediction, case in zip(predict(asked), kept, strict=True):
        part = scores(_always(prediction), [case], plan)
        noted.note(case.group, part)
        total = merge([total, part])
    return total


def _always(prediction: npt.NDArray[np.float32]) -> Predict:
    def predict(cases: Iterable[Case]) -> Iterator[npt.NDArray[np.float32]]:
        return (prediction for _ in cases)

    return predict


def refuse_few(data: SiteData, plan: Plan, smallest_group: int) -> None:
    """Refuse an order before anything is trained or told.

    Raises:
        OrderRefusedError: ``too_few_patients``: somebody would be trained on, or counted, among
            fewer than ``smallest_group``.
    """
    if plan.kind != "evaluate" and 0 < data.num_train_patients < smallest_group:
        msg = f"{data.num_train_patients} training patients; the site needs {smallest_group}"
        raise OrderRefusedError(msg, code=TOO_FEW)


def without_small_groups(
    report: Report, data: SiteData, smallest_group: int, noted: CellPatients
) -> Report:
    """What may leave of a report that is not for a secure sum; all of it when k is 1.

    Args:
        report: with statistics of all test cases, or none.
        data: the site's; for the number of patients.
        smallest_group: k.
        noted: who stands behind the statistics.
    """
    # Only an evaluation comes here with so few: nothing is weighed with them.
    if data.num_train_patients < smallest_group:
        report = replace(report, num_examples=0)
    if data.num_test_patients < smallest_group:
        return replace(report, num_test=0, statistics={})
    return replace(report, statistics=shareable(report.statistics, smallest_group, noted))


def shareable(
    statistics: Statistics, smallest_group: int, noted: CellPatients
) -> dict[str, Statistic]:
    """The statistics with bins merged and small cells left out.

    Args:
        statistics: by name; also those of the baseline.
        smallest_group: k; with 1 all leaves as it is.
        noted: who stands behind them.

    Returns:
        Those that may leave, each with how its bins were merged. A cell is empty or has
        at least k patients behind it.
    """
    if smallest_group <= 1:
        return dict(statistics)
    wholes = {name: part for name, part in statistics.items() if not is_subgroup(name)}
    found = {name: _safe(name, statistic, smallest_group, noted)
             for name, statistic in wholes.items()}  # fmt: skip
    for family in _families(wholes):
        withheld = [name for name in family if found[name] is None]
        members = {name: _members(name, statistics[name], noted) for name in family}
        for name in _also_withheld(members, withheld, smallest_group):
            found[name] = None
    for family in _families(name for name in statistics if is_subgroup(name)):
        found |= _safe_subgroups({n: statistics[n] for n in family}, smallest_group, noted)
    return {name: part for safe in found.values() if safe is not None and not _is_mute(safe)
            for name, part in safe.items()}  # fmt: skip


def _is_mute(safe: Mapping[str, Statistic]) -> bool:
    """Whether scores were merged until no pair is known to be in an order: they say nothing."""
    kinds = {statistic.kind: statistic for statistic in safe.values()}
    if "moved" not in kinds:
        return False
    ranking = rank(kinds["scores"], 1.0, kinds["moved"])
    return ranking.prevalence is not None and ranking.auroc is None


def dyadic_edges(
    patients: Numbers, streams: Numbers, bins: Numbers, count: int, smallest_group: int
) -> Kept | None:
    """The inner edges that may stay, found by halving the bins as long as it is safe.

    A range is cut in two only if in each half each stream is empty or has k patients. All sites
    halve at the same places, so that the edges which they keep have much in common.

    Args:
        patients: who, int64 ``(n,)``.
        streams: in which stream, such as positives and negatives, int64 ``(n,)``.
        bins: in which bin of it, int64 ``(n,)``.
        count: number of bins.
        smallest_group: k.

    Returns:
        Bool ``(count - 1,)``; None when a stream as a whole has 1 to k - 1 patients.
    """
    kept = np.zeros(count - 1, np.bool_)
    if not _enough(patients, streams, smallest_group):
        return None
    order = np.argsort(bins, kind="stable")
    patients, streams, bins = patients[order], streams[order], bins[order]
    todo = [(0, count)]
    while todo:
        start, stop = todo.pop()
        if stop - start < 2:
            continue
        middle = (start + stop) // 2
        low, cut, high = np.searchsorted(bins, [start, middle, stop])
        if all(_enough(patients[half], streams[half], smallest_group)
               for half in (slice(low, cut), slice(cut, high))):  # fmt: skip
            kept[middle - 1] = True
            todo += [(start, middle), (middle, stop)]
    return kept


def _enough(patients: Numbers, cells: Numbers, smallest_group: int) -> bool:
    """Whether each cell that has somebody has k different patients."""
    size = int(patients.max(initial=0)) + 1
    pairs = np.unique(cells * size + patients)
    counts = np.bincount(pairs // size)
    return bool((counts[counts > 0] >= smallest_group).all())


def _filled(statistic: Statistic) -> Numbers:
    """The cells that one case stands behind."""
    values = statistic.values
    match statistic.kind:
        case "calibration":
            cases, _, right = values.reshape(-1, 3).T
            return np.flatnonzero(np.concatenate([right, cases - right]))
        case "unit_moments" | "distance_moments":
            undefined = values[MOMENTS_HEAD - 1 : MOMENTS_HEAD]
            return np.flatnonzero(np.concatenate([values[MOMENTS_HEAD:], undefined]))
        case _:
            return np.flatnonzero(values)


def _safe(
    name: str, statistic: Statistic, smallest_group: int, noted: CellPatients
) -> dict[str, Statistic] | None:
    """A statistic as it may leave, with how its bins were merged; None when it may not."""
    patients, cells = noted.of(name)
    if statistic.kind not in BESIDE:
        return {name: statistic} if _enough(patients, cells, smallest_group) else None
    count = num_bins(statistic.kind, statistic.values.size)
    streams, bins = np.divmod(cells, count)
    kept = dyadic_edges(patients, streams, bins, count, smallest_group)
    if kept is None:
        return None
    return _as_merged(name, statistic, kept)


def _as_merged(name: str, statistic: Statistic, kept: Kept) -> dict[str, Statistic]:
    if kept.all():
        return {name: statistic}
    prefix = BASELINE if name.startswith(BASELINE) else ""
    other = f"{prefix}{name_beside(name.removeprefix(prefix), statistic.kind)}"
    return {name: merged(statistic, kept), other: beside(statistic, kept)}


def _safe_subgroups(
    family: Mapping[str, Statistic], smallest_group: int, noted: CellPatients
) -> dict[str, dict[str, Statistic]]:
    """The subgroups of one attribute that may leave, each with how its bins were merged.

    Those that stay are one more subgroup, whose numbers are the total less the others.
    """
    kind, length = next((part.kind, part.values.size) for part in family.values())
    count = num_bins(kind, length) if kind in BESIDE else 1
    cells = {name: noted.of(name) for name in family}
    streams = {name: (who, where // count) for name, (who, where) in cells.items()}
    told = _told_subgroups(streams, smallest_group)
    if not told or kind not in BESIDE:
        return {name: {name: family[name]} for name in told}
    # A subgroup's number tells its streams apart; 0 is the one of all that stay.
    numbers = {name: told.index(name) + 1 if name in told else 0 for name in family}
    stride = length // count + 1
    kept = dyadic_edges(
        np.concatenate([who for who, _ in streams.values()]),
        np.concatenate([numbers[n] * stride + stream for n, (_, stream) in streams.items()]),
        np.concatenate([where % count for _, where in cells.values()]),
        count,
        smallest_group,
    )
    assert kept is not None  # noqa: S101  # no stream is small: it was looked at above
    return {name: _as_merged(name, family[name], kept) for name in told}


def _told_subgroups(
    streams: Mapping[str, tuple[Numbers, Numbers]], smallest_group: int
) -> list[str]:
    """The subgroups that leave: none is small, and neither are all others together.

    Args:
        streams: of each subgroup patients and the streams that they stand behind.
        smallest_group: k.
    """
    told = sorted(streams, key=lambda name: np.unique(streams[name][0]).size, reverse=True)
    told = [name for name in told if _enough(*streams[name], smallest_group)]
    while told and len(told) < len(streams):
        rest = [streams[name] for name in streams if name not in told]
        patients, cells = (np.concatenate(part) for part in zip(*rest, strict=True))
        if _enough(patients, cells, smallest_group):
            break
        told.pop()
    return told


def _families(names: Iterable[str]) -> list[list[str]]:
    """Statistics that are of the classes of one whole: ``dice/a``, ``dice/b``."""
    families: dict[str, list[str]] = {}
    for name in names:
        whole, slash, _ = name.removeprefix(BASELINE).partition("/")
        if slash:
            prefix = BASELINE if name.startswith(BASELINE) else ""
            families.setdefault(f"{prefix}{whole}", []).append(name)
    return list(families.values())


def _also_withheld(
    members: Mapping[str, frozenset[int]], withheld: list[str], smallest_group: int
) -> list[str]:
    """Classes that stay beside those that must, so that no difference gives these away.

    Args:
        members: the patients of each class of a family.
        withheld: classes that may not leave.
        smallest_group: k.
    """
    more: list[str] = []
    rest = sorted((n for n in members if members[n] and n not in withheld),
                  key=lambda n: len(members[n]))  # fmt: skip
    while withheld and rest:
        filled = [members[n] for n in (*withheld, *more) if members[n]]
        if len(filled) != 1 and len(frozenset[int]().union(*filled)) >= smallest_group:
            break
        more.append(rest.pop(0))
    return more


def _members(name: str, statistic: Statistic, noted: CellPatients) -> frozenset[int]:
    """Patients of the class itself: of score histograms the positives."""
    patients, cells = noted.of(name)
    if statistic.kind == "scores":
        patients = patients[cells < statistic.values.size // 2]
    return frozenset(patients.tolist())
