"""Runs side by side: what of their results and plans can be compared, as values.

Sites are paired by name. A difference is always the later run less the first one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from asterion_shared.errors import FileProblemError, PlanMismatchError, UserInputError
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.reports.metric_words import headline_metric
from asterion_shared.result import Result, read_result

MOST_RUNS = 12
FEWEST_PAIRS = 3
"""Sites from which on the mean difference has an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run that stands beside others.

    Attributes:
        label: what it is called here, different from the others'.
        result: what it did.
        plan: by which plan; None where no ``plan.json`` lies beside the result.
    """

    label: str
    result: Result
    plan: Plan | None

    @property
    def epsilon(self) -> float | None:
        """Of the site that was asked most often; None where nothing is claimed or none holds."""
        account = self.result.privacy_account
        return None if account is None else account.epsilon


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSite:
    """One site in every run.

    Attributes:
        name: the site's.
        values: its headline metric in each run; None where it has none.
        same_records: for each run whether its records and their sides are those of the first
            run; None where one of the two did not tell.
    """

    name: str
    values: tuple[float | None, ...]
    same_records: tuple[bool | None, ...]

    def difference(self, index: int) -> float | None:
        """The value in a run less that in the first; None unless both are known."""
        first, other = self.values[0], self.values[index]
        return None if first is None or other is None else other - first


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDifference:
    """A run against the first one over the sites that have a value in both.

    Attributes:
        num_sites: how many these are.
        mean: of the differences, each site counted once; None without such a site.
        low, high: ends of its 95 % interval (Student's t over sites); None below three sites.
        num_higher, num_lower: sites with a higher and a lower value than in the first run.
        num_other_records: sites whose records, or their sides, are not those of the first run.
    """

    num_sites: int
    mean: float | None
    low: float | None
    high: float | None
    num_higher: int
    num_lower: int
    num_other_records: int


def read_runs(paths: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Read runs that are to be compared.

    Args:
        paths: of runs' folders or their ``result.json``, 2 to 12 of them.

    Raises:
        UserInputError: there are too few or too many, one is named twice, or their tasks differ.
        FileProblemError: a result is missing or broken.
        PlanMismatchError: beside a result lies another plan than its own.
        SettingsError: a plan does not hold for this version.
    """
    if not 2 <= len(paths) <= MOST_RUNS:
        msg = f"{len(paths)} runs are named; name 2 to {MOST_RUNS}"
        raise UserInputError(msg)
    files = [result_file(path) for path in paths]
    twice = [str(f) for i, f in enumerate(files) if f.resolve() in {g.resolve() for g in files[:i]}]
    if twice:
        msg = f"{twice[0]} is named twice; name each run once"
        raise UserInputError(msg)
    runs = [read_run(file) for file in files]
    tasks = {run.result.task: run.label for run in runs}
    if len(tasks) > 1:
        named = " and ".join(f"{label} is {task}" for task, label in tasks.items())
        msg = f"{named}; compare runs of one task"
        raise UserInputError(msg)
    labels = _distinct([run.label for run in runs])
    return tuple(
        ComparedRun(label=label, result=run.result, plan=run.plan)
        for label, run in zip(labels, runs, strict=True)
    )


def read_run(path: Path) -> ComparedRun:
    """Read one run, and its plan where it lies beside the result.

    Args:
        path: the run's folder or its ``result.json``.

    Raises:
        FileProblemError, PlanMismatchError, SettingsError: as :func:`read_runs`.
    """
    file = result_file(path)
    result, plan = read_result(file), plan_beside(file.parent)
    if plan is not None and plan.sha256 != result.plan_sha256:
        msg = (
            f"{file.with_name('plan.json')} has SHA-256 {plan.sha256[:12]}..., the result beside "
            f"it is of {result.plan_sha256[:12]}...; put back the plan that the run was started "
            "with"
        )
        raise PlanMismatchError(msg)
    return ComparedRun(label=file.resolve().parent.name or result.name, result=result, plan=plan)


def plan_beside(folder: Path) -> Plan | None:
    """The plan in a run's folder; None where none was stored.

    Raises:
        FileProblemError: the file cannot be read or is not JSON.
        SettingsError: it does not hold for this version.
    """
    path = folder / "plan.json"
    if not path.is_file():
        return None
    try:
        return parse_plan(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        fix = "put back the plan that the run was started with, or remove the file"
        raise FileProblemError(path, "cannot be read or is not JSON", fix) from None


def result_file(path: Path) -> Path:
    """The ``result.json`` of a run that is named by its folder or by that file.

    Raises:
        FileProblemError: there is none.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        fix = "name a run's folder or its result.json; a run that goes on has none yet"
        raise FileProblemError(file, "does not exist", fix)
    return file


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels with a number where one comes again."""
    given: list[str] = []
    for label in labels:
        count, name = 1, label
        while name in given:
            count += 1
            name = f"{label} ({count})"
        given.append(name)
    return given


def paired_sites(runs: Sequence[ComparedRun]) -> list[PairedSite]:
    """Every site of any of the runs, sorted by name."""
    metric = headline_metric(runs[0].result.task)
    values = [{s: m.get(metric) for s, m in run.result.final_sites.items()} for run in runs]
    hashes = [{s.name: s.manifest_sha256 for s in run.result.sites} for run in runs]
    names = sorted({name for run in runs for name in (s.name for s in run.result.sites)})
    return [
        PairedSite(
            name=name,
            values=tuple(known.get(name) for known in values),
            same_records=tuple(
                told[name] == hashes[0][name] if told.get(name) and hashes[0].get(name) else None
                for told in hashes
            ),
        )
        for name in names
    ]


def mean_difference(sites: Sequence[PairedSite], index: int) -> MeanDifference:
    """A run against the first one, over sites.

    Args:
        sites: from :func:`paired_sites`.
        index: which run, from 1.
    """
    pairs = [(site, d) for site in sites if (d := site.difference(index)) is not None]
    found = np.array([d for _, d in pairs])
    mean = float(found.mean()) if found.size else None
    low = high = None
    if mean is not None and found.size >= FEWEST_PAIRS:
        quantile = float(student_t.ppf(0.975, found.size - 1))
        half = quantile * float(found.std(ddof=1)) / float(np.sqrt(found.size))
        low, high = mean - half, mean + half
    return MeanDifference(
        num_sites=len(pairs),
        mean=mean,
        low=low,
        high=high,
        num_higher=int((found > 0).sum()),
        num_lower=int((found < 0).sum()),
        num_other_records=sum(site.same_records[index] is False for site, _ in pairs),
    )


def plan_differences(plans: Sequence[Plan | None]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings in which plans differ: path, and the value in each plan.

    A dash stands for a plan that is not known, ``not set`` for a setting without a value.
    """
    flat = [None if plan is None else flat_plan(plan) for plan in plans]
    known = [values for values in flat if values is not None]
    paths = dict.fromkeys(path for values in known for path in values)
    return [
        (path, tuple("\u2013" if v is None else v.get(path, "not set") for v in flat))
        for path in paths
        if len({values.get(path, "not set") for values in known}) > 1
    ]


def flat_plan(plan: Plan) -> dict[str, str]:
    """Every setting of a plan by its path, such as ``rounds.count``, in words."""
    return _flat(json.loads(plan.canonical()))


def _flat(values: Mapping[str, object], path: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        here = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            flat |= _flat(value, here)
        else:
            flat[here] = _words(value)
    return flat


def _words(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
