"""``asterion site init | join``: become part of a federation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def init(
    site_toml: SiteToml,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="make a new key beside the present one")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the site's key and the request to be enrolled; a key that is there stays."""
    from asterion_client.site_keys import init_site

    path, fingerprint = init_site(site_toml, rotate=rotate)
    if as_json:
        print(json.dumps({"request": str(path), "fingerprint": fingerprint}))
        return
    print(f"send {path} to the coordinator's operator")
    if rotate:
        print("the present key has signed it; then join with the answer")
    print(f"and read to them, by telephone: {fingerprint}")


def join(
    site_toml: SiteToml,
    enrolment: Annotated[
        Path | None, typer.Argument(help="NAME.enrolment.json, as the operator sent it")
    ] = None,
    told: Annotated[
        str,
        typer.Option(
            "--fingerprint", help="of the authority, as its operator read it; absent: you are asked"
        ),
    ] = "",
    replace_peer: Annotated[
        list[str] | None,
        typer.Option(help="a site or operator whose known key may change; repeatable"),
    ] = None,
    token: Annotated[
        str, typer.Option(help="of the invitation, where nobody else sees your commands")
    ] = "",
    address: Annotated[
        str,
        typer.Option(help="HOST:PORT of an invitation, in place of the file; asks for its token"),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check the operator's answer and take it up; again when peers or keys have changed."""
    from dataclasses import asdict

    from asterion_client.join import join as take_up
    from asterion_client.join_by_token import enrolment_by_token
    from asterion_client.site_keys import init_site
    from asterion_shared.enrolment_files import read_enrolment, read_request
    from asterion_shared.enrolment_tokens import read_token
    from asterion_shared.errors import UserInputError
    from asterion_shared.fingerprints import matches

    def ask(shown: str) -> bool:
        if not told:
            typer.echo(f"fingerprint of the coordinator's authority: {shown}", err=True)
            return typer.confirm("Did its operator read the same to you?", err=True)
        if not matches(told, shown):
            msg = f"the authority's fingerprint is {shown}, not {told}; get the file another way"
            raise UserInputError(msg)
        return True

    confirm: Callable[[str], bool] = ask
    if enrolment is not None and not (token or address):
        given, source = read_enrolment(enrolment), str(enrolment)
    elif address and enrolment is None:
        parts = read_token(token or _typed("token"))
        request = read_request(init_site(site_toml)[0])
        given, source = enrolment_by_token(address, parts, request), address
        confirm = parts.is_of  # the token has named the authority already
    else:
        msg = "give either the operator's file, or the --address of an invitation"
        raise UserInputError(msg)
    done = take_up(site_toml, given, confirm, source=source, replace_peers=replace_peer or ())
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(f"site {done.site} has joined; authority {done.authority}")
    if done.rotated:
        print("its new key is in use, the old one is removed; start the site again")
    for word, keys in (("new", done.new), ("changed", done.changed)):
        for name, shown in keys.items():
            print(f"{word} key {name}: {shown}")
    for name in done.gone:
        print(f"removed key {name}: no longer enrolled")
    for line in done.differences:
        print(f"warning: {line}")
    if done.wrote_connection:
        print(f"[connection] was added to {site_toml}")


def _typed(what: str) -> str:
    """A secret from the terminal, unseen, or from a program that pipes it in."""
    import sys

    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return sys.stdin.readline().strip()
