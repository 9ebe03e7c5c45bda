"""The best model of a run: that of the round whose pooled headline metric is the highest.

The metrics of a round's model come with the answers of the next round, when that model's
checkpoint is still there; while it is the best so far, it is not removed. At a run's end
``best.safetensors`` is made from it, so that the file is the argmax of what ``result.json`` says,
the initial and the final model included.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from asterion_server.checkpoint import checkpoint_file
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


def best_before(
    rounds: Mapping[int, RoundResult], task: TaskName, best: int | None, number: int
) -> int | None:
    """The best round when a round is about to be stored, whose own metrics come with the next.

    Args:
        rounds: with the metrics of the model before that round.
        task: says the metric.
        best: the best when the round before it was stored; None: none was measured then.
        number: the round.
    """
    known = {n: rounds[n] for n in (best, number - 1) if n is not None and n in rounds}
    found = best_round(known, task)
    return None if found is None else found[0]


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
    source = checkpoint_file(folder / "checkpoints", best)
    if not source.exists():
        path.unlink(missing_ok=True)
        return None
    digest = _write(path, map_tensors(source).tensors["weights"], layout, facts, best)
    return BestModel(path=BEST_FILE, sha256=digest, round=best, metric=metric, value=value)


def _write(
    path: Path, weights: Vector, layout: Layout, facts: Mapping[str, str], number: int
) -> str:
    header = {"asterion": json.dumps({**facts, "round": str(number)}, sort_keys=True)}
    return write_tensors(path, named_parts(weights, layout), header)
