"""``asterion server``: make a coordinator, run it, launch and watch runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from asterion_server.backup_command_line import backup, restore
from asterion_server.console_command_line import console, console_password
from asterion_server.enrolment_command_line import enrol, init, invite, operator, revoke
from asterion_server.quarantine_command_line import app as quarantine_app
from asterion_server.release_command_line import release, releases_app
from asterion_server.withdrawal_command_line import receipt_app, withdraw
from asterion_shared.errors import ConnectionProblemError

app = typer.Typer(no_args_is_help=True, help="Run a coordinator and launch federated runs.")
app.add_typer(quarantine_app, name="quarantine")
for _command in (init, enrol, invite, revoke, operator):
    app.command()(_command)
app.add_typer(receipt_app, name="receipt")
app.command()(withdraw)
app.command()(release)
app.add_typer(releases_app, name="releases")
app.command()(backup)
app.command()(restore)
app.command()(console)
app.command()(console_password)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the coordinator's folder")]
FolderOption = Annotated[
    Path, typer.Option("--folder", metavar="DIR", help="the coordinator's folder")
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object a line, for programs")]
DEFAULT = Path("coordinator")


@app.command()
def check(folder: Folder = DEFAULT, as_json: AsJson = False) -> None:
    """Name every problem of certificates, keys, database, disk and port at once."""
    from asterion_server.keys import open_provisioned
    from asterion_server.link_check import check_coordinator

    problems = check_coordinator(open_provisioned(folder))
    if as_json:
        print(json.dumps({"folder": str(folder), "problems": [
            {"where": p.where, "what": p.what, "fix": p.fix, "fatal": p.fatal} for p in problems
        ]}))  # fmt: skip
    else:
        for problem in problems:
            print(f"{'problem' if problem.fatal else 'warning'}: {problem}")
        print(f"{folder}: {f'{len(problems)} found' if problems else 'no problem found'}")
    if any(problem.fatal for problem in problems):
        raise typer.Exit(ConnectionProblemError.exit_code)


@app.command()
def start(folder: Folder = DEFAULT) -> None:
    """Run the coordinator until Ctrl-C; runs go on from their last round after a restart."""
    import signal
    from threading import Event

    from asterion_server.coordinator import coordinator_of
    from asterion_server.keys import open_provisioned

    made = open_provisioned(folder)
    stop_asked = Event()
    with coordinator_of(made) as coordinator:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop_asked.set())
        where = f"{made.settings.listen}:{made.settings.port}"
        print(f"coordinator {folder} listens on {where} for "
              f"{', '.join(made.settings.sites) or 'no site yet'}", flush=True)  # fmt: skip
        coordinator.keep_running(lambda line: print(line, flush=True), stop_asked)


@app.command()
def launch(
    plan: Annotated[Path, typer.Argument(help="the plan, TOML")],
    folder: FolderOption = DEFAULT,
    run: Annotated[str, typer.Option(help="name of the run; absent: the plan's name")] = "",
    site: Annotated[
        list[str] | None, typer.Option(help="a site that shall take part; absent: all enrolled")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for sites at first")] = 30.0,
    key: Annotated[
        Path | None,
        typer.Option(envvar="ASTERION_OPERATOR_KEY", help="operator's private key: signs the plan"),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="a signature made by: asterion operator sign")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run, or go on with it, and show a line a round and a table at its end."""
    from asterion_server.keys import open_provisioned
    from asterion_server.launch import launch as submit
    from asterion_server.run_folder import RunFolder
    from asterion_shared.plan import read_plan
    from asterion_shared.reports.terminal import RoundPrinter
    from asterion_shared.signed_plan import read_operator_key, read_signature, sign_plan

    made, wanted = open_provisioned(folder), read_plan(plan)
    name = _run_name(run or wanted.name)
    signed = None
    if signature is not None:
        signed = read_signature(signature)
    elif key is not None:
        signed = sign_plan(wanted, name, key.stem, read_operator_key(key))
    try:
        with RoundPrinter(as_json=as_json) as printer:
            submit(
                made,
                wanted,
                run=name,
                sites=site or (),
                plan_folder=plan.parent,
                wait_seconds=wait,
                signature=signed,
                emit=printer,
            )
    except KeyboardInterrupt:
        typer.echo(f"run {name} goes on at the coordinator; launch it again to watch it, or end "
                   f"it with: asterion server stop {name} --folder {folder}", err=True)  # fmt: skip
        raise typer.Exit(130) from None
    if not as_json:
        done = RunFolder(made.runs / name)
        print(f"result {done.result}\nreport {done.report}")


@app.command()
def status(folder: FolderOption = DEFAULT, as_json: AsJson = False) -> None:
    """Show how the sites and the runs stand, and which certificates soon end."""
    from asterion_server.keys import open_provisioned, papers_problems
    from asterion_server.launch import run_states
    from asterion_server.run_queue import queue_of
    from asterion_shared.site_standing import in_words

    made = open_provisioned(folder)
    papers = list(papers_problems(made))
    with queue_of(made) as queue:
        sites, runs = queue.site_standings(made.settings.sites), run_states(made, queue)
    if as_json:
        told = {site.name: site.model_dump(exclude={"name"}) for site in sites}
        print(json.dumps({"sites": told, "runs": {run.name: run.status for run in runs},
                          "papers": [str(found) for found in papers]}))  # fmt: skip
        return
    for site in sites:
        print(in_words(site))
    for run in runs:
        print(f"run {run.name}: {run.status.replace('_', ' ')}")
    for found in papers:
        print(f"{'problem' if found.fatal else 'warning'}: {found}")


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="name of the run")], folder: FolderOption = DEFAULT
) -> None:
    """Have a run that ended early go on from its last finished round, as it was launched."""
    from asterion_server.keys import open_provisioned
    from asterion_server.launch import resume as go_on

    if go_on(open_provisioned(folder), _run_name(run)):
        print(f"run {run} goes on; asterion server status shows how it stands")
    else:
        print(f"run {run} needs no resuming: it goes on, or has finished")


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="name of the run")], folder: FolderOption = DEFAULT
) -> None:
    """End a run after what it is doing now; launching it again goes on from its last round."""
    from asterion_server.keys import open_provisioned
    from asterion_server.launch import stop as end

    end(open_provisioned(folder), _run_name(run))
    print(f"run {run} is stopped; launch it again to go on")


def _run_name(name: str) -> str:
    from asterion_server.app import RUN_NAME
    from asterion_shared.errors import UserInputError

    if RUN_NAME.fullmatch(name) is None:
        msg = f"the run's name is {name!r}; use lower-case letters, digits, '_', '.', '-'"
        raise UserInputError(msg)
    return name
