"""``asterion site console | console-password``: pages for people at the site."""

from pathlib import Path
from typing import Annotated

import typer

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]


def console(site_toml: SiteToml) -> None:
    """Serve the console of [console] in site.toml until Ctrl-C; start does so as well."""
    from asterion_client.console.console import run_console

    run_console(site_toml)


def console_password(
    site_toml: SiteToml,
    name: Annotated[str, typer.Argument(help="with which somebody signs in")],
    looks_only: Annotated[
        bool, typer.Option("--looks-only", help="they see everything and change nothing")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="they can no longer sign in")] = False,
) -> None:
    """Give somebody a password for the console; it is asked for, or read from standard input."""
    from asterion_client.console.console import site_console
    from asterion_shared.console.people_command_line import change_person

    found = site_console(site_toml)
    change_person(found.people, name, command=found.command, looks_only=looks_only, remove=remove)
