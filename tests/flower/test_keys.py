"""Keys and certificates, and what a wrong one says: over real TLS on the loopback interface."""

import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_private_key
from tests.papers import connection_lines, papers_of, provisioned

from asterion_server.coordinator import check_port, coordinator_of
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.connection_check import check_connection, split_address
from asterion_shared.errors import (
    ConnectionProblemError,
    FileProblemError,
    PortInUseError,
    SettingsError,
    UnreachableError,
    UserInputError,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    folder = tmp_path_factory.mktemp("made") / "center"
    return provisioned(
        folder, ["coordinator.example.org", "10.1.2.3"], ["south", "north"], port=8443
    )


@contextmanager
def tls_server(made: Provisioned) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.private_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                    with raw, context.wrap_socket(raw, server_side=True) as secured:
                        secured.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_what_lies_where_and_who_may_read_it(made: Provisioned) -> None:
    assert made.settings.sites == ("north", "south")
    private = [
        made.folder / "ca.key",
        made.private_key,
        made.secret,
        papers_of(made, "north") / "site.key",
    ]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    others = {p for p in made.folder.rglob("*") if p.is_file()} - set(private)
    for path in others - {made.folder / "audit" / "audit.key"}:
        assert b"PRIVATE" not in path.read_bytes()
    assert open_provisioned(made.folder) == made


def test_a_site_s_keys_belong_together_and_are_what_flower_takes(made: Provisioned) -> None:
    key = load_ssh_private_key((papers_of(made, "north") / "site.key").read_bytes(), None)
    public = load_pem_public_key(made.public_key("north").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert key.public_key() == public
    assert made.public_key("north").read_bytes() != made.public_key("south").read_bytes()


def test_making_it_again_keeps_every_key_and_adds_a_site(tmp_path: Path) -> None:
    first = provisioned(tmp_path, ["a.example.org"], ["north"])
    kept = [first.root_certificate, first.secret, first.public_key("north")]
    before = [path.read_bytes() for path in kept]
    second = provisioned(tmp_path, ["b.example.org"], ["north", "west"], port=9000)
    assert [path.read_bytes() for path in kept] == before
    assert 'address = "b.example.org:9000"' in connection_lines(second, "west")


def test_the_right_certificate_is_accepted(made: Provisioned) -> None:
    with tls_server(made) as address:
        check_connection(address, made.root_certificate)


def test_another_authority_is_told(made: Provisioned, tmp_path: Path) -> None:
    other = provisioned(tmp_path, ["x"], ["y"])
    with (
        tls_server(made) as address,
        pytest.raises(ConnectionProblemError, match="not issued by the authority") as caught,
    ):
        check_connection(address, other.root_certificate)
    assert caught.value.exit_code == 30


def test_a_name_that_the_certificate_does_not_hold_for_is_told(
    made: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(made) as address:
        port = address.rpartition(":")[2]
        real = socket.create_connection
        monkeypatch.setattr(
            socket, "create_connection", lambda to, timeout: real(("127.0.0.1", to[1]), timeout)
        )
        check_connection(f"coordinator.example.org:{port}", made.root_certificate)
        check_connection(f"10.1.2.3:{port}", made.root_certificate)
        with pytest.raises(ConnectionProblemError, match="use a host name it was made for"):
            check_connection(f"elsewhere.example.org:{port}", made.root_certificate)


def test_nobody_there_and_no_tls_there_are_told(made: Provisioned, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UnreachableError, match="cannot be reached") as caught:
        check_connection(address, made.root_certificate)
    assert caught.value.exit_code == 32
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer_in_clear() -> None:
            with plain.accept()[0] as caller:
                caller.recv(10_000)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer_in_clear)
        thread.start()
        with pytest.raises(ConnectionProblemError, match="does not speak TLS"):
            check_connection(f"127.0.0.1:{plain.getsockname()[1]}", made.root_certificate)
        thread.join(5)
    rubbish = tmp_path / "ca.pem"
    with pytest.raises(FileProblemError, match="no such file"):
        check_connection(address, rubbish)
    rubbish.write_text("not a certificate")
    with pytest.raises(FileProblemError, match="is not a PEM certificate"):
        check_connection(address, rubbish)


@pytest.mark.parametrize("address", ["", "host", "host:", ":8000", "https://host:1", "h:0", "h:x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConnectionProblemError, match="host:port"):
        split_address(address)


def test_an_address_by_hand() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("a.example.org:8000") == ("a.example.org", 8000)


def test_wrong_names_and_empty_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="got no host"):
        init_coordinator(tmp_path / "x", [])
    with pytest.raises(SettingsError, match="hosts"):
        init_coordinator(tmp_path / "x", [""])
    with pytest.raises(UserInputError, match="neither an address nor a name"):
        init_coordinator(tmp_path / "x", ["böse"])
    with pytest.raises(FileProblemError, match="not a coordinator's folder"):
        open_provisioned(tmp_path / "x")


def test_a_lost_key_is_named(tmp_path: Path) -> None:
    made = provisioned(tmp_path, ["h"], ["north"])
    made.private_key.unlink()
    with pytest.raises(FileProblemError, match=r"server\.key: no such file"):
        open_provisioned(tmp_path)


def test_a_port_in_use_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        made = provisioned(tmp_path, ["127.0.0.1"], ["north"], port=port, listen="127.0.0.1")
        with pytest.raises(PortInUseError) as caught:
            coordinator_of(made).__enter__()
        assert caught.value.exit_code == 31
    check_port("127.0.0.1", port)
