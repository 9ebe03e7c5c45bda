"""The operator's console: its pages, and its process."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from asterion_server.app import RUN_NAME
from asterion_server.console.acts import (
    decide_report,
    launch_draft,
    make_release,
    promote,
    resume_run,
    roll_back,
    stop_run,
)
from asterion_server.console.launch_page import checked, launch_form
from asterion_server.console.releases_page import releases_values
from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.console.run_page import run_stamp, run_values
from asterion_server.console.runs_page import runs_stamp, runs_values
from asterion_server.console.sites_page import sites_stamp, sites_values
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.quarantine_files import Verdict
from asterion_server.run_folder import RunFolder
from asterion_shared.child_process import watch_parent
from asterion_shared.console.guard import REPORT_POLICY
from asterion_shared.console.pages import Answer, NotThereError, Page, Sent, Shown, Tab, Visit
from asterion_shared.console.people import read_people
from asterion_shared.console.serving import serve
from asterion_shared.console.web import Console, web_application
from asterion_shared.errors import AsterionError, FileProblemError

TABS = (
    Tab("/", "Runs"),
    Tab("/sites", "Sites"),
    Tab("/releases", "Releases"),
    Tab("/launch", "Launch"),
)


def operator_console(made: Provisioned) -> Console:
    """The console of a coordinator.

    Raises:
        FileProblemError: its ``coordinator.toml`` has no ``[console]``.
    """
    settings, people = made.settings.console, made.console_people
    if settings is None or people is None:
        fix = "add a section [console] with a port, such as port = 8443"
        raise FileProblemError(made.folder / "coordinator.toml", "has no console", fix)
    name = made.folder.resolve().name
    return Console(
        title="Coordinator" if name == "coordinator" else f"Coordinator {name}",
        settings=settings,
        people=people,
        command=f"asterion server console-password NAME --folder {made.folder}",
        templates=Path(__file__).parent / "templates",
        tabs=TABS,
        pages=_pages(made.folder),
    )


def _pages(folder: Path) -> list[Page]:
    looks = RunLooks(open_provisioned(folder))

    def made() -> Provisioned:
        # Anew: sites are enrolled while the console runs.
        return open_provisioned(folder)

    def run_of(visit: Visit) -> RunFolder:
        name = visit.path["run"]
        found = RunFolder(made().runs / name)
        if RUN_NAME.fullmatch(name) is None or not found.launch_file.exists():
            msg = f"There is no run {name[:70]}."
            raise NotThereError(msg)
        return found

    def runs(visit: Visit) -> Answer:
        return Shown("runs.html.j2", runs_values(made(), looks))

    def run(visit: Visit) -> Answer:
        found = run_of(visit)
        look = looks.look(found)
        if isinstance(look, RunLook):
            return Shown("run.html.j2", run_values(made(), look))
        raise FileProblemError(found.path.name, "cannot be shown", look)

    def report(visit: Visit) -> Answer:
        found = run_of(visit)
        if not found.report.exists():
            msg = f"Run {found.path.name} has no report yet."
            raise NotThereError(msg)
        return Sent(found.report.read_bytes(), "text/html; charset=utf-8", REPORT_POLICY)

    def sites(visit: Visit) -> Answer:
        return Shown("sites.html.j2", sites_values(made(), looks))

    def releases(visit: Visit) -> Answer:
        return Shown("releases.html.j2", releases_values(made(), looks))

    def launch(visit: Visit) -> Answer:
        return Shown("launch.html.j2", launch_form(made()))

    def check(visit: Visit) -> Answer:
        values = checked(made(), visit)
        return Shown("launch_check.html.j2", values, 400 if values["problems"] else 200)

    def stop(visit: Visit) -> Answer:
        return stop_run(made(), visit, run_of(visit).path.name)

    def resume(visit: Visit) -> Answer:
        return resume_run(made(), visit, run_of(visit).path.name)

    def decided(verdict: Verdict) -> Callable[[Visit], Answer]:
        return lambda visit: decide_report(made(), visit, run_of(visit).path.name, verdict)

    return [
        Page(path="/launch", show=launch, act=check),
        Page(path="/launch/go", act=lambda visit: launch_draft(made(), visit)),
        Page(path="/runs/{run}/stop", act=stop),
        Page(path="/runs/{run}/resume", act=resume),
        Page(path="/runs/{run}/release", act=decided("release")),
        Page(path="/runs/{run}/drop", act=decided("drop")),
        Page(path="/", show=runs, stamp=lambda visit: runs_stamp(made(), looks)),
        Page(
            path="/runs/{run}",
            show=run,
            stamp=lambda v: run_stamp(made(), run_of(v), looks.stamp(run_of(v))),
        ),
        Page(path="/runs/{run}/report", show=report),
        Page(path="/sites", show=sites, stamp=lambda visit: sites_stamp(made())),
        Page(path="/releases/make", act=lambda visit: make_release(made(), visit)),
        Page(path="/releases/promote", act=lambda visit: promote(made(), visit)),
        Page(path="/releases/rollback", act=lambda visit: roll_back(made(), visit)),
        Page(path="/releases", show=releases),
    ]


def main() -> None:
    """Serve the console of a coordinator: ``python -m asterion_server.console.console``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    watch_parent()
    try:
        run_console(parser.parse_args().folder)
    except AsterionError as error:
        print(error, file=sys.stderr)  # noqa: T201  # into the process's own log
        raise SystemExit(error.exit_code) from None


def run_console(folder: Path) -> None:
    """Serve the console of a coordinator until the process is told to end.

    Raises:
        FileProblemError: there is no ``[console]``, or nobody may sign in.
        AsterionError: as :func:`asterion_shared.console.serving.serve`.
    """
    made = open_provisioned(folder)
    console = operator_console(made)
    read_people(console.people, console.command)
    app = web_application(console)
    serve(app, console.settings, made.folder, lambda line: print(line, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()
