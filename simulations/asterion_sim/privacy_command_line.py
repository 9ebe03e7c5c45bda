"""``asterion privacy``: what privacy costs."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from asterion_shared.errors import UserInputError
from asterion_shared.plan import read_plan
from asterion_sim.command_line import EngineName, NumSites, PlanFile, ScenarioFile, SitesFolder

privacy_app = typer.Typer(no_args_is_help=True)


@privacy_app.callback()
def _privacy() -> None:
    """What privacy costs: asterion privacy sweep PLAN --out DIR."""


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
