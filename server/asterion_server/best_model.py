"""The best model of a run: that of the round whose pooled headline metric is the highest.

The metrics of a round's model come with the answers of the next round, when that model's
checkpoint is still there. If it is the best so far, the checkpoint gets a second name, under which
it outlives the removal of old ones; nothing is written twice. At a run's end ``best.safetensors``
is made from it, so that the file is the argmax of what ``result.json`` says, the initial and the
final model included.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asterion_shared.errors import DiskProblemError
from asterion_shared.files import sync_folder
from asterion_shared.metrics import HEADLINE
from asterion_shared.parameters import Layout, Vector, named_parts
from asterion_shared.plan import TaskName
from asterion_shared.result import BestModel, FinalModel, RoundResult
from asterion_shared.tensor_files import map_tensors, write_tensors

LAST_FILE, BEST_FILE = "model.safetensors", "best.safetensors"


def best_round(rounds: Mapping[int, RoundResult], task: TaskName) -> tuple[int, float] | None:
    """The round with the highest headline metric, of equal ones the first, and the metric.

    Args:
        rounds: by number; those that nobody measured do not count.
        task: says the metric; of all three, more is better.

    Returns:
        None when nobody measured any.
    """
    known = {n: v for n, r in rounds.items() if (v := r.pooled.get(HEADLINE[task])) is not None}
    return max(known.items(), key=lambda found: (found[1], -found[0]), default=None)


@dataclass
class KeptBest:
    """Keeps the checkpoint of the best round so far.

    Args:
        checkpoints: the run's folder of them.
        task: says the metric.
        round: the best of those whose metrics will not change any more; None before the first.
    """

    checkpoints: Path
    task: TaskName
    round: int | None = None

    def restore(self, rounds: Mapping[int, RoundResult], done: int) -> None:
        """Go on after the last finished round, whose own metrics come with the next one."""
        self._choose({n: r for n, r in rounds.items() if n < done})

    def keep(self, rounds: Mapping[int, RoundResult], number: int) -> None:
        """Give the best round's checkpoint a name that lasts, before that of a round is stored.

        Args:
            rounds: with the metrics of the model before that round.
            number: the round that is about to be stored.

        Raises:
            DiskProblemError: the folder is not writable, or its disk knows no hard links.
        """
        known = {n: rounds[n] for n in (self.round, number - 1) if n is not None and n in rounds}
        self._choose(known)
        if self.round != number - 1:
            return
        source, lasting = self.checkpoints / _name("round", self.round), self._lasting(self.round)
        try:
            lasting.unlink(missing_ok=True)  # of rounds that a restored run forgot
            lasting.hardlink_to(source)
            sync_folder(self.checkpoints)
        except OSError as error:
            raise DiskProblemError(lasting, error.strerror or type(error).__name__) from error

    def drop_others(self) -> None:
        """Remove the lasting names of rounds that are not the best any more."""
        for path in self.checkpoints.glob("best-*.safetensors"):
            if self.round is None or path != self._lasting(self.round):
                path.unlink(missing_ok=True)

    def _choose(self, known: Mapping[int, RoundResult]) -> None:
        found = best_round(known, self.task)
        self.round = None if found is None else found[0]

    def _lasting(self, best: int) -> Path:
        return self.checkpoints / _name("best", best)


def write_last(
    folder: Path, weights: Vector, layout: Layout, facts: Mapping[str, str], done: int
) -> FinalModel:
    """Write ``model.safetensors``: the model after the last finished round.

    Args:
        folder: the run's.
        weights: float32 ``(layout.size,)``.
        layout: says which tensors they are.
        facts: for the file's header: ``run`` and ``plan_sha256``.
        done: that round.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    return FinalModel(
        path=LAST_FILE, sha256=_write(folder / LAST_FILE, weights, layout, facts, done)
    )


def write_best(
    folder: Path,
    layout: Layout,
    facts: Mapping[str, str],
    rounds: Mapping[int, RoundResult],
    task: TaskName,
    last: FinalModel,
    done: int,
) -> BestModel | None:
    """Write ``best.safetensors``; no file of its own where the last model is the best.

    Args:
        folder: the run's.
        layout: says which tensors the weights are.
        facts: for the file's header: ``run`` and ``plan_sha256``.
        rounds: with all their metrics.
        task: says the metric.
        last: the last model.
        done: the last finished round.

    Returns:
        What it is; None when no model was measured, or when the best one's weights are not there:
        the run was begun by a version that did not keep them.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    found, path = best_round(rounds, task), folder / BEST_FILE
    if found is None:
        path.unlink(missing_ok=True)  # of an earlier ending of the run
        return None
    best, value = found
    metric = HEADLINE[task]
    if best == done:
        path.unlink(missing_ok=True)
        return BestModel(path=last.path, sha256=last.sha256, round=best, metric=metric, value=value)
    source = _source(folder / "checkpoints", best)
    if source is None:
        path.unlink(missing_ok=True)
        return None
    digest = _write(path, map_tensors(source).tensors["weights"], layout, facts, best)
    return BestModel(path=BEST_FILE, sha256=digest, round=best, metric=metric, value=value)


def _source(checkpoints: Path, best: int) -> Path | None:
    places = (checkpoints / _name("round", best), checkpoints / _name("best", best))
    return next((path for path in places if path.exists()), None)


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:06d}.safetensors"


def _write(
    path: Path, weights: Vector, layout: Layout, facts: Mapping[str, str], number: int
) -> str:
    header = {"asterion": json.dumps({**facts, "round": str(number)}, sort_keys=True)}
    return write_tensors(path, named_parts(weights, layout), header)
