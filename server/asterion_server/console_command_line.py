"""``asterion server console | console-password``: pages for the operators."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT = Path("coordinator")


def console(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="the coordinator's folder")
    ] = DEFAULT,
) -> None:
    """Serve the console of [console] in coordinator.toml until Ctrl-C; start does so as well."""
    from asterion_server.console.console import run_console

    run_console(folder)


def console_password(
    name: Annotated[str, typer.Argument(help="with which somebody signs in")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="the coordinator's folder")
    ] = DEFAULT,
    looks_only: Annotated[
        bool, typer.Option("--looks-only", help="they see everything and change nothing")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="they can no longer sign in")] = False,
) -> None:
    """Give somebody a password for the console; it is asked for, or read from standard input."""
    from asterion_server.console.console import operator_console
    from asterion_server.keys import open_provisioned
    from asterion_shared.console.people_command_line import change_person

    made = operator_console(open_provisioned(folder))
    change_person(made.people, name, command=made.command, looks_only=looks_only, remove=remove)
