"""A site's first handshake goes the way that the link itself will go: through the proxy."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.network.connect_proxy import proxy
from tests.network.federation import INNER, PORT
from tests.network.namespaces import Network

from asterion_server.keys import provision
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import ConnectionProblemError, UnreachableError
from asterion_shared.http_proxy import MOST_ANSWER_BYTES, open_tunnel, proxy_of


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_the_settings_win_then_the_environment_as_grpc_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = "coordinator.example.org"
    assert proxy_of(host, None) is None
    monkeypatch.setenv("http_proxy", "http://a:1")
    assert proxy_of(host, None) == "http://a:1"
    monkeypatch.setenv("https_proxy", "http://b:1")
    assert proxy_of(host, None) == "http://b:1"
    monkeypatch.setenv("grpc_proxy", "http://c:1")
    assert proxy_of(host, None) == "http://c:1"
    monkeypatch.setenv("no_proxy", "localhost, .example.org")
    assert proxy_of(host, None) is None
    assert proxy_of("coordinator.example.com", None) == "http://c:1"
    assert proxy_of(host, "http://d:1") == "http://d:1"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Something on the loopback interface that reads a head and says ``answer`` to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            caller, _ = listener.accept()
            with caller:
                while not b"".join(heard).endswith(b"\r\n\r\n"):
                    heard.append(caller.recv(65_536))
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(10)


def test_a_tunnel_is_asked_for_by_name_and_password() -> None:
    with answering(b"HTTP/1.1 200 fine\r\nA: b\r\n\r\nrest") as (place, heard):
        way = f"http://me:p%40ss@{place}"
        with closing(open_tunnel(way, "center.example.org", 8000, 5.0)) as tunnel:
            assert tunnel.recv(4) == b"rest"
    assert b"".join(heard) == (
        b"CONNECT center.example.org:8000 HTTP/1.1\r\nHost: center.example.org:8000\r\n"
        b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"  # me:p@ss
    )


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 407 who are you\r\n\r\n", UnreachableError, "it answers 407"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", ConnectionProblemError, "no HTTP proxy"),
        (b"", ConnectionProblemError, "no HTTP proxy"),
        (b"x" * 2 * MOST_ANSWER_BYTES, ConnectionProblemError, "no HTTP proxy"),
    ],
)
def test_what_is_no_open_way_is_said_without_the_password(
    answer: bytes, kind: type[Exception], words: str
) -> None:
    with (
        answering(answer) as (place, _),
        pytest.raises(kind, match=words) as told,
    ):
        open_tunnel(f"http://me:secret@{place}", "::1", 8000, 5.0)
    assert "secret" not in str(told.value)
    assert place in str(told.value)


@pytest.mark.parametrize("wrong", ["https://a:1", "a:1", "http://a", "http://a:b"])
def test_a_proxy_has_a_host_and_a_port(wrong: str) -> None:
    with pytest.raises(ConnectionProblemError, match="is not http://host:port"):
        open_tunnel(wrong, "center.example.org", 8000, 5.0)


CHECK = """
import sys
from pathlib import Path
from asterion_shared.connection_check import check_connection
from asterion_shared.errors import AsterionError
try:
    check_connection(sys.argv[1], Path(sys.argv[2]), proxy=sys.argv[3] or None)
except AsterionError as error:
    print(type(error).__name__, error)
else:
    print("well")
"""
SERVE = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
with socket.create_server(("0.0.0.0", int(sys.argv[3]))) as listener:
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        try:
            context.wrap_socket(caller, server_side=True).close()
        except OSError:
            pass
"""


def test_the_check_passes_a_proxy_where_no_other_way_leads(net: Network, tmp_path: Path) -> None:
    net.coordinator.run(["ip", "addr", "add", f"{INNER}/32", "dev", "lo"])
    made = provision(tmp_path / "center", [INNER], ["north"], port=PORT)
    words = [sys.executable, "-c", SERVE, made.certificate, made.private_key, PORT]
    server = net.coordinator.start([str(word) for word in words], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def told(way: str) -> str:
        words = [sys.executable, "-c", CHECK, f"{INNER}:{PORT}", str(made.root_certificate), way]
        return net.sites["north"].run(words).stdout

    with proxy(net.coordinator, tmp_path, port=3128) as middle:
        assert told(middle.url) == "well\n"
        middle.refuse(403)
        assert told(middle.url).startswith("UnreachableError the proxy http://198.1")
    assert "the proxy, and the firewall" in told(middle.url)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        check_connection("127.0.0.1:9", made.root_certificate)
