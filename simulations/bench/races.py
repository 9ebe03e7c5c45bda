"""The races of the benchmark, their bars, and who won; no measuring here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, float]
LOSS_TOLERANCE = {"f32": 1e-3, "bf16": 5e-3}
"""Largest difference between two final losses that still are the same training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """A line of the table.

    Attributes:
        workload: its name.
        dtype: ``f32`` or ``bf16``, on all sides.
        rounds: timed rounds of ours and of pfl, so many that ours are a second and more.
        flower_rounds: timed rounds of Flower.
        pfl_bar: least ratio of pfl's processor time in its best mode to ours; 0: no bar.
        flower_bar: the same over Flower's simulation; of wall time for ``empty``.
    """

    workload: str
    dtype: str
    rounds: int
    flower_rounds: int
    pfl_bar: float
    flower_bar: float

    @property
    def name(self) -> str:
        """Such as ``cnn bf16``."""
        return f"{self.workload} {self.dtype}"


RACES = (
    Race(workload="cnn", dtype="f32", rounds=5, flower_rounds=5, pfl_bar=1.5, flower_bar=3.3),
    Race(workload="cnn", dtype="bf16", rounds=5, flower_rounds=5, pfl_bar=1.8, flower_bar=5.0),
    Race(workload="mlp", dtype="f32", rounds=40, flower_rounds=5, pfl_bar=2.5, flower_bar=25.0),
    Race(workload="logreg", dtype="f32", rounds=150, flower_rounds=5, pfl_bar=5.0,
         flower_bar=45.0),
    Race(workload="unet", dtype="f32", rounds=5, flower_rounds=5, pfl_bar=1.25, flower_bar=2.2),
    Race(workload="empty", dtype="f32", rounds=10, flower_rounds=2, pfl_bar=0.0,
         flower_bar=70.0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a race came to.

    Attributes:
        race: the race.
        row: as ``simulation.json`` has it.
        why_not: why it is not won, for a person; empty when it is.
        sites_per_second: the best of each system by wall time, where it answered.
    """

    race: Race
    row: dict[str, Any]
    why_not: str
    sites_per_second: dict[str, float]


def judge(race: Race, figures: Mapping[str, Mapping[str, Figures]], engine: str) -> Verdict:
    """Compare the medians of a race.

    Args:
        race: its bars.
        figures: medians by system (``ours``, ``pfl``, ``flower``) and runner; a runner that
            failed has none.
        engine: what ``--engine auto`` chose.

    Returns:
        The verdict. pfl's best mode is the one of least processor time. A ratio is None where a
        side is missing, and where the losses differ: then the two did not do the same work.
    """
    ours, pfl, flower = (_cheapest(figures.get(one, {})) for one in ("ours", "pfl", "flower"))
    apart = abs(ours.get("final_loss", math.nan) - pfl.get("final_loss", math.nan))
    same = not race.pfl_bar or apart <= LOSS_TOLERANCE[race.dtype]
    cost = "cpu_ms_per_client"
    ratios = {"over_pfl": _ratio(pfl, ours, cost), "over_flower": _ratio(flower, ours, cost)}
    if race.workload == "empty":
        # Of wall time: more sites a second is less of it.
        ratios["over_flower"] = _ratio(ours, flower, "clients_per_s")
    if not same:
        ratios = dict.fromkeys(ratios)
    row = {
        "workload": race.workload,
        "dtype": race.dtype,
        "engine": engine,
        "ours_cpu_ms": ours.get(cost),
        "pfl_cpu_ms": pfl.get(cost),
        "flower_cpu_ms": flower.get(cost),
        **ratios,
        "final_loss_ours": ours.get("final_loss"),
        "final_loss_pfl": pfl.get("final_loss"),
    }
    speeds = {
        system: max(one["clients_per_s"] for one in answered)
        for system, runners in figures.items()
        if (answered := [one for one in runners.values() if one])
    }
    bars = (("pfl", "over_pfl", race.pfl_bar), ("Flower", "over_flower", race.flower_bar))
    why_not = [
        f"{_digits(ratios[key])} x over {name}, the bar is {bar:g} x"
        for name, key, bar in bars
        if same and bar and (ratios[key] or 0.0) < bar
    ]
    if not same:
        why_not = [f"the losses differ by {apart:.2g}"]
    return Verdict(race, row, "; ".join(why_not), speeds)


def _cheapest(runners: Mapping[str, Figures]) -> Figures:
    answered = [figures for figures in runners.values() if figures]
    return min(answered, key=lambda figures: figures["cpu_ms_per_client"], default={})


def _ratio(upper: Figures, lower: Figures, name: str) -> float | None:
    return upper[name] / lower[name] if upper and lower else None


CAPTION = """\
Processor milliseconds of the whole process tree per site trained; over pfl and over Flower with the
bar in brackets ("empty": ratio of wall time); sites a second of wall time. Medians."""

HEAD = (
    "workload", "ours", "pfl", "Flower", "over pfl", "over Flower", "ours/s", "pfl/s", "Flower/s",
    "loss", "pfl's loss", "won",
)  # fmt: skip


def table(verdicts: Sequence[Verdict]) -> str:
    """The races as text in columns; below, why one is not won."""
    lines = [HEAD, *(_cells(verdict) for verdict in verdicts)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    notes = [f"{one.race.name}: {one.why_not}" for one in verdicts if one.why_not]
    return "\n".join([CAPTION, "", *text, "", *notes])


def _cells(verdict: Verdict) -> tuple[str, ...]:
    race, row, speeds = verdict.race, verdict.row, verdict.sites_per_second
    bars = {"over_pfl": race.pfl_bar, "over_flower": race.flower_bar}
    return (
        race.name,
        *(_digits(row[f"{system}_cpu_ms"]) for system in ("ours", "pfl", "flower")),
        *(f"{_digits(row[key])} ({bar:g})" if bar else "-" for key, bar in bars.items()),
        *(_digits(speeds.get(system)) for system in ("ours", "pfl", "flower")),
        *(_digits(row[f"final_loss_{system}"], 5) for system in ("ours", "pfl")),
        "no" if verdict.why_not else "yes",
    )


def _digits(value: float | None, num_digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{num_digits}g}"
