"""The three policies for late sites, in whole runs over a grid without a network."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flower.conftest import FakeSites
from tests.flower.slow_sites import (
    SITES,
    Clock,
    DurableSlowGrid,
    Federation,
    SlowGrid,
    answer,
    late_plan,
    told_weights,
)

from asterion_server.flower_server_compat import SITE_CRASHED
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_shared.errors import FileProblemError, PlanMismatchError, RunStoppedError
from asterion_shared.events import Event, SiteAwaited
from asterion_shared.messages import Answer, Order
from asterion_shared.result import Result


def slow_north(site: str, phase: str, round_: int) -> float:
    return 7.0 if (site, phase, round_) == ("north", "train", 1) else 1.0


def fates(result: Result, site: str = "north") -> list[tuple[str, int | None]]:
    return [(r.outcomes[site].outcome, r.outcomes[site].made_for) for r in result.rounds[1:]]


def test_quorum_closes_at_the_deadline_and_never_looks_back(tmp_path: Path) -> None:
    there = Federation(tmp_path, slow_north)
    plan = late_plan("quorum")
    result = there.run(plan)
    assert fates(result) == [("late", None), *[("answered", None)] * 3]
    assert [r.deadline_seconds for r in result.rounds] == [5.0] * 5
    assert "site north missing in round 1 (late)" in result.headline
    final, told = told_weights(plan, result, tmp_path)
    np.testing.assert_allclose(final, told, rtol=1e-5)
    assert there.sites.asked.count(("north", "train", 2)) == 1
    assert not (tmp_path / "open_orders.json").exists()


def test_carry_over_folds_a_late_report_with_its_age_and_says_so(tmp_path: Path) -> None:
    there = Federation(tmp_path, slow_north)
    plan = late_plan("carry_over")
    result = there.run(plan)
    # Round 1 closes at 5 s. Round 2 has its two sites after 1 s and does not wait for an open
    # order; round 3 is the last that may fold it, and has it after 1 s more.
    assert fates(result) == [("late", None), ("late", None), ("carried", 1), ("answered", None)]
    carried = result.rounds[3]
    assert (carried.answered, carried.carried) == (("south", "west"), {"north": 1})
    assert "site north missing in rounds 1-2 (late)" in result.headline
    assert "site north carried over into round 3 (made for round 1)" in result.headline
    assert [s for s in there.sites.asked if s[:2] == ("north", "train")] == [
        ("north", "train", 1), ("north", "train", 4),
    ]  # fmt: skip
    final, told = told_weights(plan, result, tmp_path)
    np.testing.assert_allclose(final, told, rtol=1e-5)
    # By hand: weights 3 and 5, and 7 over the root of 3.
    old = 7 / np.sqrt(3)
    means = [
        (3 * 0.02 + 5 * 0.03) / 8 + 0.1,
        (3 * 0.02 + 5 * 0.03) / 8 + 0.2,
        (3 * 0.32 + 5 * 0.33 + old * 0.11) / (8 + old),
        (7 * 0.41 + 3 * 0.42 + 5 * 0.43) / 15,
    ]
    from asterion_server.initial_weights import initial_weights

    first = initial_weights(plan, tmp_path)[1]
    np.testing.assert_allclose(final - first, sum(means), rtol=1e-4)


def test_a_carried_report_keeps_its_metrics_to_itself(tmp_path: Path) -> None:
    there = Federation(tmp_path, slow_north)
    result = there.run(late_plan("carry_over"))
    assert result.rounds[3].train_loss == 0.25
    # Metrics of the model after round 2 come with the reports of round 3, and not north's.
    assert "north" not in result.rounds[2].sites


def test_a_report_that_is_too_old_is_never_used(tmp_path: Path) -> None:
    there = Federation(tmp_path, lambda s, p, r: 40.0 if (s, p, r) == ("north", "train", 1) else 1)
    plan = late_plan("carry_over", count=6)
    result = there.run(plan)
    # Round 3 waits for it up to its deadline; from round 4 on the site has a new order.
    assert fates(result) == [*[("late", None)] * 3, *[("answered", None)] * 3]
    assert there.clock.now == pytest.approx(1000 + 1 + 5 + 1 + 5 + 3 + 1, abs=3)
    final, told = told_weights(plan, result, tmp_path)
    np.testing.assert_allclose(final, told, rtol=1e-5)


def test_a_carried_report_is_no_part_of_the_quorum(tmp_path: Path) -> None:
    from asterion_shared.errors import QuorumLostError

    there = Federation(tmp_path, slow_north)
    with pytest.raises(QuorumLostError, match="round 1: 2 of 3 sites answered, 3 are needed"):
        there.run(late_plan("carry_over", quorum=3))


def test_a_run_that_is_killed_knows_its_open_orders(tmp_path: Path) -> None:
    class KillError(Exception):
        pass

    there = Federation(tmp_path, slow_north)
    plan = late_plan("carry_over")
    honest = there.sites.answer

    def killed(site: str, order: Order) -> object:
        if order.round == 2 and site == "west":
            raise KillError
        return honest(site, order)

    class Killing(SlowGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            pushed = list(messages)
            if any(m.content["order"]["round"] == 2 for m in pushed):
                raise KillError
            return super().push_messages(pushed)

    whole = there.grid
    there.grid = Killing(whole, there.clock, slow_north)
    with pytest.raises(KillError):
        there.run(plan)
    kept = json.loads((tmp_path / "open_orders.json").read_text())
    assert [(entry["site"], entry["round"]) for entry in kept] == [("north", 1)]
    there.grid.__class__ = SlowGrid
    result = there.run(plan)
    assert fates(result) == [("late", None), ("late", None), ("carried", 1), ("answered", None)]


def test_an_open_order_is_lost_with_its_session_unless_the_grid_keeps_it(tmp_path: Path) -> None:
    for kind, expected in ((SlowGrid, None), (DurableSlowGrid, 1)):
        there = Federation(
            tmp_path / kind.__name__,
            lambda s, p, r: 9.0 if (s, p, r) == ("north", "train", 1) else 3.0,
            kind=kind,
        )
        there.clock.events = [(1009.0, lambda at=there: at.grid.sites[10].restart())]
        result = there.run(late_plan("carry_over"))
        carried = [r.carried.get("north") for r in result.rounds]
        assert (expected in carried) if expected else carried == [None] * 5


def test_wait_has_everybody_and_a_cable_that_is_out_costs_its_time(tmp_path: Path) -> None:
    plan = late_plan("wait")
    calm = Federation(tmp_path / "calm", lambda s, p, r: 1.0)
    calm.run(plan)
    there = Federation(tmp_path / "cut", lambda s, p, r: 1.0)
    north = there.grid.sites[10]

    def cut() -> None:
        north.online = False

    def mended() -> None:
        north.online = True

    there.clock.events = [(1002.5, cut), (1362.5, mended)]
    result = there.run(plan, grace_seconds=20.0)
    assert there.model() == calm.model()
    assert all(not r.missing for r in result.rounds)
    assert there.clock.now - calm.clock.now == pytest.approx(360, abs=6)
    waits = {r.round: r.waited_for for r in result.rounds if r.waited_for}
    ((number, late),) = waits.items()
    assert set(late) == {"north"}
    assert late["north"] == pytest.approx(356, abs=6)
    assert f"no site was missing; site north waited for in round {number} (5 min" in result.headline
    said = [e for e in there.events if isinstance(e, SiteAwaited)]
    assert [(e.site, e.state, e.round) for e in said] == [
        ("north", "away", number), ("north", "back", number),
    ]  # fmt: skip
    assert said[0].since == said[1].since == "2023-11-14T22:30:03Z"


def test_a_site_whose_answer_comes_first_is_back_too(tmp_path: Path) -> None:
    # A grid that keeps orders has the answer at 1400 s; nobody looks who is online before 1401 s.
    there = Federation(
        tmp_path, lambda s, p, r: 400.0 if (s, p, r) == ("north", "train", 1) else 0.0,
        kind=DurableSlowGrid,
    )  # fmt: skip
    north = there.grid.sites[10]
    there.clock.events = [(1001.0, lambda: setattr(north, "online", False))]
    there.clock.events += [(1399.9, lambda: setattr(north, "online", True))]
    there.grid.pull_messages = _answers_of_the_offline(there.grid)  # type: ignore[method-assign]
    result = there.run(late_plan("wait", count=1))
    assert result.rounds[1].missing == {}
    said = [(e.state, e.phase) for e in there.events if isinstance(e, SiteAwaited)]
    assert said == [("away", "train"), ("back", "train")]


def _answers_of_the_offline(grid: SlowGrid) -> Callable[[Iterable[str]], Iterable[Message]]:
    """A grid that keeps orders never says that a site is gone."""
    pull = grid.pull_messages

    def kept(message_ids: Iterable[str]) -> Iterable[Message]:
        return [message for message in pull(message_ids) if not message.has_error()]

    return kept


def test_wait_outlasts_any_number_of_cuts(tmp_path: Path) -> None:
    there = Federation(tmp_path, lambda s, p, r: 50.0 if (s, r) == ("north", 1) else 1.0)
    north = there.grid.sites[10]
    for at in range(6):
        start = 1010.0 + 30 * at
        there.clock.events.append((start, lambda: setattr(north, "online", False)))
        there.clock.events.append((start + (1.0 if at % 2 else 15.0), north.restart))
    result = there.run(late_plan("wait", count=2))
    assert fates(result) == [("answered", None)] * 2


def test_wait_also_waits_for_a_site_that_was_never_there(tmp_path: Path) -> None:
    there = Federation(tmp_path)
    west = there.grid.sites[12]
    west.online = False
    there.clock.events = [(1500.0, lambda: setattr(west, "online", True))]
    result = there.run(late_plan("wait", count=1))
    assert result.rounds[0].missing == {}
    said = [(e.site, e.state, e.round) for e in there.events if isinstance(e, SiteAwaited)]
    assert said == [("west", "away", 0), ("west", "back", 0)]


def test_a_late_site_that_is_there_is_named_once(tmp_path: Path) -> None:
    there = Federation(tmp_path, slow_north)
    result = there.run(late_plan("wait"))
    said = [(e.site, e.state, e.round) for e in there.events if isinstance(e, SiteAwaited)]
    assert said == [("north", "late", 1)]
    assert result.rounds[1].waited_for["north"] == pytest.approx(2.0, abs=0.3)


def test_a_run_that_waits_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    there = Federation(tmp_path, lambda s, p, r: 1.0)
    there.grid.sites[10].online = False
    with pytest.raises(RunStoppedError):
        there.run(late_plan("wait"), stop_requested=lambda: there.clock.now > 5000)
    there.grid.sites[10].restart()
    assert there.run(late_plan("wait")).status == "finished"


def test_an_order_that_kills_a_site_is_given_up_also_by_who_waits(tmp_path: Path) -> None:
    class Crashing(SlowGrid):
        crashes = 0

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = list(super().pull_messages(message_ids))
            for place, message in enumerate(found):
                order = next(m for m in self.pushed if m.metadata.message_id ==
                             message.metadata.reply_to_message_id)  # fmt: skip
                if message.metadata.src_node_id == 10 and order.content["order"]["round"] == 1:
                    self.crashes += 1
                    found[place] = Message(Error(SITE_CRASHED, "x"), reply_to=order)
            return found

    there = Federation(tmp_path, kind=Crashing)
    result = there.run(late_plan("wait", count=2))
    assert there.grid.crashes == 3  # type: ignore[attr-defined]
    assert result.rounds[1].missing == {"north": "internal_error"}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    late=st.sampled_from(["wait", "quorum", "carry_over"]),
    delays=st.lists(st.sampled_from([0.0, 1.0, 3.0, 6.0, 11.0, 30.0]), min_size=12, max_size=12),
    most_stale=st.integers(1, 3),
)
def test_whatever_is_folded_is_told(
    tmp_path_factory: pytest.TempPathFactory, late: str, delays: list[float], most_stale: int
) -> None:
    def takes(site: str, phase: str, round_: int) -> float:
        # West is always in time, so that there is a quorum.
        trained = phase == "train" and site != "west"
        return delays[(SITES.index(site) * 5 + round_) % 12] if trained else 0.5

    folder = tmp_path_factory.mktemp("run")
    there = Federation(folder, takes)
    more = {"most_stale": most_stale} if late == "carry_over" else {}
    plan = late_plan(late, count=5, **more)
    result = there.run(plan)
    final, told = told_weights(plan, result, folder)
    np.testing.assert_allclose(final, told, rtol=1e-4)
    used: set[tuple[str, int]] = set()
    for round_ in result.rounds[1:]:
        for site, outcome in round_.outcomes.items():
            made_for = round_.round if outcome.made_for is None else outcome.made_for
            assert (outcome.outcome == "carried") == (made_for < round_.round)
            if outcome.outcome == "carried":
                assert late == "carry_over"
                assert 1 <= round_.round - made_for <= most_stale
            if outcome.outcome in ("answered", "carried"):
                assert (site, made_for) not in used, "a report is folded once"
                used.add((site, made_for))
            if late == "wait":
                assert outcome.outcome == "answered"


class _Liar(LiveCohort):
    """Hands over a report of an earlier round as if it were due."""

    def ask(self, order: Order, sites: Iterable[str]) -> Iterable[Answer]:  # type: ignore[override]
        for given_answer in super().ask(order, sites):
            lies = order.phase == "train" and order.round == 3 and given_answer.site == "north"
            yield replace(given_answer, made_for=1) if lies else given_answer  # type: ignore[arg-type]


@pytest.mark.parametrize("late", ["wait", "quorum", "carry_over"])
def test_a_report_of_another_round_is_refused_by_the_loop(tmp_path: Path, late: str) -> None:
    clock, sites, events = Clock(), FakeSites(SITES, answer), list[Event]()
    cohort = _Liar(sites.grid(), now=lambda: clock.now, pause=clock.pause)
    result = run_rounds(
        late_plan(late), cohort, tmp_path, run="r", expected_sites=SITES, carrier="flower",
        emit=events.append,
    )  # fmt: skip
    assert result.rounds[3].missing == {"north": "report_rejected"}


def test_a_cohort_that_keeps_nothing_open_is_told_apart(tmp_path: Path) -> None:
    class Plain:
        def __init__(self, inner: LiveCohort) -> None:
            self.sites, self.ask = inner.sites, inner.ask

    there = Federation(tmp_path)
    with pytest.raises(PlanMismatchError, match="keeps no order open"):
        run_rounds(late_plan("carry_over"), Plain(there.cohort()), tmp_path, run="r",
                   expected_sites=SITES, carrier="flower")  # fmt: skip


def test_a_broken_file_of_open_orders_is_named(tmp_path: Path) -> None:
    (tmp_path / "open_orders.json").write_text("[{}]")
    with pytest.raises(FileProblemError, match="late reports of before are then not used"):
        Federation(tmp_path).cohort()
