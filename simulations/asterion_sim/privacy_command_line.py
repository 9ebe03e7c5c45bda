"""``asterion privacy``: the attack beside the number, and what leaks without protection."""

from pathlib import Path
from typing import Annotated

import typer

from asterion_shared.errors import ClaimBrokenError
from asterion_shared.plan import read_plan

privacy_app = typer.Typer(no_args_is_help=True, help="Attack a plan's privacy in simulation.")


@privacy_app.callback()
def _privacy() -> None:
    """Attack a plan's privacy in simulation."""


@privacy_app.command()
def audit(
    plan: Annotated[Path, typer.Argument(help="the plan, TOML, with a [privacy]")],
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
