"""Enrolled, replaced and revoked while the link runs."""

import time
from pathlib import Path

import grpc
import pytest
from tests.link.loopback import Loopback, eventually, linked, noise, refusal_of
from tests.papers import BARE, papers_of

from asterion_client.join import join
from asterion_client.site_keys import init_site
from asterion_server import enrol as enrolling
from asterion_server.enrol import enrol, revoke
from asterion_shared.enrolment_files import read_enrolment, read_request
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.identity import Identity, read_identity


def admit(link: Loopback, name: str, **given: object) -> None:
    toml = papers_of(link.made, name) / "site.toml"
    if not toml.exists():
        toml.parent.mkdir(parents=True)
        toml.write_text(BARE.format(name=name))
    request = read_request(init_site(toml)[0])
    enrol(link.made.folder, [request], lambda *_: True, **given)  # type: ignore[arg-type]
    file = link.made.enrolment(name)
    join(toml, read_enrolment(file), lambda _: True, source=str(file))


def test_a_site_that_is_enrolled_while_the_link_runs_is_admitted(tmp_path: Path) -> None:
    with linked(tmp_path, ["north"]) as link:
        admit(link, "west")
        site = link.site("west")
        site.attend()
        key = link.post(link.grid(), "west", vector=noise(2 * 2**18))
        assert len(list(site.stub.Download(wire.Wanted(key=key, part=1, chunks=[0])))) == 1


@pytest.mark.parametrize("rings", [True, False])
def test_a_revocation_ends_a_session_and_transfers_within_a_second(
    link: Loopback, rings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rings:
        monkeypatch.setattr(enrolling, "_ring", lambda folder: None)
    site, other = link.site("north"), link.site("south")
    session, theirs = site.attend(), other.attend()
    key = link.post(link.grid(), "north", vector=noise(64 * 2**18))  # 64 chunks
    next(notice for notice in session if notice.WhichOneof("what") == "order")
    download = site.stub.Download(wire.Wanted(key=key, part=1, chunks=range(64)))
    next(download)
    revoke(link.made.folder, "north")
    began = time.monotonic()
    text, _ = refusal_of(lambda: list(session))
    ended = time.monotonic() - began
    assert "revoked" in text
    assert ended <= 1.0
    assert "revoked" in refusal_of(lambda: [time.sleep(0.1) for _ in download])[0]
    assert "revoked" in refusal_of(lambda: link.site("north").attend())[0]
    assert theirs.is_active()
    # The same papers again do not help; a new certificate does.
    admit(link, "north")
    link.site("north").attend()


def test_a_lost_key_is_replaced_and_no_longer_admitted(link: Loopback) -> None:
    folder = papers_of(link.made, "north")
    stolen = link.identity("north")
    (folder / "site.key").unlink()
    admit(link, "north", replace=True)
    stub = service.LinkStub(link.channel(stolen))
    text, status = refusal_of(lambda: next(stub.Attend(link.site("north").hello())))
    assert "revoked" in text
    assert status is grpc.StatusCode.PERMISSION_DENIED
    link.site("north").attend()


def test_a_certificate_counts_for_its_own_name_and_key_alone(link: Loopback) -> None:
    north = papers_of(link.made, "north")
    # South's certificate does not come with north's key: no such identity can be made.
    with pytest.raises(Exception, match="does not belong to the certificate"):
        read_identity(
            north / "ca.pem", papers_of(link.made, "south") / "site.pem", north / "site.key"
        )
    # A certificate that names south, of north's key, by the same authority.
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    from asterion_client.site_keys import read_key
    from asterion_server.certificates import leaf_certificate
    from asterion_server.initialise import authority_of

    key = read_key(north / "site.key")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier("asterion:site:south")]
    forged = leaf_certificate(
        "south", names, ExtendedKeyUsageOID.CLIENT_AUTH, key.public_key(), *authority_of(link.made)
    )
    honest = link.identity("north")
    stub = service.LinkStub(link.channel(Identity(honest.root, forged, honest.private_key)))
    assert "foreign" in refusal_of(lambda: next(stub.Attend(link.site().hello())))[0]


def test_a_session_of_a_client_is_ended_and_told_the_code(link: Loopback) -> None:
    session = link.session("north")
    eventually(lambda: session.standing.connected)
    revoke(link.made.folder, "north")
    eventually(lambda: session.standing.refused == "revoked", 1.0)
