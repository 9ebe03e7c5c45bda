"""Flower records as a parcel, and back. No pickle, no code: names, numbers, texts and bytes.

The first part is a ``Records`` message; each array's bytes are a part of their own, so that a
large one is stored and sent by its content.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from asterion_shared.audit_records import Head
from asterion_shared.blocks import hash_through
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.vector_records import BufferArray

VOLATILE = ("deadline_seconds", "ledger_head", "audit_head")
"""Settings of an order that may differ from delivery to delivery: they are not in its key."""

MOST_RECORDS_BYTES = 2**27
"""Largest first part: ten million statistics, with room."""

_SCALARS: dict[type, str] = {bool: "truth", int: "integer", float: "number", str: "text",
                             bytes: "data"}  # fmt: skip
_LISTS: dict[type, tuple[str, type]] = {
    bool: ("truths", wire.Truths),
    int: ("integers", wire.Integers),
    float: ("numbers", wire.Numbers),
    str: ("texts", wire.Texts),
    bytes: ("datas", wire.Datas),
}

Store = Callable[[Any], Part]
View = Callable[[Part], memoryview]


def pack(content: RecordDict, store: Store, *, lossless: bool = False) -> Parcel:
    """Records as a parcel whose large parts are stored.

    Args:
        content: the records.
        store: keeps the bytes of a part, :meth:`asterion_shared.link.blobs.BlobStore.add`.
        lossless: whether chunks are packed on their way.

    Raises:
        DiskProblemError: a part cannot be stored.
    """
    arrays = [
        store(array.data)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    ]
    return Parcel((store(_described(content)), *arrays), lossless)


def _described(content: RecordDict) -> bytes:
    """All of the records but the bytes of their arrays, which are numbered in their order."""
    records = wire.Records()
    num_arrays = 0
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            found = wire.Arrays()
            for key, array in record.items():
                num_arrays += 1
                found.arrays.add(
                    name=key, dtype=array.dtype, shape=array.shape, stype=array.stype,
                    part=num_arrays,
                )  # fmt: skip
            records.records.add(name=name, arrays=found)
        elif isinstance(record, ConfigRecord):
            records.records.add(name=name, config=_values(record))
        else:
            records.records.add(name=name, metrics=_values(record))
    return records.SerializeToString(deterministic=True)


def unpack(parcel: Parcel, view: View) -> RecordDict:
    """The records of a parcel whose parts are all here.

    Args:
        parcel: a whole one.
        view: gives the bytes of a part; arrays keep what it gives and copy nothing.

    Raises:
        ValueError: it holds no records, or they do not fit its parts.
    """
    if parcel.parts[0].size > MOST_RECORDS_BYTES:
        msg = f"records of {parcel.parts[0].size} bytes; {MOST_RECORDS_BYTES} are allowed"
        raise ValueError(msg)
    records = wire.Records()
    try:
        records.ParseFromString(bytes(view(parcel.parts[0])))
    except DecodeError:
        msg = "the first part of a parcel holds no records"
        raise ValueError(msg) from None
    content = RecordDict()
    for record in records.records:
        if record.name in content:
            msg = f"the record {record.name!r:.40} is there twice"
            raise ValueError(msg)
        match record.WhichOneof("kind"):
            case "config":
                content[record.name] = _read(ConfigRecord, record.config)
            case "metrics":
                content[record.name] = _read(MetricRecord, record.metrics)
            case "arrays":
                content[record.name] = _arrays(record.arrays, parcel, view)
            case _:
                msg = f"the record {record.name!r:.40} is of no kind"
                raise ValueError(msg)
    return content


def order_key(site: str, content: RecordDict, parcel: Parcel) -> bytes:
    """SHA-256 of an order to a site: all that it asks, and not when or how often it was sent.

    Two orders with one key ask the same thing of the same site about the same global weights.
    """
    digest = hashlib.sha256(f"asterion order\n{site}\n".encode())
    steady = RecordDict()
    for name, record in content.items():
        if isinstance(record, ConfigRecord):
            record = ConfigRecord({k: v for k, v in record.items() if k not in VOLATILE})
        steady[name] = record
    digest.update(hashlib.sha256(_described(steady)).digest())
    for part in parcel.parts[1:]:
        digest.update(bytes.fromhex(part.id))
    return digest.digest()


def content_sha256(content: RecordDict) -> str:
    """SHA-256 of all that an answer says but its ``audit_head``, 64 hex digits.

    It does not depend on the order of records and fields, which a carrier may change.
    """
    steady, arrays = RecordDict(), list[Any]()
    for name, record in sorted(content.items()):
        if isinstance(record, ArrayRecord):
            same = ArrayRecord()
            for key, array in sorted(record.items()):
                same[key] = array
                arrays.append(array.data)
            steady[name] = same
        elif isinstance(record, ConfigRecord):
            plain = {key: record[key] for key in sorted(record) if key != "audit_head"}
            steady[name] = ConfigRecord(plain)
        else:
            steady[name] = MetricRecord({key: record[key] for key in sorted(record)})
    digest = hashlib.sha256(b"asterion answer\n")
    digest.update(hashlib.sha256(_described(steady)).digest())
    for data in arrays:
        # Of a mapped update no more than a block comes into memory.
        one = hashlib.sha256()
        hash_through(one.update, np.frombuffer(data, np.uint8))
        digest.update(one.digest())
    return digest.hexdigest()


def with_audit_head(content: RecordDict, head: Head) -> RecordDict:
    """The same report or refusal, with the head of the site's audit trail."""
    out = RecordDict()
    for name, record in content.items():
        if name in ("report", "refusal") and isinstance(record, ConfigRecord):
            record = ConfigRecord({**record, "audit_head": str(head)})
        out[name] = record
    return out


def _values(record: Mapping[str, Any]) -> wire.Values:
    values = wire.Values()
    for name, value in record.items():
        if isinstance(value, list):
            field, kind = _LISTS[_plain(value[0]) if value else float]
            values.values.add(name=name, **{field: kind(values=value)})
        else:
            values.values.add(name=name, **{_SCALARS[_plain(value)]: value})
    return values


def _plain(value: Any) -> type:
    """What a value is on the wire; Flower takes subclasses too, such as NumPy's float64."""
    return next(kind for kind in _SCALARS if isinstance(value, kind))


def _read(kind: Callable[[dict[str, Any]], Any], values: wire.Values) -> Any:
    found: dict[str, Any] = {}
    for value in values.values:
        field = value.WhichOneof("value")
        if field is None or value.name in found:
            msg = f"the value {value.name!r:.40} is missing or there twice"
            raise ValueError(msg)
        known = getattr(value, field)
        found[value.name] = list(known.values) if hasattr(known, "values") else known
    try:
        return kind(found)
    except (TypeError, ValueError) as error:
        msg = f"a record's values do not fit its kind ({type(error).__name__})"
        raise ValueError(msg) from None


def _arrays(arrays: wire.Arrays, parcel: Parcel, view: View) -> ArrayRecord:
    record = ArrayRecord()
    for array in arrays.arrays:
        if not 0 < array.part < len(parcel.parts) or array.name in record:
            msg = f"the array {array.name!r:.40} has part {array.part} of {len(parcel.parts)}"
            raise ValueError(msg)
        data = view(parcel.parts[array.part])
        record[array.name] = BufferArray(array.dtype, tuple(array.shape), array.stype, data)
    return record


def stored_parts(parcels: Iterable[Parcel]) -> list[Part]:
    """The parts of parcels that lie on disk."""
    return [part for parcel in parcels for part in parcel.stored]
