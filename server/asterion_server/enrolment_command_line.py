"""``asterion server init | enrol | revoke | operator``: who takes part in a federation."""

import json
from pathlib import Path
from typing import Annotated

import typer

from asterion_shared.carrier import Carrier

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the coordinator's folder")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def init(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(help="name or address sites use; repeatable; absent: as before"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="port to listen on; absent: as before, at first 8000")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="address to listen on; absent: as before, at first 0.0.0.0, that is all"),
    ] = None,
    carrier: Annotated[
        Carrier | None,
        typer.Option(help="Asterion's own link, or stock Flower; absent: as before, at first link"),
    ] = None,
    root_certificate: Annotated[
        Path | None, typer.Option(help="of another authority, PEM; with the next two")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="of this coordinator, issued by that authority, PEM")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option(help="of that certificate, EC, mode 0600")
    ] = None,
) -> None:
    """Make an authority, a certificate and a secret; run it again to renew the certificate."""
    from asterion_server.initialise import OF_ANOTHER, OwnPapers, init_coordinator
    from asterion_shared.errors import UserInputError
    from asterion_shared.fingerprints import certificate_fingerprint

    papers = None
    if root_certificate and certificate and private_key:
        papers = OwnPapers(root_certificate, certificate, private_key)
    elif root_certificate or certificate or private_key:
        msg = f"another authority needs all three of {OF_ANOTHER}"
        raise UserInputError(msg)
    made = init_coordinator(
        folder, host or (), port=port, listen=listen, carrier=carrier, papers=papers
    )
    names = ", ".join(made.settings.hosts)
    print(f"{folder}: a coordinator for {names}, port {made.settings.port}")
    print(f"fingerprint of its authority: "
          f"{certificate_fingerprint(made.root_certificate.read_bytes())}")  # fmt: skip
    if made.settings.sites:
        print(f"give each site its new file: {made.enrolment('NAME')}")
    else:
        print(f"enrol a site with the request it sends: asterion server enrol {folder} REQUEST")


def enrol(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="NAME.request.json, as the site sent it")],
    told: Annotated[
        str,
        typer.Option("--fingerprint", help="as the site read it aloud; absent: you are asked"),
    ] = "",
    certificate: Annotated[
        Path | None, typer.Option(help="of the site, when another authority issued it, PEM")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="take a new key in place of one that was lost")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Certify a site's key and admit the site; again to renew its certificate."""
    from asterion_server.enrol import enrol as admit
    from asterion_server.keys import open_provisioned
    from asterion_shared.enrolment_files import read_request
    from asterion_shared.errors import UserInputError
    from asterion_shared.fingerprints import certificate_fingerprint, matches

    def confirm(site: str, shown: str) -> bool:
        if not told:
            typer.echo(f"site         {site}\nfingerprint  {shown}", err=True)
            return typer.confirm("Did the site read the same fingerprint to you?", err=True)
        if not matches(told, shown):
            msg = (
                f"the request of site {site} has the fingerprint {shown}, not {told}: it is not "
                "the one that the site made; get it again on another way"
            )
            raise UserInputError(msg)
        return True

    made = open_provisioned(folder)
    (done,) = admit(
        folder, [read_request(request)], confirm, certificate=certificate, replace=replace
    )
    authority = certificate_fingerprint(made.root_certificate.read_bytes())
    if as_json:
        print(json.dumps({
            "site": done.site, "fingerprint": done.fingerprint, "file": str(done.file),
            "authority": authority, "replaced": done.replaced, "others": done.others,
        }))  # fmt: skip
        return
    print(f"site {done.site} is enrolled{', its old key is revoked' if done.replaced else ''}")
    print(f"give it {done.file}\nand read to it the fingerprint of the authority: {authority}")
    if done.others:
        print(f"new files for its peers too, before the next secure sum: {', '.join(done.others)}")


def revoke(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="name of the site")],
    as_json: AsJson = False,
) -> None:
    """Admit a site no longer; its open session ends within a second."""
    from asterion_server.enrol import revoke as refuse

    serials = refuse(folder, site)
    if as_json:
        print(json.dumps({"site": site, "serials": serials}))
        return
    print(f"site {site} is revoked; {len(serials)} certificates were added to {folder / 'revoked'}")
    print(f"to admit it again, enrol it: asterion server enrol {folder} REQUEST")


def invite(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="name of the site")],
    port: Annotated[int, typer.Option(help="to listen on until the site has come")] = 8001,
    minutes: Annotated[
        float, typer.Option(min=0.01, max=1440, help="how long the token holds")
    ] = 60.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="take a new key in place of one that was lost")
    ] = False,
) -> None:
    """Wait for one site, which comes with the one-time token that is printed."""
    from asterion_server.invite import invite as wait_for
    from asterion_server.keys import open_provisioned
    from asterion_shared.enrolment_tokens import Token

    made = open_provisioned(folder)

    def say(token: Token) -> None:
        print(f"token for site {site}, {minutes:g} minutes, once:\n\n    {token.text()}\n")
        print("give it to the site on a way that you trust, and to nobody else; there:")
        print(f"asterion site join SITE_TOML --address {made.settings.hosts[0]}:{port}", flush=True)

    shown = wait_for(made, site, say, port=port, seconds=60 * minutes, replace=replace)
    print(f"site {site} is enrolled; fingerprint of its key: {shown}")


def operator(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="name of the operator")],
    key: Annotated[Path, typer.Option(help="the operator's Ed25519 public key, PEM")],
) -> None:
    """Take an operator's public key, which sites then get with their enrolment."""
    from asterion_server.enrol import enrol_operator

    print(f"operator {name}: {enrol_operator(folder, name, key)}")
    print(f"give each site its new file: {folder / 'enrolments'}")
