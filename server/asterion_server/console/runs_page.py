"""The first page: every run, the newest first."""

from typing import Any

from markupsafe import Markup, escape

from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.keys import Provisioned
from asterion_server.run_queue import launched_runs
from asterion_shared.console.rendering import clock
from asterion_shared.reports import metric_words
from asterion_shared.reports.metric_words import number

HEAD = ("run", "state", "how it went", "rounds", "result", "launched")


def runs_values(made: Provisioned, looks: RunLooks) -> dict[str, Any]:
    """What the template ``runs.html.j2`` shows."""
    found = [(f, looks.look(f)) for f in reversed(launched_runs(made))]
    read = [look for _, look in found if isinstance(look, RunLook)]
    going = sorted((look for look in read if look.goes_on), key=lambda look: look.launched)
    over = [look for look in read if not look.goes_on]
    unread = [(f.path.name, look) for f, look in found if isinstance(look, str)]
    return {
        "going": [_row(look) for look in going],
        "over": [_row(look) for look in over],
        "unread": unread,
        "head": HEAD,
        "at_once": made.settings.runs_at_once,
    }


def runs_stamp(made: Provisioned, looks: RunLooks) -> str:
    """Changes when the page would."""
    return repr([(f.path.name, looks.stamp(f)) for f in launched_runs(made)])


def _row(look: RunLook) -> tuple[str | Markup, ...]:
    metric = metric_words.headline_metric(look.plan.task)
    value = look.result.final_metrics.get(metric)
    return (
        link_to_run(look.name),
        badge(look.words, look.kind),
        look.headline,
        f"{look.rounds_done} of {look.result.rounds_planned}" if look.plan.kind == "train"
        else look.plan.kind,
        "" if value is None else f"{metric_words.label(metric)} {number(value)}",
        clock(look.launched),
    )  # fmt: skip


def link_to_run(name: str) -> Markup:
    """A run's name as a link to its page."""
    return Markup('<a href="/runs/{}">{}</a>').format(name, name)


def badge(words: str, kind: str) -> Markup:
    """A state in words, with a colour of its own."""
    return Markup('<span class="status {}">{}</span>').format(kind, escape(words))
