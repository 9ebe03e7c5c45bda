"""The CONNECT proxy, and gRPC over mutual TLS through proxy and bad network, process to process."""

import datetime as dt
import ipaddress
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.network.conditions import CONDITIONS, UNDISTURBED, Direction, both, cut_for
from tests.network.connect_proxy import proxy
from tests.network.control import HelperDiedError
from tests.network.measured import start_listening
from tests.network.namespaces import Host, Network

# Echoes what it is sent; the channel is kept through every call, so that reconnecting is gRPC's.
SERVER = """
import pathlib, sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc

folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
key, chain = (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()
server = grpc.server(ThreadPoolExecutor(2))
echo = grpc.unary_unary_rpc_method_handler(lambda content, context: content)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Test", {"Echo": echo})])
credentials = grpc.ssl_server_credentials([(key, chain)], chain, require_client_auth=True)
assert server.add_secure_port(address, credentials)
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""
CLIENT = """
import json, os, pathlib, sys, time
import grpc

folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
key, chain = (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()
credentials = grpc.ssl_channel_credentials(chain, key, chain)
quick = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 100),
         ("grpc.initial_reconnect_backoff_ms", 100)]
with grpc.secure_channel(address, credentials, quick) as channel:
    echo = channel.unary_unary("/Test/Echo")
    for line in sys.stdin:
        size_bytes, seconds = json.loads(line)
        sent, start = os.urandom(size_bytes), time.monotonic()
        try:
            code = "OK" if echo(sent, timeout=seconds, wait_for_ready=True) == sent else "WRONG"
        except grpc.RpcError as error:
            code = error.code().name
        print(json.dumps([code, time.monotonic() - start]), flush=True)
"""


class Echo:
    """The client process."""

    def __init__(self, host: Host, folder: Path, address: str, **environment: str) -> None:
        self._process = host.start(
            [sys.executable, "-c", CLIENT, str(folder), f"{address}:5002"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/usr/sbin", **environment},
        )

    def __call__(self, size_bytes: int, seconds: float) -> tuple[str, float]:
        """Status and seconds of one call."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([size_bytes, seconds]).encode() + b"\n")
        stdin.flush()
        code, took = json.loads(stdout.readline())
        return code, took


@pytest.fixture
def served(net: Network, tmp_path: Path) -> Path:
    """A gRPC server at the coordinator's port 5002; returns the folder of the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address(net.coordinator.address))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    words = [sys.executable, "-c", SERVER, str(tmp_path), f"{net.coordinator.address}:5002"]
    server = net.coordinator.start(words, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return tmp_path


def test_grpc_lives_through_cut_half_open_and_loss(net: Network, served: Path) -> None:
    echo = Echo(net.sites["north"], served, net.coordinator.address)
    assert echo(1000, 20)[0] == "OK"
    for condition in (cut_for(1.0), CONDITIONS["half-open-up"], CONDITIONS["half-open-down"]):
        net.set("north", condition)
        code, took = echo(1000, 0.5)
        assert code == "DEADLINE_EXCEEDED"
        assert took >= 0.5
        net.set("north", UNDISTURBED)
        assert echo(1000, 20)[0] == "OK"
    net.set("north", CONDITIONS["delay-200-ms"])
    code, took = echo(1000, 20)
    assert code == "OK"
    assert took >= 0.4
    net.set("north", both(Direction(loss=0.02, duplicate=0.1, reorder=0.1, reorder_seconds=0.002)))
    assert echo(1_000_000, 60)[0] == "OK"
    assert net.counters()["north"].up.lost > 0


def test_grpc_passes_the_proxy_and_outlives_its_cut(net: Network, served: Path) -> None:
    with proxy(net.coordinator, served, port=3128) as middle:
        echo = Echo(net.sites["north"], served, net.coordinator.address, https_proxy=middle.url)
        assert echo(100_000, 20)[0] == "OK"
        counters = middle.counters()
        assert (counters.asked, counters.opened, counters.open) == (1, 1, 1)
        assert min(counters.up_bytes, counters.down_bytes) > 100_000
        middle.refuse(403)
        assert middle.cut() == 1
        until = time.monotonic() + 30
        # The first call may still go into the tunnel's remains and fail without asking again.
        while middle.counters().refused == 0:
            assert time.monotonic() < until
            assert echo(1000, 0.5)[0] in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
        middle.refuse(None)
        assert echo(1000, 20)[0] == "OK"
        assert middle.counters().cut == 1
        assert middle.counters().open == 1


# Sends its second argument and tells what came until the end, or that the end was a reset.
TALK = """
import socket, sys
address, port = sys.argv[1].removeprefix("http://").split(":")
with socket.create_connection((address, int(port))) as talk:
    talk.sendall(sys.argv[2].encode())
    answer = b""
    try:
        while content := talk.recv(4096):
            answer += content
    except ConnectionResetError:
        answer += b"and a reset"
print(answer.decode())
"""


def talk_words(url: str, request: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", TALK, url, request]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET / HTTP/1.1", "405"),
        ("nonsense", "400"),
        ("CONNECT nowhere HTTP/1.1", "400"),
        ("CONNECT 127.0.0.1:9 HTTP/1.1", "502"),
        ("CONNECT 127.0.0.1:99999 HTTP/1.1", "502"),
    ],
)
def test_the_proxy_answers_what_it_cannot_do(
    net: Network, tmp_path: Path, request_line: str, status: str
) -> None:
    with proxy(net.coordinator, tmp_path, port=3128) as middle:

        def ask(line: str) -> str:
            return net.sites["north"].run(talk_words(middle.url, line + "\r\n\r\n")).stdout

        assert ask(request_line).startswith(f"HTTP/1.1 {status} ")
        middle.refuse(407)
        assert ask("CONNECT 127.0.0.1:9 HTTP/1.1").startswith("HTTP/1.1 407 ")
        assert middle.counters().opened == 0
        assert middle.counters().refused == 1


def test_a_tunnel_passes_bytes_and_a_cut_resets_it(net: Network, tmp_path: Path) -> None:
    start_listening(net.coordinator, "tcp-sink", 5001, 1)
    with proxy(net.coordinator, tmp_path, port=3128) as middle:
        request = f"CONNECT {net.coordinator.address}:5001 HTTP/1.1\r\n\r\n12345"
        words = talk_words(middle.url, request)
        waiting = net.sites["north"].start(words, stdout=subprocess.PIPE)
        until = time.monotonic() + 20
        while middle.counters().up_bytes < 5:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert middle.cut() == 1
        told, _ = waiting.communicate(timeout=20)
        assert told.startswith(b"HTTP/1.1 200 ")
        assert told.endswith(b"and a reset\n")
        assert middle.counters().open == 0


def test_a_taken_port_is_told(net: Network, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with (
        proxy(net.coordinator, tmp_path, port=3128),
        pytest.raises(HelperDiedError, match="address already in use"),
        proxy(net.coordinator, tmp_path / "second", port=3128),
    ):
        pass
