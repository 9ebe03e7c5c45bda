"""The state of a run after a round, on disk: one file, whole or absent."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from asterion_server.round_log import FinalRounds, logged, read_final
from asterion_shared.blocks import Array
from asterion_shared.errors import PlanMismatchError
from asterion_shared.files import write_parts_atomically
from asterion_shared.link.steps import reached
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.result import RoundResult, SiteSummary
from asterion_shared.tensor_files import file_parts, map_tensors

LOG = "rounds.jsonl"
SITES, PENDING, LAST = "text/sites", "text/pending", "text/last"
FORMAT = 2
STRATEGY_PREFIX = "strategy/"

MAPPED_BYTES = 2**24
"""Weights of so many bytes or more are a read-only view of the checkpoint's file once they are
stored, so that they take memory only where they are read; smaller ones are quicker in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything the next round needs.

    Attributes:
        run: identity of the run.
        plan_sha256: the plan it belongs to.
        round: last finished round; 0 after the count.
        weights: global weights after it.
        strategy: arrays of a stock Flower strategy, by name; empty for our own step.
        last: the result of that round, which may still gain its metrics.
        final: the rounds before it; :func:`store` moves them to ``rounds.jsonl``.
        cohort: how a simulation forms its numbers; empty when live.
        sites: what each site said of its data, as :func:`sites_text` writes it: thousands of
            sites seldom change from round to round.
        started: when the run began, UTC, ISO 8601.
    """

    run: str
    plan_sha256: str
    round: int
    weights: Vector
    last: RoundResult
    sites: str
    started: str
    strategy: dict[str, Vector] = field(default_factory=dict)
    cohort: dict[str, str | int] = field(default_factory=dict)
    final: FinalRounds = field(default_factory=FinalRounds)


def sites_text(sites: Iterable[SiteSummary]) -> str:
    """What sites said of their data, one JSON line each."""
    return "\n".join(site.model_dump_json() for site in sites)


def read_sites(text: str) -> tuple[SiteSummary, ...]:
    """The opposite of :func:`sites_text`."""
    return tuple(SiteSummary.model_validate_json(line) for line in text.splitlines())


def checkpoint_file(folder: Path, number: int) -> Path:
    """Where a round's checkpoint stands in a run's folder of them."""
    return folder / f"round-{number:06d}.safetensors"


def store(checkpoint: Checkpoint, folder: Path, best: int | None = None) -> Checkpoint:
    """Write a checkpoint atomically; older ones are removed but the one before it and the best.

    Args:
        checkpoint: what to write.
        folder: the run's folder of them.
        best: the round whose checkpoint stays (:mod:`asterion_server.best_model`); None: none.

    Returns:
        The same, with its final rounds where they are now, and large weights
        (:data:`MAPPED_BYTES`) as a view of the file, which outlives the file's name.

    Raises:
        DiskProblemError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = logged(checkpoint.final, folder / LOG)
    facts = {
        "format": FORMAT,
        "run": checkpoint.run,
        "plan_sha256": checkpoint.plan_sha256,
        "round": checkpoint.round,
        "log_bytes": final.log_bytes,
        "started": checkpoint.started,
        "cohort": checkpoint.cohort,
    }
    texts = {
        SITES: checkpoint.sites,
        PENDING: final.pending,
        LAST: checkpoint.last.model_dump_json(),
    }
    arrays: dict[str, Array] = {"weights": checkpoint.weights}
    # As bytes: in the metadata every quotation mark would be escaped, and back again.
    arrays |= {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    arrays |= {f"{STRATEGY_PREFIX}{name}": a for name, a in checkpoint.strategy.items()}
    newest = checkpoint_file(folder, checkpoint.round)
    write_parts_atomically(newest, file_parts(arrays, {"facts": json.dumps(facts)}))
    reached("C6")
    kept = None if best is None else checkpoint_file(folder, best)
    for path in sorted(folder.glob("round-*.safetensors"))[:-2]:
        if path != kept:
            path.unlink()
    for path in folder.glob(".round-*.part"):  # of a process that was killed as it wrote
        path.unlink()
    weights = checkpoint.weights
    if weights.nbytes >= MAPPED_BYTES:
        weights = map_tensors(newest).tensors["weights"]
    return replace(checkpoint, final=final, weights=weights)


def load_latest(folder: Path, run: str, plan: Plan) -> Checkpoint | None:
    """The newest checkpoint of a run, or None when there is none; weights as :func:`store` gives.

    Raises:
        PlanMismatchError: the folder holds another run, or the same one with another plan, or one
            of another version.
    """
    newest = max(folder.glob("round-*.safetensors"), default=None)
    if newest is None:
        return None
    file = map_tensors(newest)
    facts = json.loads(file.metadata["facts"])
    weights = file.tensors["weights"]
    if facts.get("format") != FORMAT:
        msg = f"{newest} was written by another version of Asterion; choose another folder"
        raise PlanMismatchError(msg)
    if (facts["run"], facts["plan_sha256"]) != (run, plan.sha256):
        msg = (
            f"{folder.parent} holds run {facts['run']!r} with plan {facts['plan_sha256'][:12]}, "
            f"not {run!r} with plan {plan.sha256[:12]}; choose another folder or run name, or "
            "take back the change to the plan"
        )
        raise PlanMismatchError(msg)
    texts = {name: file.tensors[name].tobytes().decode() for name in (SITES, PENDING, LAST)}
    return Checkpoint(
        run=run,
        plan_sha256=plan.sha256,
        round=facts["round"],
        weights=weights if weights.nbytes >= MAPPED_BYTES else weights.copy(),
        strategy={
            name.removeprefix(STRATEGY_PREFIX): array.copy()
            for name, array in file.tensors.items()
            if name.startswith(STRATEGY_PREFIX)
        },
        last=RoundResult.model_validate_json(texts[LAST]),
        final=FinalRounds(facts["log_bytes"], texts[PENDING]),
        sites=texts[SITES],
        started=facts["started"],
        cohort=facts["cohort"],
    )


def rounds_of(checkpoint: Checkpoint, folder: Path) -> tuple[RoundResult, ...]:
    """The results so far, round 0 first."""
    return (*read_final(checkpoint.final, folder / LOG), checkpoint.last)
