"""The policies for late sites in simulations: faults in virtual time, engines that fold."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tests.faults.fault_runs import Runs, outcomes

from asterion_shared.result import Result
from asterion_sim.engines.choice import EngineWish
from asterion_sim.traces import trace_of_result

WEST = "site_004"
LATE = {"kind": "late", "sites": [WEST], "rounds": "2"}
SLOW = {"kind": "delay", "sites": [WEST], "rounds": "2", "seconds": 75.0}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def fate(result: Result) -> list[tuple[str, int | None]]:
    return [(r.outcomes[WEST].outcome, r.outcomes[WEST].made_for) for r in result.rounds[1:]]


def test_who_waits_has_the_run_without_faults(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 3, "deadline_seconds": 60.0, "late": "wait"})
    runs.run("calm", plan=plan)
    crash = {"kind": "crash", "sites": ["site_001"], "rounds": "3"}
    result = runs.run("late", SLOW, crash, plan=plan)
    assert outcomes(result) == {}
    assert result.rounds[2].waited_for == {WEST: 15.0}
    assert f"site {WEST} waited for in round 2 (15.0 s beyond the deadline)" in result.headline
    assert runs.weights("late") == runs.weights("calm")
    runs.run("drop", {"kind": "drop", "sites": [WEST], "rounds": "1-"}, LATE, plan=plan)
    assert runs.weights("drop") == runs.weights("calm")


@pytest.mark.parametrize("fault", [LATE, SLOW])
def test_a_late_report_comes_in_the_next_round(runs: Runs, fault: dict[str, object]) -> None:
    plan = runs.changed(rounds={"count": 4, "deadline_seconds": 60.0, "late": "carry_over"})
    result = runs.run("carried", fault, plan=plan, train_late=False)
    assert fate(result) == [("answered", None), ("late", None), ("carried", 2), ("answered", None)]
    runs.run("quorum", fault, plan=runs.changed(rounds={"count": 4, "deadline_seconds": 60.0}))
    assert runs.weights("carried") != runs.weights("quorum")


def test_a_report_that_stays_late_too_long_is_not_used(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 5, "late": "carry_over", "most_stale": 1})
    result = runs.run("late", LATE | {"rounds": "2-3"}, plan=plan)
    assert fate(result)[1:] == [("late", None), ("late", None), ("answered", None),
                                ("answered", None)]  # fmt: skip
    gone = runs.run("crash", LATE, {"kind": "crash", "sites": [WEST], "rounds": "3"}, plan=plan)
    assert fate(gone)[1:4] == [("late", None), ("failed", None), ("answered", None)]


def test_an_engine_that_folds_carries_the_same_over(runs: Runs) -> None:
    rounds = {"count": 4, "late": "carry_over"}
    plan = runs.changed(rounds=rounds)
    one = runs.run("sequential", LATE, plan=plan)
    wish = EngineWish(kernel="vectorised")
    many = runs.run("vectorised", LATE, plan=plan, wish=wish)
    assert fate(one) == fate(many)
    ours, theirs = one.rounds[3].update_norm, many.rounds[3].update_norm
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_record_of_a_run_that_carried_over_is_replayed(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 4, "late": "carry_over"})
    first = runs.run("first", LATE | {"rounds": "2-3"}, plan=plan)
    assert fate(first)[1:] == [("late", None), ("late", None), ("carried", 2)]
    again = runs.run("again", plan=plan, trace=trace_of_result(first))
    assert fate(again) == fate(first)
    assert runs.weights("again") == runs.weights("first")


def test_without_faults_nobody_is_carried_over(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 3, "late": "carry_over"})
    runs.run("carry", plan=plan, bare=True)
    runs.run("plain", plan=runs.changed(rounds={"count": 3}))
    carry, plain = (safetensors.numpy.load(runs.weights(name)) for name in ("carry", "plain"))
    assert carry.keys() == plain.keys()
    assert all(np.array_equal(carry[name], plain[name]) for name in plain)
