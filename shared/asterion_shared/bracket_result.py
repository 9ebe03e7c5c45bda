"""``bracket.json``: does federation help each site? See ``docs/bracket.md`` for every key.

Equal runs give equal bytes: there is no date and no duration in it.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from asterion_shared.files import write_atomically
from asterion_shared.plan import Name, Sha256, TaskName
from asterion_shared.settings_files import Rule, Settings, read_versioned_json, rule, validate

SCHEMA_VERSION: Literal[1] = 1
BRACKET_FILE = "bracket.json"
"""In a bracket's folder, and in that of a run whose report shows it."""

MetricName = Literal["dice", "auroc", "accuracy"]
Over = Literal["mean of sites", "all cases together"]
Verdict = Literal["helps", "neutral", "hurts", "undefined"]
Count = Annotated[int, Field(ge=0)]


class Estimate(Settings):
    """A number with its bootstrap interval; None where undefined."""

    value: float | None
    """Of the sample: the mean over the seeds."""

    low: float | None = None
    """Lower end of the 95 % interval."""

    high: float | None = None
    """Upper end of the 95 % interval."""

    num_undefined: Count = 0
    """Resamples in which it was undefined; the interval is over the others."""


class Comparison(Settings):
    """One model against another at one site, paired by patient and seed."""

    difference: Estimate
    verdict: Verdict
    """``helps``: the whole interval lies above 0; ``hurts``: below; ``neutral``: 0 is inside."""


class SiteBracket(Settings):
    """What each model does on the held-out cases of one site."""

    name: Name
    num_train: Count
    num_test: Count
    manifest_sha256: Sha256 | Literal[""] = ""
    """Hash of the frozen list of records; empty where the site never said."""

    num_units: Count
    """Groups (patients, fields) that were resampled, or blocks of one field."""

    resampled: Literal["groups", "blocks"]
    own: Estimate
    """The model that the site trained alone."""

    pooled: Estimate
    federated: dict[str, Estimate]
    """By algorithm, as all of the following are."""

    versus_own: dict[str, Comparison]
    """Federated minus own."""

    versus_pooled: dict[str, Comparison]
    """Federated minus pooled."""

    left_out: dict[str, Estimate] = Field(default_factory=dict)
    """Federated over the other sites only; empty unless that was asked for."""

    left_out_versus_own: dict[str, Comparison] = Field(default_factory=dict)
    """What a site that did not take part gets, minus its own model."""


class Overall(Settings):
    """The models over all sites."""

    own: Estimate
    """Mean over the sites of each site's own model on its own cases."""

    pooled: dict[Over, Estimate]
    federated: dict[str, dict[Over, Estimate]]
    share_of_pooled: dict[str, Estimate]
    """Federated over pooled, of the way of forming the number that ``over`` names."""

    gain_over_own: dict[str, Comparison]
    """Federated minus own, means of the sites."""


class CurvePoint(Settings):
    """The models of one arm after one round, over the seeds."""

    work: float
    """Optimiser steps, or passes, that each site had done by then."""

    mean: float | None
    low: float | None
    """The lowest of the seeds."""

    high: float | None
    """The highest of the seeds."""

    sites: dict[Name, float | None]
    """The mean over the seeds, by site; only of the sites that the arm measured as it went."""


class ArmFacts(Settings):
    """One way of training."""

    kind: Literal["alone", "pooled", "federated", "left out"]
    algorithm: str = ""
    plan_sha256: Sha256
    """Of the plan with the bracket's first seed."""

    changes: dict[str, Any] = Field(default_factory=dict)
    """What differs from the plan, by dotted path."""

    rounds: Count
    steps: dict[Name, Count]
    """Optimiser steps done in all, by site that trained, with the first seed."""

    curve: tuple[CurvePoint, ...] = ()


class Bracket(Settings):
    """Every model of a bracket at every site."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    """The plan's name."""

    task: TaskName
    plan_sha256: Sha256
    metric: MetricName
    over: Over
    """How the number over all sites is formed that federated and pooled are compared by."""

    seeds: tuple[int, ...]
    algorithms: tuple[str, ...]
    num_resamples: Count
    confidence: float = 0.95
    equal_work: str
    """What was held equal, in words."""

    resampled: str
    """What the intervals are over, in words."""

    sites: tuple[SiteBracket, ...]
    overall: Overall
    heat_map: dict[str, dict[Name, float | None]]
    """Model (``alone-SITE``, ``pooled``, an algorithm's arm) to site to metric, mean of seeds."""

    arms: dict[str, ArmFacts]
    refused: dict[Name, str] = Field(default_factory=dict)
    """Sites that could not serve the plan, with the reason's code."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda b: all(set(s.federated) == set(b.algorithms) for s in b.sites),
            lambda b: "a site lacks an algorithm; run the bracket again",
        ),
    )


def write_bracket(bracket: Bracket, path: Path) -> None:
    """Write ``bracket.json`` atomically.

    Raises:
        DiskProblemError: the disk is full or not writable; an older file is kept.
    """
    text = json.dumps(bracket.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_bracket(path: Path) -> Bracket:
    """Read and validate ``bracket.json``.

    Raises:
        FileProblemError: missing, not JSON, or of another schema version.
        SettingsError: it breaks the schema.
    """
    again = "run the bracket again; what is finished is not repeated"
    values = read_versioned_json(path, SCHEMA_VERSION, again)
    return validate(Bracket, values, str(path))


def bracket_schema() -> dict[str, Any]:
    """JSON schema of ``bracket.json``, for programs in other languages."""
    return Bracket.model_json_schema()
