"""Orders and answers survive the way as records; anything else is refused."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.flower.conftest import make_order, make_plan, make_report

from asterion_shared import flower_messages as fm
from asterion_shared.audit_records import Head
from asterion_shared.errors import OrderRefusedError, ReportRejectedError
from asterion_shared.link.records import with_audit_head
from asterion_shared.messages import REASON_CODES, NoReport, Report, order_sha256
from asterion_shared.metrics import Statistic
from asterion_shared.plan import Plan
from asterion_shared.vector_records import VECTOR_TYPE


def over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


@given(arrays.arrays(np.float32, st.integers(0, 40)))
def test_a_vector_comes_back_bit_for_bit(vector: np.ndarray) -> None:
    order = make_order(make_plan(), weights=vector)
    got = fm.decode_order(over_the_wire(fm.encode_order(order, "north")))
    assert got.site == "north"
    assert got.order.weights is not None
    assert got.order.weights.tobytes() == vector.tobytes()
    assert got.order.plan == order.plan


def test_the_bytes_are_plain_little_endian_floats(plan: Plan) -> None:
    content = fm.encode_order(make_order(plan, weights=np.array([1.0, -2.0], np.float32)), "north")
    # IEEE 754: 1.0 is 3f800000, -2.0 is c0000000; the lowest byte first.
    assert content["weights"]["vector"].data == bytes.fromhex("0000803f000000c0")


@pytest.mark.parametrize("phase", ["count", "train", "evaluate"])
def test_an_order_and_its_report_come_back_equal(plan: Plan, phase: str) -> None:
    weights = None if phase == "count" else np.arange(3, dtype=np.float32)
    order = make_order(plan, phase=phase, weights=weights)
    assert fm.decode_order(over_the_wire(fm.encode_order(order, "a"))).order.phase == phase
    statistics = {"confusion": Statistic("confusion", np.array([1.0, 2.0, 0.0, 4.5]))}
    report = make_report(order, statistics=statistics)
    got = fm.decode_answer(over_the_wire(fm.encode_report(report)), "north", 3)
    assert isinstance(got, Report)
    for name in ("site", "num_examples", "num_test", "num_bad_files", "num_steps", "train_loss",
                 "seconds", "manifest_sha256"):  # fmt: skip
        assert getattr(got, name) == getattr(report, name)
    assert (got.update is None) == (report.update is None)
    assert got.statistics["confusion"].kind == "confusion"
    assert got.statistics["confusion"].values.tolist() == [1.0, 2.0, 0.0, 4.5]
    assert got.bytes_up > 0


@pytest.mark.parametrize("code", sorted(REASON_CODES))
def test_every_code_comes_back(code: str) -> None:
    got = fm.decode_answer(fm.encode_refusal(fm.Refusal(code, "training")), "north", 3)
    assert isinstance(got, NoReport)
    assert (got.site, got.code, got.stage) == ("north", code, "training")
    assert got.outcome == ("failed" if code in fm.FAILURES else "refused")


def test_the_head_of_a_ledger_comes_back_or_is_absent(plan: Plan) -> None:
    head = "0123456789abcdef" * 4
    for one in (head, None):
        order = make_order(plan, ledger_head=one)
        content = over_the_wire(fm.encode_order(order, "north"))
        assert fm.decode_order(content).order.ledger_head == one
        assert ("ledger_head" in content["order"]) == (one is not None)
        content = over_the_wire(fm.encode_report(make_report(order, ledger_head=one)))
        got = fm.decode_answer(content, "north", 3)
        assert isinstance(got, Report)
        assert got.ledger_head == one


def test_the_head_of_an_audit_trail_comes_back_or_is_absent(plan: Plan) -> None:
    for head in (Head(0, "0123456789abcdef" * 4), Head(10**17, "a" * 64), None):
        order = make_order(plan, audit_head=head)
        content = over_the_wire(fm.encode_order(order, "north"))
        assert fm.decode_order(content).order.audit_head == head
        assert ("audit_head" in content["order"]) == (head is not None)
        assert order_sha256(order) == order_sha256(make_order(plan))
        for answer in (
            fm.encode_report(make_report(order)),
            fm.encode_refusal(fm.Refusal("no_data")),
        ):
            told = answer if head is None else with_audit_head(answer, head)
            got = fm.decode_answer(over_the_wire(told), "north", 3)
            assert got.audit_head == head


NO_HEADS = ["", "1", "a:" + "0" * 64, "-1:" + "0" * 64, "01:" + "0" * 64, "1:" + "0" * 63,
            "1:" + "A" * 64, "1:" + "0" * 64 + "\n", "1" * 19 + ":" + "0" * 64, 1]  # fmt: skip


@pytest.mark.parametrize("head", NO_HEADS)
def test_what_is_no_head_of_an_audit_trail_is_refused(plan: Plan, head: object) -> None:
    refusal = fm.encode_refusal(fm.Refusal("no_data"))
    refusal["refusal"]["audit_head"] = head
    for answer in (refusal, _with("report", audit_head=head)):
        with pytest.raises(ReportRejectedError):
            fm.decode_answer(answer, "north", 3)
    order = fm.encode_order(make_order(plan), "north")
    order["order"]["audit_head"] = head
    with pytest.raises(OrderRefusedError):
        fm.decode_order(order)


def _with(record: str, **fields: object) -> RecordDict:
    content = fm.encode_report(make_report(make_order(make_plan())))
    content[record].update(fields)
    return content


def _vector(data: bytes, shape: tuple[int, ...], stype: str = VECTOR_TYPE) -> RecordDict:
    content = fm.encode_report(make_report(make_order(make_plan())))
    content["update"] = ArrayRecord({"vector": Array("float32", shape, stype, data)})
    return content


HOSTILE = {
    "nothing": RecordDict(),
    "a word": _with("report", note="a patient"),
    "a text for a number": _with("report", num_examples="7"),
    "a bool for a number": _with("report", num_examples=True),
    "a negative count": _with("report", num_examples=-1),
    "a huge count": _with("report", num_examples=2**60),
    "another version": _with("report", format=2),
    "no finite time": _with("report", seconds=float("nan")),
    "a long hash": _with("report", manifest_sha256="0" * 65),
    "a head that is none": _with("report", ledger_head="Anna"),
    "a head with a line's end": _with("report", ledger_head="0" * 64 + "\n"),
    "a head that is a number": _with("report", ledger_head=1),
    "an unknown record": RecordDict(
        {**fm.encode_report(make_report(make_order(make_plan()))), "x": ConfigRecord()}
    ),
    "statistics without a kind": _with("statistics", dice=[1.0]),
    "a number that is no list": RecordDict(
        {
            **fm.encode_report(make_report(make_order(make_plan()))),
            "kinds": ConfigRecord({"dice": "unit_moments"}),
            "statistics": MetricRecord({"dice": 1.0}),
        }
    ),
    "a short update": _vector(bytes(8), (2,)),
    "a long update": _vector(bytes(16), (4,)),
    "a wrong shape": _vector(bytes(12), (1, 3)),
    "a bigger shape than bytes": _vector(bytes(12), (2**40,)),
    "half a number": _vector(bytes(13), (3,)),
    "a pickle or npy": _vector(bytes(12), (3,), "numpy.ndarray"),
    "an unknown code": RecordDict(
        {"refusal": ConfigRecord({"format": 1, "code": "john smith", "stage": ""})}
    ),
    "an unknown stage": RecordDict(
        {"refusal": ConfigRecord({"format": 1, "code": "no_data", "stage": "in bed 4"})}
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_answer_is_rejected(name: str) -> None:
    with pytest.raises(ReportRejectedError):
        fm.decode_answer(HOSTILE[name], "north", 3)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": "{"},
        {"plan": "{}"},
        {"plan": "x" * (fm.MOST_TEXT_BYTES + 1)},
        {"phase": "delete"},
        {"round": "1"},
        {"evaluate": 1},
        {"format": 9},
        {"extra": 1},
        {"ledger_head": ""},
        {"ledger_head": "F" * 64},
        {"ledger_head": 1},
    ],
)
def test_a_broken_order_is_refused_with_a_code(plan: Plan, change: dict[str, object]) -> None:
    content = fm.encode_order(make_order(plan), "north")
    content["order"].update(change)
    with pytest.raises(OrderRefusedError) as caught:
        fm.decode_order(content)
    assert caught.value.code == "plan_invalid"
