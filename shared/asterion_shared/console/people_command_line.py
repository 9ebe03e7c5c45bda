"""``console-password`` of both sides: who may sign in to a console."""

import sys
from getpass import getpass
from pathlib import Path

from asterion_shared.console.people import Role, remove_person, set_person
from asterion_shared.errors import UserInputError


def change_person(path: Path, name: str, *, command: str, looks_only: bool, remove: bool) -> None:
    """Add somebody, change their password and what they may do, or remove them; and say so.

    The password is asked for twice at a terminal; otherwise it is the first line of what comes in.

    Args:
        path: the console's file of people.
        name: of the person.
        command: how to run this command, for messages.
        looks_only: whether they may see everything and change nothing.
        remove: whether they shall sign in no longer.

    Raises:
        UserInputError: the two passwords differ, or it is too short; or nobody has that name.
        AsterionError: as :func:`asterion_shared.console.people.set_person`.
    """
    if remove:
        remove_person(path, name, command)
        print(f"{name} can no longer sign in; open sessions have ended")
        return
    role: Role = "looks" if looks_only else "acts"
    set_person(path, name, role, _asked(name), command)
    may = "look at everything" if looks_only else "look and act"
    print(f"{name} may {may}; {path} holds a hash of the password")


def _asked(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass(f"password for {name}: ")
    if getpass("again: ") != password:
        msg = "the two passwords differ; nothing is changed"
        raise UserInputError(msg)
    return password
