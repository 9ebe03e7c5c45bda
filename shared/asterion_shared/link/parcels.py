"""Parcels: a message's bytes cut into parts, and large parts into chunks that have a hash each.

A part of up to :data:`INLINE_BYTES` travels inside its message. A larger one is named by its size
and the SHA-256 of its chunks, and travels chunk by chunk, so that a transfer goes on after a cut
where it was, and what the other side holds is not sent.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from asterion_shared.link import link_pb2 as wire

CHUNK_BYTES = 2**20
"""Size of each chunk but the last: at 0.5 Mbit/s one takes 17 s."""

INLINE_BYTES = 2**16
"""Largest part that travels inside its message."""

MOST_PARTS = 16
MOST_PART_BYTES = 2**33 + 2**27
"""Largest part: 2**31 float32 weights, or the records of a report beside them."""

HASH_BYTES = 32


@dataclass(frozen=True)
class Part:
    """One part: its bytes when they are few, else its size and its chunks' hashes.

    Attributes:
        size: in bytes.
        inline: the bytes, when there are at most :data:`INLINE_BYTES`; else None.
        chunks: the chunks' SHA-256, one after the other; empty when inline.
    """

    size: int
    inline: bytes | None
    chunks: bytes = b""

    @cached_property
    def id(self) -> str:
        """Name of its content, 64 hex digits."""
        digest = hashlib.sha256(self.size.to_bytes(8, "little"))
        digest.update(self.chunks if self.inline is None else self.inline)
        return digest.hexdigest()

    @property
    def num_chunks(self) -> int:
        """How many chunks it has; 0 when inline."""
        return len(self.chunks) // HASH_BYTES

    def hash_of(self, number: int) -> bytes:
        """SHA-256 of a chunk."""
        return self.chunks[number * HASH_BYTES : (number + 1) * HASH_BYTES]

    def size_of(self, number: int) -> int:
        """Bytes of a chunk."""
        return min(CHUNK_BYTES, self.size - number * CHUNK_BYTES)


@dataclass(frozen=True)
class Parcel:
    """A whole message's bytes.

    Attributes:
        parts: part 0 holds the records, the others the bytes of arrays.
        lossless: whether chunks are packed on their way.
    """

    parts: tuple[Part, ...]
    lossless: bool = False

    @property
    def num_bytes(self) -> int:
        """Of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def stored(self) -> tuple[Part, ...]:
        """The parts that travel as chunks."""
        return tuple(part for part in self.parts if part.inline is None)


def to_wire(parcel: Parcel) -> wire.Parcel:
    """As it is announced to the other side."""
    parts = [
        wire.Part(size=part.size, inline=part.inline or b"", chunks=part.chunks)
        for part in parcel.parts
    ]
    return wire.Parcel(parts=parts, lossless=parcel.lossless)


def from_wire(parcel: wire.Parcel, *, most_bytes: int | None = None) -> Parcel:
    """Read what the other side announces.

    Args:
        parcel: as it came.
        most_bytes: all parts together may have so many; None: no limit.

    Raises:
        ValueError: it is no parcel: sizes and hashes do not fit each other, or a limit is passed.
    """
    if not 1 <= len(parcel.parts) <= MOST_PARTS:
        msg = f"a parcel of {len(parcel.parts)} parts; 1 to {MOST_PARTS} are allowed"
        raise ValueError(msg)
    found = Parcel(tuple(map(_part, parcel.parts)), parcel.lossless)
    if most_bytes is not None and found.num_bytes > most_bytes:
        msg = f"a parcel of {found.num_bytes} bytes; {most_bytes} are allowed"
        raise ValueError(msg)
    return found


def _part(part: wire.Part) -> Part:
    if part.size > MOST_PART_BYTES:
        msg = f"a part of {part.size} bytes; {MOST_PART_BYTES} are allowed"
        raise ValueError(msg)
    if part.size <= INLINE_BYTES:
        if part.chunks or len(part.inline) != part.size:
            msg = f"a part of {part.size} bytes with {len(part.inline)} inside its message"
            raise ValueError(msg)
        return Part(part.size, part.inline)
    if part.inline or len(part.chunks) != HASH_BYTES * num_chunks(part.size):
        msg = f"a part of {part.size} bytes with hashes of {len(part.chunks)} bytes"
        raise ValueError(msg)
    return Part(part.size, None, part.chunks)


def num_chunks(size: int) -> int:
    """How many chunks a part of so many bytes is cut into."""
    return -(-size // CHUNK_BYTES)


def pairs(parts: Iterable[Part]) -> list[tuple[Part, int]]:
    """Every chunk of the parts, as part and number."""
    return [(part, number) for part in parts for number in range(part.num_chunks)]
