"""The step table, the code and the kill matrix name the same steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.kill_cases import (
    EVERYTHING,
    FEW,
    PLANS,
    SEED,
    Case,
    Stop,
    few_cases,
    matrix_plan,
    pair_cases,
    single_cases,
    spread,
    takes,
    times_of,
    whole_matrix,
)
from tests.faults.kill_matrix import undisturbed_kinds
from tests.faults.step_table import PROTOCOL, WHO, step_table, steps_in_code

from asterion_shared.link.steps import STEPS, STOP_VARIABLE

TABLE = step_table(PROTOCOL.read_text(encoding="utf-8"))


def test_the_table_has_a_row_for_each_step_and_no_other() -> None:
    assert [row.step for row in TABLE] == list(STEPS)
    for row in TABLE:
        assert row.who == WHO[row.step[0]]
        assert len(row.cells) == 4
        assert all(row.cells)


def test_the_code_comes_to_each_step_at_one_place_and_to_no_other() -> None:
    named = steps_in_code()
    assert set(named) == set(STEPS)
    assert {step: len(places) for step, places in named.items()} == dict.fromkeys(STEPS, 1)


def test_a_row_that_is_missing_is_seen() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    without = "\n".join(line for line in text.splitlines() if not line.startswith("| S4 |"))
    assert set(STEPS) - {row.step for row in step_table(without)} == {"S4"}


def alone(case: Case) -> str:
    """The step that a case is about: L1 needs a site that comes back."""
    return case.stops[-1].step


def test_the_matrix_stops_at_each_step_for_each_plan() -> None:
    cases = single_cases([row.step for row in TABLE])
    assert {(case.plan, alone(case)) for case in cases} == {
        (plan, step) for plan in PLANS for step in STEPS if takes(plan, step)
    }
    assert len(cases) == len(PLANS) * len(STEPS) - 2  # two plans are not private
    assert set(cases) <= set(whole_matrix())


def test_what_every_change_is_tested_with_has_each_step_once() -> None:
    assert sorted(step for _, *steps in FEW for step in steps) == sorted(STEPS)
    assert all(takes(plan, step) for plan, *steps in FEW for step in steps)
    few = few_cases()
    assert len(few) == len(FEW) + 2
    assert [case.struck for case in few if case.struck].count("all") == 1
    assert undisturbed_kinds(few) == ["prox", "sitenoise"]
    assert undisturbed_kinds(whole_matrix()) == ["prox", "momentum", "sitenoise"]


def test_pairs_are_the_same_at_each_call_and_of_every_plan() -> None:
    steps = [row.step for row in TABLE]
    pairs = pair_cases(steps)
    assert pairs == pair_cases(steps)
    assert SEED == 5
    for plan in PLANS:
        own = [case for case in pairs if case.plan == plan]
        assert sum(case.struck == "all" for case in own) == len(EVERYTHING)
        assert all(len(case.dying) > 1 or len(case.stops) > 1 for case in own)
        assert not any(stop.step == "C1" for case in own for stop in case.stops) or takes(
            plan, "C1"
        )


def test_spreading_loses_no_case_and_parts_equal_victims() -> None:
    one, other = (Stop("S1", "north", 0.5), Stop("C2", "center", 0.5))
    cases = [Case("prox", (one,)), Case("record", (one,)), Case("prox", (other,))]
    found = spread(cases)
    assert [str(case) for case in found] == ["prox S1@north", "prox C2@center", "record S1@north"]
    assert found[0].dying == {"north"}
    assert found[1].dying == {"run"}
    assert Case("prox", (other,), "all").dying == {"run", "link", "north", "south", "west"}


@pytest.mark.parametrize(
    ("share", "counted", "times"), [(0.0, 15, 1), (0.99, 15, 15), (0.5, 3, 2), (0.7, 0, 1)]
)
def test_a_share_means_one_of_the_times_of_an_undisturbed_run(
    share: float, counted: int, times: int
) -> None:
    assert times_of(Stop("C3", "center", share), {"C3": counted}) == times


def test_every_plan_of_the_matrix_waits_and_asks_all_sites() -> None:
    for kind in PLANS:
        plan = matrix_plan(kind)
        assert (plan.rounds.late, plan.rounds.sites_per_round) == ("wait", 3)


PROGRAM = "from asterion_shared.link.steps import reached\nfor _ in range(5): reached('S3')"


def test_a_process_dies_the_nth_time_it_takes_an_armed_step(tmp_path: Path) -> None:
    armed = tmp_path / "S3"
    armed.write_text("7")

    def code() -> int:
        command = [sys.executable, "-c", PROGRAM]
        known = os.environ | {STOP_VARIABLE: str(tmp_path)}
        return subprocess.run(command, env=known, check=False).returncode

    assert code() == 0
    assert armed.read_text() == "2"
    assert code() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert code() == 0
