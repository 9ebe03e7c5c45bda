"""A run's numbers as other tools keep them: a name, a step and a value each.

Only numbers and the plan: no picture and no file of a run goes to another tool.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asterion_shared.errors import UserInputError
from asterion_shared.events import RoundFinished, RunFinished, RunStarted, read_events
from asterion_shared.plan import TaskName
from asterion_shared.reports.metric_words import headline_metric
from asterion_shared.result import Result, RoundResult, read_result

MOST_SITES = 30
"""Sites whose numbers are written one by one; of more, their quantiles."""

Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Which run it is.

    Attributes:
        run: its identity.
        name: the plan's name.
        task: what it learns.
    """

    run: str
    name: str
    task: TaskName


Told = Begun | RoundResult | Result


def numbers_of(round_: RoundResult, task: TaskName) -> dict[str, float]:
    """The numbers of one round by name; those that are not known are left out.

    ``pooled/dice``, ``site/north/dice``, ``site/north/train_loss``; of more than 30 sites
    ``sites/median/dice`` and the like; ``train_loss``, ``seconds``, ``bytes_up`` of the round.
    """
    metric = headline_metric(task)
    whole: dict[str, float | None] = {f"pooled/{name}": v for name, v in round_.pooled.items()}
    whole |= _by_site({s: m.get(metric) for s, m in round_.sites.items()}, metric)
    losses = {site: round_.outcomes[site].train_loss for site in round_.answered}
    whole |= _by_site(losses, "train_loss")
    whole |= {
        "train_loss": round_.train_loss,
        "update_norm": round_.update_norm,
        "clip_norm": round_.clip_norm,
        "seconds": round_.seconds,
        "bytes_down": round_.bytes_down,
        "bytes_up": round_.bytes_up,
        "asked": len(round_.asked),
        "answered": len(round_.answered),
        "missing": len(round_.missing),
    }
    return {n: float(v) for n, v in whole.items() if v is not None and math.isfinite(v)}


def _by_site(values: Mapping[str, float | None], what: str) -> dict[str, float | None]:
    if len(values) <= MOST_SITES:
        return {f"site/{site}/{what}": value for site, value in values.items()}
    known = [value for value in values.values() if value is not None]
    if not known:
        return {}
    ends = np.quantile(known, (0.1, 0.5, 0.9)).tolist()
    return {f"sites/{n}/{what}": v for n, v in zip(("tenth", "median", "ninetieth"), ends,
                                                   strict=True)}  # fmt: skip


def final_numbers(result: Result) -> dict[str, float]:
    """What is known at the end alone: the final metrics and the privacy spent."""
    values = {f"final/{name}": value for name, value in result.final_metrics.items()}
    if result.privacy_account is not None:
        values["epsilon"] = result.privacy_account.epsilon
    return {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}


def told_by_result(result: Result) -> Iterator[Told]:
    """A finished run as it would have been told while it went on."""
    yield Begun(run=result.run, name=result.name, task=result.task)
    yield from result.rounds
    yield result


def told_by_run(
    folder: Path, *, follow: bool, poll_seconds: float = 2.0, sleep: Sleep = time.sleep
) -> Iterator[Told]:
    """What a run's folder tells: its start, each round once it is measured, its end.

    A round that was measured again after an interruption comes again.

    Args:
        folder: of the run, with ``result.json`` or, while it goes on, ``events.jsonl``.
        follow: wait for what comes until the run ends.
        poll_seconds: between two looks.
        sleep: waits that long.

    Raises:
        UserInputError: the folder has neither file; or the run ended without a result.
        FileProblemError: a file is broken.
    """
    result, events = folder / "result.json", folder / "events.jsonl"
    if not events.exists() and result.exists():
        yield from told_by_result(read_result(result))
        return
    if not events.exists() and not (follow and folder.is_dir()):
        msg = f"{folder} has neither result.json nor events.jsonl; name a run's folder"
        raise UserInputError(msg)
    seen, rounds = 0, dict[int, RoundResult]()
    while True:
        is_over = (folder / "problem.json").exists()  # looked at before the last events are read
        found = read_events(events)
        for event in found[seen:]:
            if isinstance(event, RunStarted):
                yield Begun(run=event.run, name=event.plan, task=event.task)
            elif isinstance(event, RoundFinished):
                one = event.round_result
                if rounds.get(one.round) != one:
                    rounds[one.round] = one
                    yield one
            elif isinstance(event, RunFinished):
                yield event.result
                if event is found[-1]:
                    return
        seen = len(found)
        if not follow:
            return
        if is_over:
            msg = f"the run in {folder} ended early; asterion server status says why"
            raise UserInputError(msg)
        sleep(poll_seconds)
