"""Run a plan over virtual sites: the same plan, loop, site round and algorithms as live."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from asterion_client.local_round import make_workspace
from asterion_server.rounds import run_rounds
from asterion_shared.events import Event, Listener, RunStarted
from asterion_shared.files import write_atomically
from asterion_shared.messages import Cohort
from asterion_shared.parameters import from_bytes, layout_of, write_vector
from asterion_shared.plan import Plan
from asterion_shared.reports.pictures import Picture, draw_examples
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import Result
from asterion_shared.simulation_facts import InjectedFault, Simulation
from asterion_shared.tasks import initial_model
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim.engines.choice import EngineWish
from asterion_sim.faults import FaultSchedule, injected
from asterion_sim.faulty_cohort import FaultyCohort
from asterion_sim.plan_attack import audit_plan
from asterion_sim.scenario import with_false_labels
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualCohort, VirtualSites

MOST_PICTURED_SITES = 3
"""Sites whose examples are drawn in a simulation's report; it would grow without end."""


def simulate(
    plan: Plan,
    sites: VirtualSites,
    out: Path,
    *,
    emit: Listener = lambda event: None,
    wish: EngineWish = SEQUENTIAL,
    schedule: FaultSchedule | None = None,
    scenario_sha256: str = "",
    plan_folder: Path = Path(),
    report: bool = True,
    audit: bool = False,
) -> Result:
    """Run a plan, or the rest of it; write ``plan.json``, ``result.json`` and ``report.html``.

    Args:
        plan: what to do.
        sites: the virtual sites.
        out: folder of the run. One that was interrupted goes on from its last checkpoint, with
            the engine it began with.
        emit: is told of each event.
        wish: which engine; the default gives the numbers of a live run, to the bit.
        schedule: what goes wrong and who takes part; absent: nothing and all.
        scenario_sha256: for the result.
        plan_folder: where the plan's ``init.file`` is looked up.
        report: whether to write ``report.html``, with example pictures.
        audit: whether to attack the plan's privacy first, for the result. A run whose claim the
            attack broke has the status ``failed``; its model is kept and must not be trusted.

    Raises:
        QuorumLostError, PlanMismatchError, DiskProblemError: as ``run_rounds``; also when an audit
            is asked for and the plan has no ``[privacy]``.
        EngineFailedError: a worker of the engine died.
        SettingsError: the schedule's false labels do not fit the plan.
    """
    found = audit_plan(plan) if audit else None
    sites = with_false_labels(sites, schedule, plan)
    engine = VirtualCohort(plan, sites, out / "sites", wish)
    cohort: Cohort = engine
    if schedule is not None:
        rounds = plan.transport.update != "float32" and plan.transport.error_feedback
        keeps = rounds or bool(layout_of(initial_model(plan), plan.parameters).kept)
        cohort = FaultyCohort(engine, schedule, train_late=keeps)

    def facts(asked: Mapping[int, Sequence[str]]) -> Simulation:
        rows = [] if schedule is None else injected(schedule, asked)
        return Simulation(
            engine=dict(engine.settings()),
            scenario_sha256=scenario_sha256,
            faults=tuple(
                InjectedFault(round=row["round"], site=row["site"], fault=row["fault"])
                for row in rows
            ),
        )

    def tell(event: Event) -> None:
        # Only now it is known that what the folder holds is of this plan.
        if isinstance(event, RunStarted):
            write_atomically(out / "plan.json", plan.canonical().encode())
        emit(event)

    with closing(engine):
        result = run_rounds(
            plan,
            cohort,
            out,
            run=plan.name,
            expected_sites=cohort.sites(),
            carrier="simulation",
            emit=tell,
            plan_folder=plan_folder,
            participants=None if schedule is None else schedule.participants,
            simulation=facts,
            audit=found,
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
