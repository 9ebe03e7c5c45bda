"""Chunks of numbers packed without loss: bytes of equal place together, each such plane deflated.

The upper bytes of floating-point numbers (sign and exponent) repeat, the lower ones seldom do; so
the first bytes of all numbers are put together, then the second ones, and so on, and each of these
planes is deflated by itself or left as it is. Deflate looks for runs alone (``Z_RLE``): on updates
that is twice as fast as its usual search and packs better, because what repeats is not in strings.
``docs/performance.md`` has the figures.

A packed chunk is: the width (1 byte); for each plane its packed length (4 bytes, little-endian; the
plane's own length means that it is stored as it is); the planes; the bytes left over, fewer than
the width.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview

WIDTHS = (1, 2, 4, 8)
"""Bytes of a number that planes are formed by."""

WORTH = 0.95
"""Share of its size that a chunk, or the probe of a plane, must come down to."""

_LEVEL = 1
_RAW_DEFLATE = -15
_PROBE_BYTES = 8192
"""Of a plane, from its middle: if these do not get smaller by 5 % the plane is stored as
it is, which saves the time for planes of noise."""


def pack(chunk: Buffer, width: int = 4) -> bytes | None:
    """Pack a chunk.

    Args:
        chunk: any bytes, at most 4 GiB; usually little-endian numbers.
        width: bytes of a number. 4 suits rounded updates of 1 or 2 bytes as well.

    Returns:
        What :func:`unpack` gives the chunk back from; None if that would not be smaller by 5 %.

    Raises:
        ValueError: the width is not one of :data:`WIDTHS`.
    """
    if width not in WIDTHS:
        msg = f"the width is {width}, it must be one of {WIDTHS}"
        raise ValueError(msg)
    raw = np.frombuffer(chunk, np.uint8)
    count = raw.size // width
    planes = [_deflated(plane) for plane in raw[: count * width].reshape(count, width).T.copy()]
    head = struct.pack(f"<B{width}I", width, *map(len, planes))
    packed = b"".join([head, *planes, raw[count * width :].tobytes()])
    return packed if len(packed) <= WORTH * raw.size else None


def unpack(packed: Buffer, raw_bytes: int) -> bytes:
    """Give back a chunk.

    Whatever comes, no more memory is used than for a few times ``raw_bytes``.

    Args:
        packed: from :func:`pack`; may come from anybody.
        raw_bytes: exact size of the chunk, which the caller has bounded.

    Raises:
        ValueError: it is no packed chunk, or not one of that size.
    """
    data = memoryview(packed).cast("B")
    width = data[0] if data else 0
    if width not in WIDTHS or len(data) < 1 + 4 * width:
        msg = f"{len(data)} bytes are no packed chunk"
        raise ValueError(msg)
    count, left = divmod(raw_bytes, width)
    lengths = struct.unpack_from(f"<{width}I", data, 1)
    if raw_bytes < 0 or len(data) != 1 + 4 * width + sum(lengths) + left:
        msg = f"{len(data)} bytes do not hold a packed chunk of {raw_bytes}"
        raise ValueError(msg)
    planes = np.empty((width, count), np.uint8)
    begin = 1 + 4 * width
    for plane, length in zip(planes, lengths, strict=True):
        part = data[begin : begin + length]
        plane[:] = np.frombuffer(part if length == count else _inflated(part, count), np.uint8)
        begin += length
    return planes.T.tobytes() + data[begin:].tobytes()


def _deflated(plane: npt.NDArray[np.uint8]) -> bytes:
    """A plane deflated, or as it is when that is not larger."""
    middle = max(0, (plane.size - _PROBE_BYTES) // 2)
    probe = plane[middle : middle + _PROBE_BYTES].tobytes()
    if len(_deflate(probe)) > WORTH * len(probe):
        return plane.tobytes()
    smaller = _deflate(plane.data)
    return smaller if len(smaller) < plane.size else plane.tobytes()


def _deflate(data: Buffer) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


def _inflated(part: Buffer, size: int) -> bytes:
    """Exactly ``size`` bytes; one byte more is the most that is ever produced."""
    unpacker = zlib.decompressobj(_RAW_DEFLATE)
    try:
        plane = unpacker.decompress(part, size + 1)
    except zlib.error as error:
        msg = f"a packed plane is broken ({error})"
        raise ValueError(msg) from None
    if len(plane) != size or not unpacker.eof or unpacker.unused_data:
        msg = f"a packed plane does not give {size} bytes"
        raise ValueError(msg)
    return plane
