"""A site's first handshake goes the way that the link itself will go: through the proxy."""

import subprocess
import sys
from pathlib import Path

from tests.network.connect_proxy import proxy
from tests.network.federation import INNER, PORT
from tests.network.namespaces import Network

from asterion_server.initialise import init_coordinator

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
    made = init_coordinator(tmp_path / "center", [INNER], port=PORT)
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
        assert told(middle.url).startswith("UnreachableError the proxy 198.1")
    assert "cannot be reached" in told(middle.url)
