"""A coordinator's folder with a run that has ended, made by hand."""

import json
from pathlib import Path
from typing import Any

from tests.papers import provisioned
from tests.release.conftest import small_plan

from asterion_server.keys import Provisioned
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.events import RunFinished, append_event
from asterion_shared.files import write_atomically
from asterion_shared.parameters import layout_of, named_parts, read_vector
from asterion_shared.plan import Plan
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import (
    BestModel,
    FinalModel,
    Result,
    RoundResult,
    SiteOutcome,
    SiteSummary,
    write_result,
)
from asterion_shared.tasks import initial_model
from asterion_shared.tensor_files import write_tensors
from asterion_sim.local_federation import signed_here

SITES = ("east", "north", "south")
RUN = "cells-2026"
WORST = 0.71


def metrics(dice: float) -> dict[str, float | None]:
    return {"dice": dice, "dice_low": dice - 0.03, "dice_high": dice + 0.03, "iou": dice - 0.1,
            "hd95_mm": None, "num_cases": 12.0, "baseline/dice": 0.01}  # fmt: skip


def a_round(number: int, pooled: float, worst: float, answered: tuple[str, ...]) -> RoundResult:
    return RoundResult(
        round=number,
        asked=SITES,
        outcomes={
            s: SiteOutcome(outcome="answered", num_examples=40, num_test=12)
            if s in answered
            else SiteOutcome(outcome="late")
            for s in SITES
        },
        pooled=metrics(pooled),
        sites={s: metrics(worst if s == "south" else pooled) for s in SITES},
    )


def write_model(plan: Plan, path: Path, round_: int, run: str = RUN) -> str:
    network = initial_model(plan.model_copy(update={"seed": plan.seed + round_}))
    layout = layout_of(network, plan.parameters)
    header = {"run": run, "plan_sha256": plan.sha256, "round": str(round_)}
    parts = named_parts(read_vector(network, layout), layout)
    return write_tensors(path, parts, {"asterion": json.dumps(header)})


def coordinator_with_run(
    where: Path, plan: Plan | None = None, run: str = RUN, **changes: Any
) -> Provisioned:
    """A run of 3 rounds, of which round 2 is the best; site north answered in round 1 alone."""
    plan = plan or small_plan(rounds={"count": 3})
    made = provisioned(where / "coordinator", ["127.0.0.1"], SITES)
    add_run(made, plan, run, **changes)
    return made


def add_run(made: Provisioned, plan: Plan, run: str, **changes: Any) -> RunFolder:
    folder = RunFolder(made.runs / run)
    rounds = (
        a_round(0, 0.02, 0.01, SITES),
        a_round(1, 0.60, 0.50, SITES),
        a_round(2, 0.86, 0.80, ("east", "south")),
        a_round(3, 0.82, WORST, ("east", "south")),
    )
    last = write_model(plan, folder.path / "model.safetensors", 3, run)
    best = write_model(plan, folder.path / "best.safetensors", 2, run)
    values: dict[str, Any] = {
        "run": run, "name": plan.name, "kind": "train", "task": plan.task,
        "plan_sha256": plan.sha256, "status": "finished", "started": "2026-11-20T08:00:00Z",
        "finished": "2026-11-20T09:30:00Z", "carrier": "link", "versions": {"torch": "2.13.0"},
        "rounds_planned": 3, "rounds": rounds, "final_metrics": rounds[-1].pooled,
        "final_model": FinalModel(path="model.safetensors", sha256=last),
        "best_model": BestModel(
            path="best.safetensors", sha256=best, round=2, metric="dice", value=0.86
        ),
        "sites": tuple(
            SiteSummary(name=s, num_examples=40, num_test=12, num_bad_files=int(s == "south"))
            for s in SITES
        ),
    }  # fmt: skip
    result = write_result(Result(**values | changes), folder.result)
    write_report(result, folder.report, plan=plan)
    append_event(folder.events, RunFinished(result=result))
    write_atomically(folder.plan_file, plan.canonical().encode())
    folder.write_launch(Launch(sites=SITES))
    signature = signed_here(made.folder, plan, run)
    write_atomically(folder.signature_file, signature.model_dump_json().encode())
    return folder
