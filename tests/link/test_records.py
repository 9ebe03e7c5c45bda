"""Flower records as parcels, and the key of an order."""

import struct
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.audit_records import Head
from asterion_shared.blocks import is_mapped
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.link.records import (
    MOST_RECORDS_BYTES,
    VOLATILE,
    content_sha256,
    order_key,
    pack,
    unpack,
    with_audit_head,
)
from asterion_shared.vector_records import BufferArray

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=True, width=64)
SCALARS = st.one_of(INT, FLOAT, st.booleans(), TEXT, st.binary(max_size=8))
LISTS = st.one_of(*(st.lists(kind, max_size=4) for kind in
                    (INT, FLOAT, st.booleans(), TEXT, st.binary(max_size=8))))  # fmt: skip
CONFIG = st.dictionaries(TEXT, SCALARS | LISTS, max_size=4).map(ConfigRecord)
NUMBERS = st.one_of(INT, FLOAT, st.lists(INT, max_size=4), st.lists(FLOAT, max_size=4))
METRICS = st.dictionaries(TEXT, NUMBERS, max_size=4).map(MetricRecord)
ARRAY = st.builds(
    Array, st.sampled_from(["float32", "int8"]), st.just((2,)), TEXT, st.binary(max_size=9)
)
ARRAYS = st.dictionaries(TEXT, ARRAY, max_size=3).map(ArrayRecord)
CONTENT = st.dictionaries(TEXT, st.one_of(CONFIG, METRICS, ARRAYS), max_size=4).map(RecordDict)


def inside(data) -> Part:
    return Part(len(data), bytes(data))


def there_and_back(content: RecordDict) -> RecordDict:
    return unpack(pack(content, inside), lambda part: memoryview(part.inline or b""))


def told(value):
    """A value with its type, NaN equal to itself by its bytes."""
    if isinstance(value, list):
        return [told(item) for item in value]
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    return type(value).__name__, value


def plain(content: RecordDict):
    found = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            found[name] = {
                key: (a.dtype, tuple(a.shape), a.stype, bytes(a.data)) for key, a in record.items()
            }
        else:
            values = {key: told(value) for key, value in record.items()}
            found[name] = (type(record).__name__, values)
    return list(found.items())


@given(CONTENT)
def test_all_kinds_come_back(content: RecordDict) -> None:
    assert plain(there_and_back(content)) == plain(content)


def test_by_hand() -> None:
    content = RecordDict({
        "c": ConfigRecord({
            "i": -5, "f": 0.1, "b": True, "t": "ä", "d": b"\0", "no": [], "is": [1, -(2**63)],
            "fs": [float("inf")], "bs": [True, False], "ts": ["", "x"], "ds": [b"", b"y"],
        }),
        "m": MetricRecord({"one": 1, "half": 0.5, "list": [1.5, 2.5]}),
        "a": ArrayRecord({"v": Array("float32", (2,), "t", b"12345678")}),
        "empty": ConfigRecord({}),
    })  # fmt: skip
    found = there_and_back(content)
    assert found["c"] == content["c"]
    assert type(found["c"]["b"]) is bool
    assert type(found["c"]["is"][0]) is int
    assert plain(found) == plain(content)
    # Flower takes NumPy's numbers for floats, so they travel as such.
    assert there_and_back(RecordDict({"m": MetricRecord({"x": np.float64(0.5)})}))["m"]["x"] == 0.5


def test_large_arrays_are_views_of_their_file(tmp_path: Path) -> None:
    store, data = BlobStore(tmp_path), np.arange(700_000, dtype="<f4")
    array = BufferArray("float32", data.shape, "t", data.data.cast("B"))
    content = RecordDict({"a": ArrayRecord()})
    content["a"]["v"] = array
    parcel = pack(content, store.add, lossless=True)
    assert parcel.lossless
    assert [part.inline is None for part in parcel.parts] == [False, True]
    found = unpack(parcel, store.view)["a"]["v"]
    numbers = np.frombuffer(found.data, "<f4")
    np.testing.assert_array_equal(numbers, data)
    assert is_mapped(numbers)  # or a fold would hold all of it in memory


def test_who_writes_to_a_private_view_changes_no_file(tmp_path: Path) -> None:
    store, data = BlobStore(tmp_path), bytes(range(256)) * 4096
    part = store.add(data)
    view = store.private_view(part)
    view[0] ^= 255
    assert bytes(store.view(part)) == data
    assert bytes(store.private_view(part)) == data
    with pytest.raises(TypeError):
        store.view(part)[0] = 1


def records(*given: wire.Record) -> Parcel:
    return Parcel((inside(wire.Records(records=given).SerializeToString()), inside(b"x")))


def config(*values: wire.Value) -> wire.Record:
    return wire.Record(name="c", config=wire.Values(values=values))


@pytest.mark.parametrize(
    ("parcel", "words"),
    [
        (Parcel((inside(b"\xff\xff"),)), "holds no records"),
        (records(wire.Record(name="a")), "of no kind"),
        (records(config(), config()), "there twice"),
        (records(config(wire.Value(name="v"))), "missing or there twice"),
        (records(config(*[wire.Value(name="v", integer=1)] * 2)), "missing or there twice"),
        (
            records(wire.Record(name="m", metrics=wire.Values(
                values=[wire.Value(name="v", text="no number")]))),
            "do not fit",
        ),
        *(
            (
                records(wire.Record(name="a", arrays=wire.Arrays(
                    arrays=[wire.Array(name="v", part=part)]))),
                "has part",
            )
            for part in (0, 2, 2**32 - 1)
        ),
        (
            records(wire.Record(name="a", arrays=wire.Arrays(
                arrays=[wire.Array(name="v", part=1)] * 2))),
            "has part",
        ),
        (Parcel((Part(MOST_RECORDS_BYTES + 1, None, bytes(32 * 129)),)), "are allowed"),
    ],
)  # fmt: skip
def test_what_holds_no_records_is_refused(parcel: Parcel, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(parcel, lambda part: memoryview(part.inline or b""))


def key_of(content: RecordDict, site: str = "north", *, lossless: bool = False) -> bytes:
    return order_key(site, content, pack(content, inside, lossless=lossless))


def order(**changed) -> RecordDict:
    fields = {"run": "r", "round": 3, "phase": "train", "plan": "{}", "deadline_seconds": 9.0,
              "ledger_head": "ab", "sites": ["a", "b"]}  # fmt: skip
    array = {"dtype": "float32", "shape": (2,), "stype": "t", "data": b"12345678"}
    names = {"record": "weights", "array": "vector"}
    for given_ in (fields, array, names):
        given_.update({key: value for key, value in changed.items() if key in given_})
    fields |= {key: value for key, value in changed.items() if key not in (array | names)}
    return RecordDict({
        "order": ConfigRecord(fields),
        "numbers": MetricRecord({"x": changed.get("x", 1.0)}),
        names["record"]: ArrayRecord({names["array"]: Array(**array)}),
    })  # fmt: skip


def test_the_key_covers_all_that_is_asked() -> None:
    base = key_of(order())
    assert base == key_of(order())
    assert len(base) == 32
    changes = [
        {"run": "s"}, {"round": 4}, {"round": 3.0}, {"phase": "evaluate"}, {"plan": "{ }"},
        {"sites": ["a", "c"]}, {"sites": ["b", "a"]}, {"sites": ["a,b"]}, {"more": 1}, {"x": 2.0},
        {"data": b"12345679"}, {"dtype": "int32"}, {"shape": (1, 2)}, {"stype": "u"},
        {"record": "others"}, {"array": "matrix"},
    ]  # fmt: skip
    keys = [key_of(order(**change)) for change in changes] + [key_of(order(), "south"), base]
    assert len(set(keys)) == len(keys)


def test_the_key_leaves_out_what_may_differ_from_delivery_to_delivery() -> None:
    base = key_of(order())
    assert set(VOLATILE) == {"deadline_seconds", "ledger_head", "audit_head"}
    assert key_of(order(deadline_seconds=1.0)) == base
    assert key_of(order(ledger_head="cd")) == base
    assert key_of(order(audit_head="1:ab")) == base
    assert key_of(order(), lossless=True) == base


def test_the_hash_of_an_answer_covers_all_but_the_trail_s_head() -> None:
    base = content_sha256(order())
    changes = [
        {"run": "s"}, {"round": 4}, {"round": 3.0}, {"ledger_head": "cd"}, {"more": 1}, {"x": 2.0},
        {"sites": ["a,b"]}, {"data": b"12345679"}, {"dtype": "int32"}, {"shape": (1, 2)},
        {"array": "matrix"}, {"record": "others"},
    ]  # fmt: skip
    hashes = [base, *(content_sha256(order(**change)) for change in changes)]
    assert len(set(hashes)) == len(hashes)
    assert content_sha256(order(audit_head="1:ab")) == base
    turned = RecordDict({
        name: type(record)(dict(reversed(record.items())))
        for name, record in reversed(order().items())
    })  # fmt: skip
    assert content_sha256(turned) == base


def test_a_head_is_put_into_the_answer_and_nowhere_else() -> None:
    head = Head(3, "a" * 64)
    for name in ("report", "refusal"):
        content = RecordDict({name: ConfigRecord({"code": "x"}), "kinds": ConfigRecord({"a": "b"})})
        told = with_audit_head(content, head)
        assert plain(told) == plain(RecordDict({
            name: ConfigRecord({"code": "x", "audit_head": str(head)}),
            "kinds": ConfigRecord({"a": "b"}),
        }))  # fmt: skip
        assert content_sha256(told) == content_sha256(content)


@given(CONTENT, CONTENT)
def test_keys_are_equal_for_equal_content_alone(one: RecordDict, other: RecordDict) -> None:
    def steady(content: RecordDict):
        kept = plain(content)
        return [
            (name, record if isinstance(record, dict) else
             (record[0], {k: v for k, v in record[1].items() if k not in VOLATILE}))
            for name, record in kept
        ]  # fmt: skip

    assert key_of(one) == key_of(RecordDict(dict(one.items())))
    # An empty list has no type on the wire either.
    assert (key_of(one) == key_of(other)) == (steady(one) == steady(other))
