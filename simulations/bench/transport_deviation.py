"""How far studies end from their float32 result when updates are rounded, seed by seed.

Every form of ``[transport] update`` is run with the same seeds, so that a difference has no other
cause than the rounding, with error feedback and without. Beside the differences stands how much
the float32 result itself varies: with the seed, and with an engine that computes the same in
another order. Prints the table for ``docs/performance.md`` and writes
``transport_deviation.json``::

    python simulations/bench/transport_deviation.py --data DATA
    python simulations/bench/transport_deviation.py --data DATA --problems heart --seeds 2
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from asterion_shared.parameters import layout_of
from asterion_shared.plan import Plan, read_plan
from asterion_shared.tasks import initial_model
from asterion_shared.transport_settings import RoundedKind, UpdateKind
from asterion_shared.update_codec import num_scales
from asterion_sim import prepare_chest, prepare_heart
from asterion_sim.engines.choice import EngineWish, KernelName
from asterion_sim.plan_values import Values, changed
from asterion_sim.simulate import simulate
from asterion_sim.studies import PLANS
from asterion_sim.virtual_cohort import VirtualSites, read_virtual_sites
from bench.measuring import say
from bench.workloads import BENCH_FOLDER


@dataclass(frozen=True, slots=True)
class Problem:
    """A study's plan, with some of its values changed.

    Attributes:
        study: its name.
        prepare: writes the sites' folders.
        metric: what is compared, of the final model over all sites.
        changes: values by dotted path.
    """

    study: str
    prepare: Callable[[Path, Path], list[Path]]
    metric: str
    changes: Values


SGD: Values = {
    "local.optimiser": "sgd", "local.momentum": 0.9, "local.learning_rate": 0.02,
}  # fmt: skip
PROBLEMS: Mapping[str, Problem] = {
    "heart": Problem("heart", prepare_heart.prepare, "auroc", {}),
    "chest": Problem("chest", prepare_chest.prepare, "auroc", {}),
    "chest, SGD": Problem("chest", prepare_chest.prepare, "auroc", SGD),
}


@dataclass(frozen=True, slots=True)
class Form:
    """How updates are formed and sent.

    Attributes:
        update: the plan's ``transport.update``.
        feedback: the plan's ``transport.error_feedback``.
        kernel: of the engine; any but ``sequential`` differs in the last digits of each update,
            which shows how far training carries a difference of no meaning.
    """

    update: UpdateKind
    feedback: bool = True
    kernel: KernelName = "sequential"


EXACT = Form("float32")
FORMS = (
    EXACT,
    Form("float32", kernel="vectorised"),
    *(Form(kind, feedback) for kind in get_args(RoundedKind) for feedback in (True, False)),
)
BYTES: Mapping[UpdateKind, int] = {"float32": 4, "bf16": 2, "int8": 1}


def final_metric(problem: Problem, plan: Plan, sites: VirtualSites, form: Form, out: Path) -> float:
    """The metric of a plan's finished run.

    Args:
        problem: names the metric.
        plan: what is run.
        sites: the study's.
        form: names the engine.
        out: folder of the run; what is there is removed, before and after.
    """
    shutil.rmtree(out, ignore_errors=True)
    wish = EngineWish(kernel=form.kernel, over="here")
    value = simulate(plan, sites, out, report=False, wish=wish).final_metrics[problem.metric]
    shutil.rmtree(out)
    if value is None:
        msg = f"{problem.metric} of {plan.name} is undefined"
        raise RuntimeError(msg)
    return float(value)


def with_form(plan: Plan, seed: int, form: Form) -> Plan:
    """The plan with a seed and a form, and measured at its end alone."""
    values = {
        "seed": seed,
        "transport.update": form.update,
        "transport.error_feedback": form.feedback,
        "rounds.evaluate_every": plan.rounds.count,
    }
    return changed(plan, values, plan.name)


def measure(name: str, data: Path, seeds: Sequence[int], out: Path) -> list[dict[str, object]]:
    """All forms of one problem; one row each.

    Args:
        name: of the problem.
        data: the folder of data sets.
        seeds: of the runs, at least two.
        out: folder for the runs.
    """
    problem = PROBLEMS[name]
    plan = changed(read_plan(PLANS / f"{problem.study}.toml"), problem.changes, name)
    sites = read_virtual_sites(plan, problem.prepare(data, out / "sites"))
    size = layout_of(initial_model(plan), plan.parameters).size
    values: dict[Form, list[float]] = {}
    for form in FORMS:
        values[form] = [
            final_metric(problem, with_form(plan, seed, form), sites, form, out / "run")
            for seed in seeds
        ]
        say(f"{name}: {form}: {values[form]}")
    exact = values[EXACT]
    return [
        {
            "problem": name,
            "metric": problem.metric,
            "weights": size,
            **asdict(form),
            "bytes_up": BYTES[form.update] * size + 4 * _num_scales(form, size),
            "values": found,
            "mean": statistics.mean(found),
            "seed_deviation": statistics.stdev(found),
            "mean_difference": statistics.mean(v - e for v, e in zip(found, exact, strict=True)),
            "largest_difference": max(abs(v - e) for v, e in zip(found, exact, strict=True)),
        }
        for form, found in values.items()
    ]


def _num_scales(form: Form, size: int) -> int:
    return 0 if form.update == "float32" else num_scales(form.update, size)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table, a row a form of a problem."""
    head = (
        "| problem | update | feedback | bytes up, a site and round | metric, mean over seeds "
        "| its deviation over seeds | mean difference to float32 | largest |"
    )
    lines = [head, "|" + " --- |" * 8]
    for row in rows:
        kind = row["update"]
        feedback = ("yes" if row["feedback"] else "no") if kind != "float32" else "-"
        other = row["kernel"] != EXACT.kernel
        differences = f"{row['mean_difference']:+.4f} | {row['largest_difference']:.4f}"
        if kind == "float32" and not other:
            differences = "- | -"
        lines.append(
            f"| {row['problem']} | {kind}{', another engine' if other else ''} | {feedback} "
            f"| {row['bytes_up']:,} | {row['metric']} {row['mean']:.4f} "
            f"| {row['seed_deviation']:.4f} | {differences} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write ``transport_deviation.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "transport_deviation.json")
    wanted = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in wanted.problems:
        folder = wanted.out.parent / "transport" / name.replace(", ", "-")
        rows += measure(name, wanted.data, range(1, wanted.seeds + 1), folder)
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        wanted.out.write_text(json.dumps(rows, indent=1) + "\n")
    say(table(rows))


if __name__ == "__main__":
    main()
