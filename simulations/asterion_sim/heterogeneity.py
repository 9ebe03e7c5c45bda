"""How different the sites of a federation are: a score of their labels and of their intensities.

Both are earth mover's distances of a site to the pooled data. Labels have no order, so moving an
example to any other class costs 1, and the distance is the total variation: the share of a site's
examples that would have to change class, in [0, 1]. Intensities lie on a line: the distance is the
area between two cumulative distributions (Wasserstein-1), in units of the pooled deviation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from asterion_shared.cases import Case, SiteData
from asterion_shared.randomness import stream
from asterion_sim.case_arrays import PoolCases
from asterion_sim.split_counts import class_counts

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

MOST_SITES = 200
"""Sites that are looked at; of more, so many are drawn."""

CASES_PER_SITE = 16
VALUES_PER_CASE = 256
"""Pixels (or voxels) drawn from each channel of a case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Distances of sites to the pooled data.

    Attributes:
        by_site: by site, sorted by name.
        chance: mean distance that an iid split into sites of the same sizes would show, since
            few examples never match the pooled ones; None where it is not known.
    """

    by_site: Mapping[str, float]
    chance: float | None = None

    @property
    def mean(self) -> float:
        """Mean over sites, each counting once; 0 without sites."""
        return float(np.mean(list(self.by_site.values()))) if self.by_site else 0.0

    @property
    def largest(self) -> float:
        """Largest over sites; 0 without sites."""
        return max(self.by_site.values(), default=0.0)

    @property
    def words(self) -> str:
        """Mean, what chance alone gives, and the largest."""
        chance = "" if self.chance is None else f"{self.chance:.2f} by chance, "
        return f"{self.mean:.2f} on average ({chance}{self.largest:.2f} at most)"

    def as_json(self) -> dict[str, Any]:
        """For a file: ``{"mean", "max", "chance", "sites"}``."""
        return {"mean": self.mean, "max": self.largest, "chance": self.chance,
                "sites": dict(self.by_site)}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """The score of a federation.

    Attributes:
        labels: total variation of class shares; of voxels by class in a segmentation.
        intensities: Wasserstein-1, mean over channels or columns, in pooled deviations.
        num_sites: sites of the federation, of which those in the distances were looked at.
    """

    labels: Distances
    intensities: Distances
    num_sites: int

    @property
    def words(self) -> str:
        """Both scores in one line."""
        return (
            f"labels differ from the pooled ones by {self.labels.words}; "
            f"intensities by {self.intensities.words} pooled deviations"
        )

    def as_json(self) -> dict[str, Any]:
        """For a file: ``{"labels", "intensities", "num_sites"}``."""
        return {"labels": self.labels.as_json(), "intensities": self.intensities.as_json(),
                "num_sites": self.num_sites}  # fmt: skip


def label_distances(sites: Sequence[str], counts: Counts) -> Distances:
    """Total variation between each site's class shares and the pooled ones.

    Args:
        sites: names, S of them.
        counts: shape (S, K), examples of each class; pooled is their sum, so large sites weigh
            more in it. A site without examples is left out.

    Returns:
        The distances, with what chance alone would give.

    >>> label_distances(["a", "b"], np.array([[10, 0], [0, 10]])).mean
    0.5
    """
    filled = counts.sum(axis=1) > 0
    sizes = counts[filled].sum(axis=1)
    if not filled.any():
        return Distances(by_site={})
    pooled = counts.sum(axis=0) / counts.sum()
    found = np.abs(counts[filled] / sizes[:, None] - pooled).sum(axis=1) / 2
    names = [name for name, kept in zip(sites, filled, strict=True) if kept]
    by_site = dict(sorted(zip(names, found.tolist(), strict=True)))
    each, times = np.unique(sizes, return_counts=True)
    chance = np.average([chance_distance(pooled, int(size)) for size in each], weights=times)
    return Distances(by_site=by_site, chance=float(chance))


def chance_distance(shares: Floats, size: int) -> float:
    """Expected total variation between shares and those of ``size`` examples drawn from them.

    Half the sum over classes of the mean absolute deviation of a binomial variable, by de
    Moivre's formula 2 (m + 1) C(n, m + 1) p^(m + 1) (1 - p)^(n - m), m = floor(n p) (Diaconis and
    Zabell, Statistical Science 1991).

    Args:
        shares: shape (K,), sum 1.
        size: examples, >= 1.

    >>> round(chance_distance(np.array([0.5, 0.5]), 1), 6)
    0.5
    """
    p = shares[(shares > 0) & (shares < 1)]
    m = np.floor(size * p)
    # (m + 1) C(n, m + 1) = n! / (m! (n - m - 1)!)
    logs = gammaln(size + 1) - gammaln(m + 1) - gammaln(size - m)
    logs += (m + 1) * np.log(p) + (size - m) * np.log1p(-p)
    return float(np.exp(logs).sum() / size)


def wasserstein(values: Floats, pooled: "PooledValues") -> float:
    """Area between the cumulative distribution of some values and the pooled one, exactly.

    Args:
        values: shape (n,), n >= 1, finite.
        pooled: what they are compared with; it need not contain them.

    Returns:
        The distance in the values' own unit, >= 0.
    """
    steps = np.sort(values)
    # Between two of its values the site's distribution stands still at a height, and the pooled
    # one climbs through that height at one place, which the interval may hold or not.
    heights = np.arange(1, len(steps)) / len(steps)
    left, right = steps[:-1], steps[1:]
    crossing = np.clip(pooled.quantile(heights), left, right)
    below = heights * (crossing - left) - pooled.area(left, crossing)
    above = pooled.area(crossing, right) - heights * (right - crossing)
    first, last = steps[0], steps[-1]
    low, high = min(first, pooled.values[0]), max(last, pooled.values[-1])
    outside = pooled.area(np.array([low]), np.array([first]))[0]
    outside += (high - last) - pooled.area(np.array([last]), np.array([high]))[0]
    return float(below.sum() + above.sum() + outside)


class PooledValues:
    """A weighted sample of a distribution, ready for areas below its cumulative distribution.

    Args:
        values: shape (n,), n >= 1, finite.
        weights: shape (n,), > 0.
    """

    def __init__(self, values: Floats, weights: Floats) -> None:
        order = np.argsort(values, kind="stable")
        self.values = values[order]
        shares = weights[order] / weights.sum()
        self._cumulative = np.cumsum(shares)
        self._cumulative[-1] = 1.0
        gaps = np.diff(self.values)
        self._areas = np.concatenate([[0.0], np.cumsum(self._cumulative[:-1] * gaps)])
        mean = float(np.sum(shares * self.values))
        self.deviation = float(np.sqrt(np.sum(shares * (self.values - mean) ** 2)))

    def quantile(self, heights: Floats) -> Floats:
        """The least value at which the cumulative distribution reaches a height; its shape."""
        index = np.searchsorted(self._cumulative, heights, side="left")
        return self.values[np.minimum(index, len(self.values) - 1)]

    def area(self, start: Floats, end: Floats) -> Floats:
        """The integral of the cumulative distribution from start to end; their shape."""
        return self._area_upto(end) - self._area_upto(start)

    def _area_upto(self, place: Floats) -> Floats:
        index = np.searchsorted(self.values, place, side="right") - 1
        inside = np.maximum(index, 0)
        more = self._cumulative[inside] * (place - self.values[inside])
        return np.where(index < 0, 0.0, self._areas[inside] + more)


def intensity_distances(samples: Mapping[str, Floats], sizes: Mapping[str, int]) -> Distances:
    """Wasserstein-1 distance of each site's values to the pooled ones, in pooled deviations.

    Args:
        samples: values drawn from each site, shape (C, n), n >= 1: C channels, taken one by one.
        sizes: examples of each site, > 0: its weight in the pooled values.

    Returns:
        The mean over channels by site; a channel that is constant everywhere counts 0.
    """
    sites = sorted(samples)
    if not sites:
        return Distances(by_site={})
    found = np.zeros(len(sites))
    weights = np.concatenate(
        [np.full(samples[s].shape[1], sizes[s] / samples[s].shape[1]) for s in sites]
    )
    channels = len(samples[sites[0]])
    for channel in range(channels):
        pooled = PooledValues(np.concatenate([samples[s][channel] for s in sites]), weights)
        if pooled.deviation > 0:
            far = [wasserstein(samples[s][channel], pooled) for s in sites]
            found += np.array(far) / pooled.deviation
    return Distances(by_site=dict(zip(sites, (found / channels).tolist(), strict=True)))


@dataclass(slots=True)
class _Sample:
    counts: Counts
    values: list[Floats] = field(default_factory=list)


def heterogeneity(
    sites: Mapping[str, SiteData], num_classes: int, seed: int, *, counts: Counts | None = None
) -> Heterogeneity:
    """Score a federation from a bounded number of training cases.

    At most :data:`MOST_SITES` sites are looked at, :data:`CASES_PER_SITE` cases of each and
    :data:`VALUES_PER_CASE` pixels of each channel of a case, all drawn from the seed.

    Args:
        sites: data by name; those without a training case are left out.
        num_classes: of the plan. A segmentation's classes are counted by voxel; labels that lie
            in an array are counted in all cases of a site.
        seed: the plan's.
        counts: exact examples of each class, shape (S, num_classes), sites sorted by name, where
            the split knows them: then the labels are those of all sites and all cases.
    """
    names = sorted(name for name, data in sites.items() if len(data.train) > 0)
    if len(names) > MOST_SITES:
        draws = stream(seed, round_=0, site="", purpose="heterogeneity")
        chosen = draws.choice(len(names), size=MOST_SITES, replace=False)
        names = [names[index] for index in sorted(chosen)]
    samples = {name: _sample(sites[name], num_classes, seed) for name in names}
    if counts is not None:
        labels = label_distances(sorted(sites), counts)
    else:
        table = np.array([samples[name].counts for name in names], np.int64)
        labels = label_distances(names, table.reshape(len(names), num_classes))
    cases = {name: samples[name].values for name in names}
    sizes = {name: len(sites[name].train) for name in names}
    return Heterogeneity(
        labels=labels,
        intensities=replace(
            _distances_of_cases(cases, sizes),
            chance=_distances_of_cases(_dealt_anew(cases, seed), sizes).mean,
        ),
        num_sites=len(sites),
    )


def _distances_of_cases(
    cases: Mapping[str, Sequence[Floats]], sizes: Mapping[str, int]
) -> Distances:
    values = {name: np.concatenate(found, axis=1) for name, found in cases.items()}
    return intensity_distances(values, sizes)


def _dealt_anew(cases: Mapping[str, Sequence[Floats]], seed: int) -> dict[str, list[Floats]]:
    """The same cases dealt to the sites at random, as many to each as before."""
    draws = stream(seed, round_=0, site="", purpose="heterogeneity by chance")
    everything = [values for found in cases.values() for values in found]
    order = iter(draws.permutation(len(everything)))
    return {name: [everything[next(order)] for _ in found] for name, found in cases.items()}


def _sample(data: SiteData, num_classes: int, seed: int) -> _Sample:
    draws = stream(seed, round_=0, site=data.site, purpose="heterogeneity")
    number = min(CASES_PER_SITE, len(data.train))
    in_arrays = isinstance(data.train, PoolCases) and data.train.pool.labels is not None
    sample = _Sample(
        class_counts(data.train, num_classes) if in_arrays else np.zeros(num_classes, np.int64)
    )
    for index in sorted(draws.choice(len(data.train), size=number, replace=False)):
        case = data.train[int(index)]
        if not in_arrays:
            sample.counts += _class_counts(case, num_classes)
        channels = case.image.reshape(len(case.image), -1).astype(np.float64)
        size = channels.shape[1]
        if size > VALUES_PER_CASE:
            channels = channels[:, draws.choice(size, size=VALUES_PER_CASE, replace=False)]
        sample.values.append(channels)
    return sample


def _class_counts(case: Case, num_classes: int) -> Counts:
    """Examples of each class: one for a label, the voxels of a mask without a label."""
    numbers = np.array([case.label]) if case.label >= 0 or case.mask is None else case.mask.ravel()
    known = numbers[(numbers >= 0) & (numbers < num_classes)]
    return np.bincount(known, minlength=num_classes).astype(np.int64)
