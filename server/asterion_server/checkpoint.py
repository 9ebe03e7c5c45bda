"""The state of a run after a round, on disk: one file, whole or absent."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.numpy

from asterion_server.round_log import append_rounds, read_rounds
from asterion_shared.errors import PlanMismatchError
from asterion_shared.files import write_atomically
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.result import RoundResult, SiteSummary

LOG = "rounds.jsonl"
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
        rounds: results so far, round 0 first. All but the last stand in ``rounds.jsonl``.
        log_bytes: how much of that file holds; :func:`store` and :func:`load_latest` tell.
        cohort: how a simulation forms its numbers; empty when live.
        sites: what each site said of its data, as :func:`sites_text` writes it: thousands of
            sites seldom change from round to round.
        started: when the run began, UTC, ISO 8601.
    """

    run: str
    plan_sha256: str
    round: int
    weights: Vector
    rounds: tuple[RoundResult, ...]
    sites: str
    started: str
    strategy: dict[str, Vector] = field(default_factory=dict)
    cohort: dict[str, str | int] = field(default_factory=dict)
    log_bytes: int = 0
    logged: int = 0
    """Rounds that stand in the first ``log_bytes``."""


def sites_text(sites: Iterable[SiteSummary]) -> str:
    """What sites said of their data, one JSON line each."""
    return "\n".join(site.model_dump_json() for site in sites)


def read_sites(text: str) -> tuple[SiteSummary, ...]:
    """The opposite of :func:`sites_text`."""
    return tuple(SiteSummary.model_validate_json(line) for line in text.splitlines())


def store(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Write a checkpoint atomically; the one before it is kept, older ones are removed.

    Returns:
        The same with its log's new length, for the next one.

    Raises:
        DiskProblemError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = checkpoint.rounds[checkpoint.logged : -1]
    log_bytes = append_rounds(folder / LOG, checkpoint.log_bytes, final)
    facts = {
        "run": checkpoint.run,
        "plan_sha256": checkpoint.plan_sha256,
        "round": checkpoint.round,
        "log_bytes": log_bytes,
        "last": checkpoint.rounds[-1].model_dump_json(),
        "started": checkpoint.started,
        "cohort": checkpoint.cohort,
    }
    arrays = {f"{STRATEGY_PREFIX}{name}": a for name, a in checkpoint.strategy.items()}
    data = safetensors.numpy.save(
        arrays | {"weights": checkpoint.weights},
        metadata={"facts": json.dumps(facts), "sites": checkpoint.sites},
    )
    write_atomically(folder / f"round-{checkpoint.round:06d}.safetensors", data)
    for path in sorted(folder.glob("round-*.safetensors"))[:-2]:
        path.unlink()
    return replace(checkpoint, log_bytes=log_bytes, logged=len(checkpoint.rounds) - 1)


def load_latest(folder: Path, run: str, plan: Plan) -> Checkpoint | None:
    """The newest checkpoint of a run, or None when there is none.

    Raises:
        PlanMismatchError: the folder holds another run, or the same one with another plan.
    """
    newest = max(folder.glob("round-*.safetensors"), default=None)
    if newest is None:
        return None
    with safetensors.safe_open(newest, framework="numpy") as file:
        metadata = file.metadata() or {}
        facts = json.loads(metadata["facts"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if (facts["run"], facts["plan_sha256"]) != (run, plan.sha256):
        msg = (
            f"{folder.parent} holds run {facts['run']!r} with plan {facts['plan_sha256'][:12]}, "
            f"not {run!r} with plan {plan.sha256[:12]}; choose another folder or run name, or "
            "take back the change to the plan"
        )
        raise PlanMismatchError(msg)
    earlier = read_rounds(folder / LOG, facts["log_bytes"])
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
        rounds=(*earlier, RoundResult.model_validate_json(facts["last"])),
        sites=metadata["sites"],
        started=facts["started"],
        cohort=facts["cohort"],
        log_bytes=facts["log_bytes"],
        logged=len(earlier),
    )
