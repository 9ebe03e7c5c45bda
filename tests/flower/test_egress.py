"""Nothing but codes and checked numbers can leave a site."""

import errno
import logging

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto
from tests.flower.conftest import FakeSites, make_order, make_plan, make_report

from asterion_client.egress import guarded, reply
from asterion_shared.errors import (
    DataProblemError,
    DiskProblemError,
    FileProblemError,
    LedgerStoppedError,
    MissingExtraError,
    OrderRefusedError,
)
from asterion_shared.flower_messages import Refusal, decode_answer
from asterion_shared.messages import NoReport, Report
from asterion_shared.metrics import Statistic
from asterion_shared.plan import Plan

PATIENT = "Mueller^Anna"
PATH = "/data/mueller_anna/scan1.dcm"


def wire(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def raises(error: BaseException) -> Report:
    raise error


ERRORS = {
    "internal_error": [
        KeyError(PATIENT),
        ValueError(PATH),
        OrderRefusedError(PATIENT, code=PATIENT),
        MemoryError(PATIENT),
    ],
    "disk_problem": [DiskProblemError(PATH, PATIENT), OSError(errno.ENOSPC, PATIENT, PATH)],
    "no_data": [OrderRefusedError(PATIENT, code="no_data")],
    "mask_shape_mismatch": [DataProblemError(PATH, code="mask_shape_mismatch")],
    "settings_invalid": [FileProblemError(PATH, PATIENT, "x")],
    "ledger_stopped": [LedgerStoppedError(PATH, PATIENT, "x")],
    "missing_package": [MissingExtraError(package=PATIENT, extra="medical")],
}


@pytest.mark.parametrize(("code", "error"), [(c, e) for c, es in ERRORS.items() for e in es])
def test_an_exception_leaves_as_its_code_and_nothing_else(
    plan: Plan, code: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    content = reply(guarded(lambda: raises(error), about=f"{PATIENT} 1"), make_order(plan))
    got = decode_answer(content, "north", 3)
    assert isinstance(got, NoReport)
    assert got.code == code
    for part in (PATIENT, "ueller", PATH, "scan1", type(error).__name__):
        assert part.encode() not in wire(content)
    assert type(error).__name__ in caplog.text
    assert "ueller" not in caplog.text


def test_a_site_s_whole_reply_hides_the_exception(plan: Plan, sites: FakeSites) -> None:
    from asterion_server.live_cohort import LiveCohort

    sites.answer = lambda site, order: raises(RuntimeError(f"cannot read {PATH} of {PATIENT}"))
    grid = sites.grid()
    answers = list(LiveCohort(grid).ask(make_order(plan), ["north"]))
    assert answers == [NoReport(site="north", outcome="failed", code="internal_error")]
    assert b"ueller" not in wire(grid.sites[10].app(grid.pushed[0], grid._contexts[10]).content)


def statistic(values: list[float], kind: str = "confusion") -> dict[str, Statistic]:
    return {"confusion": Statistic(kind, np.array(values))}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"num_examples": -1}, "report_rejected"),
        ({"num_test": 10**10}, "report_rejected"),
        ({"num_steps": True}, "report_rejected"),
        ({"num_bad_files": 1.5}, "report_rejected"),
        ({"manifest_sha256": PATH}, "report_rejected"),
        ({"seconds": float("inf")}, "report_rejected"),
        ({"train_loss": float("nan")}, "diverged"),
        ({"update": None}, "report_rejected"),
        ({"update": np.zeros(4, np.float32)}, "report_rejected"),
        ({"update": np.zeros(3)}, "report_rejected"),
        ({"update": np.array([0, np.nan, 0], np.float32)}, "diverged"),
        ({"statistics": {PATIENT: Statistic("confusion", np.zeros(4))}}, "report_rejected"),
        ({"statistics": statistic([1, 1])}, "report_rejected"),
        ({"statistics": statistic([1, 1, 1, np.inf])}, "report_rejected"),
        ({"statistics": statistic([9, 9, 9, 9])}, "report_rejected"),
    ],
)
def test_a_report_that_breaks_the_contract_does_not_leave(
    plan: Plan, change: dict[str, object], code: str
) -> None:
    order = make_order(plan)
    content = reply(make_report(order, **change), order)
    got = decode_answer(content, "north", 3)
    assert isinstance(got, NoReport)
    assert got.code == code
    assert set(content) == {"refusal"}


PRIVATE = {"protects": "site", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 1.0,
           "epsilon_limit": 50.0}  # fmt: skip
HEAD = "0123456789abcdef" * 4


def test_a_private_update_leaves_with_the_head_of_its_charge_and_nothing_else_has_one() -> None:
    private, plain = make_plan(privacy=PRIVATE), make_plan()
    for plan, head, leaves in [
        (private, HEAD, True),
        (private, None, False),
        (private, "", False),
        (private, PATIENT, False),
        (private, HEAD.upper(), False),
        (private, HEAD + "\n", False),
        (plain, None, True),
        (plain, HEAD, False),
    ]:
        order = make_order(plan)
        content = reply(make_report(order, ledger_head=head), order)
        assert set(content) == ({"report", "kinds", "statistics", "update"} if leaves
                                else {"refusal"}), (plan.privacy, head)  # fmt: skip
        assert b"ueller" not in wire(content)
    order = make_order(private, phase="evaluate")
    assert "report" in reply(make_report(order), order)
    assert "refusal" in reply(make_report(order, ledger_head=HEAD), order)


def test_the_site_s_log_says_where_to_look_when_its_ledger_stopped(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    guarded(lambda: raises(LedgerStoppedError(PATH, PATIENT, "x")))
    assert "asterion site ledger verify" in caplog.text
    caplog.clear()
    guarded(lambda: raises(FileProblemError(PATH, PATIENT, "x")))
    assert "ledger" not in caplog.text


def test_a_count_lets_no_update_and_no_statistic_out(plan: Plan) -> None:
    order = make_order(plan, phase="count", weights=None)
    assert "report" in reply(make_report(order), order)
    for change in ({"update": np.zeros(3, np.float32)}, {"statistics": statistic([1, 1, 0, 1])}):
        assert set(reply(make_report(order, **change), order)) == {"refusal"}


def test_an_unknown_code_cannot_be_smuggled(plan: Plan) -> None:
    content = reply(Refusal(PATIENT), make_order(plan))
    assert b"ueller" not in wire(content)
