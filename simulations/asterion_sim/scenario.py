"""The scenario: whose data the virtual sites have, how they differ, and what goes wrong.

A plan says what is done, a scenario to whom. It is a TOML file; without one, the sites are those of
a folder, or generated.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from asterion_shared.cases import SiteData
from asterion_shared.plan import Plan, Size
from asterion_shared.settings_files import Rule, Settings, read_toml, rule, validate
from asterion_sim.array_source import read_arrays, split_arrays
from asterion_sim.faults import FaultSchedule, FaultSettings
from asterion_sim.label_flips import flipped_site, label_flips
from asterion_sim.shifts import Shift, check_shifts, shifted_site
from asterion_sim.splits import SplitSettings
from asterion_sim.synthetic import generated_sites
from asterion_sim.traces import read_trace
from asterion_sim.virtual_cohort import VirtualSites, read_virtual_sites, site_folders


class GeneratedSource(Settings):
    """Sites with drawn images or rows, so that no file is needed."""

    kind: Literal["generated"] = "generated"
    num_sites: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    cases_per_site: int | tuple[int, int] = (20, 400)
    """Training and test cases together; of two numbers each site draws its own between."""

    class_concentration: Annotated[float, Field(gt=0)] | None = None
    """Of the Dirichlet distribution of a site's class shares; absent: the same everywhere."""

    image_size: tuple[Size, ...] | None = None
    """Pixels; absent: the plan's patch size."""


class ArraySource(Settings):
    """One data set in arrays, to be split over sites."""

    kind: Literal["arrays"]
    path: str
    """A folder of npy files or an npz, relative to the scenario."""

    num_sites: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Absent: one for each value of the split's natural column."""

    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each site's examples that are its test."""


class FolderSource(Settings):
    """Sites as at hospitals: sub-folders, each with a ``site.toml``."""

    kind: Literal["folders"]
    path: str
    """Their parent, relative to the scenario."""


Source = Annotated[GeneratedSource | ArraySource | FolderSource, Field(discriminator="kind")]


class Scenario(Settings):
    """What a simulation adds to a plan."""

    trace: str | None = None
    """A file of recorded faults and participants to replay: JSON lines, or the ``result.json`` of
    an earlier run; relative to the scenario."""

    source: Source = GeneratedSource()
    split: SplitSettings | None = None
    """How one data set becomes many sites."""

    shifts: tuple[Shift, ...] = ()
    """How sites record differently."""

    faults: tuple[FaultSettings, ...] = ()
    """What goes wrong."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: (s.split is not None) == isinstance(s.source, ArraySource),
            lambda s: (
                f"source.kind is {s.source.kind!r} and [split] is "
                f"{'missing' if s.split is None else 'given'}; 'arrays' is split, and no other"
            ),
        ),
        rule(
            lambda s: (
                not isinstance(s.source, ArraySource)
                or s.source.num_sites is not None
                or s.split is None
                or s.split.kind == "column"
            ),
            lambda s: "source.num_sites is missing; only a split of kind 'column' finds its own",
        ),
    )

    @property
    def sha256(self) -> str:
        """SHA-256 of the scenario as canonical JSON, 64 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file.

    Raises:
        FileProblemError: the file cannot be read or is not TOML.
        SettingsError: lists every problem.
    """
    return validate(Scenario, read_toml(path), str(path))


def scenario_sites(scenario: Scenario, plan: Plan, folder: Path) -> VirtualSites:
    """The virtual sites, with their shifts; faults are a matter of the schedule.

    Args:
        scenario: as read.
        plan: what the sites' data are turned into.
        folder: where the scenario's paths start.

    Raises:
        SettingsError: a split or shift does not fit the data or the plan.
        FileProblemError, DataProblemError: the data cannot be read.
    """
    source = scenario.source
    if isinstance(source, GeneratedSource):
        cases = source.cases_per_site
        made = generated_sites(
            plan,
            source.num_sites,
            cases_per_site=cases if isinstance(cases, int) else range(cases[0], cases[1] + 1),
            shifts=scenario.shifts,
            class_concentration=source.class_concentration,
            image_size=source.image_size,
        )
        return VirtualSites(made, {})
    if isinstance(source, ArraySource):
        assert scenario.split is not None  # noqa: S101  # a rule of the scenario
        data = read_arrays(folder / source.path, plan)
        found = VirtualSites(
            split_arrays(data, scenario.split, source.num_sites, source.test_share, plan), {}
        )
    else:
        found = read_virtual_sites(plan, site_folders(folder / source.path))
    if not scenario.shifts:
        return found
    check_shifts(scenario.shifts, plan)
    return VirtualSites(
        {name: shifted_site(site, scenario.shifts, plan) for name, site in found.data.items()},
        found.refused,
    )


def fault_schedule(
    scenario: Scenario, plan: Plan, sites: VirtualSites, folder: Path
) -> FaultSchedule | None:
    """What goes wrong and who takes part; None when nothing is scheduled.

    Raises:
        SettingsError: a pattern fits no site, or the trace names an unknown one.
        FileProblemError: the trace cannot be read.
    """
    if not scenario.faults and scenario.trace is None:
        return None
    trace = None if scenario.trace is None else read_trace(folder / scenario.trace)
    names = [*sites.data, *sites.refused]
    return FaultSchedule(scenario.faults, plan.seed, names, trace)


def with_false_labels(
    sites: VirtualSites, schedule: FaultSchedule | None, plan: Plan
) -> VirtualSites:
    """The sites, with false training labels where the schedule says so.

    Raises:
        SettingsError: a flip does not fit the plan.
    """
    if schedule is None:
        return sites
    flips = label_flips(schedule, plan)
    data: dict[str, SiteData] = {
        name: flipped_site(site, flips[name]) if name in flips else site
        for name, site in sites.data.items()
    }
    return VirtualSites(data, sites.refused)
