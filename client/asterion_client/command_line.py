"""``asterion site``: run a site, check it, write its settings."""

import json
from pathlib import Path
from typing import Annotated

import typer

from asterion_client.backup_command_line import backup, restore
from asterion_client.consent_command_line import approve, continue_, pause, plans, refuse, review
from asterion_client.console_command_line import console, console_password
from asterion_client.enrolment_command_line import init, join
from asterion_client.fine_tune_command_line import fine_tune
from asterion_client.ledger_command_line import app as ledger_app
from asterion_client.predict_command_line import predict
from asterion_client.withdrawal_command_line import withdraw, withdrawals

app = typer.Typer(no_args_is_help=True, help="Run and check a site. Its data never leave it.")
app.add_typer(ledger_app, name="ledger")
for _command in (init, join, review, approve, refuse, plans, pause):
    app.command()(_command)
app.command("continue")(continue_)
app.command("fine-tune")(fine_tune)
app.command()(withdraw)
app.command()(withdrawals)
app.command()(backup)
app.command()(restore)
app.command()(predict)
app.command()(console)
app.command()(console_password)

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]


@app.command()
def start(
    site_toml: SiteToml,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds that the coordinator may be unreachable at first")
    ] = 30.0,
) -> None:
    """Keep the site connected and answer orders until Ctrl-C."""
    from asterion_client.daemon import run_site, stop_on_signals

    run_site(
        site_toml,
        wait_seconds=wait,
        say=lambda line: print(line, flush=True),
        stop=stop_on_signals(),
    )


@app.command()
def status(
    site_toml: SiteToml,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="end with code 32 when the site is not well")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Say whether the site runs, is connected, and what it is doing."""
    from dataclasses import asdict

    from asterion_client.check_connection import own_problems
    from asterion_client.check_machine import machine_problems
    from asterion_client.settings import read_site_settings
    from asterion_client.site_standing import in_words, read_status
    from asterion_client.site_vitals import read_vitals, whole_problem
    from asterion_shared.errors import FileProblemError, UnreachableError

    settings = read_site_settings(site_toml)
    state = site_toml.resolve().parent / settings.state_folder
    silent = settings.connection.silent_minutes if settings.connection is not None else 10.0
    problem = whole_problem(state, silent)
    warnings = [
        str(p)
        for p in machine_problems(read_vitals(state))
        if not p.fatal and p.where != "certificate"  # the papers below say more
    ]
    try:
        found = read_status(state)
        told, stands = asdict(found), in_words(found)
    except FileProblemError:
        told, stands = {"site": settings.name}, problem
    papers = [] if settings.connection is None or settings.connection.certificate is None else (
        own_problems(settings.connection, settings.name, site_toml.resolve().parent)
    )  # fmt: skip
    if as_json:
        rows = {"papers": [str(paper) for paper in papers], "warnings": warnings}
        print(json.dumps(told | {"problem": problem} | rows))
    else:
        print(f"site {settings.name}: {problem or stands}")
        for paper in papers:
            print(f"{'problem' if paper.fatal else 'warning'}: {paper}")
        for warning in warnings:
            print(f"warning: {warning}")
    if problem and exit_code:
        raise typer.Exit(UnreachableError.exit_code)


@app.command()
def doctor(
    site_toml: SiteToml,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Look at the machine now: disk, memory, clock, certificate, GPU, logs, last contact.

    It reads no data and may run beside the daemon, which looks each minute by itself. Ends with
    code 32 when the site is not well; warnings do not change that.
    """
    from dataclasses import asdict

    from asterion_client.check_machine import look_at_machine, machine_problems
    from asterion_client.settings import read_site_settings
    from asterion_client.site_vitals import contact, vitals_table
    from asterion_shared.errors import UnreachableError

    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    vitals = [*look_at_machine(settings, folder), *contact(settings, folder)]
    if as_json:
        rows = [asdict(vital) for vital in vitals]
        print(json.dumps({"site": settings.name, "vitals": rows}))
    else:
        for line in vitals_table(vitals):
            print(line)
    if any(problem.fatal for problem in machine_problems(vitals)):
        raise typer.Exit(UnreachableError.exit_code)


@app.command()
def check(
    site_toml: SiteToml,
    plan: Annotated[
        Path | None, typer.Option(help="check against this plan too, data and labels included")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Name every problem of settings, data, labels, disk, device and connection at once."""
    from asterion_client.check import check_site
    from asterion_shared.plan import read_plan

    wanted = read_plan(plan) if plan is not None else None
    problems = check_site(site_toml, wanted)
    fatal = any(problem.fatal for problem in problems)
    if as_json:
        rows = [{"where": p.where, "what": p.what, "fix": p.fix, "fatal": p.fatal}
                for p in problems]  # fmt: skip
        print(json.dumps({"site": str(site_toml), "problems": rows}))
    else:
        for problem in problems:
            print(f"{'problem' if problem.fatal else 'warning'}: {problem}")
        print(f"{site_toml}: {_verdict(len(problems), fatal)}")
    if fatal:
        raise typer.Exit(12)


@app.command()
def egress(
    site_toml: SiteToml,
    run: Annotated[str | None, typer.Option(help="only of this run")] = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="instead: every field that may ever leave")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """List every number that ever left the site, with totals by day and by run."""
    from asterion_client.egress_listing import entry_lines, field_rows, total_lines, totals
    from asterion_client.egress_log import read_log
    from asterion_client.settings import read_site_settings

    settings = read_site_settings(site_toml)
    if fields:
        for row in field_rows():
            print(json.dumps(row) if as_json else "; ".join(f"{k}: {v}" for k, v in row.items()))
        return
    state = site_toml.resolve().parent / settings.state_folder
    summed = totals(read_log(state, run))
    if as_json:
        # Line by line: a log of years is larger than the memory of a small machine.
        for entry in read_log(state, run):
            print(json.dumps(entry))
        print(json.dumps({"site": settings.name} | summed))
        return
    for entry in read_log(state, run):
        print(*entry_lines(entry), sep="\n")
    print(*total_lines(summed), sep="\n" if summed["days"] else "")
    if not summed["days"]:
        print(f"site {settings.name}: nothing has left" + (f" in run {run}" if run else ""))


@app.command()
def new(
    task: Annotated[str, typer.Argument(help="segmentation, classification or anomaly")],
    data_format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="nifti, dicom, fits, npz or table")
    ],
    name: Annotated[str, typer.Option(help="name of the site")] = "my-site",
) -> None:
    """Print settings with every choice and what it means: asterion site new ... > site.toml.

    The section [connection] is added by asterion site join.
    """
    from asterion_client.settings import SiteSettings
    from asterion_shared.plan_file import settings_to_toml
    from asterion_shared.settings_files import validate

    values = {
        "name": name,
        "task": task,
        "data": {"format": data_format, "folder": "data"},
        "privacy": {},
        "consent": {},
    }
    print(settings_to_toml(validate(SiteSettings, values, "site new")), end="")


def _verdict(num_problems: int, fatal: bool) -> str:
    if not num_problems:
        return "no problem found"
    return f"{num_problems} found; the site cannot take part" if fatal else "only warnings"
