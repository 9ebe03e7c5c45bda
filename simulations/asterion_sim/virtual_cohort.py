"""A cohort of virtual sites on this machine: the hospital's code, no messages, no network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asterion_client.data.site_data import load_site_data
from asterion_client.local_round import count_examples
from asterion_client.settings import read_site_settings
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, PlanMismatchError, UserInputError
from asterion_shared.messages import Answer, NoReport, Order, PartialFold
from asterion_shared.plan import Plan
from asterion_sim.engines.choice import Engine, EngineWish
from asterion_sim.engines.crews import Crew, Here, Posting, Processes, RayActors
from asterion_sim.engines.probe import decide

Refused = NoReport
"""A virtual site whose data cannot serve the plan, with the code a live site would send."""

EVALUATED_TOGETHER = 8
"""Sites that a worker evaluates before it answers."""

SEQUENTIAL = EngineWish(kernel="sequential", over="here")
"""The hospital's own step, site after site: the numbers of a live run, to the bit."""


@dataclass(frozen=True, slots=True)
class VirtualSites:
    """Sites with their cases, and those that would refuse.

    Attributes:
        data: cases by site name.
        refused: sites that cannot serve the plan, with the reason, by name.
    """

    data: Mapping[str, SiteData]
    refused: Mapping[str, Refused]


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


def read_virtual_sites(plan: Plan, folders: Sequence[Path]) -> VirtualSites:
    """Read site folders (each with a ``site.toml``) as the site's own daemon would.

    Raises:
        SettingsError: a ``site.toml`` is wrong.
        PlanMismatchError: two folders have the same site name.
    """
    data: dict[str, SiteData] = {}
    refused: dict[str, Refused] = {}
    for folder in folders:
        settings = read_site_settings(folder / "site.toml")
        name = settings.name
        if name in data or name in refused:
            msg = f"{folder}: a second site is named {name!r}; give each its own name"
            raise PlanMismatchError(msg)
        if settings.task != plan.task:
            refused[name] = NoReport(site=name, outcome="refused", code="wrong_task")
            continue
        try:
            data[name] = load_site_data(settings, folder, plan, run=None)
        except DataProblemError as error:
            refused[name] = NoReport(site=name, outcome="refused", code=error.code)
    return VirtualSites(data, refused)


class VirtualCohort:
    """Asks virtual sites through an engine.

    Args:
        plan: the run's plan.
        sites: the sites and their cases.
        folder: where a site's kept tensors are stored between rounds.
        wish: which engine; what it leaves open is measured in the first training round.
    """

    def __init__(
        self, plan: Plan, sites: VirtualSites, folder: Path, wish: EngineWish = SEQUENTIAL
    ) -> None:
        self._plan, self._sites, self._wish = plan, sites, wish
        self._posting = Posting(plan, sites.data, folder, wish.device)
        self._here: Crew = Here(self._posting)
        self._crew: Crew | None = None
        self._engine: Engine | None = None

    def sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted; also of those that will refuse."""
        return tuple(sorted([*self._sites.data, *self._sites.refused]))

    def open_orders(self, round_: int, most_stale: int) -> Mapping[str, int]:
        """None: without faults no site is late."""
        return {}

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """One answer for each site, each report with its own update."""
        names = list(sites)
        ready = [name for name in names if name in self._sites.data]
        yield from (self._sites.refused[name] for name in names if name not in self._sites.data)
        if order.phase == "count":
            yield from (count_examples(self._sites.data[name]) for name in ready)
        elif order.phase == "train":
            engine = self._decided(order, ready)
            jobs = [("answers", (chunk, engine)) for chunk in self._chunks(ready, engine)]
            for answers in self._crew_of(engine).carry_out(order, jobs):
                yield from answers
        else:
            crew = self._here if self._engine is None else self._crew_of(self._engine)
            one_by_one = Engine(kernel="sequential", chunk=EVALUATED_TOGETHER)
            chunks = [ready[i : i + EVALUATED_TOGETHER]
                      for i in range(0, len(ready), EVALUATED_TOGETHER)]  # fmt: skip
            jobs = [("answers", (chunk, one_by_one)) for chunk in chunks]
            for answers in crew.carry_out(order, jobs):
                yield from answers

    def fold(self, order: Order, times: Mapping[str, int]) -> Iterator[Answer | PartialFold]:
        """See :class:`asterion_shared.messages.FoldingCohort`.

        The sequential engine in this process yields site after site, so that the fold adds them as
        it would add live reports.
        """
        ready = [name for name in times if name in self._sites.data]
        engine = self._decided(order, ready)
        if engine.kernel == "sequential" and engine.over == "here":
            yield from self.ask(order, times)
            return
        yield from (self._sites.refused[name] for name in times if name not in self._sites.data)
        jobs = [
            ("fold", (chunk, {name: times[name] for name in chunk}, engine))
            for chunk in self._chunks(ready, engine)
        ]
        yield from self._crew_of(engine).carry_out(order, jobs)

    def settings(self) -> Mapping[str, str | int]:
        """The engine that was decided on; empty before the first training round."""
        return {} if self._engine is None else self._engine.model_dump(mode="json")

    def restore(self, settings: Mapping[str, str | int]) -> None:
        """Go on with the engine of a checkpoint, whatever is wished for now.

        Its workers may be others: the numbers do not depend on them.
        """
        if settings:
            self._engine = Engine.model_validate(dict(settings))

    def close(self) -> None:
        """Let the workers go."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _decided(self, order: Order, ready: Sequence[str]) -> Engine:
        if self._engine is None:
            sites = [self._sites.data[name] for name in self._longest_first(ready)]
            known = len(self._sites.data)
            usual = min(known, self._plan.rounds.sites_per_round or known)
            self._engine = decide(self._wish, self._plan, sites, order, usual)
        return self._engine

    def _crew_of(self, engine: Engine) -> Crew:
        if engine.over == "here":
            return self._here
        if self._crew is None:
            kind = Processes if engine.over == "processes" else RayActors
            self._crew = kind(self._posting, engine.workers)
        return self._crew

    def _chunks(self, names: Sequence[str], engine: Engine) -> list[list[str]]:
        """Sites of about equal work together, the longest first."""
        ordered = self._longest_first(names)
        return [ordered[i : i + engine.chunk] for i in range(0, len(ordered), engine.chunk)]

    def _longest_first(self, names: Sequence[str]) -> list[str]:
        if self._plan.local.unit == "steps":
            return list(names)
        return sorted(names, key=lambda name: -len(self._sites.data[name].train))
