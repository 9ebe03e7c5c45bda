"""``asterion site review``, ``approve``, ``plans``, ``pause``, ``continue``: a person decides."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from asterion_client.plan_review import Review
    from asterion_client.settings import SiteSettings
    from asterion_shared.plan import Plan

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
    from asterion_client.plan_review import in_plain_words

    settings, found = _review(site_toml, plan, run, dry_run=dry_run)
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

    from asterion_client.approvals import approve as sign
    from asterion_client.plan_review import in_plain_words
    from asterion_client.site_audit import site_trail

    settings, found = _review(site_toml, plan, run, dry_run=dry_run)
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
    folder = site_toml.resolve().parent
    facts = {"plan_sha256": found.plan.sha256}
    site_trail(settings, folder).append("approved", run=found.run, facts=facts)
    signed = sign(settings, folder, found.plan, found.run)
    ends = time.strftime("%Y-%m-%d", time.gmtime(signed.ends_at))
    print(f"approved: run {found.run}, plan {found.plan.sha256[:12]}, until {ends}")


def refuse(site_toml: SiteToml, run: Annotated[str, typer.Argument(help="of the run")]) -> None:
    """Take an approval back; the next order of the run is refused."""
    from asterion_client.approvals import withdraw_approval
    from asterion_client.settings import read_site_settings
    from asterion_client.site_audit import site_trail
    from asterion_shared.errors import UserInputError

    settings = read_site_settings(site_toml)
    folder = site_toml.resolve().parent
    if not withdraw_approval(settings, folder, run):
        msg = f"run {run!r} is not approved here; asterion site plans lists those that are"
        raise UserInputError(msg)
    site_trail(settings, folder).append("approval_withdrawn", run=run)
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
    from asterion_client.consent import PAUSED
    from asterion_client.settings import read_site_settings
    from asterion_shared.files import write_atomically

    settings = read_site_settings(site_toml)
    write_atomically(site_toml.resolve().parent / settings.state_folder / PAUSED, b"")
    print(f"site {settings.name} is paused; asterion site continue ends that")


def continue_(site_toml: SiteToml) -> None:
    """End a pause."""
    from asterion_client.consent import PAUSED
    from asterion_client.settings import read_site_settings

    settings = read_site_settings(site_toml)
    (site_toml.resolve().parent / settings.state_folder / PAUSED).unlink(missing_ok=True)
    print(f"site {settings.name} takes part again")


def _review(
    site_toml: Path, plan: str, run: str, *, dry_run: bool
) -> "tuple[SiteSettings, Review]":
    from asterion_client.dry_run import dry_run as try_it
    from asterion_client.plan_review import review_of
    from asterion_client.settings import read_site_settings
    from asterion_shared.errors import UserInputError

    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    if settings.consent is None:
        msg = f"{site_toml} has no [consent], so nothing can run; asterion site new shows one"
        raise UserInputError(msg)
    wanted, name = _find(settings, folder, plan, run)
    tried = try_it(site_toml, wanted.canonical()) if dry_run else None
    return settings, review_of(settings, folder, wanted, name, tried)


def _find(settings: "SiteSettings", folder: Path, plan: str, run: str) -> "tuple[Plan, str]":
    """A plan from its file, or one that waits here."""
    from asterion_client.approvals import waiting
    from asterion_shared.errors import UserInputError
    from asterion_shared.plan import parse_plan, read_plan

    kept = {one.run: one for one in waiting(folder / settings.state_folder)}
    if plan in kept:
        return parse_plan(kept[plan].plan), plan
    if not Path(plan).is_file():
        known = ", ".join(kept) or "none"
        msg = f"{plan!r} is no file, and no plan of that run waits here; waiting are: {known}"
        raise UserInputError(msg)
    wanted = read_plan(Path(plan))
    return wanted, run or wanted.name
