"""What a release is made from: a run that has ended, with its model, plan, result and approval."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asterion_server.run_folder import RunFolder
from asterion_shared.errors import FileProblemError, OrderRefusedError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.release.sealing import sha256_of
from asterion_shared.result import BestModel, Result, read_result
from asterion_shared.signed_plan import PlanSignature, check_signature, read_operator_keys
from asterion_shared.tensor_files import map_tensors

AGAIN = "launch the run again, which writes it anew"
Chosen = Literal["final", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A run that gave a model.

    Attributes:
        folder: of the run.
        plan: that was carried out.
        result: what it did; where an earlier model than the last is chosen, only up to its round,
            with that model's metrics as the final ones.
        chosen: whether it is the run's last model or its best.
        model: the weights' file.
        rounds: of training behind them, >= 1.
        sites: names of those whose reports are in the model, sorted.
        signature: under the plan; None when nobody signed.
        signature_holds: whether it is the key's that the coordinator has of that operator.
    """

    folder: RunFolder
    plan: Plan
    result: Result
    chosen: Chosen
    model: Path
    rounds: int
    sites: tuple[str, ...]
    signature: PlanSignature | None
    signature_holds: bool


def read_trained(folder: RunFolder, operators: Path, chosen: Chosen = "final") -> TrainedRun:
    """Read a run that has ended, and see to it that its files belong together.

    Args:
        folder: the run's.
        chosen: its last model, or the one with the highest pooled headline metric.
        operators: folder with the operators' public keys.

    Raises:
        UserInputError: there is no such run, it goes on, or it trained no such model.
        FileProblemError: a file is missing, or is not the one that the result names.
        SettingsError: a file was edited and does not hold.
    """
    name = folder.path.name
    if not folder.launch_file.exists():
        msg = f"there is no run {name!r}; asterion server status lists the runs"
        raise UserInputError(msg)
    if folder.is_carried_out or not folder.result.exists():
        msg = f"run {name!r} has not ended; release it when asterion server status says finished"
        raise UserInputError(msg)
    plan, result = folder.read_plan(), read_result(folder.result)
    if sha256_of(folder.plan_file) != result.plan_sha256:
        raise FileProblemError(folder.plan_file, "is not the plan of the result", AGAIN)
    file = result.final_model if chosen == "final" else result.best_model
    if plan.kind != "train" or file is None:
        which = "" if chosen == "final" else " of which it is known that it is the best"
        msg = (
            f"run {name!r} ({plan.kind}, {result.status.replace('_', ' ')}) made no model{which}; "
            "there is none to release"
        )
        raise UserInputError(msg)
    if isinstance(file, BestModel) and file.round == 0:
        msg = f"the best model of run {name!r} is the one it began from; train longer"
        raise UserInputError(msg)
    model = folder.path / file.path
    if sha256_of(model) != file.sha256:
        raise FileProblemError(model, "is not the model of the result", AGAIN)
    said = json.loads(map_tensors(model).metadata.get("asterion", "{}"))
    rounds = int(said.get("round", 0))
    if (said.get("run"), said.get("plan_sha256")) != (result.run, result.plan_sha256) or not rounds:
        raise FileProblemError(model, "does not say that it is this run's", AGAIN)
    signature = folder.read_signature()
    return TrainedRun(
        folder=folder,
        plan=plan,
        result=as_of(result, rounds),
        chosen=chosen,
        model=model,
        rounds=rounds,
        sites=_trained_with(result, rounds),
        signature=signature,
        signature_holds=_holds(signature, plan, name, operators),
    )


def as_of(result: Result, rounds: int) -> Result:
    """The result as it would be with the model of a round as the last one.

    The calibration of single sites is known of the last model alone.

    Args:
        result: of the run.
        rounds: number of the round; one that the result does not have leaves it as it is.
    """
    last = next((r for r in result.rounds if r.round == rounds), None)
    if last is None or rounds == max(r.round for r in result.rounds):
        return result
    until = tuple(r for r in result.rounds if r.round <= rounds)
    changes: dict[str, Any] = {
        "rounds": until,
        "final_metrics": dict(last.pooled),
        "final_calibration": last.calibration,
        "site_calibration": {},
        "decisions": last.decisions,
    }
    return result.model_copy(update=changes)


def _trained_with(result: Result, rounds: int) -> tuple[str, ...]:
    """Sites with a report in one of the rounds behind the model."""
    behind = [r for r in result.rounds if 0 < r.round <= rounds]
    return tuple(sorted({site for r in behind for site in (*r.answered, *r.carried, *r.released)}))


def _holds(signature: PlanSignature | None, plan: Plan, run: str, operators: Path) -> bool:
    """Whether an operator's signature is his, by the key that was enrolled; as of its own day."""
    if signature is None:
        return False
    try:
        keys = read_operator_keys(operators, (signature.operator,))
        check_signature(signature, plan, run, keys, signature.signed_at)
    except (FileProblemError, OrderRefusedError):
        return False
    return True
