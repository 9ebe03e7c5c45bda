"""The state of a run after a round, on disk: one file, whole or absent."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.numpy

from asterion_shared.errors import PlanMismatchError
from asterion_shared.files import write_atomically
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.result import RoundResult, SiteSummary

STRATEGY_PREFIX = "strategy/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything the next round needs.

    Attributes:
        run: identity of the run.
        plan_sha256: the plan it belongs to.
        round: last finished round; 0 after the count.
        weights: global weights after it.
        strategy: arrays of a stock Flower strategy, by name; empty for our own step.
        rounds: results so far, round 0 first.
        sites: what each site said of its data, by name.
        started: when the run began, UTC, ISO 8601.
    """

    run: str
    plan_sha256: str
    round: int
    weights: Vector
    rounds: tuple[RoundResult, ...]
    sites: tuple[SiteSummary, ...]
    started: str
    strategy: dict[str, Vector] = field(default_factory=dict)


def store(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint atomically; the one before it is kept, older ones are removed.

    Raises:
        DiskProblemError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    facts = {
        "run": checkpoint.run,
        "plan_sha256": checkpoint.plan_sha256,
        "round": checkpoint.round,
        "rounds": [r.model_dump(mode="json") for r in checkpoint.rounds],
        "sites": [s.model_dump(mode="json") for s in checkpoint.sites],
        "started": checkpoint.started,
    }
    arrays = {f"{STRATEGY_PREFIX}{name}": a for name, a in checkpoint.strategy.items()}
    data = safetensors.numpy.save(
        arrays | {"weights": checkpoint.weights}, metadata={"facts": json.dumps(facts)}
    )
    write_atomically(folder / f"round-{checkpoint.round:06d}.safetensors", data)
    for path in sorted(folder.glob("round-*.safetensors"))[:-2]:
        path.unlink()


def load_latest(folder: Path, run: str, plan: Plan) -> Checkpoint | None:
    """The newest checkpoint of a run, or None when there is none.

    Raises:
        PlanMismatchError: the folder holds another run, or the same one with another plan.
    """
    newest = max(folder.glob("round-*.safetensors"), default=None)
    if newest is None:
        return None
    with safetensors.safe_open(newest, framework="numpy") as file:
        facts = json.loads((file.metadata() or {})["facts"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if (facts["run"], facts["plan_sha256"]) != (run, plan.sha256):
        msg = (
            f"{folder.parent} holds run {facts['run']!r} with plan {facts['plan_sha256'][:12]}, "
            f"not {run!r} with plan {plan.sha256[:12]}; choose another folder or run name, or "
            "take back the change to the plan"
        )
        raise PlanMismatchError(msg)
    return Checkpoint(
        run=run,
        plan_sha256=plan.sha256,
        round=facts["round"],
        weights=arrays["weights"],
        strategy={
            name.removeprefix(STRATEGY_PREFIX): array
            for name, array in arrays.items()
            if name.startswith(STRATEGY_PREFIX)
        },
        rounds=tuple(RoundResult.model_validate(r) for r in facts["rounds"]),
        sites=tuple(SiteSummary.model_validate(s) for s in facts["sites"]),
        started=facts["started"],
    )
