"""``asterion simulate``, ``asterion studies`` and ``asterion demo``."""

import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from typer.core import TyperGroup

from asterion_shared.carrier import Carrier
from asterion_shared.errors import ClaimBrokenError, UserInputError
from asterion_shared.plan import Plan, read_plan
from asterion_shared.reports.terminal import RoundPrinter

if TYPE_CHECKING:
    from asterion_sim.faults import FaultSchedule
    from asterion_sim.scenario import Scenario
    from asterion_sim.virtual_cohort import VirtualSites

PlanFile = Annotated[Path, typer.Argument(help="the plan, TOML")]
SitesFolder = Annotated[
    Path | None, typer.Option(help="folder whose sub-folders each have a site.toml")
]
ScenarioFile = Annotated[
    Path | None,
    typer.Option(help="TOML: whose data the sites have, how they differ, what goes wrong"),
]
NumSites = Annotated[int | None, typer.Option(min=1, help="how many generated sites; absent: 5")]
EngineName = Annotated[
    str, typer.Option(help="auto, sequential, vectorised, shared-base, processes, ray, or a pair")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line, for programs")]


class _PlanFirst(TyperGroup):
    """``asterion simulate PLAN`` is ``asterion simulate run PLAN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


simulate_app = typer.Typer(cls=_PlanFirst, no_args_is_help=True)


@simulate_app.callback()
def _simulate() -> None:
    """Simulate a federation on this machine: asterion simulate PLAN --out DIR."""


@simulate_app.command()
def run(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="folder of the run; an interrupted run goes on")],
    sites: SitesFolder = None,
    scenario: ScenarioFile = None,
    num_sites: NumSites = None,
    engine: EngineName = "auto",
    chunk: Annotated[
        int | None, typer.Option(min=1, help="sites that train together; absent: measured")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes or Ray actors; absent: one a core")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="f32, or bf16: faster, with deviations of about 1 part in 200")
    ] = "f32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    audit: Annotated[
        bool, typer.Option("--audit", help="attack the plan's privacy too: minutes more")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a plan over virtual sites. The word run may be left out: asterion simulate PLAN.

    Sites come from a folder of sites (--sites), a scenario (--scenario), or are generated. The
    engine is auto (measured on the first sites), sequential (the hospital's own step, to the
    bit), vectorised, shared-base, processes, ray, or two together: processes:vectorised.
    """
    from asterion_sim.engines.choice import read_wish
    from asterion_sim.plan_attack import privacy_of
    from asterion_sim.simulate import simulate

    wanted = read_plan(plan)
    wish = read_wish(engine, chunk=chunk, workers=workers, dtype=dtype, device=device)
    if audit:
        privacy_of(wanted)  # before anything is read
    setting = chosen_setting(wanted, sites, scenario, num_sites, quiet=as_json)
    # What was imported and read lives as long as the run: it need not be searched for garbage.
    gc.freeze()
    if audit and not as_json:
        typer.echo("the plan's privacy is attacked first")
    with RoundPrinter(as_json=as_json) as printer:
        result = simulate(
            wanted,
            setting.sites,
            out,
            emit=printer,
            wish=wish,
            schedule=setting.schedule,
            scenario_sha256=setting.scenario.sha256 if setting.scenario is not None else "",
            plan_folder=plan.parent,
            audit=audit,
        )
    if not as_json:
        typer.echo(f"result {out / 'result.json'}\nreport {out / 'report.html'}")
    if result.privacy_audit is not None and result.privacy_audit.broken:
        raise ClaimBrokenError(result.privacy_audit.verdict)


@simulate_app.command()
def preview(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="the PNG file")],
    sites: SitesFolder = None,
    scenario: ScenarioFile = None,
    num_sites: NumSites = None,
    max_sites: Annotated[int, typer.Option(min=1, help="most rows of the sheet")] = 12,
    cases: Annotated[int, typer.Option(min=1, help="pictures in a row")] = 6,
) -> None:
    """Draw a contact sheet, one row a site, and say how unequal the sites are."""
    from rich.console import Console

    from asterion_sim.heterogeneity import heterogeneity
    from asterion_sim.preview import shift_notes, write_preview
    from asterion_sim.split_counts import counts_of_sites

    wanted = read_plan(plan)
    setting = chosen_setting(wanted, sites, scenario, num_sites, quiet=False)
    data = setting.sites.data
    score = heterogeneity(data, len(wanted.data.classes), wanted.seed)
    shifts = setting.scenario.shifts if setting.scenario is not None else ()
    Console().print(counts_of_sites(wanted, data).as_table())
    typer.echo(score.words)
    write_preview(
        wanted,
        data,
        out,
        max_sites=max_sites,
        cases_per_site=cases,
        notes=shift_notes(wanted, shifts, data) if shifts else None,
        heading=score.words,
    )
    typer.echo(f"sheet {out}")


@simulate_app.command()
def bracket(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="folder of the bracket; what is done is not repeated")],
    sites: SitesFolder = None,
    scenario: ScenarioFile = None,
    num_sites: NumSites = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="fedavg, fedprox:mu=0.01, ...; repeatable; absent: fedavg"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="how many seeds")] = 5,
    leave_one_site_out: Annotated[
        bool, typer.Option("--leave-one-site-out", help="train without each site as well")
    ] = False,
) -> None:
    """Does federation help? Each site alone, all pooled, and federated, with equal local work."""
    from rich.console import Console

    from asterion_sim.bracket import run_bracket, seeds_of
    from asterion_sim.bracket_table import bracket_table

    wanted = read_plan(plan)
    setting = chosen_setting(wanted, sites, scenario, num_sites, quiet=False)
    found = run_bracket(
        wanted,
        setting.sites,
        out,
        algorithms=algorithm or ["fedavg"],
        seeds=seeds_of(wanted, seeds),
        leave_one_site_out=leave_one_site_out,
        plan_folder=plan.parent,
        say=typer.echo,
    )
    Console().print(bracket_table(found))
    typer.echo(f"bracket {out / 'bracket.json'}\nreport {out / 'report.html'}")


@simulate_app.command()
def sweep(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="folder of the sweep; what is done is not repeated")],
    vary: Annotated[
        list[str], typer.Option(help="such as algorithm.mu=0,0.01,0.1; repeatable: every pair")
    ],
    sites: SitesFolder = None,
    scenario: ScenarioFile = None,
    num_sites: NumSites = None,
) -> None:
    """Run a plan with every combination of some of its values."""
    from rich.console import Console

    from asterion_sim.sweep import run_sweep

    wanted = read_plan(plan)
    setting = chosen_setting(wanted, sites, scenario, num_sites, quiet=False)
    run_sweep(
        wanted, setting.sites, out, vary, plan_folder=plan.parent, console=Console(), say=typer.echo
    )
    typer.echo(f"sweep {out / 'sweep.json'}")


@dataclass(frozen=True)
class _Setting:
    sites: "VirtualSites"
    scenario: "Scenario | None" = None
    schedule: "FaultSchedule | None" = None


def chosen_setting(
    plan: Plan, folder: Path | None, scenario: Path | None, num_sites: int | None, *, quiet: bool
) -> _Setting:
    """The virtual sites that the options name; generated ones when they name none."""
    from asterion_sim.scenario import fault_schedule, read_scenario, scenario_sites
    from asterion_sim.synthetic import synthetic_sites
    from asterion_sim.virtual_cohort import VirtualSites, read_virtual_sites, site_folders

    given = [n for n, v in (("--sites", folder), ("--scenario", scenario),
                            ("--num-sites", num_sites)) if v is not None]  # fmt: skip
    if len(given) > 1:
        msg = f"{' and '.join(given)} are given; each says whose the sites are: keep one"
        raise UserInputError(msg)
    if scenario is not None:
        wanted = read_scenario(scenario)
        sites = scenario_sites(wanted, plan, scenario.parent)
        return _Setting(sites, wanted, fault_schedule(wanted, plan, sites, scenario.parent))
    if folder is not None:
        return _Setting(read_virtual_sites(plan, site_folders(folder)))
    number = 5 if num_sites is None else num_sites
    if not quiet:
        typer.echo(f"{number} sites with generated data; --sites or --scenario takes your own")
    return _Setting(VirtualSites(synthetic_sites(plan, number), {}))


def studies(
    out: Annotated[Path, typer.Option(help="folder of the runs and of summary.json")],
    data: Annotated[
        Path | None, typer.Option(help="the data sets; absent: the folder in ASTERION_DATA")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="name of a study; repeatable")] = None,
    bracket: Annotated[
        bool, typer.Option("--bracket", help="own, pooled and federated over 5 seeds; an hour")
    ] = False,
    privacy: Annotated[
        bool, typer.Option("--privacy", help="utility against epsilon; an hour")
    ] = False,
) -> None:
    """Run the studies of the README on real data and print one table."""
    from asterion_sim.bracket_studies import run_study_brackets
    from asterion_sim.privacy_studies import run_privacy_studies
    from asterion_sim.studies import run_studies

    named = data or os.environ.get("ASTERION_DATA")
    if named is None:
        msg = "the data sets are needed: give --data DIR or set ASTERION_DATA to their folder"
        raise UserInputError(msg)
    if bracket and privacy:
        msg = "--bracket and --privacy are both given; run one after the other"
        raise UserInputError(msg)
    run_them = run_privacy_studies if privacy else run_study_brackets if bracket else run_studies
    failed = run_them(Path(named), out, only or None)
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
    carrier: Annotated[Carrier, typer.Option(help="Asterion's own link, or stock Flower")] = "link",
    as_json: AsJson = False,
) -> None:
    """Start a coordinator and its sites on this machine, with TLS, and train on real images."""
    from asterion_sim.demo import run_demo

    run_demo(out, data, plan, carrier=carrier, as_json=as_json)
