"""Recorded reality: who was missing, who was late and how long each took, from a file.

A trace is either the ``result.json`` of an earlier run, live or simulated, or JSON lines::

    {"round": 3, "site": "north", "fault": "drop"}
    {"round": 3, "site": "south", "seconds": 12.5}
    {"round": 3, "participants": ["north", "south"]}
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from asterion_shared.errors import FileProblemError, Problem, SettingsError
from asterion_shared.plan import Name
from asterion_shared.result import Result, SiteOutcome, read_result
from asterion_shared.settings_files import Positive, Rule, Settings, rule, validate
from asterion_sim.faults import Fault, FaultSettings, Trace, fault_of


class TraceLine(Settings):
    """One line of a trace: what befell a site in a round, or who was there."""

    round: Annotated[int, Field(ge=0)]
    """The round; 0 is the count before training."""

    participants: tuple[Name, ...] | None = None
    """The sites that took part in the round; any other that is asked is missing."""

    site: Name | None = None
    """The site that the rest of the line is about."""

    fault: Literal["drop", "delay", "crash", "late", "wrong_update", "nan", "scaled"] | None = None
    """As in a scenario's ``[[faults]]``; absent: only its time is known."""

    seconds: Positive | None = None
    """When its report came after the order."""

    factor: float | None = None
    """Of ``scaled``."""

    wrong: Literal["random", "sign_flipped"] = "random"
    """Of ``wrong_update``."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda t: (t.site is None) != (t.participants is None),
            lambda t: "a line is about a site or about participants; give one of the two",
        ),
        rule(
            lambda t: t.site is None or t.fault is not None or t.seconds is not None,
            lambda t: f"site is {t.site!r} and nothing befell it; give fault or seconds",
        ),
        rule(
            lambda t: t.seconds is None or t.fault not in ("drop", "crash", "late"),
            lambda t: f"fault is {t.fault!r} and seconds is given; no report comes: remove it",
        ),
        rule(
            lambda t: t.site is not None or t.fault is t.seconds is t.factor is None,
            lambda t: "participants stands beside a fault; give each its own line",
        ),
    )


def read_trace(path: Path) -> Trace:
    """Read a trace: a ``result.json`` (its name ends in ``.json``), or JSON lines.

    Raises:
        FileProblemError: the file cannot be read, or is a broken ``result.json``.
        SettingsError: lists every line that is wrong.
    """
    if path.suffix == ".json":
        return trace_of_result(read_result(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "is not text in UTF-8"
        raise FileProblemError(path, what, "check the path") from None
    return trace_of_lines(text.splitlines(), str(path))


def trace_of_lines(lines: Iterable[str], source: str = "the trace") -> Trace:
    """Read the lines of a trace; empty lines are skipped.

    Raises:
        SettingsError: lists every line that is wrong, or about what an earlier line said.
    """
    faults: dict[tuple[int, str], Fault] = {}
    participants: dict[int, tuple[str, ...]] = {}
    problems: list[Problem] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"line {number}"
        try:
            line = validate(TraceLine, _object(text), where)
            fault = None if line.site is None else _fault(line, where)
        except SettingsError as error:
            problems += [
                Problem(where=f"{where}: {p.where}", what=p.what, fix=p.fix) for p in error.problems
            ]
            continue
        if line.participants is not None and line.round not in participants:
            participants[line.round] = tuple(sorted(line.participants))
        elif line.site and fault is not None and (line.round, line.site) not in faults:
            faults[line.round, line.site] = fault
        else:
            about = line.site or "the participants"
            what = f"a second line about {about} in round {line.round}"
            problems.append(Problem(where=where, what=what, fix="keep one of them"))
    if problems:
        raise SettingsError(source, problems)
    return Trace(faults, participants)


def trace_of_result(result: Result) -> Trace:
    """What befell every site in every round of a run, so that another run meets the same.

    Sites that answered are given the time they took, so that a replay with a shorter deadline has
    them late; those that were late stay late, as nobody knows when they would have come.
    """
    faults = {
        (round_.round, site): fault
        for round_ in result.rounds
        for site, outcome in round_.outcomes.items()
        if (fault := _recorded(outcome)) is not None
    }
    return Trace(faults, {round_.round: round_.asked for round_ in result.rounds})


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        values = str(error)
    if isinstance(values, dict):
        return values
    problem = Problem(where="all of it", what=f"got {text[:60]!r}", fix="write a JSON object")
    raise SettingsError(text, [problem])


def _fault(line: TraceLine, where: str) -> Fault:
    values = line.model_dump(include={"factor", "wrong"}, exclude_none=True)
    values["kind"] = line.fault or "delay"
    if values["kind"] == "delay" and line.seconds is not None:
        values["seconds"] = line.seconds
    fault = fault_of(validate(FaultSettings, values, where), np.random.default_rng(0))
    return replace(fault, seconds=line.seconds)


def _recorded(outcome: SiteOutcome) -> Fault | None:
    if outcome.outcome == "answered" or outcome.outcome == "quarantined":  # narrows
        return Fault(kind="delay", seconds=outcome.seconds) if outcome.seconds > 0 else None
    if outcome.outcome == "carried":
        return None  # what befell it stands in the round that it was made for
    known = {("late", "", ""): "late", ("failed", "unreachable", ""): "drop",
             ("failed", "unreachable", "training"): "crash"}  # fmt: skip
    kind = known.get((outcome.outcome, outcome.code, outcome.stage), "recorded")
    return Fault(kind=kind, outcome=outcome.outcome, code=outcome.code, stage=outcome.stage)
