"""A rounded update as records: what a plan may ask for, what the gate lets out, what is refused."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from tests.flower.conftest import FakeSites, make_order, make_plan, make_report

from asterion_client.egress import reply
from asterion_client.update_rounding import rounded
from asterion_server.live_cohort import LiveCohort
from asterion_shared.errors import (
    ReportRejectedError,
    SettingsError,
)
from asterion_shared.flower_messages import decode_answer, encode_report
from asterion_shared.messages import NoReport, Order, Report
from asterion_shared.transport_settings import UpdateKind
from asterion_shared.update_codec import decode, encode


@pytest.fixture
def sites() -> FakeSites:
    return FakeSites()


KINDS = ("bf16", "int8")
UPDATE = np.array([0.5, -2.0, 0.01], np.float32)


def rounded_order(kind: str, **changes: object) -> Order:
    return make_order(make_plan(transport={"update": kind}), **changes)


def rounded_report(kind: str, folder: Path) -> Report:
    order = rounded_order(kind)
    return rounded(order, make_report(order, update=UPDATE), folder)[0]


def over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def test_absent_nothing_is_rounded_or_packed(tmp_path: Path) -> None:
    transport = make_plan().transport
    assert (transport.update, transport.lossless) == ("float32", False)
    report = make_report(make_order(make_plan()))
    assert rounded(make_order(make_plan()), report, tmp_path) == (report, None)


SECURE = {"secure_sum": {"max_colluders": 0, "max_dropouts": 1},
          "algorithm": {"max_weight": 1, "clip_norm": 5.0}}  # fmt: skip
CENTRE = {"privacy": {"protects": "site", "noise": "centre", "clip_norm": 1.0,
                      "noise_multiplier": 3.0, "epsilon_limit": 50.0},
          "algorithm": {"max_weight": 1}}  # fmt: skip
ROUNDS = {"rounds": {"count": 2, "sites_per_round": 3, "deadline_seconds": 5.0}}


def test_what_a_plan_cannot_have_beside_it_is_refused_with_the_reason() -> None:
    make_plan(**SECURE, **ROUNDS, transport={"lossless": True})
    make_plan(**CENTRE, **ROUNDS, transport={"update": "int8"})
    with pytest.raises(SettingsError, match=r"transport\.update is 'int8'.*one fixed point"):
        make_plan(**SECURE, **ROUNDS, transport={"update": "int8"})
    with pytest.raises(SettingsError, match=r"lossless is true.*watches the network"):
        make_plan(**CENTRE, **ROUNDS, transport={"lossless": True})
    with pytest.raises(SettingsError, match="int4"):
        make_plan(transport={"update": "int4"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_coordinator_reads_what_the_codes_stand_for(kind: str, tmp_path: Path) -> None:
    report = rounded_report(kind, tmp_path)
    content = over_the_wire(encode_report(report))
    assert set(content["update"]) == ({"codes", "scales"} if kind == "int8" else {"codes"})
    got = decode_answer(content, "north", 3, kind)  # type: ignore[arg-type]
    assert isinstance(got, Report)
    assert report.update is not None
    assert got.update is not None
    assert got.update.dtype == np.float32
    assert got.update.tobytes() == report.update.tobytes()
    assert got.update != pytest.approx(UPDATE, abs=1e-9)
    assert got.update == pytest.approx(UPDATE, abs=0.01)
    assert got.encoded is None


def test_fewer_bytes_leave() -> None:
    sizes: dict[str, int] = {}
    update = np.linspace(-1, 1, 102_400, dtype=np.float32)
    for kind in ("float32", *KINDS):
        order = rounded_order(kind, weights=np.zeros(102_400, np.float32))
        report = rounded(order, make_report(order, update=update), Path("none"))[0]
        content = encode_report(report)
        sizes[kind] = sum(len(array.data) for array in content["update"].values())
        got = decode_answer(content, "north", 102_400, kind)  # type: ignore[arg-type]
        assert isinstance(got, Report)
        assert sizes[kind] < got.bytes_up < sizes[kind] + 200
    assert sizes == {"float32": 409_600, "bf16": 204_800, "int8": 102_400 + 4 * 100}


def altered(kind: str, **arrays: Array | None) -> RecordDict:
    """A good answer with some arrays of its update replaced, or gone (None)."""
    order = rounded_order(kind)
    codes, _ = encode(UPDATE, kind)  # type: ignore[arg-type]
    content = encode_report(make_report(order, update=decode(codes), encoded=codes))
    record = {name: content["update"][name] for name in content["update"]} | arrays
    content["update"] = ArrayRecord({n: a for n, a in record.items() if a is not None})
    return content


def int8(data: bytes, shape: tuple[int, ...], stype: str = "asterion.int8") -> Array:
    return Array("int8", shape, stype, data)


def scales(*values: float) -> Array:
    data = np.array(values, "<f4").tobytes()
    return Array("float32", (len(values),), "asterion.float32le", data)


def plain() -> RecordDict:
    return encode_report(make_report(make_order(make_plan()), update=UPDATE))


HOSTILE: dict[str, tuple[str, Callable[[], RecordDict]]] = {
    "float32 where int8 is due": ("int8", lambda: plain()),
    "int8 where float32 is due": ("float32", lambda: altered("int8")),
    "bf16 where int8 is due": ("int8", lambda: altered("bf16")),
    "no scales": ("int8", lambda: altered("int8", scales=None)),
    "no codes": ("int8", lambda: altered("int8", codes=None)),
    "scales where none are due": ("bf16", lambda: altered("bf16", scales=scales(1.0))),
    "one array more": ("int8", lambda: altered("int8", more=scales(1.0))),
    "too few codes": ("int8", lambda: altered("int8", codes=int8(bytes(2), (2,)))),
    "too many codes": ("int8", lambda: altered("int8", codes=int8(bytes(4), (4,)))),
    "a shape beyond the bytes": ("int8", lambda: altered("int8", codes=int8(bytes(3), (2**40,)))),
    "two dimensions": ("int8", lambda: altered("int8", codes=int8(bytes(3), (3, 1)))),
    "numpy's own format": ("int8", lambda: altered("int8", codes=int8(bytes(3), (3,), "x.npy"))),
    "another type": ("int8", lambda: altered("int8", codes=Array("uint8", (3,), "x", bytes(3)))),
    "a code of -128": ("int8", lambda: altered("int8", codes=int8(b"\x00\x80\x00", (3,)))),
    "a scale that is NaN": ("int8", lambda: altered("int8", scales=scales(np.nan))),
    "a scale of zero": ("int8", lambda: altered("int8", scales=scales(0.0))),
    "an endless scale": ("int8", lambda: altered("int8", scales=scales(np.inf))),
    "a scale too large": ("int8", lambda: altered("int8", scales=scales(3e38))),
    "too many scales": ("int8", lambda: altered("int8", scales=scales(1.0, 1.0))),
    "an infinite bf16": (
        "bf16",
        lambda: altered(
            "bf16", codes=Array("bfloat16", (3,), "asterion.bfloat16le", b"\x80\x7f" * 3)
        ),
    ),
    "half a bf16": (
        "bf16",
        lambda: altered("bf16", codes=Array("bfloat16", (3,), "asterion.bfloat16le", bytes(5))),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_rounded_update_is_rejected(name: str) -> None:
    kind, make = HOSTILE[name]
    with pytest.raises(ReportRejectedError):
        decode_answer(make(), "north", 3, kind)  # type: ignore[arg-type]


def test_the_round_goes_on_without_the_site_that_sent_it(sites: FakeSites) -> None:
    """Its code is report_rejected; the other sites' reports are float32 vectors."""
    grid = sites.grid()
    order = rounded_order("int8")

    def answer(site: str, asked: Order) -> Report:
        report = rounded(asked, make_report(asked, site=site, update=UPDATE), Path("none"))[0]
        assert report.encoded is not None
        return report

    sites.answer = answer
    for site in grid.sites.values():
        inner = site.app

        def wrong(message, context, inner=inner):  # type: ignore[no-untyped-def]
            found = inner(message, context)
            found.content = altered("int8", scales=scales(np.nan))
            return found

        if site.name == "south":
            site.app = wrong
    answers = {a.site: a for a in LiveCohort(grid).ask(order, sites.names)}
    south = answers["south"]
    assert isinstance(south, NoReport)
    assert (south.outcome, south.code) == ("failed", "report_rejected")
    for name in ("north", "west"):
        got = answers[name]
        assert isinstance(got, Report)
        assert got.update is not None
        assert got.update.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_lets_out_the_plans_form_alone(kind: str, tmp_path: Path) -> None:
    order, report = rounded_order(kind), rounded_report(kind, tmp_path)
    assert report.encoded is not None
    assert "report" in reply(report, order)
    other = "bf16" if kind == "int8" else "int8"
    broken = report.encoded.codes.copy()
    broken[0] = -128 if kind == "int8" else 0x7F80
    for bad, asked in (
        (replace(report, encoded=None), order),
        (rounded_report(other, tmp_path), order),
        (report, rounded_order("float32")),
        (replace(report, encoded=replace(report.encoded, codes=broken)), order),
        (replace(report, encoded=replace(report.encoded, codes=broken[:2])), order),
        (replace(report, update=None, train_loss=None), rounded_order(kind, phase="evaluate")),
    ):
        refused = decode_answer(reply(bad, asked), "north", 3)
        assert isinstance(refused, NoReport)
        assert refused.code == "report_rejected"


array = st.builds(
    Array,
    st.sampled_from(["int8", "bfloat16", "float32", "x"]),
    st.lists(st.integers(0, 5), max_size=2).map(tuple),
    st.sampled_from(["asterion.int8", "asterion.bfloat16le", "asterion.float32le", "x"]),
    st.binary(max_size=16),
)


@given(
    record=st.dictionaries(st.sampled_from(["codes", "scales", "vector", "x"]), array),
    kind=st.sampled_from(["float32", *KINDS]),
)
def test_whatever_stands_for_an_update_is_a_vector_or_rejected(
    record: dict[str, Array], kind: UpdateKind
) -> None:
    content = plain()
    content["update"] = ArrayRecord(record)
    with suppress(ReportRejectedError):
        got = decode_answer(content, "north", 3, kind)
        assert isinstance(got, Report)
        assert got.update is not None
        assert (got.update.dtype, got.update.shape) == (np.float32, (3,))
