"""What a site on the link keeps of its orders and reports, and for how long."""

from pathlib import Path

import numpy as np
import pytest
from tests.faults.kill_cases import matrix_plan

from asterion_client.coordinator_words import LinkOrder
from asterion_client.day_book import DayBook
from asterion_client.link_session import LinkSession
from asterion_client.order_chunks import ByteQuota
from asterion_client.settings import ConnectionSettings, SiteSettings
from asterion_client.stored_reports import StoredReport, site_blobs, stored_parts
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.identity import Identity
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.messages import Order, Phase, Report
from asterion_shared.settings_files import validate

WEIGHTS = 40_000


def settings() -> SiteSettings:
    values = {"name": "north", "task": "classification", "data": {"format": "table",
              "folder": "cases"}}  # fmt: skip
    return validate(SiteSettings, values, "site.toml")


def order_of(round_: int, phase: Phase) -> Order:
    return Order(
        run="a", plan=matrix_plan("prox"), round=round_, phase=phase,
        weights=np.full(WEIGHTS, round_, np.float32), layout_sha256="0" * 64,
    )  # fmt: skip


def report(update: float | None) -> Report:
    vector = None if update is None else np.full(WEIGHTS, update, np.float32)
    return Report(site="north", num_examples=3, num_test=1, num_bad_files=0,
                  manifest_sha256="0" * 64, update=vector, num_steps=1)  # fmt: skip


def test_an_update_is_kept_until_the_closing_evaluation(tmp_path: Path) -> None:
    stored = {n: StoredReport(settings(), tmp_path, order_of(n, "train")) for n in (1, 2, 3)}
    for number, place in stored.items():
        place.store(report(float(number)))
    assert stored[1].find() is None
    for number in (2, 3):
        found = stored[number].find()
        assert found is not None
        assert found.update is not None
        assert found.update[0] == number
    state = (tmp_path / "state").resolve()
    assert len(stored_parts(state)) == 2
    closing = StoredReport(settings(), tmp_path, order_of(4, "evaluate"))
    closing.store(report(None))
    assert closing.find() is not None
    assert stored[3].find() is None
    assert stored_parts(state) == []
    assert site_blobs(state).num_bytes() > 0  # the runner collects them when nothing is on its way


@pytest.fixture
def session(tmp_path: Path) -> LinkSession:
    values = {"address": "127.0.0.1:1", "root_certificate": "a", "private_key": "b"}
    connection = validate(ConnectionSettings, values, "site.toml")
    blobs = BlobStore(tmp_path / "blobs")
    quota = ByteQuota(DayBook(tmp_path / "state"), 10**9)
    nobody = Identity(b"", b"", b"")
    return LinkSession(connection, nobody, blobs, bytes(16), lambda told: None, quota)


def test_parts_of_a_report_on_its_way_are_in_use(session: LinkSession, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    asked, answer = blobs.add(bytes(100_000)), blobs.add(bytes([1]) * 100_000)
    order = LinkOrder(bytes(32), wire.Order(key=bytes(32)), Parcel((Part(1, b"x"), asked)))
    session._orders[order.key] = order
    assert session.parts_in_use() == [asked]
    session.send(order, Parcel((Part(1, b"x"), answer)))
    assert session.parts_in_use() == [asked, answer]


def test_an_order_that_could_not_be_carried_out_comes_again(session: LinkSession) -> None:
    order = LinkOrder(bytes(32), wire.Order(key=bytes(32)), Parcel((Part(1, b"x"),)))
    session.again(order, 0.05)
    assert session._to_fetch.get(timeout=10) is order
