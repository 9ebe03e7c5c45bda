"""Can the coordinator be reached, and is it the one the certificate speaks of?"""

import socket
import ssl
from pathlib import Path

from asterion_shared.errors import ConnectionProblemError, FileProblemError, UnreachableError
from asterion_shared.proxies import open_tunnel, proxy_for

TIMEOUT_SECONDS = 10.0
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate that the given authority did not sign."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ConnectionProblemError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        msg = f"{address!r} is not host:port; write for example coordinator.example.org:8000"
        raise ConnectionProblemError(msg)
    return host.strip("[]"), int(port)


def check_connection(
    address: str, root_certificate: Path, *, proxy: str | None = None, name: str = ""
) -> None:
    """Shake hands with the coordinator over TLS and hang up.

    Args:
        address: ``host:port``.
        root_certificate: PEM file of the authority that signed the coordinator's certificate.
        proxy: ``http://host:port`` of a proxy on the way; None: as the environment says.
        name: that the certificate has to hold for; empty: the address's.

    Raises:
        FileProblemError: the certificate's file is missing or no certificate.
        UnreachableError: nobody answers at the address, or the proxy does not let us through.
        ConnectionProblemError: somebody answers, but not with the right certificate.
    """
    host, port = split_address(address)
    context, way = _context(root_certificate), proxy_for(host, proxy)
    try:
        with (
            _dial(host, port, way) as raw,
            context.wrap_socket(raw, server_hostname=name or host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise ConnectionProblemError(_wrong_certificate(address, root_certificate, error)) from None
    except ssl.SSLError as error:
        msg = f"{address} does not speak TLS ({error.reason}); check the address and the port"
        raise ConnectionProblemError(msg) from None
    except socket.gaierror:
        msg = f"the name {host!r} is not known; check the address {address}"
        raise UnreachableError(msg) from None
    except OSError as error:
        why = "timed out" if isinstance(error, TimeoutError) else (error.strerror or "no answer")
        msg = (
            f"the coordinator at {address} cannot be reached ({why.lower()}); check that it is "
            "running, the address, and the firewall"
        )
        raise UnreachableError(msg) from None


def _dial(host: str, port: int, proxy: str | None) -> socket.socket:
    if proxy is None:
        return socket.create_connection((host, port), TIMEOUT_SECONDS)
    return open_tunnel(proxy, host, port, TIMEOUT_SECONDS)


def _context(root_certificate: Path) -> ssl.SSLContext:
    fix = "put the coordinator's ca.pem there"
    try:
        text = root_certificate.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise FileProblemError(root_certificate, "is not a PEM certificate", fix) from None
    except OSError as error:
        what = (error.strerror or "unreadable").lower()
        raise FileProblemError(root_certificate, what, fix) from None
    try:
        return ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise FileProblemError(root_certificate, "is not a PEM certificate", fix) from None


def _wrong_certificate(address: str, path: Path, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return (
            f"the certificate at {address} was not issued by the authority in {path}; get ca.pem "
            "of this coordinator from its operator"
        )
    fix = "use a host name it was made for" if "match" in error.verify_message else "renew it"
    return f"the certificate at {address} does not hold: {error.verify_message.lower()}; {fix}"
