"""The one command, ``asterion``. Its sub-commands come from the installed packages.

A package adds a sub-command with an entry point of the group ``asterion.commands``: either a
``typer.Typer`` (a group of commands) or a plain function (one command). So a site that installed
only the client has ``asterion site`` and ``asterion plan``, and nothing else.
"""

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from asterion_shared import __version__
from asterion_shared.errors import AsterionError

COMMAND_GROUP = "asterion.commands"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"asterion {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Federated learning for hospitals and observatories. Data never leave a site."""


def build_app(wanted: str = "") -> typer.Typer:
    """The command with the sub-commands of the installed packages, in order of name.

    Args:
        wanted: name of a sub-command; then only its package is imported. Otherwise all are.
    """
    app = typer.Typer(
        name="asterion",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    points = entry_points(group=COMMAND_GROUP)
    only = [point for point in points if point.name == wanted]
    for point in sorted(only or points, key=lambda point: point.name):
        command = point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(name=point.name)(command)
    return app


def main() -> None:
    """Run the command; a person's mistake ends in one message and its exit code."""
    # Before any sub-command imports flwr: no telemetry, no look-up of newer versions.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        build_app(sys.argv[1] if len(sys.argv) > 1 else "")()
    except AsterionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what was finished is stored", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
