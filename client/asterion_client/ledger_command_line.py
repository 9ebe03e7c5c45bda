"""``asterion site ledger``: look at what a site has lost of its privacy budget, and check it.

No option here raises the limit: it stands in ``site.toml``, and each entry holds the one it was
charged under.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asterion_shared.errors import LedgerStoppedError

if TYPE_CHECKING:
    from rich.table import Table

    from asterion_client.privacy_ledger import RunSpending
    from asterion_client.settings import PrivacySettings, SiteSettings

app = typer.Typer(no_args_is_help=True, help="The site's privacy ledger: show, export, verify.")

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="the site's folder, or its site.toml")
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]

MOST_ROWS = 20
"""Rows of the table; of more, the newest."""


@app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """What every run has cost, what the most exposed has lost, and what is left."""
    from asterion_client.ledger_words import summary
    from asterion_client.privacy_ledger import Ledger

    settings, place = _site(folder)
    with Ledger(place, settings.privacy, create=False) as ledger:
        head = ledger.head()
        runs = ledger.runs(None if as_json else MOST_ROWS + 1) if head.count else []
    if as_json:
        limits = settings.privacy.model_dump() if settings.privacy is not None else None
        rows = [_run_row(run) for run in runs]
        print(json.dumps(
            {"site": settings.name, "privacy": limits, "head": asdict(head), "runs": rows}
        ))  # fmt: skip
        return
    from rich.console import Console

    if runs:
        console = Console(highlight=False)
        console.print(_table(runs[-MOST_ROWS:], settings.name, settings.privacy))
        if len(runs) > MOST_ROWS:
            console.print(f"earlier runs are in --json; these are the newest {MOST_ROWS}")
    print(summary(runs[-1].exposure if runs else None, settings.privacy))
    print(f"{head.count:,} entries; head {head.sha256}")


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="the file of JSON lines")],
    unit_ids: Annotated[
        bool, typer.Option("--unit-ids", help="with the hashed ids of patients; keep them here")
    ] = False,
) -> None:
    """Write the ledger as lines of JSON whose hashes anybody can verify."""
    from asterion_client.privacy_ledger_audit import export_ledger

    head = export_ledger(_site(folder)[1], out, unit_ids=unit_ids)
    print(f"{out}: {head.count:,} entries; head {head.sha256}")


@app.command()
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Check every hash: nothing was edited, removed, moved, cut off or put back from a backup."""
    from asterion_client.privacy_ledger_audit import verify_ledger

    head, problems = verify_ledger(_site(folder)[1])
    if as_json:
        rows = [{"where": p.where, "what": p.what, "fix": p.fix} for p in problems]
        print(json.dumps({"head": asdict(head), "problems": rows}))
    else:
        for problem in problems:
            print(f"problem: {problem}")
        words = "is not whole" if problems else "is whole"
        upto = "up to there " if problems else ""
        print(f"the ledger {words}; {upto}{head.count:,} entries, head {head.sha256}")
    if problems:
        raise typer.Exit(LedgerStoppedError.exit_code)


@app.command()
def accept(
    folder: Folder,
    head: Annotated[
        list[str] | None,
        typer.Argument(help="the head that each coordinator of this site knows, 64 hex digits"),
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help="no coordinator knows a head of this site")
    ] = False,
) -> None:
    """Let a ledger that was put back from a backup go on, if it has all that coordinators know."""
    from asterion_client.privacy_ledger_restored import accept_restored
    from asterion_shared.errors import UserInputError

    heads = head or []
    if bool(heads) == none:
        msg = (
            "name the head that each coordinator of this site knows (its file ledger_heads/SITE), "
            "or say --none when none knows one"
        )
        raise UserInputError(msg)
    end = accept_restored(_site(folder)[1], heads)
    print(f"the ledger goes on after {end.count:,} entries")


def _site(folder: Path) -> "tuple[SiteSettings, Path]":
    """The settings of a site and where its ledger lies."""
    from asterion_client.privacy_ledger import ledger_folder
    from asterion_client.settings import read_site_settings

    site_toml = folder / "site.toml" if folder.is_dir() else folder
    settings = read_site_settings(site_toml)
    return settings, ledger_folder(settings, site_toml.parent)


def _run_row(run: "RunSpending") -> dict[str, Any]:
    epsilon = run.exposure.epsilon
    return {
        "run": run.last_entry.run,
        "phase": run.last_entry.phase,
        "first_round": run.first_round,
        "last_round": run.last_round,
        "num_releases": run.num_releases,
        "unit_kind": run.last_entry.unit_kind,
        "num_units": run.last_entry.num_units,
        "charges": [charge.model_dump(mode="json") for charge in run.charges],
        "last_charged_at": run.last_entry.charged_at,
        "most_exposed": run.exposure.unit_kind,
        "epsilon_so_far": epsilon if math.isfinite(epsilon) else None,
        "relation": run.exposure.relation,
    }


def _table(runs: "list[RunSpending]", site: str, limits: "PrivacySettings | None") -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from asterion_client.ledger_words import charge_words, epsilon_number, left_words

    table = Table(title=f"Privacy ledger of {escape(site)}", box=box.SIMPLE_HEAD)
    for name in ("run", "phase", "rounds", "protects", "noise multiplier"):
        table.add_column(name, overflow="fold")
    table.add_column("epsilon so far", justify="right")
    table.add_column("left", justify="right")
    for run in runs:
        first, last = run.first_round, run.last_round
        people = run.last_entry.num_units
        kind = run.last_entry.unit_kind
        table.add_row(
            escape(run.last_entry.run),
            escape(run.last_entry.phase),
            str(first) if first == last else f"{first}-{last}",
            "the site" if kind == "site" else f"{people:,} {kind}{'s' if people > 1 else ''}",
            "\n".join(charge_words(charge) for charge in run.charges),
            epsilon_number(run.exposure.epsilon),
            left_words(run.exposure.epsilon, limits),
        )
    return table
