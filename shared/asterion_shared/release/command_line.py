"""``asterion verify``: is a release as it was signed; neither network nor coordinator is needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asterion_shared.errors import FileProblemError, Problem, ReleaseBrokenError

if TYPE_CHECKING:
    from asterion_shared.release.verifying import VerifiedRelease


def verify(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="a release's folder")],
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUBLIC.pem", help="the coordinator's public key, as you know it"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Check the signature and every file of a released model, offline."""
    from asterion_shared.release.verifying import verify_release

    try:
        found = verify_release(release, key)
    except (ReleaseBrokenError, FileProblemError) as error:
        if not as_json:
            raise
        print(json.dumps({"release": str(release), "facts": None, "problems": _rows(error)}))
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print(json.dumps(_row(found)))
    else:
        _print(found)


def _print(found: "VerifiedRelease") -> None:
    from asterion_shared.fingerprints import fingerprint
    from asterion_shared.release.sealing import printable

    facts, key = found.facts, fingerprint(found.public_key)
    print(f"{facts.name} version {facts.version} ({facts.maturity}): all {len(facts.files)} files "
          "are as they were signed")  # fmt: skip
    print(f"  trained by run {facts.run}: {_many(facts.rounds, 'round')}, "
          f"{_many(facts.sites, 'site')}, plan {facts.plan_sha256[:12]}")  # fmt: skip
    print(f"  made {facts.created}")
    for reason in facts.held_back:
        print(f"  held back by the release gate: {printable(reason)}")
    if facts.despite:
        print(f"  released all the same, as research: {printable(facts.despite)}")
    if found.signer_known:
        print(f"  signed with the key that you gave, {key}")
    else:
        print(f"  signed with {key}; whose key that is was not checked: give --key PUBLIC.pem")


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _row(found: "VerifiedRelease") -> dict[str, Any]:
    return {
        "release": str(found.folder),
        "facts": found.facts.model_dump(mode="json"),
        "public_key": found.public_key,
        "signer_known": found.signer_known,
        "problems": [],
    }


def _rows(error: ReleaseBrokenError | FileProblemError) -> list[dict[str, str]]:
    if isinstance(error, ReleaseBrokenError):
        problems = error.problems
    else:
        problems = (Problem(where=error.path, what=error.what, fix=error.fix),)
    return [{"where": p.where, "what": p.what, "fix": p.fix} for p in problems]
