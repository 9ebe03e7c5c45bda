"""What every call on the link passes: its message is read, its site admitted, its number bounded.

Whoever is refused gets a code and nothing else; the words stand in the link's log, which a flood
of refusals cannot fill.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from asterion_shared import __version__
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.channel import MESSAGE_OPTIONS, MOST_MESSAGE_BYTES, RECEIVE_OPTION
from asterion_shared.link.identity import Authority
from asterion_shared.link.refusals import REFUSALS, VERSION_KEY, LinkRefusedError, status_text

LOG = logging.getLogger("asterion.link")
MOST_CALLS = 8
"""Calls of one site at a time, and as many sessions that are about to end; an honest site has two
calls and one session, and those that a cut has left behind for half a minute."""

MOST_LINES, LINES_PER_SECOND = 50.0, 1.0
"""Lines of the log about one site at a time; then so many a second, with the number of those left
out."""

MOST_READ_BYTES = 4 * MOST_MESSAGE_BYTES
"""The most of one message that comes into memory; gRPC itself refuses more, without a log line."""

SERVER_OPTIONS = list({**dict(MESSAGE_OPTIONS), RECEIVE_OPTION: MOST_READ_BYTES}.items())
"""gRPC settings of the link's process."""

UNKNOWN = "unknown"
Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


class Unreadable(Enum):
    """What a method gets in place of a message; the value is the refusal's code."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"


_WHY = {
    Unreadable.MALFORMED: "bytes that are no message of this version",
    Unreadable.TOO_LARGE: f"a message of more than {MOST_MESSAGE_BYTES} bytes",
}


def handler_of(link: service.LinkServicer) -> grpc.GenericRpcHandler:
    """The link's methods for a gRPC server; what cannot be read comes as :class:`Unreadable`."""
    unary, streams = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    methods = {
        "Attend": streams(link.Attend, _reader(wire.Hello), wire.Notice.SerializeToString),
        "Download": streams(link.Download, _reader(wire.Wanted), wire.Chunk.SerializeToString),
        "Offer": unary(link.Offer, _reader(wire.Report), wire.Needed.SerializeToString),
        "Upload": grpc.stream_unary_rpc_method_handler(
            link.Upload, _reader(wire.Chunk), wire.Received.SerializeToString
        ),
        "Submit": unary(link.Submit, _reader(wire.Report), wire.Receipt.SerializeToString),
    }
    name = wire.DESCRIPTOR.services_by_name["Link"].full_name
    return grpc.method_handlers_generic_handler(name, methods)


def _reader(kind: type[Message]) -> Callable[[bytes], Message | Unreadable]:
    def read(data: bytes) -> Message | Unreadable:
        if len(data) > MOST_MESSAGE_BYTES:
            return Unreadable.TOO_LARGE
        try:
            return kind.FromString(data)
        except DecodeError:
            return Unreadable.MALFORMED

    return read


@dataclass(slots=True)
class _Lines:
    """How many lines about a site may still be logged."""

    left: float = MOST_LINES
    since: float = field(default_factory=time.monotonic)
    silent: int = 0


class Gate:
    """Lets calls in, and says no.

    Args:
        authority: who is admitted.
        told: is called with site and code at each refusal.
    """

    def __init__(self, authority: Authority, told: Callable[[str, str], None]) -> None:
        self._authority, self._told = authority, told
        self._calls: Counter[tuple[str, bool]] = Counter()
        self._lines: dict[str, _Lines] = {}

    @asynccontextmanager
    async def call(
        self, request: object, context: Context, *, is_session: bool = False
    ) -> AsyncIterator[str]:
        """Admit a call for as long as the block lasts; gives the site's name.

        Args:
            request: what was read; an :class:`Unreadable` is refused.
            context: of the call; it is ended when the call is refused.
            is_session: counted by themselves, so that transfers keep no session out.
        """
        site = await self.admitted(context)
        kind = site, is_session
        if self._calls[kind] >= MOST_CALLS:
            why = f"more than {MOST_CALLS} calls at a time"
            await self.refuse(context, site, LinkRefusedError(code="quota", why=why))
        self._calls[kind] += 1
        try:
            await self.readable(context, site, request)
            yield site
        finally:
            self._calls[kind] -= 1

    async def readable(self, context: Context, site: str, request: object) -> None:
        """Refuse a message that could not be read."""
        if isinstance(request, Unreadable):
            error = LinkRefusedError(code=request.value, why=_WHY[request])
            await self.refuse(context, site, error)

    async def admitted(self, context: Context) -> str:
        """The site of a call, as of now."""
        certificates = list(context.auth_context().get("x509_pem_cert", []))
        if len(certificates) != 1:
            error = LinkRefusedError(code="foreign", why="no certificate")
            await self.refuse(context, UNKNOWN, error)
        try:
            return await asyncio.to_thread(self._authority.site_of, certificates[0])
        except LinkRefusedError as error:
            await self.refuse(context, UNKNOWN, error)
            raise

    async def guarded(self, context: Context, site: str, work: Callable[[], Answer]) -> Answer:
        """Do blocking work in a thread; a refusal ends the call with its code and a log line."""
        try:
            return await asyncio.to_thread(work)
        except LinkRefusedError as error:
            await self.refuse(context, site, error)
            raise
        except DiskProblemError as error:
            problem = LinkRefusedError(code="disk_problem", why=str(error))
            await self.refuse(context, site, problem)
            raise

    async def refuse(self, context: Context, site: str, error: LinkRefusedError) -> None:
        """End a call with a code."""
        self.log(logging.WARNING, site, f"refused ({error.code}): {error.why}")
        self._told(site, error.code)
        # A side that knows which version it met can say what to install.
        own = ((VERSION_KEY, __version__),) if error.code == "other_version" else ()
        await context.abort(REFUSALS[error.code], status_text(error.code), own)

    def log(self, level: int, site: str, words: str) -> None:
        """A line of the log about a site, unless there were too many."""
        lines, now = self._lines.setdefault(site, _Lines()), time.monotonic()
        lines.left = min(MOST_LINES, lines.left + LINES_PER_SECOND * (now - lines.since))
        lines.since = now
        if lines.left < 1.0:
            lines.silent += 1
            return
        more = f" (and {lines.silent} more)" if lines.silent else ""
        lines.left, lines.silent = lines.left - 1.0, 0
        LOG.log(level, "site %s: %s%s", site, words, more)
