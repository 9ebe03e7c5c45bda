"""A report that was formed before a withdrawal and waits to be sent does not leave."""

from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from tests.link.loopback import Loopback, eventually, noise, report_content
from tests.link.test_deliveries import blobs_of, pulled, update_in

from asterion_client.app import Desk, client_app_of
from asterion_client.withdrawals import stamp_of, withdraw
from asterion_shared.errors import DataProblemError
from asterion_shared.flower_messages import decode_answer, encode_order
from asterion_shared.link.records import pack
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

PLAN = validate(
    Plan,
    {
        "name": "p",
        "task": "anomaly",
        "data": {"patch_size": [8, 8]},
        "model": {"name": "conv_autoencoder"},
    },
    "plan",
)


def test_its_order_is_handed_out_again(link: Loopback, tmp_path: Path) -> None:
    state = tmp_path / "site-state"
    grid, session = link.grid(), link.session()
    session._stamp = lambda: stamp_of(state)
    key = link.post(grid, "north", vector=noise(10))
    order = eventually(lambda: session.next_order(0.2), 40)
    stamp = stamp_of(state)
    withdraw(state, ["anna"])  # while it is worked on, or its report waits for its hours
    old, new = noise(700_000, 1), noise(700_000, 2)
    session.send(order, pack(report_content(old), blobs_of(session).add), stamp)
    again = eventually(lambda: session.next_order(0.2), 40)
    assert again.key == key
    assert not list(grid.pull_messages([key.hex()]))
    kept = link.made.folder / "link" / "reports" / "north"
    assert not [path for path in kept.rglob("*") if path.is_file()]  # not a chunk of it left
    session.send(again, pack(report_content(new), blobs_of(session).add), stamp_of(state))
    np.testing.assert_array_equal(update_in(pulled(grid, key)), new)


def test_nobody_who_withdrew_leaves_no_stamp(tmp_path: Path) -> None:
    assert stamp_of(tmp_path) == ""
    withdraw(tmp_path, [])
    assert stamp_of(tmp_path) == ""
    withdraw(tmp_path, ["anna"])
    first = stamp_of(tmp_path)
    withdraw(tmp_path, ["berta"])
    assert len({"", first, stamp_of(tmp_path)}) == 3


def test_an_answer_in_memory_is_not_given_again_once_it_does_not_hold() -> None:
    counts, holds = iter((10, 8, 6)), True

    def answer(order: Order) -> Report:
        return Report(site="s", num_examples=next(counts), num_test=0, num_bad_files=0,
                      manifest_sha256="0" * 64)  # fmt: skip

    def still_holds(order: Order) -> bool:
        if holds is None:
            code = "data_withdrawn"
            raise DataProblemError(code, code=code)
        return holds

    app = client_app_of(lambda context: Desk("s", answer, still_holds=still_holds))

    def ask() -> int:
        order = Order(run="r", plan=PLAN, round=0, phase="count")
        message = Message(encode_order(order, "s"), 1, "query")
        reply = app(message, Context(1, 1, {}, RecordDict(), {}))
        found = decode_answer(reply.content, "s", None, "float32")
        assert isinstance(found, Report)
        return found.num_examples

    assert [ask(), ask()] == [10, 10]
    holds = False
    assert ask() == 8
    holds = None  # type: ignore[assignment]
    assert ask() == 6
