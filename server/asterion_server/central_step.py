"""The centre's half of a round: updates in, next global weights out.

Our own weighted mean, a fold that holds when a site is wrong, or a stock Flower strategy.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from asterion_server.flower_strategy import FlowerStep
from asterion_server.fold import Fold, empty_fold, shortened
from asterion_server.robust_fold import KeptUpdates, block_size, robust_fold
from asterion_shared.algorithms import algorithm_of
from asterion_shared.blocks import through
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.privacy.adaptive_clip import next_clip, split_noise
from asterion_shared.privacy.gaussian_noise import add_gaussian
from asterion_shared.privacy.secret_stream import SecretStream, secret_stream

Sum = npt.NDArray[np.float64]


class CentralStep(Protocol):
    """Takes one round's updates, in any order, and makes the next global weights."""

    def begin(self, sites: Sequence[str], size: int) -> None:
        """Start a round: ``sites`` in order of name, updates of shape ``(size,)``."""
        ...

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        """Take one site's update, with its weight > 0 and what clipping multiplies it by.

        It is kept until the round is finished where it is needed so long: it must not change.
        """
        ...

    @property
    def linear(self) -> bool:
        """Whether only the sum of the weighted updates counts, so that ``add_sum`` will do."""
        ...

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        """Take the sum of several sites' weighted updates, if the step is linear."""
        ...

    def leave_out(self, site: str) -> None:
        """Go on without a site."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """The coming round's clip norm where it adapts; None: the plan's."""
        ...

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        """Say, before ``finish``, how many updates the clip norm left whole and how many not."""
        ...

    def finish(self, round_: int, weights: Vector) -> Vector:
        """The next global weights, shape ``(size,)``, in memory of their own.

        Never in place: the round's orders show the old weights still, and a run that fails in
        between must not be left with half of each.
        """
        ...

    def state(self) -> Mapping[str, Vector]:
        """What the next round needs beside the weights."""
        ...

    def restore(self, state: Mapping[str, Vector]) -> None:
        """Take up the state of a checkpoint."""
        ...


def central_step_of(plan: Plan, spill_folder: Path) -> CentralStep:
    """The step that the plan names."""
    if plan.algorithm.flower_strategy is not None:
        return _StrategyStep(plan)
    if plan.privacy is not None and plan.privacy.noise == "centre":
        return _NoisedStep(plan, spill_folder)
    if plan.algorithm.fold != "mean":
        return _RobustStep(plan, spill_folder)
    return _FoldStep(plan, spill_folder)


class _FoldStep:
    linear = True
    clip_norm: float | None = None

    def __init__(self, plan: Plan, spill_folder: Path) -> None:
        self._plan, self._folder = plan, spill_folder
        self._algorithm = algorithm_of(plan.algorithm)
        self._fold = empty_fold()

    def begin(self, sites: Sequence[str], size: int) -> None:
        self._fold = Fold(sites, size, self._folder)

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        self._fold.add(site, update, weight, factor)

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        self._fold.add_sum(sites, total, weight)

    def leave_out(self, site: str) -> None:
        self._fold.leave_out(site)

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        """Nothing: the clip norm stays."""

    def finish(self, round_: int, weights: Vector) -> Vector:
        made = np.empty(weights.size, np.float32)
        for block in through(weights.size, weights):
            made[block] = self._algorithm.central_step(weights[block], self._mean(block))
        self._fold = empty_fold()  # it holds what this round folded
        return made

    def _mean(self, block: slice) -> Vector:
        return self._fold.mean(block)

    def state(self) -> Mapping[str, Vector]:
        return {}

    def restore(self, state: Mapping[str, Vector]) -> None:
        """Nothing: the step has no state."""


class _NoisedStep(_FoldStep):
    """Gaussian noise on the weighted sum, which is then divided by a constant of the plan.

    One site changes the sum by at most ``clip_norm * max_weight``, and the divisor not at all.
    McMahan et al., ICLR 2018, the fixed-denominator estimator. The noise is drawn anew whenever a
    round is folded; only the weights that a checkpoint holds are ever sent.

    Where the clip norm adapts, the noised count of updates within it makes the next one; see
    :mod:`asterion_shared.privacy.adaptive_clip`.
    """

    _secret: SecretStream
    """For the noise of the round that is being finished."""

    def __init__(self, plan: Plan, spill_folder: Path) -> None:
        super().__init__(plan, spill_folder)
        privacy, algorithm, rounds = plan.privacy, plan.algorithm, plan.rounds
        assert privacy is not None  # noqa: S101  # rules of the plan give all three
        assert algorithm.max_weight is not None  # noqa: S101
        assert rounds.sites_per_round is not None  # noqa: S101
        self._privacy = privacy
        self._max_weight, self._num_sites = algorithm.max_weight, rounds.sites_per_round
        self._noise = split_noise(privacy)
        self._centred_count: float | None = None
        if privacy.adaptive_clip is not None:
            self.clip_norm = privacy.clip_norm

    def begin(self, sites: Sequence[str], size: int) -> None:
        super().begin(sites, size)
        self._centred_count = None

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        self._centred_count = (num_within - num_beyond) / 2

    def finish(self, round_: int, weights: Vector) -> Vector:
        self._secret = secret_stream()
        made = super().finish(round_, weights)
        if self.clip_norm is not None:
            self.clip_norm = self._next_clip(self.clip_norm)
        return made

    def state(self) -> Mapping[str, Vector]:
        # The first clip norm stands in the plan; each later one is a float32.
        if self.clip_norm in (None, self._privacy.clip_norm):
            return {}
        return {"clip_norm": np.array([self.clip_norm], np.float32)}

    def restore(self, state: Mapping[str, Vector]) -> None:
        if "clip_norm" in state:
            self.clip_norm = float(state["clip_norm"][0])

    def _mean(self, block: slice) -> Vector:
        clip = self._privacy.clip_norm if self.clip_norm is None else self.clip_norm
        deviation = self._noise.sum_multiplier * self._max_weight * clip
        noised = add_gaussian(self._fold.total(block), deviation, self._secret)
        return (noised / (self._max_weight * self._num_sites)).astype(np.float32)

    def _next_clip(self, clip_norm: float) -> float:
        if self._centred_count is None:
            msg = "the clip norm adapts and nobody counted the updates within it"
            raise ValueError(msg)
        count = np.array([self._centred_count])
        noised = add_gaussian(count, self._noise.count_deviation, secret_stream())
        return next_clip(self._privacy, clip_norm, float(noised[0]) / self._num_sites)


class _RobustStep:
    """A fold of :mod:`asterion_server.robust_fold`, which wants all updates, each by itself."""

    linear = False
    clip_norm: float | None = None

    def __init__(self, plan: Plan, spill_folder: Path) -> None:
        self._settings, self._folder = plan.algorithm, spill_folder
        self._algorithm = algorithm_of(plan.algorithm)
        self._updates = KeptUpdates(spill_folder)

    def begin(self, sites: Sequence[str], size: int) -> None:
        self._updates = KeptUpdates(self._folder)

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        self._updates.add(site, update, weight, factor)

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        msg = f"the fold {self._settings.fold!r} needs each update by itself"
        raise TypeError(msg)

    def leave_out(self, site: str) -> None:
        """Nothing: the site is simply not among the updates."""

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        """Nothing: the clip norm stays."""

    def finish(self, round_: int, weights: Vector) -> Vector:
        parts = tuple(self._updates.parts.values())
        combined = robust_fold(self._settings, parts, weights.size)
        made = np.empty(weights.size, np.float32)
        for block in through(weights.size, weights, block=block_size(len(parts))):
            made[block] = self._algorithm.central_step(weights[block], combined(block))
        self._updates = KeptUpdates(self._folder)
        return made

    def state(self) -> Mapping[str, Vector]:
        return {}

    def restore(self, state: Mapping[str, Vector]) -> None:
        """Nothing: the step has no state."""


class _StrategyStep:
    """Gathers all updates, because a stock strategy wants them together."""

    linear = False
    clip_norm: float | None = None

    def __init__(self, plan: Plan) -> None:
        self._step = FlowerStep(plan)
        self._updates: dict[str, tuple[Vector, float]] = {}

    def begin(self, sites: Sequence[str], size: int) -> None:
        self._updates = {}

    def add(self, site: str, update: Vector, weight: float, factor: float = 1.0) -> None:
        self._updates[site] = (shortened(update, factor), weight)

    def add_sum(self, sites: Iterable[str], total: Sum, weight: float) -> None:
        msg = "a stock Flower strategy needs each update by itself"
        raise TypeError(msg)

    def leave_out(self, site: str) -> None:
        """Nothing: the site is simply not among the updates."""

    def count_clipped(self, num_within: int, num_beyond: int) -> None:
        """Nothing: the clip norm stays."""

    def finish(self, round_: int, weights: Vector) -> Vector:
        reports = [(site, update, w) for site, (update, w) in sorted(self._updates.items())]
        return self._step.step(round_, weights, reports)

    def state(self) -> Mapping[str, Vector]:
        return self._step.state()

    def restore(self, state: Mapping[str, Vector]) -> None:
        self._step.restore(dict(state))
