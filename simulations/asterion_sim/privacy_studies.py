"""Utility against epsilon on real data: the sweeps of ``docs/privacy-utility.md``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from asterion_shared.cases import SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.plan import Plan, read_plan
from asterion_sim.array_source import normalised
from asterion_sim.bracket import seeds_of
from asterion_sim.case_arrays import Pool, PoolCases
from asterion_sim.engines.choice import EngineWish
from asterion_sim.prepare_chest import chest_file
from asterion_sim.prepare_common import read_arrays
from asterion_sim.privacy_curve import Curve, Placement
from asterion_sim.privacy_sweep import EPSILONS, run_privacy_sweep
from asterion_sim.splits import SplitSettings, split_indices
from asterion_sim.studies import LOG_WIDTH, PLANS, STUDIES
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualSites, read_virtual_sites

PRIVATE_PLANS = PLANS / "private"
IID = SplitSettings(kind="iid", allow_one_class=True)
DIRICHLET = SplitSettings(kind="dirichlet", alpha=0.3, allow_one_class=True)
"""Five images a site: one class at a site is what such sites have."""

VECTORISED = EngineWish(kernel="vectorised", over="here", chunk=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStudy:
    """One sweep.

    Attributes:
        name: its folder's.
        plan: its file below ``simulations/studies/private``, without the ending.
        study: whose prepared sites it uses.
        split: the chest X-rays are dealt to ``num_sites`` sites instead.
        num_sites: with ``split``.
        placements: where noise is added.
        epsilons: of the whole run.
        seeds: how many.
        wish: which engine.
    """

    name: str
    plan: str
    study: str = ""
    split: SplitSettings | None = None
    num_sites: int = 1000
    placements: tuple[Placement, ...]
    epsilons: tuple[float, ...] = EPSILONS
    seeds: int = 5
    wish: EngineWish = SEQUENTIAL


PRIVACY_STUDIES: tuple[PrivacyStudy, ...] = (
    PrivacyStudy(
        name="chest_record",
        plan="chest_record",
        study="chest",
        placements=("record",),
    ),
    PrivacyStudy(
        name="chest_site",
        plan="chest_site",
        study="chest",
        placements=("centre", "shares", "site"),
        epsilons=(2.0, 8.0, 16.0),
    ),
    PrivacyStudy(
        name="chest_thousand_iid",
        plan="chest_thousand",
        split=IID,
        placements=("centre",),
        wish=VECTORISED,
    ),
    PrivacyStudy(
        name="chest_thousand_shares",
        plan="chest_thousand",
        split=IID,
        placements=("shares",),
        epsilons=(2.0, 8.0),
        seeds=3,
        wish=VECTORISED,
    ),
    PrivacyStudy(
        name="chest_thousand_dirichlet",
        plan="chest_thousand",
        split=DIRICHLET,
        placements=("centre",),
        epsilons=(2.0, 8.0),
        seeds=3,
        wish=VECTORISED,
    ),
    PrivacyStudy(
        name="chest_thousand_at_site",
        plan="chest_thousand",
        split=IID,
        placements=("site",),
        epsilons=(8.0,),
        seeds=1,
    ),
    PrivacyStudy(
        name="hippocampus_record",
        plan="hippocampus_record",
        study="hippocampus",
        placements=("record",),
        epsilons=(8.0, 32.0),
        seeds=3,
    ),
    PrivacyStudy(
        name="hippocampus_site",
        plan="hippocampus_site",
        study="hippocampus",
        placements=("centre", "shares", "site"),
        epsilons=(8.0,),
        seeds=3,
    ),
)


def run_privacy_studies(data: Path, out: Path, names: Sequence[str] | None = None) -> list[str]:
    """Run the sweeps and print a table each; what is finished is not repeated.

    Args:
        data: the folder of data sets.
        out: ``out/NAME`` holds a sweep.
        names: which; absent: all.

    Returns:
        The empty list: a curve has no bar to miss.

    Raises:
        UserInputError: a name is not that of a sweep.
        FileProblemError: a data set is missing.
    """
    known = {study.name: study for study in PRIVACY_STUDIES}
    if unknown := [name for name in names or () if name not in known]:
        msg = f"no sweep is named {unknown[0]!r}; the sweeps are {', '.join(known)}"
        raise UserInputError(msg)
    console = Console()
    if not console.is_terminal:  # a log file has no width of its own
        console = Console(width=LOG_WIDTH)
    for name in names or known:
        run_study_sweep(known[name], data, out / name, console)
    return []


def run_study_sweep(study: PrivacyStudy, data: Path, out: Path, console: Console) -> Curve:
    """Run one sweep on its own sites."""
    plan = read_plan(PRIVATE_PLANS / f"{study.plan}.toml")
    if study.split is not None:
        sites = VirtualSites(dealt_chest(data, plan, study.split, study.num_sites), {})
    else:
        prepare = next(one.prepare for one in STUDIES if one.name == study.study)
        sites = read_virtual_sites(plan, prepare(data, out / "sites"))
    return run_privacy_sweep(
        plan,
        sites,
        out,
        epsilons=study.epsilons,
        placements=study.placements,
        seeds=seeds_of(plan, study.seeds),
        wish=study.wish,
        console=console,
        say=lambda line: console.print(line, style="dim"),
    )


def dealt_chest(
    data: Path, plan: Plan, split: SplitSettings, num_sites: int
) -> dict[str, SiteData]:
    """The training X-rays dealt to virtual sites, the data set's own test X-rays evenly.

    The test is the same as that of the study ``chest``: its images go to the sites in turn, so
    that pooled metrics are over all of them.

    Args:
        data: the folder of data sets.
        plan: for images (1, 28, 28); its seed addresses the split.
        split: of the training images.
        num_sites: how many sites.

    Raises:
        FileProblemError: the data set is missing.
        SettingsError: the images cannot be split so.
    """
    arrays = read_arrays(chest_file(data))
    pools = {
        part: Pool(
            f"chest-{part}",
            normalised(arrays[f"{part}_images"][:, None], plan),
            np.asarray(arrays[f"{part}_labels"], np.int64),
        )
        for part in ("train", "test")
    }
    train, test = pools["train"], pools["test"]
    rows = split_indices(split, train.labels, {}, num_sites, plan.seed)
    tested = np.arange(len(test.inputs))
    return {
        name: SiteData(
            site=name,
            train=PoolCases(train, chosen),
            test=PoolCases(test, tested[number::num_sites]),
        )
        for number, (name, chosen) in enumerate(rows.items())
    }
