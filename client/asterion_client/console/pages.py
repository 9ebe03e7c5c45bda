"""What the pages of a site show."""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asterion_client.approvals import approvals, waiting
from asterion_client.check_connection import own_problems
from asterion_client.check_machine import machine_problems
from asterion_client.console.tasks import Done
from asterion_client.dry_run import DryRun
from asterion_client.egress_listing import entry_lines, field_rows, totals
from asterion_client.egress_log import read_log
from asterion_client.ledger_words import charge_words, epsilon_number, left_words, summary
from asterion_client.plan_desk import is_paused, review_waiting
from asterion_client.plan_review import sections
from asterion_client.privacy_ledger import Ledger, RunSpending, ledger_folder
from asterion_client.settings import SiteSettings
from asterion_client.site_history import read_history
from asterion_client.site_standing import in_words, read_status
from asterion_client.site_vitals import read_vitals, vital_words, whole_problem
from asterion_shared.console.rendering import clock, short
from asterion_shared.errors import FileProblemError, Problem
from asterion_shared.plan import parse_plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.reports.metric_words import in_bytes, number
from asterion_shared.reports.report_page import plural

MOST_ENTRIES = 50
"""Replies that the page of what left shows, the newest ones."""

MOST_RUNS = 100


def site_values(settings: SiteSettings, folder: Path) -> dict[str, Any]:
    """The first page: how the site stands."""
    state = folder / settings.state_folder
    connection = settings.connection
    problem = whole_problem(state, 10.0 if connection is None else connection.silent_minutes)
    try:
        stands = in_words(read_status(state))
    except FileProblemError:
        stands = "it never ran here"
    vitals = read_vitals(state)
    papers = [] if connection is None or connection.certificate is None else [
        str(paper) for paper in own_problems(connection, settings.name, folder)
    ]  # fmt: skip
    warnings = [str(p) for p in machine_problems(vitals) if not p.fatal]
    return {
        "problem": problem,
        "stands": stands,
        "paused": is_paused(settings, folder),
        "num_waiting": len(waiting(state)),
        "warnings": list(dict.fromkeys([*papers, *warnings])),
        "vital_rows": [vital_words(vital) for vital in vitals],
        "facts": _facts(settings),
    }


def site_stamp(settings: SiteSettings, folder: Path) -> str:
    """Changes when the first page would, the seconds of a silence left out."""
    state = folder / settings.state_folder
    problem = whole_problem(state, 10.0).partition(";")[0]
    try:
        status = read_status(state)
        stands: tuple[object, ...] = (status.connected, status.working, status.refused)
    except FileProblemError:
        stands = ()
    vitals = (state / "vitals.json").stat().st_mtime if (state / "vitals.json").exists() else 0
    silent = "".join(letter for letter in problem if not letter.isdigit())
    return repr(
        (silent, stands, vitals, is_paused(settings, folder), plans_stamp(settings, folder))
    )


def _facts(settings: SiteSettings) -> list[tuple[str, str]]:
    consent, privacy = settings.consent, settings.privacy
    address = "none" if settings.connection is None else settings.connection.address
    return [
        ("coordinator", address),
        ("data", f"{settings.data.format}, for {settings.task}"),
        ("operators", ", ".join(consent.operators) if consent else "no [consent]: all is refused"),
        ("approval", number(None) if consent is None else
         "a person looks at each plan" if consent.approval == "person" else "as [consent] says"),
        ("privacy", "none: no private plan can run" if privacy is None else
         f"at most epsilon {privacy.epsilon_limit:g} at delta {privacy.delta:g}, over all runs"),
        ("smallest group", plural(settings.smallest_group, "patient")),
    ]  # fmt: skip


def plans_values(settings: SiteSettings, folder: Path) -> dict[str, Any]:
    """Plans that wait, and those that are approved."""
    wait = []
    for one in waiting(folder / settings.state_folder):
        plan = parse_plan(one.plan)
        link = Markup('<a href="/plans/{}">{}</a>').format(one.run, one.run)
        wait.append((link, f"{plan.kind} {plan.task}", one.operator, clock(float(one.came_at)),
                     short(plan.sha256)))  # fmt: skip
    now = time.time()
    done = [
        (a.run, short(parse_plan(a.plan).sha256), clock(float(a.approved_at)),
         clock(float(a.ends_at)), "ended" if a.ends_at < now else "holds")
        for a in reversed(approvals(settings, folder))
    ]  # fmt: skip
    return {"wait_rows": wait, "approved_rows": done}


def plans_stamp(settings: SiteSettings, folder: Path) -> str:
    """Changes when a plan comes, or is approved or not any more."""
    found = (folder / settings.state_folder / "consent").glob("*/*.json")
    return repr(sorted((p.name, p.stat().st_mtime_ns) for p in found))


def plan_values(site_toml: Path, run: str, tried: Done[DryRun] | None) -> dict[str, Any]:
    """A plan that waits, as ``asterion site review`` says it.

    Raises:
        UserInputError: no such plan waits.
    """
    settings, found = review_waiting(site_toml, run, None if tried is None else tried.result)
    return {
        "review": found,
        "parts": sections(found, settings),
        "tried": tried,
        "toml": plan_to_toml(found.plan),
    }


def budget_values(settings: SiteSettings, folder: Path) -> dict[str, Any]:
    """The privacy ledger: what each run has cost, and what is left."""
    place = ledger_folder(settings, folder)
    runs: list[RunSpending] = []
    head = "none"
    if place.is_dir() and any(place.iterdir()):  # else nothing was ever charged
        with Ledger(place, settings.privacy, create=False) as ledger:
            end = ledger.head()
            runs = ledger.runs(MOST_RUNS) if end.count else []
            head = f"{end.count:,} entries; head {end.sha256}"
    exposure = runs[-1].exposure if runs else None
    limit = 0.0 if settings.privacy is None else settings.privacy.epsilon_limit
    lost = 0.0 if exposure is None else exposure.epsilon
    return {
        "summary": summary(exposure, settings.privacy),
        "limit": limit,
        "lost": min(lost, limit) if math.isfinite(lost) else limit,
        "body": [_spent_row(run, settings) for run in reversed(runs)],
        "head": head,
    }


def _spent_row(run: RunSpending, settings: SiteSettings) -> tuple[str, ...]:
    first, last, entry = run.first_round, run.last_round, run.last_entry
    whom = "the site" if entry.unit_kind == "site" else f"{entry.num_units:,} {entry.unit_kind}s"
    return (
        entry.run,
        entry.phase,
        str(first) if first == last else f"{first}-{last}",
        whom,
        "; ".join(charge_words(charge) for charge in run.charges),
        epsilon_number(run.exposure.epsilon),
        left_words(run.exposure.epsilon, settings.privacy),
        clock(entry.charged_at),
    )


def egress_values(settings: SiteSettings, folder: Path) -> dict[str, Any]:
    """What has left: totals, and every number of the newest replies."""
    state = folder / settings.state_folder
    summed = totals(read_log(state))
    newest = deque(read_log(state), maxlen=MOST_ENTRIES)
    return {
        "days": [(r["day"], f"{r['replies']:,}", in_bytes(r["bytes"]))
                 for r in reversed(summed["days"])],
        "runs": [(r["run"] or "orders that cannot be read", f"{r['replies']:,}",
                  in_bytes(r["bytes"])) for r in reversed(summed["runs"])],
        "entries": [list(entry_lines(entry)) for entry in reversed(newest)],
        "fields": [tuple(row.values()) for row in field_rows()],
        "field_head": tuple(field_rows()[0]),
    }  # fmt: skip


def egress_stamp(settings: SiteSettings, folder: Path) -> str:
    """Changes when something leaves."""
    found = (folder / settings.state_folder / "egress").glob("*")
    return repr(sorted((p.name, p.stat().st_size) for p in found))


def history_values(settings: SiteSettings, folder: Path) -> dict[str, Any]:
    """The runs that the site took part in, the newest first."""
    places = [p for p in (folder / settings.state_folder / "runs").glob("*") if p.is_dir()]
    rows = []
    for place in sorted(places, key=lambda p: p.stat().st_mtime, reverse=True)[:MOST_RUNS]:
        rounds = read_history(place)
        trained = [r for r in rounds if r.num_steps > 0]
        link: str | Markup = place.name
        if (place / "report.html").exists():
            link = Markup('<a href="/history/{}">{}</a>').format(place.name, place.name)
        last = trained[-1] if trained else None
        rows.append((
            link,
            f"{len(trained)}",
            number(None) if last is None else f"{last.num_examples:,}",
            number(None) if last is None else number(last.train_loss),
            clock(place.stat().st_mtime),
        ))  # fmt: skip
    return {"body": rows}


def data_values(found: Done[list[Problem]] | None) -> dict[str, Any]:
    """What ``asterion site check`` found last."""
    problems = [] if found is None or found.result is None else found.result
    rows = [("problem" if p.fatal else "warning", p.where, p.what, p.fix) for p in problems]
    return {"found": found, "rows_found": rows}
