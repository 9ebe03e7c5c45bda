"""The site's console: its pages, what a person does there, and its process."""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterion_client.check import check_site
from asterion_client.console.pages import (
    budget_values,
    data_values,
    egress_stamp,
    egress_values,
    history_values,
    plan_values,
    plans_stamp,
    plans_values,
    site_stamp,
    site_values,
)
from asterion_client.console.predictions_page import prediction_pages
from asterion_client.console.tasks import Works
from asterion_client.dry_run import DryRun, dry_run
from asterion_client.plan_desk import (
    approve_reviewed,
    pause,
    review_waiting,
    take_back,
    take_part_again,
)
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_client.site_audit import site_trail
from asterion_shared.child_process import watch_parent
from asterion_shared.console.guard import REPORT_POLICY
from asterion_shared.console.pages import Answer, Goto, NotThereError, Page, Sent, Shown, Tab, Visit
from asterion_shared.console.people import read_people
from asterion_shared.console.rendering import clock
from asterion_shared.console.serving import serve
from asterion_shared.console.web import Console, web_application
from asterion_shared.errors import AsterionError, FileProblemError, Problem

TABS = (Tab("/", "Site"), Tab("/plans", "Plans"), Tab("/budget", "Budget"),
        Tab("/egress", "What left"), Tab("/data", "Data"), Tab("/history", "Runs"),
        Tab("/predictions", "Predictions"))  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_CHECK = "check"


@dataclass(frozen=True, slots=True)
class _Site:
    site_toml: Path
    tries: Works[DryRun]
    checks: Works[list[Problem]]

    @property
    def folder(self) -> Path:
        return self.site_toml.resolve().parent

    @property
    def settings(self) -> SiteSettings:
        # Anew: a person edits the file while the console runs.
        return read_site_settings(self.site_toml)

    def record(self, visit: Visit, act: str, run: str = "") -> None:
        """Write down who does what, before it is done."""
        facts = {"person": visit.session.name, "act": act}
        site_trail(self.settings, self.folder).append("console", run=run, facts=facts)


def site_console(site_toml: Path) -> Console:
    """The console of a site.

    Raises:
        FileProblemError: its ``site.toml`` has no ``[console]``.
        SettingsError: it does not hold.
    """
    settings = read_site_settings(site_toml)
    if settings.console is None:
        fix = "add a section [console] with a port, such as port = 8444"
        raise FileProblemError(site_toml, "has no console", fix)
    site = _Site(site_toml, Works(), Works())
    return Console(
        title=f"Site {settings.name}",
        settings=settings.console,
        people=site.folder / settings.console.people,
        command=f"asterion site console-password {site_toml} NAME",
        templates=Path(__file__).parent / "templates",
        tabs=TABS,
        pages=[*_looks(site), *_acts(site), *prediction_pages(site_toml)],
    )


def _run_of(visit: Visit) -> str:
    run = visit.path["run"]
    if _NAME.fullmatch(run) is None:
        msg = "There is no such run."
        raise NotThereError(msg)
    return run


def _looks(site: _Site) -> list[Page]:
    def shown(
        template: str, values: Callable[[SiteSettings, Path], dict[str, Any]]
    ) -> Callable[[Visit], Answer]:
        return lambda visit: Shown(template, values(site.settings, site.folder))

    def stamped(stamp: Callable[[SiteSettings, Path], str]) -> Callable[[Visit], str]:
        return lambda visit: stamp(site.settings, site.folder)

    def plan(visit: Visit) -> Answer:
        run = _run_of(visit)
        values = plan_values(site.site_toml, run, None)
        tried = site.tries.of(values["review"].plan.sha256)
        return Shown("plan.html.j2", plan_values(site.site_toml, run, tried))

    def plan_stamp(visit: Visit) -> str:
        _, found = review_waiting(site.site_toml, _run_of(visit), None)
        return repr((found.plan.sha256, site.tries.of(found.plan.sha256)))

    def report(visit: Visit) -> Answer:
        path = site.folder / site.settings.state_folder / "runs" / _run_of(visit) / "report.html"
        if not path.exists():
            msg = "That run has no report here."
            raise NotThereError(msg)
        return Sent(path.read_bytes(), "text/html; charset=utf-8", REPORT_POLICY)

    return [
        Page(path="/", show=shown("site.html.j2", site_values), stamp=stamped(site_stamp)),
        Page(path="/plans", show=shown("plans.html.j2", plans_values), stamp=stamped(plans_stamp)),
        Page(path="/plans/{run}", show=plan, stamp=plan_stamp),
        Page(path="/budget", show=shown("budget.html.j2", budget_values)),
        Page(
            path="/egress", show=shown("egress.html.j2", egress_values), stamp=stamped(egress_stamp)
        ),
        Page(path="/history", show=shown("history.html.j2", history_values)),
        Page(path="/history/{run}", show=report),
    ]


def _acts(site: _Site) -> list[Page]:
    def try_plan(visit: Visit) -> Answer:
        run = _run_of(visit)
        _, found = review_waiting(site.site_toml, run, None)
        canonical = found.plan.canonical()
        site.tries.begin(found.plan.sha256, lambda: dry_run(site.site_toml, canonical))
        return Goto(f"/plans/{run}", "The plan is tried on the data here; nothing leaves.")

    def approve(visit: Visit) -> Answer:
        run, reviewed = _run_of(visit), visit.said("reviewed")
        settings, found = review_waiting(site.site_toml, run, None)
        signed = approve_reviewed(settings, site.folder, found, reviewed, person=visit.session.name)
        ends = clock(float(signed.ends_at))
        return Goto("/plans", f"Run {run} is approved, until {ends}.")

    def refuse(visit: Visit) -> Answer:
        run = _run_of(visit)
        site.record(visit, "refuse", run)
        take_back(site.settings, site.folder, run, person=visit.session.name)
        return Goto("/plans", f"Run {run} is not approved any more.")

    def stand_aside(visit: Visit) -> Answer:
        site.record(visit, "pause")
        pause(site.settings, site.folder)
        return Goto("/", "The site is paused: it begins no further round.")

    def go_on(visit: Visit) -> Answer:
        site.record(visit, "continue")
        take_part_again(site.settings, site.folder)
        return Goto("/", "The site takes part again.")

    def data(visit: Visit) -> Answer:
        return Shown("data.html.j2", data_values(site.checks.of(_CHECK)))

    def check(visit: Visit) -> Answer:
        site.checks.begin(_CHECK, lambda: check_site(site.site_toml))
        return Goto("/data", "The check has begun.")

    return [
        Page(path="/plans/{run}/try", act=try_plan),
        Page(path="/plans/{run}/approve", act=approve),
        Page(path="/plans/{run}/refuse", act=refuse),
        Page(path="/pause", act=stand_aside),
        Page(path="/continue", act=go_on),
        Page(
            path="/data",
            show=data,
            act=check,
            stamp=lambda visit: repr(site.checks.of(_CHECK)),
        ),
    ]


def main() -> None:
    """Serve the console of a site: ``python -m asterion_client.console.console``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", required=True, type=Path)
    watch_parent()
    try:
        run_console(parser.parse_args().site)
    except AsterionError as error:
        print(error, file=sys.stderr)  # noqa: T201  # into the process's own log
        raise SystemExit(error.exit_code) from None


def run_console(site_toml: Path) -> None:
    """Serve the console of a site until the process is told to end.

    Raises:
        FileProblemError: there is no ``[console]``, or nobody may sign in.
        AsterionError: as :func:`asterion_shared.console.serving.serve`.
    """
    console = site_console(site_toml)
    read_people(console.people, console.command)
    folder = site_toml.resolve().parent
    serve(
        web_application(console),
        console.settings,
        folder,
        lambda line: print(line, flush=True),  # noqa: T201
    )


if __name__ == "__main__":
    main()
