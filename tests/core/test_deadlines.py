"""Deadlines from measured times, by hand."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_rounds import FakeCohort, honest, table_plan

from asterion_server.deadlines import (
    FACTOR,
    FIRST_SECONDS,
    FLOOR_SECONDS,
    RECENT_ROUNDS,
    Deadline,
    deadline_of,
    evaluates,
)
from asterion_server.rounds import run_rounds
from asterion_shared.events import DeadlineDerived, Event
from asterion_shared.messages import Answer, NoReport, Order
from asterion_shared.plan import Plan
from asterion_shared.result import Result, RoundResult, SiteOutcome
from asterion_shared.settings_files import validate


def round_of(number: int, **times: tuple[float, float] | str) -> RoundResult:
    outcomes = {
        site: SiteOutcome(outcome="late")
        if isinstance(took, str)
        else SiteOutcome(outcome="answered", seconds=took[0], transfer_seconds=took[1])
        for site, took in times.items()
    }
    return RoundResult(round=number, asked=tuple(sorted(times)), outcomes=outcomes)


def derived(plan: Plan, sites: str, *rounds: RoundResult, evaluate: bool = True) -> Deadline:
    known = {r.round: r for r in rounds}
    return deadline_of(plan, sites.split(), known, evaluate=evaluate)


PLAN = table_plan()


def test_three_times_the_medians_of_the_slowest_site() -> None:
    rounds = [
        round_of(0, a=(9999.0, 0.0), b=(1.0, 1.0)),
        round_of(1, a=(100.0, 20.0), b=(30.0, 1.0)),
        round_of(2, a=(110.0, 500.0), b=(40.0, 1.0)),
        round_of(3, a=(300.0, 30.0), b=(50.0, 1.0)),
    ]
    # a: medians 110 and 30; b: 40 and 1. The count of round 0 says nothing of training.
    assert derived(PLAN, "a b", *rounds) == Deadline(420.0, True, "a", 140.0)
    assert derived(PLAN, "b", *rounds) == Deadline(123.0, True, "b", 41.0)


def test_nothing_measured_yet_is_generous_and_a_number_of_the_plan_wins() -> None:
    count = round_of(0, a=(1.0, 1.0))
    assert derived(PLAN, "a b", count) == Deadline(FIRST_SECONDS, True)
    assert derived(PLAN, "c", count, round_of(1, a=(50.0, 0.0))) == Deadline(FIRST_SECONDS, True)
    fixed = table_plan(rounds={"deadline_seconds": 7.5})
    assert derived(fixed, "a", count, round_of(1, a=(50.0, 0.0))) == Deadline(7.5)


def test_the_floor_and_those_without_a_time() -> None:
    rounds = [round_of(1, a="late", b=(2.0, 1.0)), round_of(2, a="late", b=(2.0, 1.0))]
    assert derived(PLAN, "a b", *rounds) == Deadline(FLOOR_SECONDS, True, "b", 3.0)


def test_a_carried_report_tells_how_slow_its_site_is() -> None:
    carried = SiteOutcome(outcome="carried", seconds=200.0, transfer_seconds=4.0, made_for=1)
    round_2 = RoundResult(round=2, asked=("a",), outcomes={"a": carried})
    found = derived(PLAN, "a b", round_of(1, a="late", b=(2.0, 1.0)), round_2)
    assert (found.seconds, found.site) == (612.0, "a")


def test_rounds_without_evaluation_do_not_shorten_those_with_it() -> None:
    plan = table_plan(rounds={"count": 9, "evaluate_every": 3})
    assert [n for n in range(1, 8) if evaluates(plan, n)] == [1, 4, 7]
    rounds = [round_of(1, a=(100.0, 0.0)), round_of(2, a=(30.0, 0.0)), round_of(3, a=(30.0, 0.0))]
    assert derived(plan, "a", *rounds, evaluate=True).seconds == 300.0
    assert derived(plan, "a", *rounds, evaluate=False).seconds == 90.0


def test_only_the_last_rounds_count() -> None:
    old = [round_of(n, a=(1000.0, 0.0)) for n in range(1, 40)]
    new = [round_of(n, a=(50.0, 0.0)) for n in range(40, 40 + RECENT_ROUNDS)]
    assert derived(PLAN, "a", *old, *new).seconds == 150.0


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), min_size=1, max_size=30))
def test_a_deadline_is_never_below_what_its_site_took_in_the_middle(
    times: list[tuple[float, float]],
) -> None:
    found = derived(PLAN, "a", *(round_of(n, a=took) for n, took in enumerate(times, 1)))
    assert found.seconds >= max(FLOOR_SECONDS, min(found.site_seconds, 7 * 86400))
    assert found.seconds == max(FLOOR_SECONDS, min(FACTOR * found.site_seconds, 7 * 86400))


class TimedCohort(FakeCohort):
    """Site a takes longer with each round; keeps the deadlines of its orders."""

    def __init__(self, cut_at: int | None = None) -> None:
        super().__init__()
        self.cut_at, self.deadlines = cut_at, dict[tuple[str, int], float]()

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        if order.round == self.cut_at:
            raise KeyboardInterrupt
        self.deadlines[order.phase, order.round] = order.deadline_seconds
        for site in sites:
            if site == "c" and order.round == 2:
                yield NoReport(site=site, outcome="late")
                continue
            report = honest(order, site)
            seconds = 37.7 * order.round if site == "a" else 1.0
            yield report.__class__(**{
                **{f: getattr(report, f) for f in report.__slots__},
                "seconds": seconds, "transfer_seconds": 0.1 * order.round,
            })  # fmt: skip


def run(folder: Path, cohort: FakeCohort, events: list[Event], plan: Plan, carrier: str) -> Result:
    return run_rounds(
        plan, cohort, folder, run="r", expected_sites=("a", "b", "c"),
        carrier=carrier, emit=events.append,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_live_run_tells_its_deadlines_and_stores_them(tmp_path: Path) -> None:
    plan, cohort, events = table_plan(rounds={"count": 3}), TimedCohort(), list[Event]()
    result = run(tmp_path, cohort, events, plan, "flower")
    told = {e.round: e for e in events if isinstance(e, DeadlineDerived)}
    assert [told[n].deadline_seconds for n in range(5)] == pytest.approx(
        [3600.0, 3600.0, 113.4, 3 * (1.5 * 37.7 + 0.15), 3 * (2 * 37.7 + 0.2)]
    )
    assert [told[n].site for n in range(5)] == [None, None, "a", "a", "a"]
    assert [r.deadline_seconds for r in result.rounds] == [
        told[n].deadline_seconds for n in range(4)
    ]
    assert cohort.deadlines["evaluate", 4] == told[4].deadline_seconds


def test_a_resumed_run_derives_the_same(tmp_path: Path) -> None:
    plan, whole = table_plan(rounds={"count": 3}), TimedCohort()
    run(tmp_path / "whole", whole, [], plan, "flower")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", TimedCohort(cut_at=3), [], plan, "flower")
    rest = TimedCohort()
    run(tmp_path / "cut", rest, [], plan, "flower")
    assert rest.deadlines == {k: v for k, v in whole.deadlines.items() if k[1] >= 3}


def test_a_simulation_has_no_measured_deadline(tmp_path: Path) -> None:
    plan, cohort, events = table_plan(rounds={"count": 3}), TimedCohort(), list[Event]()
    run(tmp_path, cohort, events, plan, "simulation")
    assert set(cohort.deadlines.values()) == {FIRST_SECONDS}
    assert not [e for e in events if isinstance(e, DeadlineDerived)]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rounds": {"late": "wait", "most_stale": 3}}, "they are for 'carry_over' only"),
        ({"rounds": {"late": "sometime"}}, "rounds.late"),
        (
            {"rounds": {"late": "carry_over", "sites_per_round": 2}, "algorithm": {"max_weight": 1},
             "privacy": {"protects": "site", "noise": "centre", "clip_norm": 1.0,
                         "noise_multiplier": 1.0, "epsilon_limit": 50.0}},
            "sized for one report of a site in the sum that it was asked for",
        ),
        (
            {"rounds": {"late": "carry_over", "sites_per_round": 3},
             "algorithm": {"max_weight": 1, "clip_norm": 9.0},
             "secure_sum": {"max_colluders": 0, "max_dropouts": 1}},
            "masked for the sum of its own round",
        ),
        (
            {"rounds": {"late": "carry_over"}, "algorithm": {"flower_strategy": "Krum"}},
            "'Krum', which does not weigh updates",
        ),
        (
            {"rounds": {"late": "carry_over"}, "algorithm": {"fold": "median"}},
            "'median', which counts every report once",
        ),
    ],
)  # fmt: skip
def test_plans_that_cannot_carry_over_are_refused_with_the_reason(
    sections: dict[str, object], words: str
) -> None:
    from asterion_shared.errors import SettingsError

    with pytest.raises(SettingsError, match=words):
        table_plan(**sections)


def test_noise_at_the_sites_and_weighing_strategies_may_be_carried_over() -> None:
    site = {"protects": "site", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 1.0,
            "epsilon_limit": 50.0}  # fmt: skip
    assert table_plan(rounds={"late": "carry_over"}, privacy=site).rounds.late == "carry_over"
    table_plan(rounds={"late": "carry_over"}, algorithm={"flower_strategy": "FedAdam"})
    assert validate(Plan, PLAN.model_dump(), "plan") == PLAN
