"""Messages for the fuzzer, and mutations of them: bits, bytes, and fields by protobuf's rules."""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.channel import WIRE_FORMAT

SITE = "north"
INTEGERS = (0, 1, 2, 15, 16, 17, 2**16, 2**16 + 1, 2**20, 2**31 - 1, 2**32 - 1, 2**33 + 2**27,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
SIZES = (0, 1, 15, 16, 31, 32, 33, 64, 65_536, 65_537)
MOST_BYTES = 200_000
"""Longest message that is made."""


def hello() -> wire.Hello:
    return wire.Hello(format=WIRE_FORMAT, version="0", state_id=b"s" * 16, instance_id=b"i" * 16)


def order_content() -> RecordDict:
    weights = np.random.default_rng(1).standard_normal(300_000).astype("<f4")
    arrays = {"vector": Array("float32", weights.shape, "t", weights.tobytes()),
              "zeros": Array("float32", (400_000,), "t", bytes(1_600_000))}  # fmt: skip
    fields = {"site": SITE, "run": "run", "round": 1, "plan": "{}", "deadline_seconds": 5.0}
    return RecordDict({"order": ConfigRecord(fields), "weights": ArrayRecord(arrays)})


def report_content() -> RecordDict:
    update = np.random.default_rng(2).standard_normal(18_000).astype("<f4")
    arrays = {"vector": Array("float32", update.shape, "t", update.tobytes()),
              "zeros": Array("float32", (17_500,), "t", bytes(70_000))}  # fmt: skip
    numbers = {"loss": 0.5, "count": 3, "curve": [0.1, 0.2], "bins": [1, 2, 3], "none": []}
    words = {"name": "x", "flags": [True, False], "raw": b"\0\1", "texts": ["a", ""], "ok": True,
             "datas": [b"", b"z"]}  # fmt: skip
    return RecordDict({
        "numbers": MetricRecord(numbers), "words": ConfigRecord(words),
        "update": ArrayRecord(arrays),
    })  # fmt: skip


def small_content() -> RecordDict:
    return RecordDict({"m": MetricRecord({"x": 1})})


def mutated(
    rng: np.random.Generator, data: bytes, others: list[bytes], kind: type[Message] | None
) -> bytes:
    """One mutation of a valid message, or a few.

    Args:
        rng: where they are drawn from.
        data: the message.
        others: of the same reader, for splices.
        kind: of the message; None: bytes without fields.
    """
    for _ in range(int(rng.geometric(0.6))):
        choice = int(rng.integers(10))
        if choice < 6 and kind is not None:
            data = _fields(rng, data, kind)
        elif choice < 7:
            data = _flipped(rng, data)
        elif choice < 8:
            data = data[: int(rng.integers(len(data) + 1))]
        elif choice < 9:
            other = others[int(rng.integers(len(others)))]
            data = (
                data[: int(rng.integers(len(data) + 1))]
                + other[int(rng.integers(len(other) + 1)) :]
            )
        elif rng.random() < 0.5:
            data = _slice(rng, data)
        else:
            at = int(rng.integers(len(data) + 1))
            data = data[:at] + rng.bytes(int(rng.integers(1, 20))) + data[at:]
        data = data[:MOST_BYTES]
    return data


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    # The head of a message has its fields; the rest is mostly the bytes of one of them.
    reach = len(data) if rng.random() < 0.3 else min(len(data), 100)
    for at in rng.integers(reach, size=int(rng.integers(1, 6))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _slice(rng: np.random.Generator, data: bytes) -> bytes:
    """A slice goes, comes twice, or moves."""
    begin, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
    match int(rng.integers(3)):
        case 0:
            return data[:begin] + data[end:]
        case 1:
            return data[:end] + data[begin:]
        case _:
            return data[end:] + data[begin:end] + data[:begin]


def _fields(rng: np.random.Generator, data: bytes, kind: type[Message]) -> bytes:
    try:
        message = kind.FromString(data)
    except DecodeError:
        return _flipped(rng, data)
    holder: Message = message
    while True:
        fields = holder.DESCRIPTOR.fields
        field = fields[int(rng.integers(len(fields)))]
        inner = _inner(rng, holder, field)
        if inner is None or not inner.DESCRIPTOR.fields or rng.random() < 0.2:
            break
        holder = inner
    if field.is_repeated:
        _change_list(rng, holder, field)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        holder.ClearField(field.name)
    else:
        setattr(holder, field.name, _value(rng, field, getattr(holder, field.name)))
    return message.SerializeToString()


def _inner(rng: np.random.Generator, holder: Message, field: Any) -> Message | None:
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return None
    value = getattr(holder, field.name)
    if not field.is_repeated:
        found: Message = value
        return found
    return value[int(rng.integers(len(value)))] if len(value) else None


def _change_list(rng: np.random.Generator, holder: Message, field: Any) -> None:
    values = getattr(holder, field.name)
    match int(rng.integers(3)):
        case 0:
            holder.ClearField(field.name)
        case 1:
            values.extend([values[-1]] * int(rng.integers(1, 20)) if len(values) else [])
        case _ if field.type == FieldDescriptor.TYPE_MESSAGE:
            values.add()
        case _:
            values.append(_value(rng, field, None))


def _value(rng: np.random.Generator, field: Any, now: Any) -> Any:
    kinds = FieldDescriptor
    if field.cpp_type in (kinds.CPPTYPE_DOUBLE, kinds.CPPTYPE_FLOAT):
        return float(rng.choice([0.0, -1.0, 1e308, float("inf"), float("nan")]))
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return not now
    if field.type == kinds.TYPE_BYTES:
        size = SIZES[int(rng.integers(len(SIZES)))]
        return rng.bytes(size) if rng.random() < 0.5 else bytes((now or b"") + b"\0")[:size]
    if field.type == kinds.TYPE_STRING:
        return (now or "") + "x" * int(rng.integers(30))
    limit = {kinds.CPPTYPE_UINT32: 2**32, kinds.CPPTYPE_UINT64: 2**64}.get(field.cpp_type, 2**63)
    near = [*INTEGERS, (now or 0) + 1, max((now or 0) - 1, 0)]
    return int(near[int(rng.integers(len(near)))]) % limit
