"""Small runs with faults, through the real loop and the real virtual sites."""

from collections.abc import Callable
from pathlib import Path

from asterion_server.rounds import run_rounds
from asterion_shared.cases import SiteData
from asterion_shared.messages import Cohort
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.settings_files import validate
from asterion_sim.engines.choice import EngineWish
from asterion_sim.faults import FaultSchedule, FaultSettings, Trace
from asterion_sim.faulty_cohort import FaultyCohort
from asterion_sim.synthetic import synthetic_sites
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualCohort, VirtualSites

NUM_SITES = 4


class Runs:
    """Runs one plan over four generated sites, each run in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = self.changed()
        self.data: dict[str, SiteData] = synthetic_sites(self.plan, NUM_SITES)
        self.names = tuple(sorted(self.data))

    def changed(self, **sections: object) -> Plan:
        """The plan with some sections replaced."""
        values: dict[str, object] = {
            "name": "faults",
            "task": "classification",
            "seed": 7,
            "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
            "model": {"name": "logistic"},
            "local": {"amount": 5, "optimiser": "sgd", "learning_rate": 0.1},
            "rounds": {"count": 3, "deadline_seconds": 60.0},
        }
        return validate(Plan, values | sections, "plan")

    def schedule(self, *entries: dict[str, object], trace: Trace | None = None) -> FaultSchedule:
        """The schedule of some ``[[faults]]``."""
        known = [validate(FaultSettings, entry, "scenario") for entry in entries]
        return FaultSchedule(known, self.plan.seed, self.names, trace)

    def run(
        self,
        name: str,
        *entries: dict[str, object],
        plan: Plan | None = None,
        trace: Trace | None = None,
        data: dict[str, SiteData] | None = None,
        wrap: Callable[[Cohort], Cohort] = lambda cohort: cohort,
        train_late: bool = True,
        bare: bool = False,
        wish: EngineWish = SEQUENTIAL,
    ) -> Result:
        """Carry out the plan with some faults; results go to a folder of that name."""
        plan = plan or self.plan
        sites = VirtualSites(data or self.data, {})
        inner = VirtualCohort(plan, sites, self.folder / name / "sites", wish)
        schedule = self.schedule(*entries, trace=trace)
        faulty = FaultyCohort(inner, schedule, train_late=train_late)
        return run_rounds(
            plan,
            wrap(inner if bare else faulty),
            self.folder / name,
            run="faults",
            expected_sites=self.names,
            carrier="simulation",
        )

    def weights(self, name: str) -> bytes:
        """The bytes of a run's final model."""
        return (self.folder / name / "model.safetensors").read_bytes()


def outcomes(result: Result) -> dict[int, dict[str, str]]:
    """Missing sites with their reasons, by round."""
    return {r.round: r.missing for r in result.rounds if r.missing}


def asked(result: Result) -> dict[int, tuple[str, ...]]:
    """The sites that were asked, by round."""
    return {r.round: r.asked for r in result.rounds}
