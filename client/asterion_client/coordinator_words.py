"""What a coordinator may say to a site on the link, checked before anything is done with it.

A coordinator may be hostile, or another's program. Whatever it says costs a site bounded memory,
and no more of a report leaves than the report holds.
"""

import threading
from dataclasses import dataclass, field

from asterion_shared.flower_messages import MESSAGE_TYPES
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import HASH_BYTES, Parcel, from_wire

MOST_ORDERS = 64
"""In work at a time; a coordinator has one or two. Each takes 3 MiB at most, besides its chunks."""

BEAT_SECONDS = (0.1, 600.0)
"""Least and most time between two words of the coordinator that it may promise."""


@dataclass(eq=False)
class LinkOrder:
    """An order on its way through the site.

    Attributes:
        key: names it.
        order: as it came, without the bytes of its large parts.
        content: its parcel.
        over: set when nobody wants its report any more.
        report: what is to be sent; None: nothing yet.
        stamp: of the site's withdrawals before the report was formed.
        refused: code of why its chunks were not fetched; empty: all of them are here.
        noted: whether the bytes that came with it are in the day book.
    """

    key: bytes
    order: wire.Order
    content: Parcel
    over: threading.Event = field(default_factory=threading.Event)
    report: Parcel | None = None
    stamp: str = ""
    refused: str = ""
    noted: bool = False


def read_order(order: wire.Order) -> LinkOrder:
    """An order as it came.

    Raises:
        ValueError: it is none.
    """
    if len(order.key) != HASH_BYTES:
        msg = f"its key has {len(order.key)} bytes"
        raise ValueError(msg)
    if order.message_type not in MESSAGE_TYPES.values():
        msg = "it is of an unknown type"
        raise ValueError(msg)
    return LinkOrder(order.key, order, from_wire(order.content))


def wanted_chunks(needed: wire.Needed, report: Parcel) -> list[tuple[int, int]]:
    """Part and number of the chunks of a report that the coordinator lacks; empty: none.

    Raises:
        ValueError: the report has no such chunk, or one is asked for twice.
    """
    wanted = [(part.part, number) for part in needed.parts for number in part.chunks]
    has = [part.num_chunks for part in report.parts]
    if len(set(wanted)) < len(wanted) or any(p >= len(has) or n >= has[p] for p, n in wanted):
        msg = "the coordinator asks for chunks that the report does not have"
        raise ValueError(msg)
    return wanted


def beat_seconds(welcome: wire.Welcome) -> float | None:
    """Time between two words of the coordinator; None where what it says is not heeded."""
    least, most = BEAT_SECONDS
    return welcome.seconds_between_beats if least <= welcome.seconds_between_beats <= most else None
