"""``asterion simulate``, ``asterion studies`` and ``asterion demo``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from asterion_shared.errors import UserInputError
from asterion_shared.plan import read_plan
from asterion_shared.reports.terminal import RoundPrinter

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line, for programs")]


def simulate(
    plan: Annotated[Path, typer.Argument(help="the plan, TOML")],
    out: Annotated[Path, typer.Option(help="folder of the run; an interrupted run goes on")],
    sites: Annotated[
        Path | None, typer.Option(help="folder whose sub-folders each have a site.toml")
    ] = None,
    num_sites: Annotated[
        int, typer.Option(min=1, help="without --sites: how many generated sites")
    ] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Run a plan over virtual sites on this machine, with the hospital's own code."""
    from asterion_sim.simulate import simulate as run
    from asterion_sim.simulate import site_folders
    from asterion_sim.synthetic import synthetic_sites
    from asterion_sim.virtual_cohort import VirtualSites, read_virtual_sites

    wanted = read_plan(plan)
    if sites is not None:
        virtual = read_virtual_sites(wanted, site_folders(sites))
    else:
        virtual = VirtualSites(synthetic_sites(wanted, num_sites), {})
        if not as_json:
            typer.echo(f"no --sites given: {num_sites} sites with generated data")
    with RoundPrinter(as_json=as_json) as printer:
        run(wanted, virtual, out, emit=printer, device=device, plan_folder=plan.parent)
    if not as_json:
        typer.echo(f"result {out / 'result.json'}\nreport {out / 'report.html'}")


def studies(
    out: Annotated[Path, typer.Option(help="folder of the runs and of summary.json")],
    data: Annotated[
        Path | None, typer.Option(help="the data sets; absent: the folder in ASTERION_DATA")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="name of a study; repeatable")] = None,
) -> None:
    """Run the studies of the README on real data and print one table."""
    from asterion_sim.studies import run_studies

    named = data or os.environ.get("ASTERION_DATA")
    if named is None:
        msg = "the data sets are needed: give --data DIR or set ASTERION_DATA to their folder"
        raise UserInputError(msg)
    failed = run_studies(Path(named), out, names=only or None)
    if failed:
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/demo"),
    data: Annotated[
        Path | None, typer.Option(help="your own folder of sites; absent: the Hubble field")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="your own plan; absent: the one of the Hubble field")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a coordinator and its sites on this machine, with TLS, and train on real images."""
    from asterion_sim.demo import run_demo

    run_demo(out, data, plan, as_json=as_json)
