"""Vectors in Flower records: raw little-endian numbers, and rounded updates as codes and scales."""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from asterion_shared.parameters import Vector
from asterion_shared.transport_settings import RoundedKind, UpdateKind
from asterion_shared.update_codec import CODE_TYPES, EncodedUpdate, check, decode, num_scales

VECTOR_TYPE = "asterion.float32le"
ROUNDED_TYPES: dict[RoundedKind, tuple[str, str]] = {
    "bf16": ("bfloat16", "asterion.bfloat16le"),
    "int8": ("int8", "asterion.int8"),
}
"""Of the codes of a rounded update: the type that the array states, and its serialisation."""

MOST_WEIGHTS = 2**31
"""Largest number of weights (8 GiB)."""


class BufferArray(Array):
    """A Flower array over any buffer, such as a mapped file; Flower's own wants ``bytes``.

    Args:
        dtype, shape, stype: as Flower's.
        data: the bytes; whoever made them does not change them while the array is in use.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, data: memoryview) -> None:
        self.dtype, self.shape, self.stype = dtype, shape, stype
        self.data = data  # type: ignore[assignment]


def vector_record(vector: Vector, *, copied: bool = True) -> ArrayRecord:
    """A float32 vector as one array of raw little-endian bytes.

    Args:
        vector: shape ``(P,)``.
        copied: whether the bytes are a copy, as Flower's own carrier needs them, or the vector's.
    """
    if not copied:
        record = ArrayRecord()
        view = np.ascontiguousarray(vector, "<f4").data.cast("B")
        record["vector"] = BufferArray("float32", (vector.size,), VECTOR_TYPE, view)
        return record
    data = np.ascontiguousarray(vector, "<f4").tobytes()
    return ArrayRecord({"vector": Array("float32", (vector.size,), VECTOR_TYPE, data)})


def codes_record(encoded: EncodedUpdate) -> ArrayRecord:
    """A rounded update: its codes and, if the form has any, its scales."""
    dtype, stype = ROUNDED_TYPES[encoded.kind]
    data = encoded.codes.tobytes()
    arrays = {"codes": Array(dtype, encoded.codes.shape, stype, data)}
    if num_scales(encoded.kind, encoded.codes.size):
        data = encoded.scales.tobytes()
        arrays["scales"] = Array("float32", encoded.scales.shape, VECTOR_TYPE, data)
    return ArrayRecord(arrays)


def update_of(record: object, size: int | None, kind: UpdateKind) -> Vector:
    """Read an update of the form that the plan asks for, float32.

    Nothing is formed before all of the record was found to be in order.

    Args:
        record: what came.
        size: length that it must have; None for a form that is not rounded: any.
        kind: the form.

    Raises:
        ValueError: it is not such a record.
    """
    if kind == "float32":
        return vector_of(record, "update", size)
    return decode(codes_of(record, size, kind))


def codes_of(record: object, size: int | None, kind: RoundedKind) -> EncodedUpdate:
    """The same for a rounded form, as its codes."""
    count = num_scales(kind, size or 0)
    names = {"codes", "scales"} if count else {"codes"}
    if size is None or not isinstance(record, ArrayRecord) or set(record) != names:
        _fail(f"the update is not a {kind} update")
    dtype, stype = ROUNDED_TYPES[kind]
    codes = _numbers(record["codes"], "the codes", size, dtype, stype, CODE_TYPES[kind])
    scales = np.empty(0, "<f4")
    if count:
        scales = _numbers(record["scales"], "the scales", count, "float32", VECTOR_TYPE, "<f4")
    encoded = EncodedUpdate(kind, codes, scales)
    check(encoded, size)
    return encoded


def vector_of(record: object, name: str, size: int | None) -> Vector:
    """Read a float32 vector: a view of its bytes.

    Args:
        record: what came.
        name: of the record, for the error.
        size: length that it must have; None: any.

    Raises:
        ValueError: it is not one.
    """
    array = record.get("vector") if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None:
        _fail(f"{name} is not one float32 vector")
    return _numbers(array, name, size, "float32", VECTOR_TYPE, "<f4").astype(np.float32, copy=False)


def _numbers(
    array: Array, name: str, size: int | None, dtype: str, stype: str, read_as: str
) -> npt.NDArray[Any]:
    """The numbers of one array, a view of its bytes."""
    if array.dtype != dtype or array.stype != stype:
        _fail(f"{name} is a {array.dtype!r:.40} array, needed is {dtype}")
    length, left = divmod(len(array.data), np.dtype(read_as).itemsize)
    if array.shape != (length,) or left or length > MOST_WEIGHTS:
        _fail(f"{name} has shape {array.shape} and {len(array.data)} bytes")
    if size is not None and length != size:
        _fail(f"{name} has {length} numbers, needed are {size}")
    return np.frombuffer(array.data, read_as)


def _fail(message: str) -> NoReturn:
    raise ValueError(message)
