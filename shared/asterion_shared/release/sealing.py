"""Seal a release: hash every file of its folder, write ``release.json`` and sign it."""

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_shared.audit_key import public_pem
from asterion_shared.errors import FileProblemError, Problem, ReleaseBrokenError
from asterion_shared.files import write_atomically
from asterion_shared.release.facts import (
    DOMAIN,
    FACTS,
    SIGNATURE,
    ReleaseFacts,
    ReleaseSignature,
)
from asterion_shared.settings_files import validate


def seal(folder: Path, values: Mapping[str, Any], key: Ed25519PrivateKey) -> ReleaseFacts:
    """Write the manifest of a folder that has all its files, and the signature.

    Args:
        folder: the release's.
        values: of :class:`ReleaseFacts`, all but ``files``.
        key: whoever releases it.

    Raises:
        ReleaseBrokenError: the folder holds a link or something that is no file.
        SettingsError: the values do not hold, or do not go with the files.
        DiskProblemError: the disk is full or not writable.
    """
    found, problems = plain_files(folder)
    if problems:
        raise ReleaseBrokenError(folder, problems)
    files = {path: sha256_of(folder / path) for path in found if path not in (FACTS, SIGNATURE)}
    facts = validate(ReleaseFacts, {**values, "files": files}, str(folder / FACTS))
    content = (facts.model_dump_json(indent=2) + "\n").encode()
    signature = ReleaseSignature(
        public_key=public_pem(key),
        signature=base64.b64encode(key.sign(DOMAIN + content)).decode(),
    )
    write_atomically(folder / FACTS, content)
    write_atomically(folder / SIGNATURE, (signature.model_dump_json(indent=2) + "\n").encode())
    return facts


def plain_files(folder: Path) -> tuple[list[str], list[Problem]]:
    """The paths of a folder's files, sorted, with ``/`` between names; and what is no plain file.

    A link is never followed, wherever it leads. Empty folders count for nothing.

    Raises:
        FileProblemError: a folder in it cannot be read.
    """
    paths: list[str] = []
    problems: list[Problem] = []
    for entry in _entries(folder):
        path = Path(entry.path).relative_to(folder).as_posix()
        if entry.is_file(follow_symlinks=False):
            paths.append(path)
        else:
            what = "is a link" if entry.is_symlink() else "is neither a file nor a folder"
            fix = "a release has files alone; fetch it again from where it was made"
            problems.append(Problem(where=printable(path), what=what, fix=fix))
    return sorted(paths), problems


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Everything below a folder but the folders."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(folder, what, "check the path and its permissions") from None
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))
        else:
            yield entry


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits.

    Raises:
        FileProblemError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "check the path and its permissions") from None


def printable(text: str) -> str:
    """The text with ``?`` for what a terminal would not show: a name may be a stranger's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
