"""``curve.json``: a plan's headline metric against epsilon, with intervals over the seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.stats import t as student_t

from asterion_shared.files import write_atomically
from asterion_shared.plan import Name, Sha256, TaskName
from asterion_shared.settings_files import Positive, Settings, read_versioned_json, validate

SCHEMA_VERSION: Literal[1] = 1
CONFIDENCE = 0.95

Placement = Literal["record", "patient", "site", "shares", "centre"]
"""Whom the noise protects and who adds it: the site for its records, its patients or itself;
all sites a share each, under a secure sum; or the coordinator. The last two are for sites."""

PLACEMENT_WORDS: dict[Placement, str] = {
    "record": "for a record, noise at the site",
    "patient": "for a patient, noise at the site",
    "site": "for a site, noise at the site",
    "shares": "for a site, noise in shares under a secure sum",
    "centre": "for a site, noise at the centre",
}

Verdict = Literal["above the baseline", "not usable"]

SEVERAL_SEEDS = "95 % interval of the mean over the seeds (Student's t)"
ONE_SEED = "95 % interval over the held-out cases of the one run; another seed would differ"


class Estimate(Settings):
    """A mean with its interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class CurvePoint(Settings):
    """The runs of one placement at one epsilon, or those without noise."""

    placement: Placement | None = None
    """None: without privacy."""

    epsilon: Positive | None = None
    """What was asked for."""

    spent: Annotated[float, Field(ge=0)] | None = None
    """What the plan comes to at a site that is asked in every round."""

    delta: Positive | None = None
    noise_multiplier: Positive | None = None
    plan_sha256: Sha256
    """Of the plan with the first seed."""

    values: tuple[float | None, ...]
    """The headline metric, pooled over the sites, by seed; None where a run came to none."""

    headline: Estimate
    relative_loss: Estimate | None = None
    """1 - with / without privacy, paired by seed; None without privacy."""

    secondary: dict[str, float | None] = Field(default_factory=dict)
    """Other metrics of the task, means over the seeds."""

    verdict: Verdict


class Curve(Settings):
    """A sweep over epsilon."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    task: TaskName
    plan_sha256: Sha256
    metric: str
    num_sites: Annotated[int, Field(ge=1)]
    seeds: tuple[int, ...]
    interval: str
    """What the intervals are over, in words."""

    baseline: float
    """The trivial baseline, from the runs without privacy, mean over the seeds."""

    untrained: float | None
    """The headline metric of the first weights, mean over the seeds; None for a pre-trained
    start, or where it was not measured."""

    without: CurvePoint
    points: tuple[CurvePoint, ...]


def over_seeds(values: Sequence[float | None], *, in_unit: bool = False) -> Estimate:
    """The mean and its 95 % interval by Student's t; no interval from fewer than two values.

    Args:
        values: by seed; None is left out.
        in_unit: they lie in [0, 1], to which the interval is cut.

    >>> found = over_seeds([0.8, 0.9, 1.0])
    >>> round(found.value, 6), round(found.low, 4), round(found.high, 4)
    (0.9, 0.6516, 1.1484)
    >>> over_seeds([0.8, 0.9, 1.0], in_unit=True).high
    1.0
    """
    known = [value for value in values if value is not None]
    if not known:
        return Estimate(value=None)
    mean = float(np.mean(known))
    if len(known) < 2:
        return Estimate(value=mean)
    quantile = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(known) - 1))
    half = quantile * float(np.std(known, ddof=1)) / math.sqrt(len(known))
    low, high = mean - half, mean + half
    return Estimate(
        value=mean, low=max(0.0, low) if in_unit else low, high=min(1.0, high) if in_unit else high
    )


def verdict_of(headline: Estimate, values: Sequence[float | None], bar: float) -> Verdict:
    """``not usable`` unless the whole interval lies above the bar, in runs that all ended.

    Args:
        headline: over the seeds.
        values: of each seed; None where a run came to none.
        bar: the trivial baseline, or the untrained network where that is better.
    """
    if headline.value is None or any(value is None for value in values):
        return "not usable"
    lowest = headline.value if headline.low is None else headline.low
    return "above the baseline" if lowest > bar else "not usable"


def write_curve(curve: Curve, path: Path) -> None:
    """Write ``curve.json`` atomically.

    Raises:
        DiskProblemError: the disk is full or not writable; an older file is kept.
    """
    text = json.dumps(curve.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_curve(path: Path) -> Curve:
    """Read and validate ``curve.json``.

    Raises:
        FileProblemError: missing, not JSON, or of another schema version.
        SettingsError: it breaks the schema.
    """
    again = "run the sweep again; what is finished is not repeated"
    values = read_versioned_json(path, SCHEMA_VERSION, again)
    return validate(Curve, values, str(path))
