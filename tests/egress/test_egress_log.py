"""What left is on record before it leaves: every number, once, and totals that are cheap."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from tests.flower.conftest import make_order, make_plan, make_report
from typer.testing import CliRunner

from asterion_client import egress_log
from asterion_client.app import Desk, client_app_of
from asterion_client.command_line import app as site_command
from asterion_client.egress import refusal, reply
from asterion_client.egress_fields import undeclared
from asterion_client.egress_log import EgressLog, bytes_left_on, read_log
from asterion_client.flower_client_compat import order_message
from asterion_shared.errors import DiskProblemError
from asterion_shared.flower_messages import encode_order, num_bytes
from asterion_shared.metrics import Statistic

PLAN = make_plan()
TODAY = datetime.now(UTC).date()


def test_every_number_is_on_record_and_the_same_answer_is_one_line(tmp_path: Path) -> None:
    log, order = EgressLog(tmp_path, "north"), make_order(PLAN)
    counts = {"confusion": Statistic("confusion", np.array([1.0, 0.0, 2.0, 0.0]))}
    content = reply(make_report(order, statistics=counts), order)
    log.write(order, content)
    EgressLog(tmp_path, "north").write(order, content)  # another process, after a restart
    log.write(None, reply(refusal("plan_invalid")))
    first, second, third = read_log(tmp_path)
    assert first["records"]["report"]["num_examples"] == 7
    assert first["records"]["statistics"] == {"confusion": [1.0, 0.0, 2.0, 0.0]}
    vector = first["records"]["update"]["vector"]
    update = np.array([0.5, -1.0, 1.5], np.float32)
    assert (vector["length"], vector["bytes"], vector["dtype"]) == (3, 12, "float32")
    assert vector["norm"] == pytest.approx(np.linalg.norm(update))
    assert (second["what"], "records" in second) == ("again", False)
    assert third["records"]["refusal"]["code"] == "plan_invalid"
    assert [e["day_bytes"] for e in (first, second)] == [num_bytes(content), 2 * num_bytes(content)]
    assert bytes_left_on(tmp_path, TODAY) == third["day_bytes"] > second["day_bytes"]
    assert bytes_left_on(tmp_path, TODAY.replace(year=2001)) == 0
    assert len(list(read_log(tmp_path, "r1"))) == 2
    assert (tmp_path / "egress").stat().st_mode & 0o077 == 0


def test_full_files_are_packed_and_totals_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_log, "MOST_BYTES", 500)
    monkeypatch.setattr(egress_log, "_TAIL_BYTES", 10)
    log, size = EgressLog(tmp_path, "north"), 0
    for number in range(1, 6):
        order = make_order(PLAN, round=number)
        content = reply(make_report(order), order)
        log.write(order, content)
        size += num_bytes(content)
        assert bytes_left_on(tmp_path, TODAY) == size
    assert [entry["round"] for entry in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    (plain,) = (tmp_path / "egress").glob("*.jsonl")
    assert len(list((tmp_path / "egress").glob("*.gz"))) == 4
    # Torn by a crash; and packed, but not removed before the process was killed.
    plain.write_bytes(plain.read_bytes() + b'{"at": "2026')
    assert bytes_left_on(tmp_path, TODAY) == size
    newest = sorted((tmp_path / "egress").glob("*.gz"))[-1]
    plain.write_bytes(gzip.decompress(newest.read_bytes()))
    assert [entry["round"] for entry in read_log(tmp_path)] == [1, 2, 3, 4]
    log.write(None, reply(refusal("plan_invalid")))
    assert len(list((tmp_path / "egress").glob("*.gz"))) == 4


def test_what_cannot_be_recorded_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EgressLog(tmp_path, "north")
    app = client_app_of(lambda _: Desk("north", make_report, log=log))

    def asked() -> RecordDict:
        message = order_message(encode_order(make_order(PLAN), "north"), "train", 1, 1)
        return app(message, Context(1, 1, {}, RecordDict(), {})).content

    def full(path: Path, lines: object) -> None:
        raise DiskProblemError(path, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(egress_log, "append_lines", full)
        assert asked()["refusal"]["code"] == "disk_problem"
    assert "No space" not in caplog.text
    assert "update" in asked()
    assert "update" in asked()
    assert [entry["what"] for entry in read_log(tmp_path)] == ["report", "again"]


def test_a_field_that_is_not_in_the_table_is_found() -> None:
    order = make_order(PLAN)
    content = reply(make_report(order), order)
    assert undeclared(content) == 0
    content["report"]["patient"] = "x"  # type: ignore[index]
    assert undeclared(content) == 1


def test_the_command_lists_what_left(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "north"\ntask = "classification"\n[data]\nformat = "table"\n'
    )
    path, run = str(tmp_path / "site.toml"), CliRunner().invoke
    assert "nothing has left" in run(site_command, ["egress", path]).output
    order = make_order(PLAN)
    counts = {"confusion": Statistic("confusion", np.array([1.0, 0.0, 2.0, 0.0]))}
    content = reply(make_report(order, statistics=counts), order)
    EgressLog(tmp_path / "state", "north").write(order, content)
    said = run(site_command, ["egress", path]).output
    assert "num_examples: 7\n" in said
    assert "4 numbers, all 0 but [0] 1, [2] 2" in said
    assert f"run r1: 1 reply, {num_bytes(content)} bytes" in said
    lines = run(site_command, ["egress", path, "--json"]).output.splitlines()
    assert json.loads(lines[0])["records"]["report"]["num_test"] == 3
    assert json.loads(lines[-1])["days"] == [
        {"day": TODAY.isoformat(), "replies": 1, "bytes": num_bytes(content)}
    ]
    assert "nothing has left in run other" in run(
        site_command, ["egress", path, "--run", "other"]
    ).output  # fmt: skip
    assert "update vector" in run(site_command, ["egress", path, "--fields"]).output
