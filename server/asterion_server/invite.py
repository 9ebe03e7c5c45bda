"""Invite one site by a token that works once, for a while: an enrolment without telephone calls.

The listener lives for this alone, on a port of its own. It proves itself with the coordinator's
certificate; the site proves itself with the token's secret, and sends its request. Two calls::

    GET /authority    the authority's certificate, which the site compares with the token
    POST /enrolment   {"token": SECRET, "request": {...}}, answered by the enrolment
"""

import hmac
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from threading import Event
from typing import Any

from asterion_server.coordinator import check_port
from asterion_server.enrol import enrol, revoked_serials
from asterion_server.initialise import authority_of
from asterion_server.keys import Provisioned, check_key_files
from asterion_shared.enrolment_files import MOST_BYTES, request_from
from asterion_shared.enrolment_tokens import Token, new_token
from asterion_shared.errors import AsterionError, UserInputError
from asterion_shared.fingerprints import certificate_fingerprint
from asterion_shared.plan import Name
from asterion_shared.settings_files import Settings, validate

MOST_WRONG = 5
"""Wrong tokens before an invitation ends."""

CALL_SECONDS = 10.0
"""How long one caller may take for anything."""

MOST_CALLERS = 16
"""At a time; further ones are hung up on."""


class Invited(Settings):
    """Whom an invitation is for."""

    site: Name


@dataclass
class _Invitation:
    """What is left of an invitation.

    Attributes:
        made: the coordinator's folder.
        site: whom it is for.
        secret: of the token.
        replace: whether the site may come with a new key.
        revoked: the site's certificates that were revoked before; one more ends the invitation.
        num_wrong: tokens that were wrong.
        fingerprint: of the key that was enrolled; empty: none yet.
        over: set when it has ended, in whatever way.
    """

    made: Provisioned
    site: str
    secret: str
    replace: bool
    revoked: frozenset[str]
    num_wrong: int = 0
    fingerprint: str = ""
    over: Event = field(default_factory=Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: bytes) -> tuple[HTTPStatus, bytes]:
        """What a caller with a token gets. One at a time, so that a token counts once."""
        with self.lock:
            if self.over.is_set():
                return HTTPStatus.GONE, _told("the invitation is over: ask for a new one")
            try:
                values: Any = json.loads(body)
                secret, given = str(values["token"]), dict(values["request"])
            except (ValueError, KeyError, TypeError):
                return HTTPStatus.BAD_REQUEST, _told("this is no request")
            if not hmac.compare_digest(secret.encode(), self.secret.encode()):
                self.num_wrong += 1
                if self.num_wrong >= MOST_WRONG:
                    self.over.set()
                return HTTPStatus.FORBIDDEN, _told("the token is wrong: ask to hear it again")
            try:
                request = request_from(given, "the request")
                if request.site != self.site:
                    msg = f"the invitation is for site {self.site}, not for {request.site}"
                    return HTTPStatus.FORBIDDEN, _told(msg)
                (done,) = enrol(
                    self.made.folder,
                    [request],
                    lambda site, shown: True,
                    replace=self.replace,
                    check=self._check_not_revoked,
                )
            except AsterionError as error:
                return HTTPStatus.CONFLICT, _told(str(error))
            self.fingerprint = done.fingerprint
            self.over.set()
            return HTTPStatus.OK, self.made.enrolment(self.site).read_bytes()

    def _check_not_revoked(self, site: str) -> None:
        """A revocation counts for open invitations too."""
        if revoked_serials(self.made, site) != self.revoked:
            self.over.set()
            msg = f"site {site} was revoked since it was invited: ask for a new invitation"
            raise UserInputError(msg)


def invite(
    made: Provisioned,
    site: str,
    say: Callable[[Token], None],
    *,
    port: int = 8001,
    seconds: float = 3600.0,
    replace: bool = False,
    stop: Event | None = None,
) -> str:
    """Wait for one site, and enrol it when it comes with the token.

    Args:
        made: the coordinator's folder.
        site: the site's name.
        say: is told the token as soon as the port listens.
        port: to listen on, at the coordinator's address.
        seconds: how long the token holds.
        replace: whether the site may come with another key than the enrolled one.
        stop: set it to end earlier; None: only the time ends it.

    Returns:
        The fingerprint of the key that was enrolled.

    Raises:
        SettingsError: the name is not allowed.
        UserInputError: the time is over, or there were too many wrong tokens.
        FileProblemError: another authority certifies here, or others can read a key.
        PortInUseError: another process listens on the port.
    """
    validate(Invited, {"site": site}, "the invitation")
    check_key_files(made)
    authority_of(made)
    check_port(made.settings.listen, port)
    token = new_token(certificate_fingerprint(made.root_certificate.read_bytes()))
    invitation = _Invitation(made, site, token.secret, replace, revoked_serials(made, site))
    server = _Listener((made.settings.listen, port), invitation)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        say(token)
        until = time.monotonic() + seconds
        while not invitation.over.wait(0.1):
            if time.monotonic() > until or (stop is not None and stop.is_set()):
                break
    finally:
        with invitation.lock:
            invitation.over.set()
        server.shutdown()
        server.server_close()
    if invitation.fingerprint:
        return invitation.fingerprint
    if invitation.num_wrong >= MOST_WRONG:
        why = f"{MOST_WRONG} wrong tokens were sent: somebody may be guessing"
    elif revoked_serials(made, site) != invitation.revoked:
        why = "it was revoked meanwhile"
    else:
        why = "it did not come in time"
    msg = f"site {site} was not enrolled: {why}; invite it again for a new token"
    raise UserInputError(msg)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], invitation: _Invitation) -> None:
        self.address_family = _family(address[0])
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(invitation.made.certificate, invitation.made.private_key)
        self._places = threading.BoundedSemaphore(MOST_CALLERS)
        super().__init__(address, _handler(invitation))

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands in the caller's own thread, so that a silent one holds nobody up."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            request.settimeout(CALL_SECONDS)
            secured = self._context.wrap_socket(request, server_side=True)
        except OSError:
            self.shutdown_request(request)
        else:
            super().process_request_thread(secured, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a caller that hangs up is no news."""


def _handler(invitation: _Invitation) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = CALL_SECONDS

        def do_GET(self) -> None:
            if self.path != "/authority":
                self._send(HTTPStatus.NOT_FOUND, _told("there is nothing here"))
                return
            self._send(HTTPStatus.OK, invitation.made.root_certificate.read_bytes())

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/enrolment" or not length.isdecimal() or int(length) > MOST_BYTES:
                self._send(HTTPStatus.BAD_REQUEST, _told("this is no request"))
                return
            self._send(*invitation.answer(self.rfile.read(int(length))))

        def _send(self, status: HTTPStatus, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its own name
            """Nothing: what happened is told at the end."""

    return Handler


def _told(words: str) -> bytes:
    return json.dumps({"problem": words}).encode()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
