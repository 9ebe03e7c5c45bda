"""An order as the link's process sends it: its notice, its parts, and whose it is."""

import time
from pathlib import Path

from asterion_server.link_store import LinkStore, StoredOrder
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import read_chunk
from asterion_shared.link.parcels import HASH_BYTES, Part, to_wire
from asterion_shared.link.refusals import LinkRefusedError


def notice_of(store: LinkStore, order: StoredOrder) -> wire.Notice:
    """What tells a site of an order; the attempt is counted.

    Raises:
        DiskProblemError: the queue cannot be written.
    """
    left = -1.0 if order.expires is None else max(order.expires - time.time(), 0.0)
    return wire.Notice(
        order=wire.Order(
            key=bytes.fromhex(order.key),
            run=order.run,
            round=order.round,
            message_type=order.message_type,
            submission=order.submission,
            attempt=store.count_attempt(order.key),
            seconds_left=left,
            content=to_wire(order.content),
        )
    )


def order_for(store: LinkStore, site: str, key: bytes) -> StoredOrder:
    """The order that a site names; open, or answered already.

    Raises:
        LinkRefusedError: ``malformed``, ``unknown_order`` or ``order_over``. An order of another
            site is an unknown one: whoever knows plan and weights can form its key, and would
            learn who takes part.
        DiskProblemError: the queue cannot be read.
    """
    if len(key) != HASH_BYTES:
        raise LinkRefusedError(code="malformed", why=f"a key of {len(key)} bytes")
    order = store.order(key.hex())
    if order is None:
        raise LinkRefusedError(code="unknown_order", why=f"no order {key.hex()[:12]}")
    if order.site != site:
        why = f"order {order.key[:12]} is for another site"
        raise LinkRefusedError(code="unknown_order", why=why)
    if not (order.state == "answered" or order.is_wanted):
        raise LinkRefusedError(code="order_over", why=f"order {order.key[:12]} is over")
    return order


def wanted_part(order: StoredOrder, wanted: wire.Wanted) -> Part:
    """The part of an order of which chunks are asked for.

    Raises:
        LinkRefusedError: ``malformed``: there is no such part or chunk, or more are asked for than
            there are.
    """
    if wanted.part >= len(order.content.parts):
        raise LinkRefusedError(code="malformed", why=f"an order has no part {wanted.part}")
    part = order.content.parts[wanted.part]
    count = part.num_chunks
    if len(wanted.chunks) > count or any(number >= count for number in wanted.chunks):
        raise LinkRefusedError(code="malformed", why=f"part {wanted.part} has no such chunks")
    return part


def chunk_of(folder: Path, part: Part, number: int) -> bytes:
    """A chunk of an order's part.

    Args:
        folder: where the large parts of the run's orders lie.
        part: one of them.
        number: of the chunk.

    Raises:
        LinkRefusedError: ``order_over``: the run has removed it.
        DiskProblemError: it cannot be read.
    """
    try:
        return read_chunk(folder, part, number)
    except FileNotFoundError:
        raise LinkRefusedError(code="order_over", why="its bytes are gone") from None
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error
