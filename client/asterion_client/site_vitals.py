"""How a running site is: the machine's vitals each minute, in a file; health and metrics of it."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

from asterion_client.check_machine import Vital, look_at_machine, machine_problems
from asterion_client.settings import SiteSettings
from asterion_client.site_standing import problem_of, read_status
from asterion_shared import __version__
from asterion_shared.errors import DiskProblemError, FileProblemError, Problem
from asterion_shared.files import write_atomically
from asterion_shared.prometheus_text import CONTENT_TYPE, Figure, exposition
from asterion_shared.status_pages import Page

LOG = logging.getLogger("asterion.site")
FILE = "vitals.json"
LOOK_SECONDS = 60.0
OLD_SECONDS = 300.0
"""Vitals that nobody wrote for so long say nothing about now."""

HELP = {
    "disk_free_bytes": "Free on the disk of the state folder.",
    "inodes_free": "Files that the disk of the state folder has room for.",
    "memory_available_bytes": "Memory that programs can have.",
    "shared_memory_free_bytes": "Free in /dev/shm.",
    "clock_synchronised": "Whether a time server keeps the clock right.",
    "certificate_seconds_left": "Until the site's certificate ends.",
    "log_bytes": "What the logs in the state folder hold.",
    "device_memory_free_bytes": "Free memory of the GPU.",
    "device_memory_errors": "Memory errors that the GPU could not correct since its start.",
}


@contextmanager
def watched_machine(settings: SiteSettings, folder: Path) -> Iterator[None]:
    """Look at the machine each minute, beside what runs in the block.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
    """
    over = Event()

    def watch() -> None:
        while True:
            try:
                write_vitals(folder / settings.state_folder, look_at_machine(settings, folder))
            except Exception as error:  # a log that is moved meanwhile must not end the watch
                LOG.warning("the machine was not looked at: %s", type(error).__name__)
            if over.wait(LOOK_SECONDS):
                return

    thread = Thread(target=watch, daemon=True, name="vitals")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)


def write_vitals(state: Path, vitals: list[Vital]) -> None:
    """Replace what was found before; a disk that is full keeps the old, which says so by its age.

    Args:
        state: the site's state folder.
        vitals: what was found now.
    """
    told = {"taken": time.time(), "vitals": [asdict(vital) for vital in vitals]}
    try:
        write_atomically(state / FILE, json.dumps(told).encode())
    except DiskProblemError:
        return


def read_vitals(state: Path) -> list[Vital]:
    """What was found last; empty when it is too old, was never written or cannot be read."""
    try:
        told = json.loads((state / FILE).read_bytes())
        if time.time() - told["taken"] > OLD_SECONDS:
            return []
        return [_vital(**row) for row in told["vitals"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def _vital(name: str, value: float | None, problem: dict[str, object] | None) -> Vital:
    return Vital(name, value, None if problem is None else Problem(**problem))  # type: ignore[arg-type]


def contact(settings: SiteSettings, folder: Path) -> Iterator[Vital]:
    """How long ago the coordinator was heard, and what is wrong with the site's standing.

    Args:
        settings: the site's; without a connection, or over stock Flower, nothing is known.
        folder: where ``site.toml`` lies.
    """
    connection = settings.connection
    if connection is None or connection.carrier != "link":
        return
    state, heard = folder / settings.state_folder, None
    with suppress(FileProblemError):  # the problem below says so
        heard = read_status(state).last_contact
    told = problem_of(state, connection.silent_minutes)
    what, _, fix = told.partition("; ")
    fix = fix or "see whether asterion site start runs, and its log"
    problem = Problem(where="connection", what=what, fix=fix) if told else None
    silent = None if heard is None else time.time() - heard
    yield Vital("silent_seconds", silent, problem)


def vitals_table(vitals: list[Vital]) -> Iterator[str]:
    """A line for each, its figure in words, and what is wrong."""
    for vital in vitals:
        name, found, verdict = vital_words(vital)
        yield f"{name:22} {found:>16}  {verdict}".rstrip()


def vital_words(vital: Vital) -> tuple[str, str, str]:
    """What was looked at, its figure in words, and what is wrong."""
    found = "not known here" if vital.value is None else _in_words(vital.name, vital.value)
    verdict = "" if vital.value is None else "well"
    if vital.problem is not None:
        kind = "problem" if vital.problem.fatal else "warning"
        verdict = f"{kind}: {vital.problem.what}; {vital.problem.fix}"
    name = vital.name.removesuffix("_left").removesuffix("_bytes").removesuffix("_seconds")
    return name.replace("_", " "), found, verdict


def _in_words(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if name == "certificate_seconds_left":
        return f"{value / 86_400:.0f} days"
    if name.endswith("_seconds"):
        return f"{value:.0f} s"
    if name == "clock_synchronised":
        return "yes" if value else "no"
    return f"{value:.0f}"


def whole_problem(state: Path, silent_minutes: float) -> str:
    """Why the site is not well, its standing first and then its machine; empty when it is."""
    standing = problem_of(state, silent_minutes)
    fatal = [problem for problem in machine_problems(read_vitals(state)) if problem.fatal]
    return standing or (str(fatal[0]) if fatal else "")


def health_page(state: Path, silent_minutes: float) -> Page:
    """``/health``: 200 when the site is well, else 503; warnings do not change that."""
    problem = whole_problem(state, silent_minutes)
    warnings = [str(p) for p in machine_problems(read_vitals(state)) if not p.fatal]
    body = json.dumps({"well": not problem, "problem": problem, "warnings": warnings})
    return Page(503 if problem else 200, "application/json", body)


def metrics_page(site: str, state: Path, silent_minutes: float) -> Page:
    """``/metrics``: the same in figures."""
    return Page(200, CONTENT_TYPE, exposition(_figures(site, state, silent_minutes)))


def _figures(site: str, state: Path, silent_minutes: float) -> Iterator[Figure]:
    own = {"site": site}
    well = not whole_problem(state, silent_minutes)
    yield Figure("asterion_site_info", "The program.", 1, own | {"version": __version__})
    yield Figure("asterion_site_well", "What /health says.", well, own)
    try:
        status = read_status(state)
    except FileProblemError:
        pass  # it says already that it is not well
    else:
        yield Figure("asterion_site_connected", "Whether its session is open.",
                     status.connected, own)  # fmt: skip
        yield Figure("asterion_site_working", "Whether it works on an order.",
                     bool(status.working), own)  # fmt: skip
        if status.refused:
            yield Figure("asterion_site_refused", "The coordinator's last refusal.", 1,
                         own | {"code": status.refused})  # fmt: skip
        if status.last_contact is not None:
            yield Figure("asterion_site_last_contact_timestamp_seconds",
                         "The coordinator's last word.", status.last_contact, own)  # fmt: skip
        yield Figure("asterion_site_start_timestamp_seconds", "Of its process.",
                     status.started, own)  # fmt: skip
    for vital in read_vitals(state):
        if vital.value is not None:
            yield Figure(f"asterion_site_{vital.name}", HELP[vital.name], vital.value, own)
        wrong = vital.problem is not None
        fatal = vital.problem is not None and vital.problem.fatal
        yield Figure("asterion_site_check", "0: well or not known, 1: a warning, 2: it stops work.",
                     wrong + fatal, own | {"check": vital.name})  # fmt: skip
