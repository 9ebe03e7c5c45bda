"""What a site remembers of a run, and the report it writes for its own eyes."""

import json
from pathlib import Path
from typing import Any

from asterion_shared.cases import SiteData
from asterion_shared.files import append_lines
from asterion_shared.messages import Order, Report
from asterion_shared.metrics import summarise
from asterion_shared.plan import Plan
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.site_report import write_site_report
from asterion_shared.site_rounds import SiteRound

HISTORY = "history.jsonl"
"""Lines of :class:`SiteRound`, each of which tells what is new of a round."""


def remember(folder: Path, order: Order, report: Report) -> None:
    """Store what an answered order showed: training of this round, metrics of the one before.

    Args:
        folder: the run's folder at the site.
        order: a train or evaluate order.
        report: the answer to it.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    seen: list[SiteRound] = []
    if report.statistics:
        metrics = summarise(report.statistics, order.plan)
        before = order.round - 1
        seen.append(SiteRound(round=before, metrics=metrics, num_test=report.num_test))
    if order.phase == "train":
        seen.append(
            SiteRound(
                round=order.round,
                num_examples=report.num_examples,
                num_test=report.num_test,
                num_steps=report.num_steps,
                train_loss=report.train_loss,
                seconds=report.seconds,
            )
        )
    append_lines(folder / HISTORY, [row.model_dump_json(exclude_unset=True) for row in seen])


def read_history(folder: Path) -> list[SiteRound]:
    """The rounds a site took part in, in order; empty when there are none.

    Of a round that was worked on twice the later words count.
    """
    path = folder / HISTORY
    rounds: dict[int, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a crash; the order was answered again after it
        rounds.setdefault(row["round"], {}).update(row)
    return [SiteRound.model_validate(rounds[number]) for number in sorted(rounds)]


def report_run(folder: Path, plan: Plan, data: SiteData, pictures: list[Picture]) -> None:
    """Write ``report.html`` into the run's folder; with pictures, so it stays at the site.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    write_site_report(
        folder / "report.html", data.site, plan, read_history(folder), pictures, data.bad_files
    )
