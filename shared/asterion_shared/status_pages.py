"""Small pages over HTTP for a machine's own monitoring: health and metrics."""

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asterion_shared.errors import ConnectionProblemError, PortInUseError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer.

    Attributes:
        status: of HTTP.
        content_type: of the body.
        body: its text.
    """

    status: int
    content_type: str
    body: str


@contextmanager
def serve_pages(
    address: str, port: int | None, pages: Mapping[str, Callable[[], Page]]
) -> Iterator[None]:
    """Answer GET of some paths, each time anew, until the block ends.

    Args:
        address: of this machine to listen on.
        port: where; None: nothing is served.
        pages: path to what makes its page; other paths are 404.

    Raises:
        PortInUseError: another process holds the port.
        ConnectionProblemError: the address is none of this machine's, or the port needs more
            rights.
    """
    if port is None:
        yield
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10.0  # a client that says nothing holds no thread for ever

        def do_GET(self) -> None:
            make = pages.get(self.path)
            if make is None:
                self.send_error(404)
                return
            page = make()
            body = page.body.encode()
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its own name
            """Nothing: a look each second would fill the log."""

    try:
        server = http.server.ThreadingHTTPServer((address, port), Handler)
    except OSError as error:
        where = f"{address}:{port}"
        if "in use" in (error.strerror or ""):
            raise PortInUseError(where) from None
        msg = f"cannot listen on {where} ({error.strerror}); correct the address or the port"
        raise ConnectionProblemError(msg) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
