"""Run a plan over virtual sites: the same plan, loop, site round and algorithms as live."""

from collections.abc import Sequence
from pathlib import Path

from asterion_client.local_round import make_workspace
from asterion_server.rounds import run_rounds
from asterion_shared.errors import UserInputError
from asterion_shared.events import Listener
from asterion_shared.parameters import from_bytes, write_vector
from asterion_shared.plan import Plan
from asterion_shared.reports.pictures import Picture, draw_examples
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import Result
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim.virtual_cohort import VirtualCohort, VirtualSites

MOST_PICTURED_SITES = 5
"""Sites whose examples are drawn in a simulation's report; it would grow without end."""


def site_folders(parent: Path) -> list[Path]:
    """The folders below ``parent`` that hold a ``site.toml``, sorted by name.

    Raises:
        UserInputError: there is none.
    """
    folders = sorted(path.parent for path in parent.glob("*/site.toml"))
    if not folders:
        msg = f"{parent} holds no site: give a folder whose sub-folders each have a site.toml"
        raise UserInputError(msg)
    return folders


def simulate(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    *,
    emit: Listener = lambda event: None,
    device: str = "cpu",
    plan_folder: Path = Path(),
    report: bool = True,
) -> Result:
    """Run a plan, or the rest of it, and write ``result.json`` and ``report.html``.

    Args:
        plan: what to do.
        sites: the virtual sites; read with ``read_virtual_sites`` or made by ``synthetic_sites``.
        out: folder of the run. One that was interrupted goes on from its last checkpoint.
        emit: is told of each event.
        device: ``cpu`` or ``cuda[:N]``.
        plan_folder: where the plan's ``init.file`` is looked up.
        report: whether to write ``report.html``, with example pictures.

    Raises:
        QuorumLostError, PlanMismatchError, DiskProblemError: as ``run_rounds``.
    """
    cohort = VirtualCohort(plan, sites, out / "sites", device)
    result = run_rounds(
        plan,
        cohort,
        out,
        run=plan.name,
        expected_sites=cohort.sites(),
        carrier="simulation",
        emit=emit,
        plan_folder=plan_folder,
    )
    if report:
        pictures = example_pictures(plan, sites, out) if result.final_model is not None else []
        write_report(result, out / "report.html", plan=plan, pictures=pictures)
    return result


def example_pictures(plan: Plan, sites: VirtualSites, out: Path) -> Sequence[Picture]:
    """Best, median and worst test cases of the first sites under the run's final model.

    Pictures of virtual sites may stand in a simulation's report: the images are here already.
    """
    workspace = make_workspace(plan)
    weights = from_bytes((out / "model.safetensors").read_bytes(), workspace.layout)
    write_vector(workspace.model, workspace.layout, weights)
    predict = model_predictor(workspace.model, plan)
    drawn: list[Picture] = []
    for name in sorted(sites.data)[:MOST_PICTURED_SITES]:
        for picture in draw_examples(plan, predict, sites.data[name].test, max_pictures=3):
            drawn.append(Picture(f"{name}: {picture.title}", picture.caption, picture.png))
    return drawn
