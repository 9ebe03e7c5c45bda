"""What stands before every page of a console: the host's name, the size, the headers."""

from collections.abc import Mapping

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 1_000_000
"""Of a request; a plan is a few kB."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Of a report, which is one file with its style inside: no script, no origin, no form."""

HEADERS: Mapping[str, str] = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_TWO_YEARS = "max-age=63072000"


class Guard:
    """Refuses foreign host names and large bodies; adds the headers of every answer.

    A page of another name that resolves to this address (DNS rebinding) comes under that name.

    Args:
        app: what answers.
        hosts: that the ``Host`` header may be.
        has_tls: whether the pages go over TLS.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], *, has_tls: bool) -> None:
        self._app, self._hosts = app, hosts
        self._headers = dict(HEADERS)
        if has_tls:
            self._headers["Strict-Transport-Security"] = _TWO_YEARS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self._added(message.get("headers", []))
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, with_headers)

    def _refused(self, scope: Scope) -> PlainTextResponse | None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            words = "this console is not reached under that name; see hosts in its settings\n"
            return PlainTextResponse(words, 421)
        if scope["method"] in ("GET", "HEAD"):
            return None
        lengths = _values(scope, b"content-length")
        if len(lengths) != 1 or not lengths[0].isdecimal():
            return PlainTextResponse("say how long the request is\n", 411)
        if int(lengths[0]) > MOST_BODY_BYTES:
            return PlainTextResponse(f"at most {MOST_BODY_BYTES:,} bytes are taken\n", 413)
        return None

    def _added(self, given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        known = {name.lower() for name, _ in given}
        wanted = {
            **self._headers,
            "Content-Security-Policy": PAGE_POLICY,
            "Cache-Control": "no-store",
        }
        added = [(name.lower().encode(), value.encode()) for name, value in wanted.items()]
        return given + [(name, value) for name, value in added if name not in known]


def _values(scope: Scope, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
