"""The page of the releases: each model's versions, and models of runs that are not released yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.console.runs_page import badge, link_to_run
from asterion_server.keys import Provisioned
from asterion_server.release_gate import gate_problems
from asterion_server.release_registry import Model, Registry, Released
from asterion_server.release_run import Chosen, as_of
from asterion_server.release_settings import GateSettings, release_settings_in
from asterion_server.run_queue import launched_runs
from asterion_shared.console.rendering import clock
from asterion_shared.errors import AsterionError
from asterion_shared.reports.metric_words import headline_metric, label, number
from asterion_shared.result import Result

HEAD = ("version", "state", "maturity", "reached", "worst site", "of run", "made")
MOST_RUNS = 20
"""Runs with a model that is not released that are offered, the newest first."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model as the page shows it.

    Attributes:
        name: of the model.
        rows: a version each, the newest first.
        others: versions that can be promoted, the newest first.
        before: the version that a roll-back goes to; None where there is none.
        held: why the gate held versions back, in words.
    """

    name: str
    rows: list[tuple[str | Markup, ...]]
    others: list[int]
    before: int | None
    held: list[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a run that is not released.

    Attributes:
        run: its name.
        chosen: whether it is the run's last model or its best.
        which: the same in words.
        reached: its headline metric in words.
        reasons: why the gate would hold it back.
    """

    run: str
    chosen: Chosen
    which: str
    reached: str
    reasons: list[str]


def releases_values(made: Provisioned, looks: RunLooks) -> dict[str, Any]:
    """What the template ``releases.html.j2`` shows.

    Raises:
        FileProblemError: the registry cannot be read.
    """
    models = Registry(made.releases).models()
    released = {v.model_sha256 for model in models.values() for v in model.versions.values()}
    problem, candidates = "", list[Candidate]()
    try:
        candidates = _candidates(made, looks, released)
    except AsterionError as error:
        problem = str(error)
    return {
        "head": HEAD,
        "models": [_view(model) for model in models.values()],
        "candidates": candidates,
        "problem": problem,
        "folder": f"{made.folder.resolve().name}/{made.releases.name}",
    }


def _view(model: Model) -> ModelView:
    newest = [model.versions[n] for n in sorted(model.versions, reverse=True)]
    return ModelView(
        name=model.name,
        rows=[_row(model, version) for version in newest],
        others=[v.version for v in newest if v.version != model.current and not v.held_back],
        before=model.in_use[-2] if len(model.in_use) > 1 else None,
        held=[f"Version {v.version} was held back: {why}" for v in newest for why in v.held_back],
    )


def _row(model: Model, version: Released) -> tuple[str | Markup, ...]:
    state: str | Markup = "not in use"
    if version.held_back:
        state = badge("held back", "lost")
    elif version.version == model.current:
        state = badge("in use", "")
    return (
        str(version.version),
        state,
        version.maturity,
        f"{label(version.metric)} {number(version.value)}",
        number(version.worst_site),
        link_to_run(version.run),
        clock(version.at),
    )


def _candidates(made: Provisioned, looks: RunLooks, released: set[str]) -> list[Candidate]:
    gate = release_settings_in(made.folder).gate
    found: dict[str, list[Candidate]] = {}
    for folder in reversed(launched_runs(made)):
        look = looks.look(folder)
        if isinstance(look, RunLook) and not look.goes_on:
            models = list(_models(look, gate, released))
            found |= {look.name: models} if models else {}
        if len(found) == MOST_RUNS:
            break
    return [candidate for models in found.values() for candidate in models]


def _models(look: RunLook, gate: GateSettings, released: set[str]) -> Iterator[Candidate]:
    result = look.result
    metric, last, best = headline_metric(result.task), result.final_model, result.best_model
    choices: list[tuple[Chosen, str, Result]] = []
    if last is not None and last.sha256 not in released:
        choices.append(("final", "last model", result))
    if best is not None and best.round > 0 and best.sha256 not in {*released, last and last.sha256}:
        choices.append(("best", f"best model, of round {best.round}", as_of(result, best.round)))
    for chosen, which, so_far in choices:
        yield Candidate(
            run=look.name,
            chosen=chosen,
            which=which,
            reached=f"{label(metric)} {number(so_far.final_metrics.get(metric))}",
            reasons=[str(problem) for problem in gate_problems(so_far, look.plan, gate)],
        )
