"""``asterion site review``, ``approve``, ``plans``, ``pause``, ``continue``: a person decides."""

from pathlib import Path
from typing import Annotated

import typer

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]
PlanOrRun = Annotated[
    str, typer.Argument(metavar="PLAN", help="a plan (TOML), or the run of one that waits here")
]
Run = Annotated[str, typer.Option(help="name of the run; absent: the plan's name")]


def review(
    site_toml: SiteToml,
    plan: PlanOrRun,
    run: Run = "",
    dry_run: Annotated[
        bool, typer.Option(help="try one step on the site's data, with the network closed")
    ] = True,
) -> None:
    """Say in plain language what a plan would do here, after a dry run."""
    from asterion_client.plan_desk import review_plan
    from asterion_client.plan_review import in_plain_words

    settings, found = review_plan(site_toml, plan, run, with_dry_run=dry_run)
    print(in_plain_words(found, settings))
    if found.objections:
        raise typer.Exit(22)


def approve(
    site_toml: SiteToml,
    plan: PlanOrRun,
    run: Run = "",
    dry_run: Annotated[
        bool, typer.Option(help="try one step on the site's data, with the network closed")
    ] = True,
    reviewed: Annotated[
        str,
        typer.Option(
            metavar="SHA256", help="do not ask: you have reviewed the plan with this hash"
        ),
    ] = "",
) -> None:
    """Review a plan, and sign that it may run here."""
    import time

    from asterion_client.plan_desk import approve_reviewed, review_plan
    from asterion_client.plan_review import in_plain_words

    settings, found = review_plan(site_toml, plan, run, with_dry_run=dry_run)
    print(in_plain_words(found, settings), end="\n\n")
    if found.objections:
        typer.echo("not approved: the site's [consent] is against it", err=True)
        raise typer.Exit(22)
    if reviewed and reviewed != found.plan.sha256:
        # Of a plan that waits, the operator may have sent another since.
        typer.echo(f"not approved: this is another plan than {reviewed}", err=True)
        raise typer.Exit(22)
    if not reviewed and not typer.confirm(f"May run {found.run} be carried out here?"):
        print("not approved")
        raise typer.Exit(1)
    signed = approve_reviewed(settings, site_toml.resolve().parent, found, found.plan.sha256)
    ends = time.strftime("%Y-%m-%d", time.gmtime(signed.ends_at))
    print(f"approved: run {found.run}, plan {found.plan.sha256[:12]}, until {ends}")


def refuse(site_toml: SiteToml, run: Annotated[str, typer.Argument(help="of the run")]) -> None:
    """Take an approval back; the next order of the run is refused."""
    from asterion_client.plan_desk import take_back
    from asterion_client.settings import read_site_settings

    take_back(read_site_settings(site_toml), site_toml.resolve().parent, run)
    print(f"run {run} is not approved any more")


def plans(
    site_toml: SiteToml,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """List the plans that wait for a person, and those that are approved."""
    import json
    import time

    from asterion_client.approvals import approvals, waiting
    from asterion_client.settings import read_site_settings
    from asterion_shared.plan import parse_plan

    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    wait, done = waiting(folder / settings.state_folder), approvals(settings, folder)
    if as_json:
        print(json.dumps({
            "waiting": [{"run": p.run, "operator": p.operator, "came_at": p.came_at} for p in wait],
            "approved": [{"run": a.run, "ends_at": a.ends_at} for a in done],
        }))  # fmt: skip
        return
    for one in wait:
        came = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.came_at))
        hashed = parse_plan(one.plan).sha256[:12]
        print(f"waits: run {one.run}, plan {hashed}, by operator {one.operator}, since {came}")
    for approval in done:
        ends = time.strftime("%Y-%m-%d", time.gmtime(approval.ends_at))
        over = "ended" if approval.ends_at < time.time() else "until"
        print(f"approved: run {approval.run}, {over} {ends}")
    if not wait and not done:
        print("no plan waits, none is approved")


def pause(site_toml: SiteToml) -> None:
    """Begin no further round until told to continue; a round that has begun is ended."""
    from asterion_client.plan_desk import pause as stop_work
    from asterion_client.settings import read_site_settings

    settings = read_site_settings(site_toml)
    stop_work(settings, site_toml.resolve().parent)
    print(f"site {settings.name} is paused; asterion site continue ends that")


def continue_(site_toml: SiteToml) -> None:
    """End a pause."""
    from asterion_client.plan_desk import take_part_again
    from asterion_client.settings import read_site_settings

    settings = read_site_settings(site_toml)
    take_part_again(settings, site_toml.resolve().parent)
    print(f"site {settings.name} takes part again")
