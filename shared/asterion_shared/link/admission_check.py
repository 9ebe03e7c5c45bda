"""Would the coordinator's link admit this site? One small call that changes nothing there."""

import grpc

from asterion_shared.errors import ConnectionProblemError, UnreachableError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.channel import open_channel
from asterion_shared.link.identity import Identity
from asterion_shared.link.refusals import LinkRefusedError, code_of

NO_ORDER = bytes(32)
"""The key of no order, since no order has that hash."""

CALL_SECONDS = 15.0
ADMITTED = "unknown_order"


def check_admission(address: str, identity: Identity, *, proxy: str | None = None) -> None:
    """Ask for chunks of an order that is not there, over mutual TLS.

    The coordinator looks at the certificate before it looks for the order, so its answer "unknown
    order" says that the site is admitted. No session is opened: one that is open stays as it is.
    Its log has a line with that answer.

    Args:
        address: ``host:port`` of the coordinator.
        identity: what the site proves itself with.
        proxy: see :func:`asterion_shared.link.channel.open_channel`.

    Raises:
        LinkRefusedError: the site is not admitted; ``code`` says why.
        UnreachableError: there was no answer in time.
        ConnectionProblemError: the connection ended while the certificates were exchanged, or who
            answers is no link.
    """
    with open_channel(address, identity, proxy=proxy) as channel:
        stub = service.LinkStub(channel)  # type: ignore[no-untyped-call]
        wanted = wire.Wanted(key=NO_ORDER, part=0, chunks=[])
        try:
            for _ in stub.Download(wanted, timeout=CALL_SECONDS):
                break
        except grpc.RpcError as error:
            status = error.code()
            code = code_of(error.details())
            if code == ADMITTED:
                return
            raise _problem(address, status, code) from None
    msg = f"{address} answered what no link answers; check the address, and carrier at both ends"
    raise ConnectionProblemError(msg)


def _problem(address: str, status: grpc.StatusCode, code: str) -> ConnectionProblemError:
    if code:
        return LinkRefusedError(code=code, why=f"asked by a check at {address}")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        msg = f"the link at {address} did not answer in {CALL_SECONDS:.0f} s; see its log"
        return UnreachableError(msg)
    if status is grpc.StatusCode.UNAVAILABLE:
        msg = (
            f"{address} ended the connection when it saw this site's certificate; compare both "
            "clocks, and ask its operator for site.pem anew"
        )
        return ConnectionProblemError(msg)
    msg = (
        f"{address} does not speak the link ({status.name.lower()}); check the address, and that "
        "connection.carrier is the coordinator's"
    )
    return ConnectionProblemError(msg)
