"""``asterion privacy``: what privacy costs, the attack beside the number, and what leaks."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from asterion_shared.errors import ClaimBrokenError, UserInputError
from asterion_shared.plan import read_plan
from asterion_sim.command_line import EngineName, NumSites, PlanFile, ScenarioFile, SitesFolder

privacy_app = typer.Typer(no_args_is_help=True)


@privacy_app.callback()
def _privacy() -> None:
    """What privacy costs, and what an attack shows of it."""


@privacy_app.command()
def sweep(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="folder of the sweep; what is done is not repeated")],
    sites: SitesFolder = None,
    scenario: ScenarioFile = None,
    num_sites: NumSites = None,
    epsilon: Annotated[str, typer.Option(help="several, between commas")] = "1,2,4,8,16",
    placement: Annotated[
        list[str] | None,
        typer.Option(
            help="record, patient, site, shares or centre; repeatable; absent: the plan's"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="how many seeds")] = 5,
    engine: EngineName = "sequential",
) -> None:
    """Utility against epsilon: a plan without noise and at each epsilon, over seeds.

    The noise that keeps to an epsilon is found by the accountant. Writes curve.json, curve.svg and
    report.html; a model that is no better than the trivial baseline is said to be not usable.
    """
    from rich.console import Console

    from asterion_sim.bracket import seeds_of
    from asterion_sim.command_line import chosen_setting
    from asterion_sim.engines.choice import read_wish
    from asterion_sim.privacy_curve import Placement
    from asterion_sim.privacy_sweep import run_privacy_sweep

    known: tuple[Placement, ...] = get_args(Placement)
    chosen: list[Placement] = [name for name in known if name in (placement or ())]
    if unknown := sorted(set(placement or ()) - set(known)):
        msg = f"no placement is named {unknown[0]!r}; the placements are {', '.join(known)}"
        raise UserInputError(msg)
    wanted = read_plan(plan)
    setting = chosen_setting(wanted, sites, scenario, num_sites, quiet=False)
    run_privacy_sweep(
        wanted,
        setting.sites,
        out,
        epsilons=_numbers(epsilon),
        placements=chosen,
        seeds=seeds_of(wanted, seeds),
        wish=read_wish(engine),
        plan_folder=plan.parent,
        console=Console(),
        say=typer.echo,
    )
    typer.echo(f"curve {out / 'curve.json'}\nchart {out / 'curve.svg'}")
    typer.echo(f"report {out / 'report.html'}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        msg = f"--epsilon is {text!r}; give numbers between commas, such as 1,2,4,8"
        raise UserInputError(msg) from None


@privacy_app.command()
def audit(
    plan: PlanFile,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Attack the code with the plan's own noise: what is shown beside what is claimed."""
    from rich.console import Console

    from asterion_sim.plan_attack import audit_plan
    from asterion_sim.privacy_tables import audit_table

    wanted = read_plan(plan)
    found = audit_plan(wanted)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(audit_table(wanted, found))
    if found.broken:
        raise ClaimBrokenError(found.verdict)


@privacy_app.command()
def leak(
    out: Annotated[Path, typer.Option(help="folder of the two pictures")],
    epsilon: Annotated[
        float, typer.Option(min=0.1, max=100.0, help="of records, spent on the one step")
    ] = 8.0,
) -> None:
    """Rebuild an image from one site's update: without protection, and with it."""
    from rich.console import Console

    from asterion_sim.privacy_tables import demonstrate_leak

    Console().print(demonstrate_leak(out, epsilon))
    typer.echo(f"pictures {out / 'leak-off.png'} and {out / 'leak-on.png'}")
