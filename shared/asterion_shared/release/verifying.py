"""Verify a release by its folder alone: nothing else is asked, and the network is not used."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from asterion_shared.audit_key import public_pem, read_public, read_public_file
from asterion_shared.errors import FileProblemError, Problem, ReleaseBrokenError, SettingsError
from asterion_shared.fingerprints import fingerprint
from asterion_shared.release.facts import (
    DOMAIN,
    FACTS,
    SIGNATURE,
    ReleaseFacts,
    ReleaseSignature,
)
from asterion_shared.release.sealing import plain_files, printable, sha256_of
from asterion_shared.settings_files import AnySettings, validate

AGAIN = "fetch the release again from where it was made"
MOST_BYTES = 2**24
"""Longest ``release.json`` or ``signature.json`` that is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRelease:
    """A release whose every file is as it was signed.

    Attributes:
        folder: where it lies.
        facts: what it says of itself.
        public_key: that signed it, PEM.
        signer_known: whether that is the key that the reader gave.
    """

    folder: Path
    facts: ReleaseFacts
    public_key: str
    signer_known: bool


def verify_release(folder: Path, key: Path | None = None) -> VerifiedRelease:
    """Check the signature and every file of a release; all problems of files are named at once.

    Args:
        folder: the release's.
        key: the public key, PEM, that the reader knows the signer by; None: any may have signed,
            and what is shown is only that nothing was changed since.

    Raises:
        ReleaseBrokenError: a file was changed, added, taken away, renamed or made a link, or the
            signature is another's or holds no more.
        FileProblemError: the key or a file cannot be read, or it is not a folder.
    """
    pinned = None if key is None else read_public_file(key, "take the coordinator's public key")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise FileProblemError(folder, what, "name a release's folder; unpack an archive first")
    content = _read(folder, FACTS)
    signature = _parse(ReleaseSignature, _read(folder, SIGNATURE), folder, SIGNATURE)
    signer = _signer(folder, signature, content, pinned)
    facts = _parse(ReleaseFacts, content, folder, FACTS)
    problems = _file_problems(folder, facts)
    if problems:
        raise ReleaseBrokenError(folder, problems)
    return VerifiedRelease(
        folder=folder, facts=facts, public_key=signer, signer_known=pinned is not None
    )


def _signer(
    folder: Path, signature: ReleaseSignature, content: bytes, pinned: Ed25519PublicKey | None
) -> str:
    """The key that signed, PEM; a manifest without it is not looked into."""
    key = read_public(signature.public_key)
    if key is None:
        raise _broken(folder, SIGNATURE, "its public_key is not an Ed25519 key in PEM", AGAIN)
    pem = public_pem(key)
    if pinned is not None and public_pem(pinned) != pem:
        what = (
            f"it is signed with the key {fingerprint(pem)}, "
            f"and the one given is {fingerprint(public_pem(pinned))}"
        )
        fix = "do not use it before you know whose key that is"
        raise _broken(folder, SIGNATURE, what, fix)
    try:
        key.verify(base64.b64decode(signature.signature, validate=True), DOMAIN + content)
    except (InvalidSignature, ValueError):
        what = f"{SIGNATURE} does not hold for it: one of the two was changed"
        raise _broken(folder, FACTS, what, AGAIN) from None
    return pem


def _file_problems(folder: Path, facts: ReleaseFacts) -> list[Problem]:
    """What differs between the folder and its manifest."""
    found, problems = plain_files(folder)
    here = set(found) - {FACTS, SIGNATURE}
    hashes = {path: sha256_of(folder / path) for path in sorted(here)}
    links = {problem.where for problem in problems}
    added = {path: hashes[path] for path in sorted(here - facts.files.keys())}
    for path, expected in sorted(facts.files.items()):
        if path in links:
            continue
        if path not in here:
            now = next((name for name, digest in added.items() if digest == expected), None)
            if now is None:
                problems.append(Problem(where=path, what="is missing", fix=AGAIN))
            else:
                del added[now]
                what = f"was renamed to {printable(now)}"
                problems.append(Problem(where=path, what=what, fix=f"name it {path} again"))
        elif hashes[path] != expected:
            what = f"was changed: its SHA-256 is {hashes[path][:12]}, signed is {expected[:12]}"
            problems.append(Problem(where=path, what=what, fix=AGAIN))
    for path in added:
        what = "is not in the manifest: it was added after the release was signed"
        problems.append(Problem(where=printable(path), what=what, fix="take it out"))
    return problems


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink():
        raise _broken(folder, name, "is a link", AGAIN)
    if not path.is_file():
        raise _broken(folder, name, "is missing", "name a release's folder, or fetch it again")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "check the path and its permissions") from None
    if len(content) > MOST_BYTES:
        raise _broken(folder, name, f"is longer than {MOST_BYTES:,} bytes", AGAIN)
    return content


def _parse(model: type[AnySettings], content: bytes, folder: Path, name: str) -> AnySettings:
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise _broken(folder, name, "is not JSON", AGAIN) from None
    if not isinstance(values, dict):
        raise _broken(folder, name, "is not a JSON object", AGAIN)
    if values.get("format") != 1:
        what = f"is of format {values.get('format')!r}, and this version of Asterion knows 1"
        raise _broken(folder, name, what, "use the version that made the release, or a later one")
    try:
        return validate(model, values, name)
    except SettingsError as error:
        problems = [
            Problem(where=f"{name}: {found.where}", what=found.what, fix=found.fix)
            for found in error.problems
        ]
        raise ReleaseBrokenError(folder, problems) from None


def _broken(folder: Path, name: str, what: str, fix: str) -> ReleaseBrokenError:
    return ReleaseBrokenError(folder, [Problem(where=name, what=what, fix=fix)])
