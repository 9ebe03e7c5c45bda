"""A console's own process: its port, TLS, and the end when its daemon is gone."""

import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from asterion_shared.console.settings import GREETING, ConsoleSettings
from asterion_shared.errors import ConnectionProblemError, FileProblemError, PortInUseError
from asterion_shared.key_files import check_private


def serve(
    app: ASGIApp, settings: ConsoleSettings, folder: Path, say: Callable[[str], None]
) -> None:
    """Serve an application until the process is told to end.

    Args:
        app: what answers.
        settings: where.
        folder: that the paths in the settings are relative to.
        say: is told the address when the port is open.

    Raises:
        PortInUseError: another process holds the port.
        ConnectionProblemError: the address is none of this machine's, or the port needs rights.
        FileProblemError: the certificate or its key is missing, wrong, or readable by others.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    certificate, key = _papers(settings, folder)
    config = uvicorn.Config(
        app,
        access_log=False,
        date_header=True,
        h11_max_incomplete_event_size=32_768,
        lifespan="off",
        limit_concurrency=200,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=10,
        ws="none",
    )
    listener = _listener(settings)
    with listener:
        say(f"{GREETING}{settings.url}")
        uvicorn.Server(config).run(sockets=[listener])


def _listener(settings: ConsoleSettings) -> socket.socket:
    where = f"{settings.address}:{settings.port}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.address, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        if "in use" in (error.strerror or ""):
            raise PortInUseError(where) from None
        msg = f"cannot listen on {where} ({error.strerror}); correct [console]"
        raise ConnectionProblemError(msg) from None
    return listener


def _papers(settings: ConsoleSettings, folder: Path) -> tuple[str | None, str | None]:
    """Certificate and key, checked; both None without TLS."""
    if settings.certificate is None or settings.private_key is None:
        return None, None
    certificate, key = folder / settings.certificate, folder / settings.private_key
    if not certificate.is_file():
        raise FileProblemError(certificate, "no such file", "correct console.certificate")
    check_private(key, "correct console.private_key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError):
        what = "is not a certificate in PEM, or the private key is not its own"
        fix = "correct console.certificate and console.private_key"
        raise FileProblemError(certificate, what, fix) from None
    return str(certificate), str(key)
