"""Files of tensors (safetensors) that are written and read without being in memory as a whole.

The bytes are those that the ``safetensors`` package writes for the same tensors. Format: the
header's length as 8 little-endian bytes; the header, JSON padded with blanks to a multiple of 8
bytes; the tensors' bytes, one after another, those with the widest numbers first and then by name.
https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asterion_shared.blocks import Array, through
from asterion_shared.errors import FileProblemError, PlanMismatchError
from asterion_shared.files import write_parts_atomically

MOST_HEADER_BYTES = 100_000_000
"""Longest header that is read, as in the package."""

_TYPES = {"BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
          "I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8",
          "U64": "<u8"}  # fmt: skip
"""Types by the format's name, from the last to the first in a file."""

_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_RANKS = {name: rank for rank, name in enumerate(_TYPES)}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file holds.

    Attributes:
        metadata: texts by key; empty when it has none.
        tensors: read-only views of the file by name, mapped into memory as they are read; they
            show the same bytes when the file is renamed or unlinked.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, Array]


def write_tensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors atomically, block by block; mapped ones are let go as they are written.

    Args:
        path: where the file shall stand; an existing one is replaced.
        tensors: C-contiguous little-endian arrays by name.
        metadata: for the header; of more than one key the package's order changes from call to
            call, here they are sorted.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        DiskProblemError: the disk is full or the folder is not writable; an old file is untouched.
        ValueError: an array is of a type that the format lacks, or not contiguous.
    """
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for part in file_parts(tensors, metadata):
            digest.update(part)
            yield part

    write_parts_atomically(path, hashed())
    return digest.hexdigest()


def map_tensors(path: Path) -> TensorFile:
    """Map a file's tensors into memory, without reading them.

    Raises:
        FileProblemError: the file is missing or cannot be read.
        PlanMismatchError: it is not whole, or not of this format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _header(path, file.read(8), size)
            said = _json(path, file.read(header))
        data: Array = np.asarray(np.memmap(path, np.uint8, "r"))[8 + header :]
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "check the path") from None
    metadata = said.pop("__metadata__", {})
    tensors: dict[str, Array] = {}
    end = 0
    for name, one in sorted(said.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (start, stop) = (
            np.dtype(_TYPES[one["dtype"]]),
            one["shape"],
            one["data_offsets"],
        )
        if start != end or stop - start != math.prod(shape) * kind.itemsize or stop > data.size:
            raise _bad(path, f"tensor {name} does not lie where its header says")
        tensors[name] = data[start:stop].view(kind).reshape(shape)
        end = stop
    if end != data.size:
        raise _bad(path, f"it has {data.size - end} bytes beyond its tensors")
    return TensorFile(metadata, tensors)


def file_parts(
    tensors: Mapping[str, Array], metadata: Mapping[str, str] | None
) -> Iterator[bytes | memoryview]:
    """The bytes of the file of :func:`write_tensors`, in order, for whoever needs no digest.

    Raises:
        ValueError: an array is of a type that the format lacks, or not contiguous.
    """
    said: dict[str, Any] = {}
    if metadata is not None:
        said["__metadata__"] = dict(sorted(metadata.items()))
    ordered = sorted(tensors.items(), key=lambda item: (-_RANKS[_type(*item)], item[0]))
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        offsets = [begin, end]
        said[name] = {"dtype": _type(name, array), "shape": array.shape, "data_offsets": offsets}
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for _, array in ordered:
        flat = array.reshape(-1)
        for part in through(flat.size, flat):
            yield flat[part].view(np.uint8).data


def _type(name: str, array: Array) -> str:
    found = _NAMES.get(array.dtype)
    if found is None or not array.flags.c_contiguous:
        msg = (
            f"tensor {name} is {array.dtype} with strides {array.strides}; give contiguous numbers"
        )
        raise ValueError(msg)
    return found


def _header(path: Path, begin: bytes, size: int) -> int:
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
        raise _bad(path, f"its header cannot have {length} of {size} bytes")
    return length


def _json(path: Path, header: bytes) -> dict[str, Any]:
    try:
        said = json.loads(header)
    except ValueError:
        raise _bad(path, "its header is not JSON") from None
    texts = said.get("__metadata__", {}) if isinstance(said, dict) else None
    if not _is_dict_of(texts, str) or not all(
        _describes(one) for name, one in said.items() if name != "__metadata__"
    ):
        raise _bad(path, "its header does not describe tensors")
    found: dict[str, Any] = said
    return found


def _is_dict_of(value: object, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


def _describes(one: object) -> bool:
    """Whether a header's entry has a known type, a shape and two offsets."""
    if not isinstance(one, dict) or one.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    counts = (one["shape"], one["data_offsets"])
    if not all(isinstance(c, list) and all(type(n) is int and n >= 0 for n in c) for c in counts):
        return False
    return one["dtype"] in _TYPES and len(one["data_offsets"]) == 2


def _bad(path: Path, what: str) -> PlanMismatchError:
    msg = f"{path} is not a whole safetensors file ({what}); give one that this project wrote"
    return PlanMismatchError(msg)
