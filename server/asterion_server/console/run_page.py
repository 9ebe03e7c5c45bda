"""The page of one run: how it stands now, its curves, its sites, its rounds, its privacy."""

import time
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from asterion_server.console.run_looks import RunLook
from asterion_server.console.runs_page import badge
from asterion_server.keys import Provisioned
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.quarantine_files import QuarantineFiles
from asterion_server.run_folder import RunFolder
from asterion_shared.console.rendering import clock, short
from asterion_shared.events import DeadlineDerived, SiteAwaited
from asterion_shared.messages import REASON_CODES
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import epsilon_words
from asterion_shared.reports import metric_words
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.reports.report_page import interval
from asterion_shared.reports.run_charts import headline_chart, loss_chart, seconds_chart
from asterion_shared.reports.run_tables import absences, metric_table, round_table, site_table
from asterion_shared.result import SiteOutcome

_NOW = {"asked": ("asked", "idle"), "working": ("working", "busy"), "answered": ("answered", ""),
        "over": ("not in time", "lost")}  # fmt: skip
_WITHOUT_CODE = {
    "late": "it had not answered at the deadline",
    "quarantined": "its update was unlike those of the other sites",
}
_OUTCOMES = {"answered": ("answered", ""), "carried": ("answered late", "partial"),
             "refused": ("refused", "lost"), "failed": ("failed", "lost"),
             "late": ("late", "lost"), "quarantined": ("quarantined", "lost")}  # fmt: skip


def run_values(made: Provisioned, look: RunLook) -> dict[str, Any]:
    """What the template ``run.html.j2`` shows."""
    folder, result = RunFolder(made.runs / look.name), look.result
    metric = metric_words.headline_metric(result.task)
    return {
        "look": look,
        "result": result,
        "badge": badge(look.words, look.kind),
        "cards": _cards(look, metric),
        "now_head": ("site", "now", "last round it was in", "why not", "last contact"),
        "now_rows": _now_rows(made, look),
        "now_notes": _now_notes(look),
        "metric_label": metric_words.label(metric),
        "headline_chart": headline_chart(result, metric),
        "loss_chart": loss_chart(result),
        "seconds_chart": seconds_chart(result),
        **site_table(result, metric, look.plan),
        **round_table(result, metric),
        **absences(result),
        **metric_table(result),
        "privacy": result.privacy[:1].upper() + result.privacy[1:],
        "spent_rows": _spent_rows(look),
        "held_rows": _held_rows(folder),
        "facts": _facts(look),
        "has_report": folder.report.exists() and not look.goes_on,
        "plan_toml": plan_to_toml(look.plan),
        "can_resume": not look.goes_on and look.status != "finished",
    }


def run_stamp(made: Provisioned, folder: RunFolder, stamp: object) -> str:
    """Changes when the page would.

    Args:
        made: the coordinator's folder.
        folder: the run's.
        stamp: of its files.
    """
    held = sorted(p.name for p in (folder.path / "quarantine").glob("round-*/*.json"))
    return repr((stamp, held, _orders(made, folder.path.name) if folder.is_carried_out else {}))


def _orders(made: Provisioned, run: str) -> Mapping[str, tuple[int, str]]:
    store = LinkStore(database_url(made))
    try:
        return store.orders_of(run)
    finally:
        store.close()


def _cards(look: RunLook, metric: str) -> list[dict[str, str]]:
    result = look.result
    baseline = result.final_metrics.get(f"baseline/{metric}")
    spent = in_time(sum(r.seconds for r in result.rounds))
    down, up = (sum(getattr(r, f"bytes_{way}") for r in result.rounds) for way in ("down", "up"))
    more = "not measured yet" if look.goes_on else "never measured"
    if result.final_metrics.get(metric) is not None:
        more = f"95 % {interval(result.final_metrics, metric)}, baseline {number(baseline)}"
    cards = [
        (f"pooled {metric_words.label(metric)}", number(result.final_metrics.get(metric)), more),
        ("rounds", f"{look.rounds_done} of {result.rounds_planned}",
         f"{spent} so far" if look.goes_on else spent),
        ("sites", f"{len(look.launch.sites)}", _left_words(look)),
        ("traffic", in_bytes(down + up), f"{in_bytes(down)} down, {in_bytes(up)} up"),
    ]  # fmt: skip
    if look.end is not None:
        left = look.end - time.time()
        when = f"in {in_time(left)}" if left > 0 else "any moment"
        at, _, zone = clock(look.end).rpartition(" ")
        cards.append(("ends about", at, f"{zone}; {when}, if rounds take what they took"))
    if result.privacy_account is not None and look.plan.privacy is not None:
        account, limit = result.privacy_account, look.plan.privacy.epsilon_limit
        cards.append((
            "most epsilon spent", epsilon_words(account.epsilon).removeprefix("epsilon "),
            f"of {limit:g} that the plan allows",
        ))  # fmt: skip
    return [{"what": what, "value": value, "more": words} for what, value, words in cards]


def _left_words(look: RunLook) -> str:
    left = look.launch.left
    return f"{len(left)} withdrew: {', '.join(left)}" if left else ""


def _now_rows(made: Provisioned, look: RunLook) -> list[tuple[str | Markup, ...]]:
    """A row a site while the run goes on; empty when it has ended."""
    if not look.goes_on:
        return []
    store = LinkStore(database_url(made))
    try:
        orders = store.orders_of(look.name)
        sessions = {session.site: session for session in store.sessions()}
    finally:
        store.close()
    newest = max((round_ for round_, _ in orders.values()), default=-1)
    awaited = {e.site: e for e in look.since_round if isinstance(e, SiteAwaited)}
    rows: list[tuple[str | Markup, ...]] = []
    for site in sorted(look.launch.sites):
        session, waited = sessions.get(site), awaited.get(site)
        round_, state = orders.get(site, (-1, ""))
        if round_ == newest and state:
            words, kind = _NOW[state]
            shown = badge(f"{words}, {_round_words(round_)}", kind)
        else:
            shown = badge("not asked", "idle")
        if waited is not None and waited.state != "back" and state in ("asked", "working"):
            shown = badge(f"{waited.state} since {clock(waited.since)}", "lost")
        elif session is None or not session.is_open:
            shown = badge("away", "lost") if session else badge("never seen", "idle")
        last, why = _last_outcome(look, site)
        contact = None if session is None else session.last_contact
        rows.append((site, shown, last, why, clock(contact)))
    return rows


def _last_outcome(look: RunLook, site: str) -> tuple[str | Markup, str]:
    for round_ in reversed(look.result.rounds):
        outcome = round_.outcomes.get(site)
        if outcome is not None:
            words, kind = _OUTCOMES[outcome.outcome]
            return badge(f"{words}, {_round_words(round_.round)}", kind), why_not(outcome)
    return number(None), ""


def why_not(outcome: SiteOutcome) -> str:
    """Why a site has no report in a round; empty when it has."""
    if outcome.outcome in ("answered", "carried"):
        return ""
    if not outcome.code:
        return _WITHOUT_CODE.get(outcome.outcome, "")
    while_ = f", while {outcome.stage}" if outcome.stage else ""
    return f"{REASON_CODES.get(outcome.code, outcome.code)}{while_} [{outcome.code}]"


def _round_words(number_: int) -> str:
    return f"round {number_}" if number_ else "the start"


def _now_notes(look: RunLook) -> list[str]:
    due = [e for e in look.since_round if isinstance(e, DeadlineDerived)]
    if not due:
        return []
    last = due[-1]
    made = f": three times what {last.site} took" if last.site else ""
    return [
        f"The deadline of {_round_words(last.round)} is {in_time(last.deadline_seconds)}{made}."
    ]


def _spent_rows(look: RunLook) -> list[tuple[str, ...]]:
    account, privacy = look.result.privacy_account, look.plan.privacy
    if account is None or privacy is None:
        return []
    rows: list[tuple[str, ...]] = []
    for site, times in account.rounds.items():
        spent = account.epsilons[site]
        left = number(None) if spent is None else f"{max(privacy.epsilon_limit - spent, 0):.2f}"
        rows.append((site, str(times), epsilon_words(spent), left))
    return rows


def _held_rows(folder: RunFolder) -> list[tuple[str, ...]]:
    files = QuarantineFiles(folder.path)
    rows: list[tuple[str, ...]] = []
    for report in files.reports():
        worst = max(report.layers, key=lambda layer: max(layer.norm_z, layer.cosine_z))
        z = max(worst.norm_z, worst.cosine_z)
        rows.append((report.site, str(report.round), files.state(report),
                     f"{worst.layer} (z {z:.3g})", str(len(report.layers))))  # fmt: skip
    return rows


def _facts(look: RunLook) -> list[tuple[str, str]]:
    result = look.result
    model, none = result.final_model, "none yet" if look.goes_on else "none"
    return [
        ("plan", f"{look.plan.name}, SHA-256 {short(look.plan.sha256)}"),
        ("signed by", look.signed_by or "nobody"),
        ("launched", clock(look.launched)),
        ("ended", clock(result.finished) if not look.goes_on else "it goes on"),
        ("final model", f"SHA-256 {model.sha256}" if model else none),
        ("versions", ", ".join(f"{n} {v}" for n, v in sorted(result.versions.items())) or "-"),
    ]
