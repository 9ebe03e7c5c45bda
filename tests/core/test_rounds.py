"""The loop with a cohort made for the test: every kind of answer, resume, quorum."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asterion_server.checkpoint import load_latest
from asterion_server.rounds import run_rounds
from asterion_shared.errors import PlanMismatchError, QuorumLostError
from asterion_shared.messages import Answer, NoReport, Order, Report
from asterion_shared.plan import Plan
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate

Change = Callable[[Order, str, Report], Answer | None]


def table_plan(**sections: object) -> Plan:
    values: dict[str, object] = {
        "name": "loop",
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"]},
        "model": {"name": "logistic"},
        "rounds": {"count": 3},
    }
    return validate(Plan, values | sections, "plan")


def honest(order: Order, site: str) -> Report:
    """An update that depends on round, site and the incoming weights, so that faults show."""
    examples = {"a": 10, "b": 30, "c": 20}[site]
    update = None
    if order.phase == "train":
        assert order.weights is not None
        update = np.float32(0.1) * (np.float32(ord(site) - 96) - order.weights) + order.round
        update = update.astype(np.float32)
    return Report(
        site=site,
        num_examples=examples,
        num_test=5,
        num_bad_files=0,
        manifest_sha256="0" * 64,
        update=update,
        num_steps=3,
        train_loss=0.5,
    )


class FakeCohort:
    def __init__(self, change: Change | None = None, *, backwards: bool = False) -> None:
        self.change, self.backwards = change, backwards
        self.orders: list[tuple[str, int, tuple[str, ...], bool]] = []

    def sites(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        names = tuple(sites)
        self.orders.append((order.phase, order.round, names, order.evaluate))
        for site in reversed(names) if self.backwards else names:
            report = honest(order, site)
            answer = report if self.change is None else self.change(order, site, report)
            if answer is not None:
                yield answer


def run(plan: Plan, cohort: FakeCohort, folder: Path) -> Result:
    return run_rounds(
        plan, cohort, folder, run="r1", expected_sites=("c", "a", "b"), carrier="simulation"
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_three_rounds_by_a_plain_loop(tmp_path: Path) -> None:
    plan = table_plan()
    cohort = FakeCohort()
    result = run(plan, cohort, tmp_path)
    assert result.status == "finished"
    assert [o[:2] for o in cohort.orders] == [
        ("count", 0),
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("evaluate", 4),
    ]
    assert read_result(tmp_path / "result.json") == result
    found = load_latest(tmp_path / "checkpoints", "r1", plan)
    assert found is not None
    oracle = _plain_loop(plan, tmp_path)
    assert np.allclose(found.weights, oracle, rtol=1e-6)


def _plain_loop(plan: Plan, folder: Path) -> np.ndarray:
    from asterion_server.initial_weights import initial_weights

    w = initial_weights(plan, folder)[1].astype(np.float64)
    for number in (1, 2, 3):
        updates = {s: 0.1 * (ord(s) - 96 - w) + number for s in "abc"}
        w = w + (10 * updates["a"] + 30 * updates["b"] + 20 * updates["c"]) / 60
    return w


def test_the_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    run(table_plan(), FakeCohort(), tmp_path / "forwards")
    run(table_plan(), FakeCohort(backwards=True), tmp_path / "backwards")
    assert weights(tmp_path / "forwards") == weights(tmp_path / "backwards")


def test_every_kind_of_absence_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    def change(order: Order, site: str, report: Report) -> Answer | None:
        if order.phase != "train" or site == "a":
            return report
        if order.round == 1:
            return NoReport(site=site, outcome="refused", code="no_data")
        if order.round == 2:
            return None if site == "b" else replace(report, update=report.update * np.nan)
        return replace(report, update=report.update[:1])

    result = run(table_plan(), FakeCohort(change), tmp_path)
    missing = {r.round: r.missing for r in result.rounds}
    assert missing == {
        0: {},
        1: {"b": "no_data", "c": "no_data"},
        2: {"b": "late", "c": "report_rejected"},
        3: {"b": "report_rejected", "c": "report_rejected"},
    }
    assert "site b missing in round 1 (no data)" in result.headline


@pytest.mark.parametrize(
    "bad",
    [
        {"num_examples": -1},
        {"num_examples": 10**12},
        {"num_steps": 0},
        {"update": None},
        {"update": np.full(4, np.inf, np.float32)},
        {"update": np.zeros(4, np.float64)},
    ],
)
def test_a_report_that_breaks_the_contract_is_not_folded(
    tmp_path: Path, bad: dict[str, object]
) -> None:
    def change(order: Order, site: str, report: Report) -> Answer:
        broken = order.phase == "train" and site == "b"
        return replace(report, **bad) if broken else report  # type: ignore[arg-type]

    result = run(table_plan(), FakeCohort(change), tmp_path / "lie")
    assert all(r.missing == {"b": "report_rejected"} for r in result.rounds[1:])

    def absent(order: Order, site: str, report: Report) -> Answer:
        gone = order.phase == "train" and site == "b"
        return NoReport(site="b", outcome="failed") if gone else report

    run(table_plan(), FakeCohort(absent), tmp_path / "absent")
    assert weights(tmp_path / "lie") == weights(tmp_path / "absent")


def test_a_lost_quorum_leaves_a_result_and_the_run_goes_on_later(tmp_path: Path) -> None:
    plan = table_plan(rounds={"count": 3, "quorum": 2})

    def change(order: Order, site: str, report: Report) -> Answer:
        lost = order.round == 3 and order.phase == "train" and site != "a"
        return NoReport(site=site, outcome="failed", code="unreachable") if lost else report

    with pytest.raises(QuorumLostError, match="round 3: 1 of 3 sites answered, 2 are needed"):
        run(plan, FakeCohort(change), tmp_path / "broken")
    lost = read_result(tmp_path / "broken" / "result.json")
    assert lost.status == "quorum_lost"
    assert lost.final_model is not None

    again = FakeCohort()
    assert run(plan, again, tmp_path / "broken").status == "finished"
    assert [o[:2] for o in again.orders] == [("train", 3), ("evaluate", 4)]
    run(plan, FakeCohort(), tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("cut", [("count", 0), ("train", 1), ("train", 3), ("evaluate", 4)])
def test_a_run_that_was_cut_anywhere_ends_in_the_same_bytes(
    tmp_path: Path, cut: tuple[str, int]
) -> None:
    def change(order: Order, site: str, report: Report) -> Answer:
        if (order.phase, order.round) == cut and site == "b":
            raise PowerCutError
        return report

    with pytest.raises(PowerCutError):
        run(table_plan(), FakeCohort(change, backwards=True), tmp_path / "cut")
    run(table_plan(), FakeCohort(), tmp_path / "cut")
    run(table_plan(), FakeCohort(), tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    run(table_plan(), FakeCohort(), tmp_path)
    with pytest.raises(PlanMismatchError, match="choose another folder"):
        run(table_plan(seed=2), FakeCohort(), tmp_path)


def test_count_and_evaluate_plans_train_nobody(tmp_path: Path) -> None:
    cohort = FakeCohort()
    result = run(table_plan(kind="count"), cohort, tmp_path / "count")
    assert [o[0] for o in cohort.orders] == ["count"]
    assert {s.name: s.num_examples for s in result.sites} == {"a": 10, "b": 30, "c": 20}
    assert result.final_model is None

    trained = run(table_plan(), FakeCohort(), tmp_path / "train").final_model
    assert trained is not None
    init = {"file": "train/model.safetensors", "sha256": trained.sha256}
    judge = FakeCohort()
    run_rounds(
        table_plan(kind="evaluate", init=init),
        judge,
        tmp_path / "evaluate",
        run="r1",
        expected_sites=("a", "b"),
        carrier="simulation",
        plan_folder=tmp_path,
    )
    assert [o[0] for o in judge.orders] == ["count", "evaluate"]


def test_evaluation_follows_its_rhythm_and_the_last_round_is_always_measured(
    tmp_path: Path,
) -> None:
    cohort = FakeCohort()
    run(table_plan(rounds={"count": 5, "evaluate_every": 2}), cohort, tmp_path)
    assert [o[3] for o in cohort.orders] == [False, True, False, True, False, True, True]
