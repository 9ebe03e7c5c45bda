"""The HTTP proxy on the way to the coordinator: which one, and a tunnel through it.

gRPC finds its proxy and opens its tunnel by itself; what is here does the same for a connection
that is only tried. A tunnel is opened with CONNECT (RFC 9110, section 9.3.6).
"""

import base64
import os
import socket
from urllib.parse import unquote, urlsplit

from asterion_shared.errors import ConnectionProblemError, UnreachableError

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
DIRECT_VARIABLES = ("no_grpc_proxy", "no_proxy")
"""Environment variables that gRPC reads, the first that is set; lower case alone."""

MOST_ANSWER_BYTES = 16_384


def proxy_of(host: str, given: str | None) -> str | None:
    """The proxy on the way to a host, or None.

    Args:
        host: of the coordinator.
        given: ``connection.proxy`` of the site, which wins; None: as the environment says.

    Returns:
        ``http://host:port``, perhaps with ``user:password@`` before the host.
    """
    if given is not None:
        return given
    named = next((os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)), None)
    direct = next((os.environ[name] for name in DIRECT_VARIABLES if os.environ.get(name)), "")
    endings = [entry.strip() for entry in direct.split(",")]
    return None if any(entry and host.endswith(entry) for entry in endings) else named


def open_tunnel(proxy: str, host: str, port: int, seconds: float) -> socket.socket:
    """A connection to a host and port through a proxy.

    Args:
        proxy: as :func:`proxy_of` gives it.
        host: where the tunnel leads; the proxy looks its name up.
        port: likewise.
        seconds: how long each step may take.

    Raises:
        ConnectionProblemError: the proxy's address is not ``http://host:port``, or what answers
            there is no proxy.
        UnreachableError: the proxy does not let us through.
        OSError: the proxy does not answer.
    """
    parts = urlsplit(proxy)
    try:
        place = parts.hostname, parts.port
    except ValueError:
        place = None, None
    if parts.scheme != "http" or place[0] is None or place[1] is None:
        msg = f"the proxy {_shown(proxy)!r} is not http://host:port; correct connection.proxy"
        raise ConnectionProblemError(msg)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
    tunnel = socket.create_connection((place[0], place[1]), seconds)
    try:
        tunnel.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        status = _status(tunnel, proxy)
    except BaseException:
        tunnel.close()
        raise
    if status // 100 != 2:
        tunnel.close()
        msg = (
            f"the proxy {_shown(proxy)} does not open a way to {target} (it answers {status}); "
            "ask whoever runs it to allow that address"
        )
        raise UnreachableError(msg)
    return tunnel


def _status(tunnel: socket.socket, proxy: str) -> int:
    """Read the answer's head byte by byte, as what follows it is the tunnel's."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < MOST_ANSWER_BYTES:
        byte = tunnel.recv(1)
        if not byte:
            break
        head += byte
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        msg = f"what answers at {_shown(proxy)} is no HTTP proxy; correct connection.proxy"
        raise ConnectionProblemError(msg)
    return int(words[1])


def _shown(proxy: str) -> str:
    """The proxy without a password."""
    before, at, place = proxy.rpartition("@")
    return f"{before.split('//', 1)[0]}//{place}" if at else proxy
