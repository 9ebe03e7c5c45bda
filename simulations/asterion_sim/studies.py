"""The studies: one plan and one real data set each, federated beside pooled, against a bar."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from rich.console import Console
from rich.table import Table

from asterion_client.local_round import evaluate, make_workspace
from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.cases import SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.metrics import merge, summarise
from asterion_shared.parameters import from_bytes, write_vector
from asterion_shared.plan import Plan, read_plan
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim import (
    prepare_chest,
    prepare_chest_anomaly,
    prepare_heart,
    prepare_hippocampus,
    prepare_nuclei,
    prepare_radio,
    prepare_sky,
    prepare_sky_anomaly,
)
from asterion_sim.pooling import pool
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import VirtualSites, read_virtual_sites

LOG_WIDTH = 140
PLANS = Path(__file__).parents[1] / "studies"

Over = Literal["pooled", "mean of sites", "worst site"]
"""How a study's number is formed from its sites."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that a federated model must reach.

    Attributes:
        metric: flat name, as in ``result.json``.
        at_least: the bar.
        over: from the metrics pooled over all sites, as the plain mean of the sites' own, or as
            the worst of them.
        sites: the sites it is formed over; empty: all.
    """

    metric: str
    at_least: float
    over: Over = "pooled"
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """One plan on one data set.

    Attributes:
        name: its name, and that of its plan in ``simulations/studies``.
        prepare: writes the sites' folders from the folder of data sets.
        bars: what the federated model must reach; one row of the table each.
    """

    name: str
    prepare: Callable[[Path, Path], list[Path]]
    bars: tuple[Bar, ...]


class Row(TypedDict):
    """One row of ``summary.json``.

    ``study`` and ``metric`` name it; ``federated`` and ``pooled`` are the numbers of the two
    models, ``sites`` the federated one's by site; ``seconds`` is the federated run's.
    """

    study: str
    metric: str
    federated: float
    pooled: float
    sites: dict[str, float]
    at_least: float
    seconds: float


STUDIES: tuple[Study, ...] = (
    Study("hippocampus", prepare_hippocampus.prepare, (Bar("dice", 0.78, "mean of sites"),)),
    Study("sky_noise", prepare_sky.prepare, (Bar("dice", 0.60, "mean of sites"),)),
    Study(
        "chest",
        prepare_chest.prepare,
        (Bar("auroc", 0.91), Bar("balanced_accuracy", 0.75)),
    ),
    Study("nuclei", prepare_nuclei.prepare, (Bar("dice", 0.55, "mean of sites"),)),
    Study("heart", prepare_heart.prepare, (Bar("auroc", 0.85),)),
    Study("radio", prepare_radio.prepare, (Bar("accuracy", 0.78),)),
    Study("chest_anomaly", prepare_chest_anomaly.prepare, (Bar("auroc", 0.75),)),
    Study(
        "sky_anomaly",
        prepare_sky_anomaly.prepare,
        (
            Bar("auroc", 0.70, "worst site", ("2mass_j", "2mass_k")),
            Bar("auroc", 0.85, "worst site", ("sdss_r", "spitzer_irac")),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of one model: over all sites together, and by site."""

    pooled: Mapping[str, float | None]
    sites: Mapping[str, Mapping[str, float | None]]


def run_studies(data: Path, out: Path, names: Sequence[str] | None = None) -> list[str]:
    """Run studies, print one table, and write ``summary.json``.

    Args:
        data: the folder of data sets.
        out: folder of the runs (``out/NAME/federated``, ``out/NAME/pooled``) and of the summary.
        names: which studies; absent: all.

    Returns:
        Names of the studies that missed a bar; empty when all is well.

    Raises:
        UserInputError: a name is not that of a study.
        FileProblemError: a data set is missing.
    """
    known = {study.name: study for study in STUDIES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        msg = f"no study is named {unknown[0]!r}; the studies are {', '.join(known)}"
        raise UserInputError(msg)
    console = Console()
    if not console.is_terminal:  # a log file has no width of its own
        console = Console(width=LOG_WIDTH)
    rows: list[Row] = []
    for name in names or known:
        console.print(f"running {name}", style="dim")
        rows += run_study(known[name], data, out / name)
        text = json.dumps(rows, indent=2, allow_nan=False)
        write_atomically(out / "summary.json", (text + "\n").encode())
    console.print(summary_table(rows))
    return sorted({row["study"] for row in rows if row["federated"] < row["at_least"]})


def run_study(study: Study, data: Path, out: Path) -> list[Row]:
    """Prepare a study's sites, train federated and pooled, and measure both at every site.

    Args:
        study: which.
        data: the folder of data sets.
        out: the study's own folder; what an earlier run left there is removed.

    Returns:
        One row a bar.
    """
    shutil.rmtree(out, ignore_errors=True)
    plan = read_plan(PLANS / f"{study.name}.toml")
    sites = read_virtual_sites(plan, study.prepare(data, out / "sites"))
    started = time.monotonic()
    result = simulate(plan, sites, out / "federated")
    seconds = time.monotonic() - started
    federated = Measured(result.final_metrics, result.final_sites)
    pooled = run_pooled(plan, sites.data, out / "pooled")
    return [
        Row(
            study=study.name,
            metric=bar.metric if bar.over == "pooled" else f"{bar.metric} ({bar.over})",
            federated=value_of(bar, federated),
            pooled=value_of(bar, pooled),
            sites=_by_site(bar, federated),
            at_least=bar.at_least,
            seconds=round(seconds, 1),
        )
        for bar in study.bars
    ]


def run_pooled(plan: Plan, sites: Mapping[str, SiteData], out: Path) -> Measured:
    """Train as if all data lay in one place, and measure at every site.

    One virtual site holds every training case; in a round it does as many optimiser steps as all
    sites of the federation together.

    Args:
        plan: the federation's plan.
        sites: the federation's sites.
        out: folder of the run.
    """
    local = plan.local
    steps = local.amount * len(sites) if local.unit == "steps" else local.amount
    alone = plan.model_copy(
        update={
            "local": local.model_copy(update={"amount": steps}),
            "algorithm": AlgorithmSettings(),  # one site has no others to be averaged with
        }
    )
    simulate(alone, VirtualSites({"pooled": pool(sites.values())}, {}), out, report=False)
    workspace = make_workspace(plan)
    weights = from_bytes((out / "model.safetensors").read_bytes(), workspace.layout)
    write_vector(workspace.model, workspace.layout, weights)
    predict = model_predictor(workspace.model, plan)
    statistics = {name: evaluate(predict, site, plan) for name, site in sorted(sites.items())}
    return Measured(
        summarise(merge(statistics.values()), plan),
        {name: summarise(statistic, plan) for name, statistic in statistics.items()},
    )


def value_of(bar: Bar, measured: Measured) -> float:
    """The number that a bar is about.

    Raises:
        UserInputError: the metric was not measured, or is undefined at a site.
    """
    if bar.over == "pooled":
        return _known(measured.pooled.get(bar.metric), bar.metric, "all sites")
    values = [_number(measured, site, bar.metric) for site in _sites(bar, measured)]
    return min(values) if bar.over == "worst site" else sum(values) / len(values)


def summary_table(rows: Sequence[Row]) -> Table:
    """The rows as one table: pooled, federated, worst and best site, seconds."""
    table = Table(title="studies")
    table.add_column("study")
    table.add_column("metric")
    for name in ("pooled", "federated", "at least", "worst site", "best site", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        ordered = sorted(row["sites"].items(), key=lambda item: item[1])
        (worst, lowest), (best, highest) = ordered[0], ordered[-1]
        reached = row["federated"] >= row["at_least"]
        table.add_row(
            row["study"],
            row["metric"],
            f"{row['pooled']:.3f}",
            f"[{'green' if reached else 'red'}]{row['federated']:.3f}",
            f"{row['at_least']:.2f}",
            f"{lowest:.3f} {worst}",
            f"{highest:.3f} {best}",
            f"{row['seconds']:.0f}",
        )
    return table


def _sites(bar: Bar, measured: Measured) -> tuple[str, ...]:
    return bar.sites or tuple(measured.sites)


def _by_site(bar: Bar, measured: Measured) -> dict[str, float]:
    """The metric at each site; a site where it is undefined (one class in its test) is left out."""
    values = {site: measured.sites[site].get(bar.metric) for site in _sites(bar, measured)}
    return {site: float(value) for site, value in values.items() if value is not None}


def _number(measured: Measured, site: str, metric: str) -> float:
    return _known(measured.sites.get(site, {}).get(metric), metric, site)


def _known(value: float | None, metric: str, where: str) -> float:
    if value is None:
        msg = f"{metric} was not measured at {where}; look at that run's result.json"
        raise UserInputError(msg)
    return float(value)
