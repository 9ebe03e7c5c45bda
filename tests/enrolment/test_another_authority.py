"""A hospital's own authority in place of the coordinator's, by the commands, over real TLS."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.conftest import Ran
from tests.link.loopback import Loopback, free_port, refusal_of
from tests.papers import BARE

from asterion_server.certificates import authority_certificate, host_name, leaf_certificate
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import ConnectionProblemError
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.identity import read_identity

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
HOST = "fl.hospital.example"
Asterion = Callable[..., Ran]


class Hospital:
    """An authority that knows nothing of Asterion."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = authority_certificate(self.key)
        (folder / "ca.pem").write_bytes(self.root.public_bytes(Encoding.PEM))

    def issue(
        self, name: str, key: ec.EllipticCurvePublicKey, usage: x509.ObjectIdentifier, *names: str
    ) -> Path:
        path = self.folder / f"{name}.pem"
        general = [host_name(n) if ":" not in n else x509.UniformResourceIdentifier(n)
                   for n in names]  # fmt: skip
        path.write_bytes(leaf_certificate(name, general, usage, key, self.key, self.root))
        return path

    def server(self, *hosts: str) -> list[object]:
        """Certify a server; the options of ``server init``."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self.folder / "server.key"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        certificate = self.issue("server", key.public_key(), SERVER, *hosts)
        return ["--root-certificate", self.folder / "ca.pem", "--certificate", certificate,
                "--private-key", path]  # fmt: skip


def requested(tmp_path: Path, name: str, asterion: Asterion) -> tuple[Path, Path]:
    """A site's settings and its request."""
    toml = tmp_path / "center-sites" / name / "site.toml"
    toml.parent.mkdir(parents=True)
    toml.write_text(BARE.format(name=name))
    assert asterion("site", "init", toml).code == 0
    return toml, toml.parent / f"{name}.request.json"


def public_key_of(toml: Path) -> ec.EllipticCurvePublicKey:
    from asterion_client.site_keys import read_key

    key = read_key(toml.parent / "site.key").public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def initialised(tmp_path: Path, hospital: Hospital, asterion: Asterion, *hosts: str) -> Provisioned:
    folder = tmp_path / "center"
    ran = asterion("server", "init", folder, "--host", hosts[0], "--port", free_port(),
                   "--listen", "127.0.0.1", *hospital.server(*hosts))  # fmt: skip
    assert ran.code == 0, ran.said
    return open_provisioned(folder)


@pytest.mark.parametrize("named", [True, False])
def test_its_sites_are_admitted_and_nobody_else_whom_it_certified(
    tmp_path: Path, hospital: Hospital, asterion: Asterion, named: bool
) -> None:
    made = initialised(tmp_path, hospital, asterion, "localhost")
    assert not (made.folder / "ca.key").exists()
    toml, request = requested(tmp_path, "north", asterion)
    key = public_key_of(toml)
    names = ("asterion:site:north",) if named else ("ward7.hospital.example",)
    own = hospital.issue("north", key, CLIENT, *names)
    ran = asterion("server", "enrol", made.folder, request, "--certificate", own, typed="y\n")
    assert ran.code == 0, ran.said
    joined = asterion("site", "join", toml, made.enrolment("north"), typed="y\n")
    assert joined.code == 0, joined.said
    assert (toml.parent / "site.pem").read_bytes() == own.read_bytes()

    stranger = ec.generate_private_key(ec.SECP256R1())
    other = hospital.issue("other", stranger.public_key(), CLIENT, *names)
    secret = tmp_path / "other.key"
    secret.touch(mode=0o600)
    secret.write_bytes(stranger.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    loopback = Loopback(open_provisioned(made.folder), tmp_path / "scratch")
    try:
        site = loopback.site("north")
        session = site.attend()
        channel = loopback.channel(read_identity(hospital.folder / "ca.pem", other, secret))
        text, status = refusal_of(lambda: next(service.LinkStub(channel).Attend(site.hello())))
        assert ("foreign" in text, status) == (True, grpc.StatusCode.PERMISSION_DENIED)
        assert asterion("server", "revoke", made.folder, "north").code == 0
        assert "revoked" in refusal_of(lambda: list(session))[0]
    finally:
        loopback.close()


def test_what_does_not_fit_is_told_and_nothing_is_taken(
    tmp_path: Path, hospital: Hospital, asterion: Asterion
) -> None:
    init = ("server", "init", tmp_path / "center", "--host", HOST)
    stranger = Hospital(tmp_path / "stranger")
    for wrong, words in (
        (lambda: hospital.server("elsewhere.example"), f"does not hold for {HOST}"),
        (lambda: stranger.server(HOST)[:2] + hospital.server(HOST)[2:], "authority"),
        (lambda: [*hospital.server(HOST), "--carrier", "flower"], "does not hold for 127.0.0.1"),
    ):
        ran = asterion(*init, *wrong())
        assert (ran.code != 0, words in ran.err) == (True, True), ran.said
        assert not (tmp_path / "center" / "server.key").exists()
    made = initialised(tmp_path, hospital, asterion, HOST)
    toml, request = requested(tmp_path, "north", asterion)
    enrol = ("server", "enrol", made.folder, request, "--certificate")
    key = public_key_of(toml)
    foreign = ec.generate_private_key(ec.SECP256R1()).public_key()
    for path in (
        hospital.issue("another-key", foreign, CLIENT, HOST),
        hospital.issue("another-site", key, CLIENT, "asterion:site:south"),
        stranger.issue("another-authority", key, CLIENT, HOST),
    ):
        ran = asterion(*enrol, path, typed="y\n")
        assert (ran.code != 0, path.name in ran.err) == (True, True), ran.said
        assert open_provisioned(made.folder).settings.sites == ()
    without = asterion("server", "enrol", made.folder, request, typed="y\n")
    assert (without.code != 0, "--certificate" in without.err) == (True, True), without.said


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """A coordinator's daemon; the line that says it stands."""
    words = [sys.executable, "-m", "asterion_shared.command_line", "server", "start", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {
        "PYTHONUNBUFFERED": "1"})  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_coordinator_starts_whose_certificate_does_not_name_this_machine(
    tmp_path: Path, hospital: Hospital, asterion: Asterion
) -> None:
    made = initialised(tmp_path, hospital, asterion, HOST)
    with started(made.folder) as line:
        assert "listens on" in line
        check_connection(made.address, made.root_certificate, name=HOST)
        with pytest.raises(ConnectionProblemError, match="does not hold"):
            check_connection(made.address, made.root_certificate)
        ran = asterion("server", "check", made.folder)
        assert "not by this coordinator" not in ran.said
