"""What a site remembers of a run, and the report it writes for its own eyes."""

import json
from pathlib import Path

from asterion_shared.cases import SiteData
from asterion_shared.files import write_atomically
from asterion_shared.messages import Order, Report
from asterion_shared.metrics import summarise
from asterion_shared.plan import Plan
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.site_report import write_site_report
from asterion_shared.result import SiteRound


def remember(folder: Path, order: Order, report: Report) -> None:
    """Store what an answered order showed: training of this round, metrics of the one before.

    Args:
        folder: the run's folder at the site.
        order: a train or evaluate order.
        report: the answer to it.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    rounds = {known.round: known for known in read_history(folder)}
    if report.statistics:
        before = rounds.get(order.round - 1, SiteRound(round=order.round - 1))
        measured = {
            "metrics": summarise(report.statistics, order.plan),
            "num_test": report.num_test,
        }
        rounds[before.round] = before.model_copy(update=measured)
    if order.phase == "train":
        rounds[order.round] = SiteRound(
            round=order.round,
            num_examples=report.num_examples,
            num_test=report.num_test,
            num_steps=report.num_steps,
            train_loss=report.train_loss,
            seconds=report.seconds,
        )
    rows = [rounds[number].model_dump(mode="json") for number in sorted(rounds)]
    write_atomically(folder / "history.json", json.dumps(rows).encode())


def read_history(folder: Path) -> list[SiteRound]:
    """The rounds a site took part in, in order; empty when there are none."""
    path = folder / "history.json"
    if not path.exists():
        return []
    return [SiteRound.model_validate(row) for row in json.loads(path.read_text())]


def report_run(folder: Path, plan: Plan, data: SiteData, pictures: list[Picture]) -> None:
    """Write ``report.html`` into the run's folder; with pictures, so it stays at the site.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    write_site_report(
        folder / "report.html", data.site, plan, read_history(folder), pictures, data.bad_files
    )
