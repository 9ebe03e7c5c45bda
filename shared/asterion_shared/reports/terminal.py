"""A run in the terminal: a line a round, a table at the end; or JSON lines for programs."""

import sys
from types import TracebackType
from typing import Self, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asterion_shared.absences import quarantine_sentences
from asterion_shared.events import (
    DeadlineDerived,
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
    SiteAwaited,
    event_line,
)
from asterion_shared.plan import TaskName
from asterion_shared.reports import metric_words
from asterion_shared.reports.many_sites import (
    Part,
    late_words,
    missing_words,
    parts_of_sites,
    pick_sites,
)
from asterion_shared.reports.metric_words import in_bytes, in_time, number
from asterion_shared.reports.report_page import interval, lowest_site, num_tested, plural, told
from asterion_shared.reports.usability import not_usable
from asterion_shared.result import Metrics, Result, RoundResult
from asterion_shared.site_standing import clock

WIDE_COLUMNS = 110
"""Columns of a terminal from which on the secondary metrics are shown."""

MOST_ROWS = 21
"""Sites in the closing table; of more, the lowest, the middle and the highest third of these."""


class RoundPrinter:
    """Prints a run as it goes on; call it with each event.

    On a terminal a progress bar stands below the lines while the ``with`` block is open.

    Args:
        as_json: print each event as one line of JSON instead; the last holds the whole result.
        stream: where to print; absent: standard output.
    """

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._as_json = as_json
        self._console = Console(file=self._stream, highlight=False)
        self._task: TaskName = "segmentation"
        self._planned = 0
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if not self._as_json and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if self._as_json:
            self._stream.write(event_line(event) + "\n")
            self._stream.flush()
        elif isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, RoundFinished):
            self._line(round_line(event.round_result, self._task, self._planned))
            if self._progress and event.round_result.round > 0:
                self._progress.update(self._progress.task_ids[0], advance=1)
        elif isinstance(event, RunFinished):
            self._close()
            self._finish(event)
        elif isinstance(event, DeadlineDerived):
            self._line(f"[dim]{escape(deadline_line(event))}[/]")
        else:
            self._line(f"[yellow]{escape(awaited_line(event))}[/]")

    def _start(self, event: RunStarted) -> None:
        self._task, self._planned = event.task, event.rounds
        names = ", ".join(event.sites[:8]) + (", ..." if len(event.sites) > 8 else "")
        self._line(
            f"[bold]{escape(event.plan)}[/] run {escape(event.run)}: {event.task}, "
            f"{event.rounds} rounds, {len(event.sites):,} sites ({escape(names)})"
        )
        if self._progress:
            self._progress.add_task("rounds", total=event.rounds)

    def _finish(self, event: RunFinished) -> None:
        result = event.result
        self._console.print()
        self._console.print(final_table(result, width=self._console.width))
        style = "green" if result.status == "finished" else "bold red"
        self._line(f"[{style}]{result.status.replace('_', ' ')}[/]: {escape(result.headline)}")
        if result.privacy_account is not None:
            self._line(f"privacy: {escape(result.privacy)}")
            self._line(escape(result.privacy_account.sentence))
        if warning := not_usable(result):
            self._line(f"[bold red]{escape(warning)}[/]")
        if result.privacy_audit is not None:
            style = "bold red" if result.privacy_audit.broken else "default"
            self._line(f"[{style}]attacked: {escape(result.privacy_audit.verdict)}[/]")

    def _line(self, text: str) -> None:
        # Soft: a line a round stays one line, however narrow the terminal or the log.
        self._console.print(text, soft_wrap=True)

    def _close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


def deadline_line(event: DeadlineDerived) -> str:
    """A derived deadline and where it is from.

    For example ``round 3: deadline 1 min 24 s; slowest is site north with 28.0 s``.
    """
    what = f"{_work(event)}: deadline {in_time(event.deadline_seconds)}"
    if event.site is None:
        return f"{what}; nothing is measured yet"
    return f"{what}; slowest is site {event.site} with {in_time(event.site_seconds)}"


def awaited_line(event: SiteAwaited) -> str:
    """Whom a round waits for.

    For example ``round 3: waiting for site north, away since 14:02 UTC (2026-01-02)``.
    """
    since = clock(event.since)
    words = {
        "away": f"waiting for site {event.site}, away since {since}",
        "late": f"waiting for site {event.site}, past the deadline, at work since {since}",
        "back": f"site {event.site} is back, it was away since {since}",
    }
    return f"{_work(event)}: {words[event.state]}"


def _work(event: DeadlineDerived | SiteAwaited) -> str:
    """What an order is for: the count comes before round 1, the evaluation after the last."""
    names = {"count": "count", "evaluate": "evaluation"}
    return names.get(event.phase, f"round {event.round}")


def round_line(result: RoundResult, task: TaskName, planned: int) -> str:
    """One round as one line, in rich's markup.

    For example ``round 3/5  2/3 sites  Dice 0.612 (baseline 0.000)  lowest south 0.540  4.1 s
    missing: north (unreachable)``.
    """
    metric = metric_words.headline_metric(task)
    width = len(str(planned))
    parts = [
        f"round {result.round:>{width}}/{planned}",
        f"{len(result.answered):,}/{len(result.asked):,} sites",
    ]
    if result.pooled:
        baseline = result.pooled.get(f"baseline/{metric}")
        beside = f" (baseline {number(baseline)})" if baseline is not None else ""
        parts.append(
            f"{metric_words.label(metric)} [bold]{number(result.pooled.get(metric))}[/]{beside}"
        )
    lowest = lowest_site(result.sites, metric)
    if lowest and len(result.sites) > 1:
        parts.append(f"lowest {escape(lowest[0])} {number(lowest[1])}")
    if result.train_loss is not None:
        parts.append(f"loss {number(result.train_loss)}")
    parts.append(in_time(result.seconds))
    if result.missing:
        parts.append(f"[yellow]missing: {escape(missing_words(result.missing))}[/]")
    if late := late_words(result):
        parts.append(f"[yellow]{escape(late)}[/]")
    parts += [f"[yellow]{escape(sentence)}[/]" for sentence in quarantine_sentences([result])]
    return "  ".join(parts)


def final_table(result: Result, *, width: int = 80) -> Table:
    """The final model at each site and over all, as a table for the terminal.

    Of many sites it has those with the lowest, a middle and the highest headline metric.

    Args:
        result: what the run did.
        width: columns of the terminal; the secondary metrics are shown from 110 on.
    """
    metric = metric_words.headline_metric(result.task)
    secondary = metric_words.secondary_metrics(result.task) if width >= WIDE_COLUMNS else ()
    others = [name for name in secondary if name in result.final_metrics]
    table = Table(
        title=f"{result.name}: the final model, on held-out data",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    # The first column that is cut: a number that is cut would say something else.
    table.add_column("site", overflow="ellipsis")
    heads = ["train", "test", metric_words.label(metric), "baseline", "95 %\ninterval"]
    # Words one below the other: beside three long heads no room was left for the site's name.
    heads += [metric_words.label(name).replace(" ", "\n") for name in others]
    for head in (*heads, "answered", "files\nskipped"):
        table.add_column(head, justify="right", no_wrap=True)

    def cells(metrics: Metrics) -> list[str]:
        main = [number(metrics.get(metric)), number(metrics.get(f"baseline/{metric}"))]
        spread = interval(metrics, metric, digits=2, between="-")
        return [*main, spread, *(metric_words.value(metrics, n) for n in others)]

    final, parts = result.final_sites, parts_of_sites(result.rounds)
    groups = pick_sites(
        [s.name for s in result.sites],
        {site: m.get(metric) for site, m in final.items()},
        MOST_ROWS,
    )
    by_name = {site.name: site for site in result.sites}
    for group in groups:
        if group.words:
            table.add_row(f"[dim]{group.words}:[/]")
        for name in group.sites:
            site, part = by_name[name], parts.get(name, Part())
            table.add_row(
                name, told(result, site.num_examples), told(result, site.num_test),
                *cells(final.get(name, {})), f"{part.answered}/{part.asked}",
                told(result, site.num_bad_files),
            )  # fmt: skip
        table.add_section()
    hidden = len(result.sites) - sum(len(group.sites) for group in groups)
    table.add_row(
        "pooled", told(result, sum(s.num_examples for s in result.sites)),
        f"{num_tested(result):,}", *cells(result.final_metrics), "",
        told(result, sum(s.num_bad_files for s in result.sites)), style="bold",
    )  # fmt: skip
    down, up = (sum(getattr(r, f"bytes_{way}") for r in result.rounds) for way in ("down", "up"))
    seconds = in_time(sum(r.seconds for r in result.rounds))
    traffic = f", {in_bytes(down)} down, {in_bytes(up)} up" if down or up else ""
    more = f"{plural(hidden, 'more site')}, in result.json\n" if hidden else ""
    table.caption, table.caption_justify = f"{more}{seconds}{traffic}", "left"
    return table
