"""HTTP proxies on the way to a coordinator: which one gRPC takes, and a tunnel through it."""

import base64
import ipaddress
import os
import socket
from urllib.parse import SplitResult, unquote, urlsplit

from asterion_shared.errors import ConnectionProblemError, UnreachableError

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC looks for a proxy; the first that is set counts."""

EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
MOST_ANSWER_BYTES = 16_384


def proxy_for(host: str, given: str | None) -> str | None:
    """The proxy that gRPC takes to a host.

    Args:
        host: name or address.
        given: what the settings say; it counts before the environment.

    Returns:
        ``http://host:port``, or None for the direct way.
    """
    if given is not None:
        return given
    listed = next((os.environ[name] for name in EXCEPTIONS if os.environ.get(name)), "")
    if any(_excepts(entry.strip(), host) for entry in listed.split(",")):
        return None
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)


def _excepts(entry: str, host: str) -> bool:
    if "/" in entry:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False  # a name is in no network
    return bool(entry) and host.lower().endswith(entry.lower())


def open_tunnel(proxy: str, host: str, port: int, seconds: float) -> socket.socket:
    """A connection to ``host:port`` through a proxy's CONNECT (RFC 9110, section 9.3.6).

    Args:
        proxy: ``http://host:port``, with ``user:password@`` where it asks for them.
        host: where to.
        port: likewise.
        seconds: how long it may take.

    Raises:
        ConnectionProblemError: ``proxy`` is not of that form.
        UnreachableError: the proxy does not answer, or does not let the connection through.
    """
    parts = urlsplit(proxy)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        where = parts.hostname or "the proxy"
        msg = f"{where!r} is given as a proxy, not as http://host:port; correct connection.proxy"
        raise ConnectionProblemError(msg)
    named = f"{parts.hostname}:{parts.port}"
    try:
        tunnel = socket.create_connection((parts.hostname, parts.port), seconds)
    except OSError as error:
        why = "timed out" if isinstance(error, TimeoutError) else (error.strerror or "no answer")
        msg = (
            f"the proxy {named} cannot be reached ({why.lower()}); check connection.proxy, or "
            "https_proxy of the environment, and the firewall"
        )
        raise UnreachableError(msg) from None
    try:
        status = _asked(tunnel, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", parts)
    except OSError:
        status = "no answer"
    if not status.startswith("2"):
        tunnel.close()
        msg = (
            f"the proxy {named} does not connect to {host}:{port} ({status}); ask its "
            "administrators to allow CONNECT to that address"
        )
        raise UnreachableError(msg)
    return tunnel


def _asked(tunnel: socket.socket, target: str, parts: SplitResult) -> str:
    """Status code and words of the proxy's answer; what follows it is not read."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    tunnel.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and len(answer) < MOST_ANSWER_BYTES:
        byte = tunnel.recv(1)  # one by one: what comes after belongs to TLS
        if not byte:
            break
        answer += byte
    first = answer.partition(b"\r\n")[0].decode("ascii", errors="replace")
    return first.partition(" ")[2][:60] or "no answer"
