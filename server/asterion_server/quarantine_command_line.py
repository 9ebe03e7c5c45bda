"""``asterion server quarantine``: look at the suspicious reports of a run and decide on them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from asterion_server.quarantine_files import HeldReport, QuarantineFiles, Verdict

app = typer.Typer(no_args_is_help=True, help="Look at a run's suspicious reports; decide on them.")

Run = Annotated[str, typer.Argument(help="name of the run")]
Site = Annotated[str, typer.Argument(help="name of the site")]
Round = Annotated[
    int, typer.Option("--round", min=0, help="the report's round; needed when a site has several")
]
Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="the coordinator's folder")]
DEFAULT = Path("coordinator")


@app.command("list")
def list_reports(
    run: Run,
    folder: Folder = DEFAULT,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object a line, for programs")
    ] = False,
) -> None:
    """Every suspicious report of a run, how it stands and the layer that is furthest off."""
    files = _files(folder, run)
    for report in files.reports():
        state = files.state(report)
        if as_json:
            values = {"round": report.round, "site": report.site, "state": state}
            print(json.dumps(values | {"layers": [layer.layer for layer in report.layers]}))
            continue
        worst = max(report.layers, key=lambda layer: max(layer.norm_z, layer.cosine_z))
        z = max(worst.norm_z, worst.cosine_z)
        print(f"round {report.round} site {report.site}: {state}; {len(report.layers)} layers, "
              f"most of all {worst.layer} (z {z:.3g})")  # fmt: skip
    if not as_json and not files.reports():
        print(f"run {run}: no report is suspicious")


@app.command()
def show(run: Run, site: Site, round_: Round = 0, folder: Folder = DEFAULT) -> None:
    """The layers that made a report suspicious, with their figures beside the other sites'."""
    files = _files(folder, run)
    report = _report(files, run, site, round_)
    print(f"run {run} round {report.round} site {site}: {files.state(report)}; compared with "
          f"{report.num_reports - 1} other sites")  # fmt: skip
    print(
        f"{'layer':<32} {'norm':>10} {'median':>10} {'z':>8} {'cosine':>8} {'median':>8} {'z':>8}"
    )
    for one in report.layers:
        print(f"{one.layer:<32} {one.norm:>10.4g} {one.median_norm:>10.4g} {one.norm_z:>8.3g} "
              f"{one.cosine:>8.3f} {one.median_cosine:>8.3f} {one.cosine_z:>8.3g}")  # fmt: skip


@app.command()
def release(run: Run, site: Site, round_: Round = 0, folder: Folder = DEFAULT) -> None:
    """Have a held report folded by the next round that begins; its result says so."""
    report = _decide(folder, run, site, round_, "release")
    print(f"the report of site {site} of round {report.round} goes into the next round of {run}")


@app.command()
def drop(run: Run, site: Site, round_: Round = 0, folder: Folder = DEFAULT) -> None:
    """Remove a held report for good; what made it suspicious stays on record."""
    report = _decide(folder, run, site, round_, "drop")
    print(f"the report of site {site} of round {report.round} is dropped")


def _decide(folder: Path, run: str, site: str, round_: int, verdict: "Verdict") -> "HeldReport":
    from asterion_server.keys import open_provisioned
    from asterion_server.quarantine_decisions import decide

    return decide(open_provisioned(folder), run, site, round_, verdict)


def _files(folder: Path, run: str) -> "QuarantineFiles":
    from asterion_server.keys import open_provisioned
    from asterion_server.quarantine_decisions import quarantine_of

    return quarantine_of(open_provisioned(folder), run)


def _report(files: "QuarantineFiles", run: str, site: str, round_: int) -> "HeldReport":
    from asterion_server.quarantine_decisions import one_report

    return one_report(files, run, site, round_)
