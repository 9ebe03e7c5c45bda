"""The gate in front of the SuperLink: what passes, from where, and for whom.

Flower's one port serves sites, operators and the coordinator's own task processes, and a page that
lists every call. Behind this gate sites reach the Fleet interface (Flower checks their keys), the
Runtime interface is for this machine alone (Flower checks its secret), each Control call needs a
proof (:mod:`asterion_server.control_proof`), and nothing else is there.
"""

import asyncio
import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from asterion_server.control_proof import COORDINATOR, Accounts, Claims, read_proof
from asterion_shared.errors import ProofRefusedError
from asterion_shared.files import append_lines

MOST_BODY_BYTES = 16 * 2**20
"""Largest body of a Control call; flwr takes bundles of 10 MiB."""

MOST_REFUSALS = 60
"""Refused calls that are written down in a minute; more are counted."""

READING = frozenset({"list-runs", "list-nodes"})
"""Calls that the coordinator's own processes make all the time and that change nothing."""

AUDIT_FILE = "control.jsonl"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

proven_account: ContextVar[str | None] = ContextVar("proven_account", default=None)
"""The account behind the call that is being served; None where none was proven."""


class ControlGate:
    """An ASGI application around the SuperLink's.

    Args:
        app: the SuperLink's.
        accounts: of the coordinator.
        audit: file of lines about Control calls.
    """

    def __init__(self, app: App, accounts: Accounts, audit: Path) -> None:
        self._app, self._accounts = app, accounts
        self._audit = _Audit(audit)
        self._nonces: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        # A call that was pipelined behind another is served in a copy of that one's context.
        proven_account.set(None)
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif scope["path"].startswith("/v1/control/"):
            await self._control(scope, receive, send)
        elif _is_open(scope):
            await self._app(scope, receive, send)
        else:
            await _answer(send, 404, "not_found")

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # The proof first: from a stranger not even a body is taken.
            claims = await asyncio.to_thread(
                read_proof, _bearer(scope), self._accounts, time.time()
            )
            body = await _body(receive)
            self._use_once(claims, scope, body)
        except ProofRefusedError as refused:
            status = 413 if refused.code == "too_large" else 401
            await asyncio.to_thread(self._audit.write, scope, None, status, refused.code)
            await _answer(send, status, refused.code)
            return

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await asyncio.to_thread(
                    self._audit.write, scope, claims.account, message["status"], ""
                )
            await send(message)

        proven_account.set(claims.account)
        await self._app(scope, _once(body, receive), tell)

    def _use_once(self, claims: Claims, scope: Scope, body: bytes) -> None:
        if claims.path != scope["path"] or scope["query_string"]:
            raise ProofRefusedError(code="other_call")
        if claims.body_sha256 != hashlib.sha256(body).hexdigest():
            raise ProofRefusedError(code="other_call")
        # One event loop serves all calls, so nothing comes between these lines.
        now = time.time()
        if claims.ends < now:
            # Its body came so slowly; an earlier use of it would be forgotten below.
            raise ProofRefusedError(code="expired")
        self._nonces = {used: until for used, until in self._nonces.items() if until >= now}
        if claims.nonce in self._nonces:
            raise ProofRefusedError(code="replayed")
        self._nonces[claims.nonce] = claims.ends


class _Audit:
    """Lines about Control calls: when, who, what, how it ended. Strangers cannot fill the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._minute, self._refused, self._unwritten = 0, 0, 0

    def write(self, scope: Scope, account: str | None, status: int, code: str) -> None:
        called = scope["path"].removeprefix("/v1/control/")
        call = called if re.fullmatch(r"[a-z-]{1,60}", called) else "other"
        if account == COORDINATOR and call in READING:
            return
        with self._lock:
            if account is None and not self._has_room():
                return
            line = {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "account": account,
                "call": call,
                "status": status,
                "code": code,
                "from": (scope["client"] or ("",))[0],
                "unwritten": self._unwritten,
            }
            self._unwritten = 0
            append_lines(self._path, [json.dumps(line)])

    def _has_room(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._refused = minute, 0
        self._refused += 1
        if self._refused <= MOST_REFUSALS:
            return True
        self._unwritten += 1
        return False


def _bearer(scope: Scope) -> str:
    found: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not found:
        raise ProofRefusedError(code="no_proof")
    kind, _, proof = found[0].decode("latin-1").partition(" ")
    if len(found) > 1 or kind.lower() != "bearer":
        raise ProofRefusedError(code="malformed")
    return proof


async def _body(receive: Receive) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > MOST_BODY_BYTES:
            raise ProofRefusedError(code="too_large")
    return bytes(content)


def _once(body: bytes, receive: Receive) -> Receive:
    """What the application behind hears: the body that was read already, then the connection."""
    told = False

    async def hear() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return hear


def _is_open(scope: Scope) -> bool:
    """Whether a call may pass that needs no account."""
    path: str = scope["path"]
    client: tuple[str, int] | None = scope["client"]
    if path.startswith("/v1/runtime/"):
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    return path == "/health" or path.startswith("/v1/fleet/")


async def _answer(send: Send, status: int, code: str) -> None:
    content = json.dumps({"detail": "refused", "code": code}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
