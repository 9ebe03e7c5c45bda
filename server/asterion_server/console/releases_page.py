"""The page of the releases: each model's versions, and runs whose model is not released yet."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.console.runs_page import badge, link_to_run
from asterion_server.keys import Provisioned
from asterion_server.release_gate import gate_problems
from asterion_server.release_registry import Model, Registry, Released
from asterion_server.release_settings import release_settings_in
from asterion_server.run_queue import launched_runs
from asterion_shared.console.rendering import clock
from asterion_shared.errors import AsterionError
from asterion_shared.reports.metric_words import headline_metric, label, number

HEAD = ("version", "state", "called", "reached", "worst site", "of run", "made")
MOST_RUNS = 20
"""Runs without a release that are offered, the newest first."""


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
    """A run whose model is not released.

    Attributes:
        name: of the run.
        reached: its headline metric in words.
        has_best: whether an earlier round was better than the last.
        reasons: why the gate would hold its last model back.
    """

    name: str
    reached: str
    has_best: bool
    reasons: list[str]


def releases_values(made: Provisioned, looks: RunLooks) -> dict[str, Any]:
    """What the template ``releases.html.j2`` shows.

    Raises:
        FileProblemError: the registry cannot be read.
    """
    models = Registry(made.releases).models()
    released = {v.run for model in models.values() for v in model.versions.values()}
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
        "folder": str(made.releases),
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
    state: str | Markup = ""
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
    found = []
    for folder in reversed(launched_runs(made)):
        look = looks.look(folder)
        if not isinstance(look, RunLook) or look.goes_on or look.name in released:
            continue
        if look.result.final_model is None:
            continue
        metric = headline_metric(look.result.task)
        best = look.result.best_model
        found.append(
            Candidate(
                name=look.name,
                reached=f"{label(metric)} {number(look.result.final_metrics.get(metric))}",
                has_best=best is not None and best.sha256 != look.result.final_model.sha256,
                reasons=[str(problem) for problem in gate_problems(look.result, look.plan, gate)],
            )
        )
        if len(found) == MOST_RUNS:
            break
    return found
