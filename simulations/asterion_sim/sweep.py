"""A sweep: one plan with some values varied, a run for each combination, one table."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asterion_shared.errors import Problem, QuorumLostError, SettingsError, UserInputError
from asterion_shared.events import Listener
from asterion_shared.files import write_atomically
from asterion_shared.metrics import HEADLINE
from asterion_shared.plan import Plan
from asterion_shared.reports.metric_words import label, number
from asterion_shared.reports.report_page import lowest_site
from asterion_shared.result import Result, read_result
from asterion_sim.engines.choice import EngineWish
from asterion_sim.plan_values import changed_plans, combinations, folder_name
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualSites

SCHEMA_VERSION = 1
_LONGEST_NAME = 120
_SOURCE = "the sweep"
_FIXED = ("data", "task")
"""Sections that decide how the sites are read, which happens once, before a sweep."""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One combination of values.

    Attributes:
        folder: its folder's name below the sweep's.
        values: what was varied, by dotted path.
        plan: the plan with these values.
    """

    folder: str
    values: Mapping[str, object]
    plan: Plan


def run_sweep(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    vary: Sequence[str],
    *,
    emit: Listener = lambda event: None,
    wish: EngineWish = SEQUENTIAL,
    plan_folder: Path = Path(),
    console: Console | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[tuple[SweepRun, Result]]:
    """Run a plan with every combination of the varied values; print a table, write ``sweep.json``.

    A run that is finished is not repeated, one that was interrupted goes on. A run that loses its
    quorum (every site diverges under a large learning rate) is recorded, and the others go on.

    Args:
        plan: what is not varied.
        sites: the virtual sites, the same for all runs.
        out: folder of the sweep; each run has one of its own in it, named by its values.
        vary: ``PATH=VALUE,VALUE,...``, such as ``algorithm.mu=0,0.01,0.1``.
        emit: is told of each event of each run.
        wish: which engine.
        plan_folder: where the plan's ``init.file`` is looked up.
        console: where the table is printed; absent: nowhere.
        say: is told of each run as it begins, and of each that is skipped.

    Returns:
        Each run with its result, in order.

    Raises:
        SettingsError: lists every problem of every combination, before anything runs.
        UserInputError: nothing is varied, a path twice, a value twice.
        PlanMismatchError, DiskProblemError: as ``simulate``.
    """
    runs = sweep_runs(plan, vary)
    done: list[tuple[SweepRun, Result]] = []
    for number_, run in enumerate(runs, start=1):
        folder, beginning = out / run.folder, f"run {number_} of {len(runs)}: {run.folder}"
        finished = _finished(run, folder / "result.json")
        say(f"{beginning}{' is finished already' if finished else ''}")
        if finished is None:
            finished = _simulate(run, sites, folder, emit, wish, plan_folder)
        done.append((run, finished))
        _write(plan, len(runs), done, out / "sweep.json")
    if console is not None:
        console.print(sweep_table(plan, done))
    return done


def sweep_runs(plan: Plan, vary: Sequence[str]) -> list[SweepRun]:
    """The runs of a sweep, all of them checked.

    Raises:
        SettingsError, UserInputError: as :func:`run_sweep`.
    """
    every = combinations(vary)
    if not vary:
        msg = "nothing is varied; give --vary PATH=VALUE,VALUE"
        raise UserInputError(msg)
    fixed = sorted({path for path in every[0] if path.partition(".")[0] in _FIXED})
    if fixed:
        fix = "write a plan for each: the sites are read once, before the sweep"
        problems = [Problem(where=path, what="cannot be varied", fix=fix) for path in fixed]
        raise SettingsError(_SOURCE, problems)
    plans = changed_plans(plan, every, _SOURCE)
    runs = [SweepRun(_name(values), values, one) for values, one in zip(every, plans, strict=True)]
    seen: dict[str, SweepRun] = {}
    for run in runs:
        if run.plan.sha256 in seen:
            msg = f"{run.folder} and {seen[run.plan.sha256].folder} are the same plan; list it once"
            raise UserInputError(msg)
        seen[run.plan.sha256] = run
    return runs


def sweep_table(plan: Plan, done: Sequence[tuple[SweepRun, Result]]) -> Table:
    """One row a run: the varied values, the headline metric, the lowest site."""
    metric = HEADLINE[plan.task]
    table = Table(
        title=f"{plan.name}: {len(done)} runs", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for path in done[0][0].values if done else ():
        table.add_column(escape(path), justify="right")
    for head in (label(metric), "mean of sites", "lowest site"):
        table.add_column(head, justify="right")
    table.add_column("status")
    best = max((_value(result, metric) for _, result in done), default=0.0)
    for run, result in done:
        lowest = lowest_site(result.final_sites, metric)
        table.add_row(
            *(escape(_text(value)) for value in run.values.values()),
            number(result.final_metrics.get(metric)),
            number(_mean_of_sites(result, metric)),
            escape(f"{number(lowest[1])} {lowest[0]}") if lowest else number(None),
            result.status.replace("_", " "),
            style="bold" if _value(result, metric) == best > float("-inf") else "",
        )
    return table


def _simulate(
    run: SweepRun,
    sites: VirtualSites,
    folder: Path,
    emit: Listener,
    wish: EngineWish,
    plan_folder: Path,
) -> Result:
    try:
        return simulate(run.plan, sites, folder, emit=emit, wish=wish, plan_folder=plan_folder)
    except QuorumLostError:
        return read_result(folder / "result.json")  # the loop wrote it, with what happened


def _finished(run: SweepRun, path: Path) -> Result | None:
    """The result of a finished run of the same plan, else None."""
    if not path.exists():
        return None
    result = read_result(path)
    same = result.plan_sha256 == run.plan.sha256 and result.status == "finished"
    return result if same else None


def _write(plan: Plan, num_runs: int, done: Sequence[tuple[SweepRun, Result]], path: Path) -> None:
    metric = HEADLINE[plan.task]
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": plan.name,
        "plan_sha256": plan.sha256,
        "metric": metric,
        "num_runs": num_runs,
        "runs": [
            {
                "folder": run.folder,
                "values": dict(run.values),
                "plan_sha256": run.plan.sha256,
                "status": result.status,
                "headline": result.headline,
                "mean_of_sites": _mean_of_sites(result, metric),
                "final_metrics": result.final_metrics,
                "final_sites": {s: m.get(metric) for s, m in sorted(result.final_sites.items())},
            }
            for run, result in done
        ],
    }
    write_atomically(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def _name(values: Mapping[str, object]) -> str:
    """The folder of a combination; a very long one ends in a hash."""
    whole = folder_name(",".join(f"{path}={_text(value)}" for path, value in values.items()))
    if len(whole) <= _LONGEST_NAME:
        return whole
    return f"{whole[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _mean_of_sites(result: Result, metric: str) -> float | None:
    known = [v for m in result.final_sites.values() if (v := m.get(metric)) is not None]
    return sum(known) / len(known) if known else None


def _value(result: Result, metric: str) -> float:
    value = result.final_metrics.get(metric)
    return float("-inf") if value is None else value
