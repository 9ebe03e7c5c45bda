"""The self-check of a connection over stock Flower: a wrong address, key or certificate."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asterion_client.check import check_site
from asterion_shared.errors import Problem


def certificate(
    name: str, signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None, address: str
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (signer[0].subject, signer[1]) if signer else (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return built, key


def pem(thing: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    return thing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A TLS server that shakes hands and hangs up; its port, and the authority's certificate."""
    authority = certificate("authority", None, "127.0.0.1")
    server, key = certificate("server", authority, "127.0.0.1")
    for name, things in (("ca.pem", authority[:1]), ("server.pem", (server, key))):
        (tmp_path / name).write_bytes(b"".join(pem(thing) for thing in things))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain:
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], tmp_path / "ca.pem"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def connected(folder: Path, address: str, key_mode: int = 0o600) -> Path:
    path = folder / "site.toml"
    path.write_text(
        'name = "s"\ntask = "classification"\n[data]\nformat = "npz"\nfolder = "none"\n'
        f'[connection]\ncarrier = "flower"\naddress = "{address}"\n'
        'root_certificate = "ca.pem"\nprivate_key = "site.key"\n'
    )
    key = folder / "site.key"
    key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    key.chmod(key_mode)
    return path


def problems(path: Path) -> list[Problem]:
    """Those of the connection; the data folder of these sites is not there either."""
    return [p for p in check_site(path) if p.where.startswith("connection")]


def test_a_coordinator_that_answers(coordinator: tuple[int, Path], tmp_path: Path) -> None:
    assert problems(connected(tmp_path, f"127.0.0.1:{coordinator[0]}")) == []


def test_a_key_that_others_can_read(coordinator: tuple[int, Path], tmp_path: Path) -> None:
    (problem,) = problems(connected(tmp_path, f"127.0.0.1:{coordinator[0]}", 0o644))
    assert "0644" in problem.what
    assert problem.fix.startswith("chmod 600")
    assert problem.fatal


def test_keys_of_other_sites_without_ones_own(
    coordinator: tuple[int, Path], tmp_path: Path
) -> None:
    path = connected(tmp_path, f"127.0.0.1:{coordinator[0]}")
    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.write_text(path.read_text() + 'peers = "peers"\n')
    (problem,) = problems(path)
    assert problem.where == "connection.peers"
    assert "has no s.pem that belongs to site.key" in problem.what
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "s.pem").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert problems(path) == []
    (tmp_path / "peers" / "t.pem").write_text("rubbish")
    (problem,) = problems(path)
    assert "t.pem cannot be read as a key" in problem.what


def test_the_certificate_of_another_authority(
    coordinator: tuple[int, Path], tmp_path: Path
) -> None:
    path = connected(tmp_path, f"127.0.0.1:{coordinator[0]}")
    (tmp_path / "ca.pem").write_bytes(pem(certificate("other", None, "127.0.0.1")[0]))
    (problem,) = problems(path)
    assert problem.fatal
    assert "certificate" in str(problem)
    (tmp_path / "ca.pem").write_text("no certificate")
    (problem,) = problems(path)
    assert (problem.where, problem.fatal) == ("connection.root_certificate", True)


def test_nobody_at_the_address(coordinator: tuple[int, Path], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (problem,) = problems(connected(tmp_path, f"127.0.0.1:{port}"))
    assert problem.fatal
    assert str(port) in problem.what


@pytest.mark.parametrize("address", ["host", "host:", ":8000", "host:web", "host:0", "host:70000"])
def test_an_address_that_is_none(
    coordinator: tuple[int, Path], tmp_path: Path, address: str
) -> None:
    (problem,) = problems(connected(tmp_path, address))
    assert problem.where == "connection.address"
    assert problem.fatal
