"""The page of the sites: how each stands, its certificate, its program, how fast it is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from cryptography import x509
from markupsafe import Markup

from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.console.runs_page import badge, link_to_run
from asterion_server.keys import Provisioned, papers_problems
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.run_queue import LinkQueue, launched_runs
from asterion_shared import __version__
from asterion_shared.console.rendering import clock, date
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.result import SiteOutcome
from asterion_shared.site_standing import SiteStanding

HEAD = ("site", "state", "doing", "last contact", "certificate ends", "version", "work a round",
        "transfer", "missing lately")  # fmt: skip
SOON_DAYS = 30
RECENT_RUNS = 5
"""Runs whose rounds tell how fast a site is."""

RECENT_ROUNDS = 20
_STATES = {
    "registered": ("never seen", "idle"),
    "away": ("away", "lost"),
    "connected": ("connected", ""),
    "configured": ("connected", ""),
    "training": ("working", "busy"),
}


def sites_values(made: Provisioned, looks: RunLooks) -> dict[str, Any]:
    """What the template ``sites.html.j2`` shows."""
    standings = LinkQueue(made).site_standings(made.settings.sites)
    contacts = _contacts(made)
    outcomes = _outcomes(made, looks)
    rows = [
        _row(made, one, contacts.get(one.name), outcomes.get(one.name, ())) for one in standings
    ]
    connected = sum(one.state in ("connected", "configured", "training") for one in standings)
    return {
        "head": HEAD,
        "body": rows,
        "connected": connected,
        "working": sum(one.state == "training" for one in standings),
        "papers": [str(problem) for problem in papers_problems(made)],
    }


def sites_stamp(made: Provisioned) -> str:
    """Changes when a site comes, goes, begins or ends an order; not with each contact."""
    return repr(LinkQueue(made).site_standings(made.settings.sites))


def _contacts(made: Provisioned) -> Mapping[str, float]:
    store = LinkStore(database_url(made))
    try:
        return {session.site: session.last_contact for session in store.sessions()}
    finally:
        store.close()


def _outcomes(made: Provisioned, looks: RunLooks) -> Mapping[str, Sequence[SiteOutcome]]:
    """What became of each site in the newest rounds, oldest first."""
    found: dict[str, list[SiteOutcome]] = {}
    for folder in launched_runs(made)[-RECENT_RUNS:]:
        look = looks.look(folder)
        if not isinstance(look, RunLook):
            continue
        for round_ in look.result.rounds[-RECENT_ROUNDS:]:
            for site, outcome in round_.outcomes.items():
                found.setdefault(site, []).append(outcome)
    return {site: outcomes[-RECENT_ROUNDS:] for site, outcomes in found.items()}


def _row(
    made: Provisioned,
    standing: SiteStanding,
    contact: float | None,
    outcomes: Sequence[SiteOutcome],
) -> tuple[str | Markup, ...]:
    words, kind = _STATES[standing.state]
    doing: str | Markup = ""
    if standing.round is not None:
        run = link_to_run(standing.run)
        doing = Markup("round {} of {}").format(standing.round, run)
    elif standing.state == "away":
        doing = f"since {clock(standing.since)}"
    told = [o for o in outcomes if o.outcome in ("answered", "carried")]
    missing = sum(o.outcome not in ("answered", "carried") for o in outcomes)
    return (
        standing.name,
        badge(words, kind),
        doing,
        clock(contact),
        _certificate(made, standing.name),
        _version(standing.version),
        in_time(median(o.seconds for o in told)) if told else number(None),
        _rate(told),
        f"{missing} of {len(outcomes)}" if outcomes else number(None),
    )


def _certificate(made: Provisioned, site: str) -> str | Markup:
    kept = made.certificates(site)
    if not kept.is_file():
        return number(None)
    ends = x509.load_pem_x509_certificate(kept.read_bytes()).not_valid_after_utc
    days = (ends - datetime.now(UTC)).days
    if days < 0:
        return badge(f"ended {date(ends)}", "lost")
    return badge(f"{date(ends)}, {days} days", "partial") if days < SOON_DAYS else date(ends)


def _version(version: str) -> str | Markup:
    if not version:
        return number(None)
    return version if version == __version__ else badge(version, "partial")


def _rate(told: Sequence[SiteOutcome]) -> str:
    rates = [
        (o.bytes_down + o.bytes_up) / o.transfer_seconds
        for o in told
        if o.transfer_seconds > 0 and o.bytes_down + o.bytes_up > 0
    ]
    return f"{in_bytes(round(median(rates)))}/s" if rates else number(None)
