"""The brackets of the studies on real data: one table, with intervals, and what was tried."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asterion_shared.bracket_result import Bracket, Estimate, MetricName
from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan, read_plan
from asterion_shared.reports.metric_words import label, number
from asterion_sim.bracket import run_bracket, seeds_of
from asterion_sim.bracket_table import bracket_table
from asterion_sim.bracket_words import algorithm_words
from asterion_sim.plan_values import Values, changed
from asterion_sim.studies import LOG_WIDTH, PLANS, STUDIES
from asterion_sim.virtual_cohort import read_virtual_sites

FEDAVG, FEDPROX = "fedavg", "fedprox:mu=0.01"
MOMENTUM = "local.amount=10,flower_strategy=FedAvgM,flower_arguments.server_momentum=0.5"
"""Rounds of ten steps, and momentum at the centre; the number of rounds is the study's own."""

NUM_SEEDS = 5
_CURVE_POINTS = 4
"""Measurements of the model as training goes on, for the curves."""


@dataclass(frozen=True, slots=True)
class BracketStudy:
    """One study as a bracket.

    Attributes:
        name: of the study, and of its plan.
        metric: which is compared.
        algorithms: the first is the recommended one, chosen on validation cases cut out of the
            sites' training data (``docs/bracket.md``); the test had no part in it. For radio
            nothing was chosen: plain FedAvg stands first.
        at_least: share of pooled that the recommended one must reach; None: no bar.
        changes: what differs from the study's own plan, by dotted path.
    """

    name: str
    metric: MetricName
    algorithms: tuple[str, ...]
    at_least: float | None = None
    changes: Values = field(default_factory=dict)


BRACKET_STUDIES: tuple[BracketStudy, ...] = (
    BracketStudy("hippocampus", "dice", (FEDPROX, FEDAVG), 0.97),
    BracketStudy(
        "sky_noise", "dice", (f"fedavg:rounds.count=40,{MOMENTUM}", FEDAVG, FEDPROX), 0.97
    ),
    BracketStudy("chest", "auroc", (FEDAVG, FEDPROX), 0.97),
    # The study's own plan has the remedy in it; the bracket begins from longer rounds.
    BracketStudy(
        "nuclei",
        "dice",
        (f"fedavg:rounds.count=32,{MOMENTUM}", FEDAVG, FEDPROX),
        changes={"rounds.count": 8, "local.amount": 40, "algorithm": {}},
    ),
    BracketStudy("radio", "accuracy", (FEDAVG, FEDPROX)),
)


def run_study_brackets(
    data: Path, out: Path, names: Sequence[str] | None = None, seeds: int = NUM_SEEDS
) -> list[str]:
    """Run the studies' brackets, print one table, and write ``summary.json``.

    Args:
        data: the folder of data sets.
        out: ``out/NAME`` holds a study's bracket; what is finished in it is not repeated.
        names: which studies; absent: all.
        seeds: how many.

    Returns:
        Names of the studies whose recommended algorithm missed its bar.

    Raises:
        UserInputError: a name is not that of a study with a bracket.
        FileProblemError: a data set is missing.
    """
    known = {study.name: study for study in BRACKET_STUDIES}
    if unknown := [name for name in names or () if name not in known]:
        msg = f"no bracket is named {unknown[0]!r}; the brackets are {', '.join(known)}"
        raise UserInputError(msg)
    console = Console()
    if not console.is_terminal:  # a log file has no width of its own
        console = Console(width=LOG_WIDTH)
    brackets: list[tuple[BracketStudy, Bracket]] = []
    for name in names or known:
        bracket = run_study_bracket(known[name], data, out / name, seeds, console)
        console.print(bracket_table(bracket))
        brackets.append((known[name], bracket))
        rows = [row for study, one in brackets for row in summary_rows(study, one)]
        text = json.dumps(rows, indent=1, allow_nan=False)
        write_atomically(out / "summary.json", (text + "\n").encode())
    console.print(summary_table(brackets))
    return [study.name for study, one in brackets if not reached(study, one)]


def run_study_bracket(
    study: BracketStudy, data: Path, out: Path, seeds: int, console: Console
) -> Bracket:
    """Prepare a study's sites and run its bracket.

    Args:
        study: which.
        data: the folder of data sets.
        out: the study's own folder.
        seeds: how many, from the plan's own on.
        console: is told of each arm.
    """
    plan = bracket_plan(study)
    prepare = {one.name: one.prepare for one in STUDIES}[study.name]
    sites = read_virtual_sites(plan, prepare(data, out / "sites"))
    return run_bracket(
        plan,
        sites,
        out,
        algorithms=study.algorithms,
        seeds=seeds_of(plan, seeds),
        metric=study.metric,
        say=lambda line: console.print(f"{study.name}, {line}", style="dim", markup=False),
    )


def bracket_plan(study: BracketStudy) -> Plan:
    """The study's plan, measured often enough for a curve."""
    path = PLANS / f"{study.name}.toml"
    plan = changed(read_plan(path), study.changes, str(path))
    every = max(1, plan.rounds.count // _CURVE_POINTS)
    rounds = plan.rounds.model_copy(update={"evaluate_every": every})
    return plan.model_copy(update={"rounds": rounds})


def reached(study: BracketStudy, bracket: Bracket) -> bool:
    """Whether the recommended algorithm reaches the study's share of pooled."""
    share = bracket.overall.share_of_pooled[study.algorithms[0]].value
    return study.at_least is None or (share is not None and share >= study.at_least)


def summary_rows(study: BracketStudy, bracket: Bracket) -> list[dict[str, object]]:
    """Rows of ``summary.json``, one an algorithm; an interval is ``[low, high]``."""
    overall = bracket.overall
    rows: list[dict[str, object]] = []
    for text in study.algorithms:
        verdicts = [site.versus_own[text].verdict for site in bracket.sites]
        rows.append(
            {
                "study": study.name,
                "metric": bracket.metric,
                "over": bracket.over,
                "algorithm": text,
                "recommended": text == study.algorithms[0],
                "seeds": len(bracket.seeds),
                "own": _plain(overall.own),
                "federated": _plain(overall.federated[text][bracket.over]),
                "pooled": _plain(overall.pooled[bracket.over]),
                "share_of_pooled": _plain(overall.share_of_pooled[text]),
                "gain_over_own": _plain(overall.gain_over_own[text].difference),
                "helps": verdicts.count("helps"),
                "neutral": verdicts.count("neutral"),
                "hurts": verdicts.count("hurts"),
                "at_least": study.at_least,
            }
        )
    return rows


def summary_table(brackets: Sequence[tuple[BracketStudy, Bracket]]) -> Table:
    """One row for each study and algorithm, for the terminal."""
    table = Table(title="brackets: equal local work, 95 % intervals")
    for name in ("study", "algorithm"):
        table.add_column(name)
    for name in ("own (mean of sites)", "federated", "pooled", "of pooled, %",
                 "helps / neutral / hurts"):  # fmt: skip
        table.add_column(name, justify="right")
    for cells in (row for study, bracket in brackets for row in _cells(study, bracket)):
        table.add_row(*(escape(cell) for cell in cells))
    return table


def markdown_table(brackets: Sequence[tuple[BracketStudy, Bracket]]) -> str:
    """The same as a Markdown table; the recommended algorithm in bold."""
    head = ("study", "trained together", "own models", "federated", "pooled",
            "federated / pooled, %", "helps / neutral / hurts (sites)")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    rows += [row for study, bracket in brackets for row in _cells(study, bracket, bold=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(study: BracketStudy, bracket: Bracket, *, bold: bool = False) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row, text in zip(summary_rows(study, bracket), study.algorithms, strict=True):
        overall, name = bracket.overall, algorithm_words(text)
        strong = bold and bool(row["recommended"])
        rows.append((
            f"{study.name}, {label(bracket.metric)}",
            f"**{name}**" if strong else name,
            _told(overall.own),
            _told(overall.federated[text][bracket.over]),
            _told(overall.pooled[bracket.over]),
            _told(overall.share_of_pooled[text], percent=True),
            f"{row['helps']} / {row['neutral']} / {row['hurts']}",
        ))  # fmt: skip
    return rows


def _told(one: Estimate, *, percent: bool = False) -> str:
    if one.value is None or one.low is None or one.high is None:
        return number(one.value)
    if percent:
        return f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _plain(one: Estimate) -> dict[str, object]:
    interval = None if one.low is None else [one.low, one.high]
    return {"value": one.value, "interval": interval, "num_undefined": one.num_undefined}
