"""The arms of a bracket: each site alone, pooled, federated; each does the same local work.

Equal local work: a site takes ``rounds.count * local.amount`` optimiser steps (or passes) in all,
with the same batches, the same optimiser and the same restarts of its state, whether it trains
alone or in the federation. The pooled model takes, on all the data, as many as all sites together.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from asterion_client.held_out_scores import Floats, HeldOut, score_units
from asterion_client.local_round import make_workspace
from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.cases import CaseList, SiteData
from asterion_shared.errors import PlanMismatchError, Problem, SettingsError
from asterion_shared.files import write_atomically
from asterion_shared.parameters import from_bytes, write_vector
from asterion_shared.plan import Plan
from asterion_shared.result import Metrics, Result
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim.engines.choice import EngineWish
from asterion_sim.plan_values import (
    changed_plans,
    folder_name,
    parse_assignment,
    parse_value,
    split_values,
)
from asterion_sim.pooling import pool
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualSites

METRICS = ("dice", "auroc", "accuracy")
"""The metrics that a bracket can be formed of."""

_SOURCE = "the bracket"

Kind = Literal["alone", "pooled", "federated", "left out"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training, repeated over the seeds.

    Attributes:
        name: its name, also that of its folder; unique.
        kind: ``left out`` is federated without one site.
        plan: what is run, but for the seed.
        sites: who trains, sorted.
        site: the site that is alone or left out; empty otherwise.
        algorithm: the text that named it; empty unless federated or left out.
    """

    name: str
    kind: Kind
    plan: Plan
    sites: tuple[str, ...]
    site: str = ""
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The model after a round, on held-out cases.

    Attributes:
        round: 0 is the untrained start.
        work: optimiser steps (or passes) that each site has done; of the pooled model, its own
            over the number of sites.
        pooled: metrics over all cases that the arm was measured on.
        sites: metrics by site.
    """

    round: int
    work: float
    pooled: Metrics
    sites: Mapping[str, Metrics]


@dataclass(frozen=True, slots=True)
class Piece:
    """One arm trained with one seed, measured at every site.

    Attributes:
        steps: optimiser steps done, by site that trained.
        curve: rising by round.
        scores: what :func:`asterion_client.held_out_scores.score_units` gave, by site.
    """

    steps: Mapping[str, int]
    curve: tuple[CurvePoint, ...]
    scores: Mapping[str, Floats]


def arms_of(
    plan: Plan, sites: Sequence[str], algorithms: Sequence[str], *, leave_one_site_out: bool
) -> list[Arm]:
    """Every arm of a bracket: pooled, each site alone, each algorithm, each without one site.

    Args:
        plan: its local work is every arm's.
        sites: names of all sites, at least two.
        algorithms: ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``, such as ``fedprox:mu=0.01`` or
            ``fedavg:rounds.count=20,local.amount=10``. A key that does not begin with a section
            of the plan is one of its ``[algorithm]``.
        leave_one_site_out: whether to train each algorithm without each site as well.

    Raises:
        SettingsError: lists every problem of every algorithm; also that one does another amount
            of local work, or that the plan itself does not fix the work.
        UserInputError: a text is not of that form.
    """
    names = tuple(sorted(sites))
    problems = _problems(plan, names, algorithms)
    federated: list[Plan] = []
    try:
        values = [_values(plan, text) for text in algorithms]
        federated = [
            _measured_alike(plan, one) if "rounds.evaluate_every" not in value else one
            for value, one in zip(values, changed_plans(plan, values, _SOURCE), strict=True)
        ]
    except SettingsError as error:
        problems += error.problems
    for text, one in zip(algorithms, federated, strict=False):
        problems += _work_problems(plan, one, text)
    if problems:
        raise SettingsError(_SOURCE, problems)
    local = plan.local
    more = local.amount * (len(names) if local.unit == "steps" else 1)
    alone = plan.model_copy(
        update={
            "algorithm": AlgorithmSettings(),
            "rounds": plan.rounds.model_copy(update={"quorum": 1, "sites_per_round": None}),
        }
    )
    pooled = alone.model_copy(update={"local": local.model_copy(update={"amount": more})})
    arms = [Arm("pooled", "pooled", pooled, names)]
    arms += [Arm(f"alone-{name}", "alone", alone, (name,), name) for name in names]
    for text, one in zip(algorithms, federated, strict=True):
        folder = folder_name(text)
        arms.append(Arm(folder, "federated", one, names, algorithm=text))
        if leave_one_site_out:
            arms += [_left_out(f"{folder}-without-{name}", one, names, name, text)
                     for name in names]  # fmt: skip
    return arms


def train_piece(
    arm: Arm,
    seed: int,
    data: Mapping[str, SiteData],
    held_out: Mapping[str, HeldOut],
    out: Path,
    *,
    wish: EngineWish = SEQUENTIAL,
    plan_folder: Path = Path(),
) -> Piece:
    """Train an arm with a seed and measure it at every site; or read what an earlier call wrote.

    Args:
        arm: what to train.
        seed: the plan's seed in this run: initial weights and the order of the cases.
        data: every site's cases.
        held_out: every site's units.
        out: the piece's own folder; an interrupted training in it goes on.
        wish: which engine trains.
        plan_folder: where the plan's ``init.file`` is looked up.

    Raises:
        PlanMismatchError: the folder holds a piece of another plan or of other test cases.
        QuorumLostError, DiskProblemError: as :func:`asterion_sim.simulate.simulate`.
    """
    plan = arm.plan.model_copy(update={"seed": seed})
    facts = {
        "schema_version": 1,
        "arm": arm.name,
        "plan_sha256": plan.sha256,
        "sites": {name: data[name].manifest_sha256 for name in arm.sites},
        "held_out": {name: units.sha256 for name, units in sorted(held_out.items())},
    }
    written = out / "piece.json"
    if written.exists():
        return _read_piece(written, facts)
    started = time.monotonic()
    run = simulate(
        plan,
        _trainers(arm, data),
        out / "run",
        wish=wish,
        plan_folder=plan_folder,
        report=False,
    )
    workspace = make_workspace(plan)
    weights = from_bytes((out / "run" / "model.safetensors").read_bytes(), workspace.layout)
    write_vector(workspace.model, workspace.layout, weights)
    predict = model_predictor(workspace.model, plan)
    scores = {
        name: score_units(predict, data[name], units, plan)
        for name, units in sorted(held_out.items())
    }
    np.savez(out / "scores.npz", **scores)  # type: ignore[arg-type]  # the stub takes Any or bool
    share = len(arm.sites) if arm.kind == "pooled" and plan.local.unit == "steps" else 1
    values = {
        "facts": facts,
        "scores_sha256": _file_sha256(out / "scores.npz"),
        "steps": _steps(run),
        "curve": [_point(r.round, r.pooled, r.sites, plan.local.amount / share)
                  for r in run.rounds if r.pooled],
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_atomically(written, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    return _read_piece(written, facts)


def _trainers(arm: Arm, data: Mapping[str, SiteData]) -> VirtualSites:
    chosen = {name: data[name] for name in arm.sites}
    if arm.kind != "pooled":
        return VirtualSites(chosen, {})
    tested = [case for site in chosen.values() for case in site.test]
    together = pool(chosen.values())
    everywhere = SiteData(site="pooled", train=together.train, test=CaseList.of(tested))
    return VirtualSites({"pooled": everywhere}, {})


def _left_out(name: str, plan: Plan, sites: tuple[str, ...], site: str, text: str) -> Arm:
    others = tuple(other for other in sites if other != site)
    quorum = min(plan.rounds.quorum, len(others))
    rounds = plan.rounds.model_copy(update={"quorum": quorum})
    return Arm(name, "left out", plan.model_copy(update={"rounds": rounds}), others, site, text)


def _measured_alike(plan: Plan, other: Plan) -> Plan:
    """The other plan measured after the same shares of its work as the plan."""
    every = plan.rounds.evaluate_every * other.rounds.count // plan.rounds.count
    rounds = other.rounds.model_copy(update={"evaluate_every": max(1, every)})
    return other.model_copy(update={"rounds": rounds})


def _values(plan: Plan, text: str) -> dict[str, object]:
    """The plan's values that an algorithm's text changes."""
    name, _, listed = text.partition(":")
    values: dict[str, object] = {
        "algorithm.name": name.strip(),
        "algorithm.mu": 0.0,
        "algorithm.flower_strategy": None,
        "algorithm.flower_arguments": {},
    }
    for part in split_values(listed) if listed else []:
        path, value = parse_assignment(part)
        section, dot, _ = path.partition(".")
        in_plan = dot and section in Plan.model_fields
        values[path if in_plan else f"algorithm.{path}"] = parse_value(value)
    return values


def _problems(plan: Plan, sites: tuple[str, ...], algorithms: Sequence[str]) -> list[Problem]:
    """What stands in the way of equal work, whatever the algorithms are."""
    found: list[Problem] = []
    if len(sites) < 2:
        found.append(Problem(where="sites", what=f"{len(sites)} can serve the plan",
                             fix="a bracket compares at least 2"))  # fmt: skip
    if not algorithms:
        found.append(Problem(where="algorithms", what="none is named", fix="name fedavg"))
    if len({folder_name(text) for text in algorithms}) < len(algorithms):
        what = f"{', '.join(algorithms)} name one twice"
        found.append(Problem(where="algorithms", what=what, fix="name each once"))
    asked = plan.rounds.sites_per_round
    if asked is not None and asked < len(sites):
        what = f"{asked} of {len(sites)} sites are asked, so that sites do unequal work"
        fix = "remove it for the bracket"
        found.append(Problem(where="rounds.sites_per_round", what=what, fix=fix))
    if plan.local.seconds_limit is not None:
        what = f"is {plan.local.seconds_limit:g}: work by the clock is not equal work"
        fix = "remove it for the bracket"
        found.append(Problem(where="local.seconds_limit", what=what, fix=fix))
    if plan.kind != "train":
        what = f"is {plan.kind!r}; a bracket trains"
        found.append(Problem(where="kind", what=what, fix="set kind = 'train'"))
    kept = [t.name for t in make_workspace(plan).layout.kept if t.dtype.startswith("float")]
    if kept:
        what = f"{len(kept)} tensors stay at each site ({kept[0]}, ...), and no other site has them"
        fix = "share them: a bracket measures each model at every site"
        found.append(Problem(where="parameters", what=what, fix=fix))
    return found


def _work_problems(plan: Plan, other: Plan, text: str) -> list[Problem]:
    wanted = plan.rounds.count * plan.local.amount
    does = other.rounds.count * other.local.amount
    found = []
    if does != wanted:
        what = f"a site does {does} {other.local.unit} in all, in the plan {wanted}"
        fix = "let rounds.count * local.amount be the same"
        found.append(Problem(where=text, what=what, fix=fix))
    for name in ("unit", "batch_size", "patches_per_image", "seconds_limit"):
        here, there = getattr(other.local, name), getattr(plan.local, name)
        if here != there:
            what = f"local.{name} is {here}, in the plan {there}"
            found.append(Problem(where=text, what=what, fix="leave it: the work must be equal"))
    for section in ("task", "kind", "data", "model", "evaluation"):
        if getattr(other, section) != getattr(plan, section):
            fix = "leave it: every arm trains the same network on the same data"
            found.append(Problem(where=text, what=f"{section} is changed", fix=fix))
    return found


def _steps(run: Result) -> dict[str, int]:
    steps: dict[str, int] = {}
    for round_ in run.rounds:
        for site, outcome in sorted(round_.outcomes.items()):
            steps[site] = steps.get(site, 0) + outcome.num_steps
    return steps


def _point(number: int, pooled: Metrics, sites: Mapping[str, Metrics], work: float) -> Any:
    return {
        "round": number,
        "work": number * work,
        "pooled": {name: pooled[name] for name in METRICS if name in pooled},
        "sites": {
            site: {name: metrics[name] for name in METRICS if name in metrics}
            for site, metrics in sites.items()
        },
    }


def _read_piece(path: Path, facts: Mapping[str, Any]) -> Piece:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found, scores_path = values["facts"], path.parent / "scores.npz"
    if different := sorted(key for key in facts if found.get(key) != facts[key]):
        msg = (
            f"{path.parent} holds a finished piece with another {' and '.join(different)}; choose "
            "another folder, or remove that one"
        )
        raise PlanMismatchError(msg)
    if _file_sha256(scores_path) != values["scores_sha256"]:
        msg = f"{scores_path} is not the file that was written; remove its folder and run again"
        raise PlanMismatchError(msg)
    with np.load(scores_path, allow_pickle=False) as arrays:
        scores = {name: arrays[name] for name in arrays.files}
    curve = tuple(CurvePoint(**point) for point in values["curve"])
    return Piece(dict(values["steps"]), curve, scores)


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
