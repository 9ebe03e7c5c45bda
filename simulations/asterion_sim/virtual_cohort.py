"""A cohort of virtual sites on this machine: the hospital's code, no messages, no network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asterion_client.data.site_data import load_site_data
from asterion_client.local_round import Workspace, count_examples, make_workspace, work
from asterion_client.settings import read_site_settings
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, OrderRefusedError, PlanMismatchError
from asterion_shared.messages import Answer, NoReport, Order
from asterion_shared.plan import Plan

Refused = NoReport
"""A virtual site whose data cannot serve the plan, with the code a live site would send."""


@dataclass(frozen=True, slots=True)
class VirtualSites:
    """Sites with their cases, and those that would refuse.

    Attributes:
        data: cases by site name.
        refused: sites that cannot serve the plan, with the reason, by name.
    """

    data: Mapping[str, SiteData]
    refused: Mapping[str, Refused]


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
    """Asks virtual sites one after the other, with one model object for all of them.

    Args:
        plan: the run's plan.
        sites: the sites and their cases.
        folder: where a site's kept tensors are stored between rounds.
        device: ``cpu`` or ``cuda[:N]``.
    """

    def __init__(self, plan: Plan, sites: VirtualSites, folder: Path, device: str = "cpu") -> None:
        self._sites, self._folder = sites, folder
        self._workspace: Workspace = make_workspace(plan, device)
        # One thread, as at a site: part of what makes both end in the same numbers.
        torch.set_num_threads(1)

    def sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted; also of those that will refuse."""
        return tuple(sorted([*self._sites.data, *self._sites.refused]))

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        """One answer for each site, in the order given."""
        for site in sites:
            yield self._answer(order, site)

    def _answer(self, order: Order, site: str) -> Answer:
        if site in self._sites.refused:
            return self._sites.refused[site]
        data = self._sites.data[site]
        if order.phase == "count":
            return count_examples(data)
        try:
            return work(order, data, self._workspace, self._folder / site)
        except (OrderRefusedError, DataProblemError) as error:
            return NoReport(site=site, outcome="refused", code=error.code, stage=order.phase)
