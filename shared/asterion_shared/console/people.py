"""Who may sign in to a console: names, what they may do, and Argon2id hashes of passwords."""

import json
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import Field, StringConstraints

from asterion_shared.errors import FileProblemError, UserInputError
from asterion_shared.key_files import read_private, write_private
from asterion_shared.settings_files import Settings, validate

Role = Literal["acts", "looks"]
"""``acts``: launches, stops, approves; ``looks``: sees every page and changes nothing."""

PersonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 1000
_MEMORY_KIB, _PASSES, _LANES = 65_536, 3, 4
"""The second recommended choice of RFC 9106, section 4."""


class Person(Settings):
    """Somebody who may sign in."""

    role: Role
    password: Annotated[str, StringConstraints(pattern=r"^\$argon2id\$[!-~]{1,300}$")]
    """Argon2id, in the PHC string format."""


class People(Settings):
    """The file of a console's people."""

    format: Literal[1] = 1
    people: dict[PersonName, Person] = Field(default_factory=dict)


def read_people(path: Path, command: str) -> People:
    """Those who may sign in.

    Args:
        path: the file, mode 0600.
        command: that adds somebody, for the message when there is no file.

    Raises:
        FileProblemError: it is missing, others can read it, or it is not JSON.
        SettingsError: it was edited and does not hold.
    """
    content = read_private(path, f"give somebody a password: {command}")
    try:
        values = json.loads(content)
    except ValueError:
        raise FileProblemError(path, "is not JSON", f"remove it, then: {command}") from None
    if not isinstance(values, dict):
        raise FileProblemError(path, "is not a file of people", f"remove it, then: {command}")
    return validate(People, values, str(path))


def set_person(path: Path, name: str, role: Role, password: str, command: str) -> None:
    """Add somebody, or give them another password and role.

    Raises:
        UserInputError: the password is too short or too long.
        FileProblemError: the file cannot be read.
        SettingsError: the name is none.
        DiskProblemError: the file cannot be written.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        msg = (
            f"the password has {len(password)} characters; choose {SHORTEST_PASSWORD} to "
            f"{LONGEST_PASSWORD}, such as four words"
        )
        raise UserInputError(msg)
    before = read_people(path, command).people if path.exists() else {}
    person = Person(role=role, password=hashed(password))
    values = People(people=before).model_dump()["people"] | {name: person.model_dump()}
    _write(path, validate(People, {"people": values}, str(path)))


def remove_person(path: Path, name: str, command: str) -> None:
    """Let somebody sign in no longer; open sessions of theirs end.

    Raises:
        UserInputError: nobody has that name.
        FileProblemError, DiskProblemError: as :func:`set_person`.
    """
    people = read_people(path, command).people
    if name not in people:
        msg = f"nobody is called {name!r}; known are: {', '.join(sorted(people)) or 'none'}"
        raise UserInputError(msg)
    _write(path, People(people={other: p for other, p in people.items() if other != name}))


def hashed(password: str) -> str:
    """The hash of a password, with a salt of its own, in the PHC string format."""
    return _derive(password, os.urandom(16))


def person_with(people: People, name: str, password: str) -> Person | None:
    """The person, if name and password are theirs.

    An unknown name takes as long as a wrong password.
    """
    nobody = _nobody()
    found = people.people.get(name)
    held = nobody if found is None else found.password
    try:
        Argon2id.verify_phc_encoded(_bytes(password[:LONGEST_PASSWORD]), held)
    except InvalidKey:
        return None
    return found


@cache
def _nobody() -> str:
    return hashed(os.urandom(32).hex())


def _derive(password: str, salt: bytes) -> str:
    kdf = Argon2id(salt=salt, length=32, iterations=_PASSES, lanes=_LANES, memory_cost=_MEMORY_KIB)
    return kdf.derive_phc_encoded(_bytes(password))


def _bytes(password: str) -> bytes:
    """The same whatever keyboard composed it."""
    return unicodedata.normalize("NFKC", password).encode()


def _write(path: Path, people: People) -> None:
    write_private(path, f"{people.model_dump_json(indent=1)}\n".encode())
