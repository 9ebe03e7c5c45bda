"""The message path without a network: every way in which a site may fail to answer."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from tests.flower.conftest import FakeSites, make_order, make_report

from asterion_server.flower_server_compat import SITE_CRASHED, ObjectPushError
from asterion_server.in_process_grid import InProcessGrid
from asterion_server.live_cohort import LiveCohort
from asterion_shared.errors import OrderRefusedError, RunStoppedError
from asterion_shared.messages import Answer, NoReport, Order, Report
from asterion_shared.plan import Plan


class Clock:
    """Time that passes only in pauses; what must happen at a time happens in them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def pause(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, act in due:
            act()


def cohort_of(grid: InProcessGrid, clock: Clock, **options: float) -> LiveCohort:
    return LiveCohort(grid, now=lambda: clock.now, pause=clock.pause, **options)  # type: ignore[arg-type]


def by_site(answers: list[Answer]) -> dict[str, str]:
    named = {a.site: "answered" if isinstance(a, Report) else a.code or a.outcome for a in answers}
    assert len(named) == len(answers), "one answer a site"
    return named


ALL = ("north", "south", "west")


def test_all_answer_with_the_right_names_and_bytes(plan: Plan, sites: FakeSites) -> None:
    cohort = cohort_of(sites.grid(), Clock())
    assert cohort.sites() == ALL
    answers = list(cohort.ask(make_order(plan), ALL))
    assert by_site(answers) == dict.fromkeys(ALL, "answered")
    for answer in answers:
        assert isinstance(answer, Report)
        assert answer.update is not None
        assert answer.update.tolist() == [0.5, -1.0, 1.5]
        assert answer.bytes_down > 12
        assert answer.bytes_up > 12


def test_a_site_that_never_connected_is_answered_for_at_once(plan: Plan, sites: FakeSites) -> None:
    clock, grid = Clock(), sites.grid()
    grid.sites[11].online = False
    got = list(cohort_of(grid, clock).ask(make_order(plan), ALL))
    assert by_site(got) == {"north": "answered", "south": "unreachable", "west": "answered"}
    assert clock.now == 0


def test_silence_ends_at_the_deadline(plan: Plan, sites: FakeSites) -> None:
    clock, grid = Clock(), sites.grid()
    grid.sites[12].silent = True
    got = list(cohort_of(grid, clock).ask(make_order(plan, deadline_seconds=7.0), ALL))
    assert by_site(got) == {"north": "answered", "south": "answered", "west": "late"}
    assert clock.now == pytest.approx(7.0, abs=0.3)


def test_a_site_that_vanishes_has_its_grace_once(plan: Plan, sites: FakeSites) -> None:
    clock, grid = Clock(), sites.grid()
    cohort = cohort_of(grid, clock, grace_seconds=10)
    grid.sites[10].silent = True
    clock.events = [(3.0, lambda: setattr(grid.sites[10], "online", False))]
    order = make_order(plan, deadline_seconds=100.0)
    assert by_site(list(cohort.ask(order, ALL)))["north"] == "unreachable"
    assert clock.now == pytest.approx(13.0, abs=2.5)
    before = clock.now
    again = make_order(plan, round=2, deadline_seconds=100.0)
    assert by_site(list(cohort.ask(again, ALL)))["north"] == "unreachable"
    assert clock.now == before, "a site that was given up costs no second wait"
    grid.sites[10].restart()
    back = make_order(plan, round=3, deadline_seconds=100.0)
    assert by_site(list(cohort.ask(back, ALL)))["north"] == "answered"


@pytest.mark.parametrize("seen_offline", [True, False])
def test_a_site_that_restarts_gets_the_order_again(
    plan: Plan, sites: FakeSites, seen_offline: bool
) -> None:
    clock, grid = Clock(), sites.grid()
    grid.sites[11].silent = True
    clock.events = [(9.0, grid.sites[11].restart)]
    if seen_offline:
        clock.events.append((2.0, lambda: setattr(grid.sites[11], "online", False)))
    got = list(cohort_of(grid, clock).ask(make_order(plan, deadline_seconds=60.0), ALL))
    assert by_site(got) == dict.fromkeys(ALL, "answered")
    assert clock.now < 13
    assert [m.metadata.dst_node_id for m in grid.pushed].count(11) == 2


def test_a_site_whose_process_dies_is_asked_three_times_and_not_more(
    plan: Plan, sites: FakeSites
) -> None:
    class Crashing(InProcessGrid):
        crashes = 0

        def pull_messages(self, message_ids: object) -> list[Message]:
            found = list(super().pull_messages(message_ids))  # type: ignore[arg-type]
            for n, message in enumerate(found):
                if message.metadata.src_node_id == 10 and self.crashes > 0:
                    self.crashes -= 1
                    order = next(m for m in self.pushed if m.metadata.dst_node_id == 10)
                    found[n] = Message(Error(SITE_CRASHED, "x"), reply_to=order)
            return found

    for crashes, expected in ((2, "answered"), (3, "internal_error")):
        grid = Crashing(sites.grid().sites)
        grid.crashes = crashes
        got = list(cohort_of(grid, Clock()).ask(make_order(plan), ALL))
        assert by_site(got)["north"] == expected


def test_refusals_failures_and_rubbish_are_told_apart(plan: Plan, sites: FakeSites) -> None:
    def answer(site: str, order: Order) -> Report:
        if site == "north":
            raise OrderRefusedError(site, code="wrong_task")
        if site == "south":
            raise ZeroDivisionError
        return make_report(order, update=np.zeros(2, np.float32))

    sites.answer = answer
    got = {a.site: a for a in cohort_of(sites.grid(), Clock()).ask(make_order(plan), ALL)}
    assert got == {
        "north": NoReport(site="north", outcome="refused", code="wrong_task", stage="receiving"),
        "south": NoReport(site="south", outcome="failed", code="internal_error"),
        "west": NoReport(site="west", outcome="failed", code="report_rejected", stage="sending"),
    }


def test_a_hostile_site_cannot_crash_the_round(plan: Plan, sites: FakeSites) -> None:
    grid = sites.grid()
    grid.sites[10].app = lambda message, context: Message(  # type: ignore[assignment]
        RecordDict({"report": ConfigRecord({"x": b"y"})}), reply_to=message
    )
    got = list(cohort_of(grid, Clock()).ask(make_order(plan), ALL))
    assert by_site(got)["north"] == "report_rejected"


def test_an_order_for_another_name_is_refused(plan: Plan, sites: FakeSites) -> None:
    grid = sites.grid()
    grid.sites[10].name, grid.sites[11].name = "south", "north"
    got = list(cohort_of(grid, Clock()).ask(make_order(plan), ALL))
    assert by_site(got) == {
        "north": "settings_invalid",
        "south": "settings_invalid",
        "west": "answered",
    }


def test_the_same_order_again_costs_no_work_and_older_ones_are_stale(
    plan: Plan, sites: FakeSites
) -> None:
    cohort = cohort_of(sites.grid(), Clock())
    first, second = make_order(plan, round=1), make_order(plan, round=2)
    assert by_site(list(cohort.ask(second, ["north"]))) == {"north": "answered"}
    assert by_site(list(cohort.ask(second, ["north"]))) == {"north": "answered"}
    assert by_site(list(cohort.ask(first, ["north"]))) == {"north": "stale_order"}
    assert sites.asked == [("north", "train", 2)]


def test_a_refusal_is_not_remembered(plan: Plan, sites: FakeSites) -> None:
    cohort = cohort_of(sites.grid(), Clock())
    honest = sites.answer

    def refuse(site: str, order: Order) -> Report:
        raise OrderRefusedError(site, code="disk_problem")

    sites.answer = refuse
    assert by_site(list(cohort.ask(make_order(plan), ["north"]))) == {"north": "disk_problem"}
    sites.answer = honest
    assert by_site(list(cohort.ask(make_order(plan), ["north"]))) == {"north": "answered"}


def test_a_stop_ends_the_round_and_the_wait(plan: Plan, sites: FakeSites) -> None:
    clock, grid = Clock(), sites.grid()
    grid.sites[10].silent = True
    stopped = LiveCohort(
        grid, now=lambda: clock.now, pause=clock.pause, stop_requested=lambda: clock.now > 3
    )
    with pytest.raises(RunStoppedError):
        list(stopped.ask(make_order(plan, deadline_seconds=60.0), ALL))
    with pytest.raises(RunStoppedError):
        stopped.wait_for(["nowhere"], 60)


def test_waiting_for_sites_says_who_is_missing(plan: Plan, sites: FakeSites) -> None:
    clock, grid = Clock(), sites.grid()
    grid.sites[10].online = grid.sites[11].online = False
    clock.events = [(2.0, lambda: setattr(grid.sites[10], "online", True))]
    assert cohort_of(grid, clock).wait_for(ALL, 5) == ("south",)
    assert clock.now == pytest.approx(5.0, abs=0.3)


def test_a_push_that_a_dying_superlink_broke_is_completed_with_the_same_message(
    plan: Plan, sites: FakeSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, grid = Clock(), sites.grid()
    push, tried = grid.push_messages, []

    def broken_twice(messages: Iterable[Message]) -> Iterable[str]:
        tried.append(messages[0])  # type: ignore[index]
        if len(tried) < 3:
            raise ObjectPushError("0" * 64, 1, "session")
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", broken_twice)
    got = list(cohort_of(grid, clock).ask(make_order(plan, deadline_seconds=60.0), ALL))
    assert by_site(got) == dict.fromkeys(ALL, "answered")
    assert tried[0] is tried[1] is tried[2]


def test_a_push_that_never_succeeds_ends_at_the_deadline(
    plan: Plan, sites: FakeSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, grid = Clock(), sites.grid()

    def broken(messages: Iterable[Message]) -> Iterable[str]:
        raise ObjectPushError("0" * 64, 1, "session")

    monkeypatch.setattr(grid, "push_messages", broken)
    got = list(cohort_of(grid, clock).ask(make_order(plan, deadline_seconds=6.0), ALL))
    assert "answered" not in by_site(got).values()
    assert clock.now < 8.0


class WakingGrid(InProcessGrid):
    """Wakes whoever waits when an answer is due; answers are due at times of the clock."""

    def __init__(self, inner: InProcessGrid, clock: Clock, due: dict[int, float]) -> None:
        super().__init__(inner.sites)
        self.clock, self.due, self.waits = clock, due, list[float]()

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        times = [at for at in self.due.values() if at > self.clock.now]
        self.clock.pause(min([seconds, *(at - self.clock.now for at in times)]))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        node = {m.metadata.message_id: m.metadata.dst_node_id for m in self.pushed}
        ready = [i for i in message_ids if self.due.get(node[i], 0.0) <= self.clock.now]
        return super().pull_messages(ready)


def never(seconds: float) -> None:
    msg = f"slept {seconds} s beside a grid that wakes"
    raise AssertionError(msg)


def test_a_grid_that_wakes_is_waited_on_and_not_polled(plan: Plan, sites: FakeSites) -> None:
    clock = Clock()
    grid = WakingGrid(sites.grid(), clock, {10: 0.5, 11: 4.25, 12: 30.0})
    cohort = LiveCohort(grid, now=lambda: clock.now, pause=never)
    got = {a.site: a for a in cohort.ask(make_order(plan, deadline_seconds=7.0), ALL)}
    assert by_site(list(got.values())) == {"north": "answered", "south": "answered", "west": "late"}
    assert clock.now == pytest.approx(7.0)
    # Until the next look at who is online, or the deadline: six waits, of which two were cut short.
    assert len(grid.waits) == 6
    assert max(grid.waits) == pytest.approx(2.0)
    north, south = got["north"], got["south"]
    assert isinstance(north, Report)
    assert isinstance(south, Report)
    assert north.transfer_seconds == pytest.approx(0.0)  # 0.5 s of work in all
    assert south.transfer_seconds == pytest.approx(3.75)


def test_an_instant_grid_is_never_waited_on(plan: Plan, sites: FakeSites) -> None:
    cohort = LiveCohort(sites.grid(), pause=never)
    for number in range(1, 4):
        answers = list(cohort.ask(make_order(plan, round=number), ALL))
        assert by_site(answers) == dict.fromkeys(ALL, "answered")


def test_a_grid_that_keeps_orders_delivers_them_again_by_itself(
    plan: Plan, sites: FakeSites
) -> None:
    clock = Clock()
    grid = WakingGrid(sites.grid(), clock, {10: 40.0})
    grid.durable = True  # type: ignore[attr-defined]
    for at in range(5, 35, 5):
        clock.events.append((float(at), grid.sites[10].restart))
    cohort = LiveCohort(grid, now=lambda: clock.now, pause=never)
    assert cohort.repeats_answers
    got = list(cohort.ask(make_order(plan, deadline_seconds=60.0), ALL))
    assert by_site(got) == dict.fromkeys(ALL, "answered")
    assert len(grid.pushed) == 3
    assert not cohort_of(sites.grid(), clock).repeats_answers


def test_a_session_that_ends_three_times_on_an_order_is_given_up(
    plan: Plan, sites: FakeSites
) -> None:
    clock, grid = Clock(), sites.grid()
    north = grid.sites[10]
    north.silent = True

    def restart() -> None:
        north.activations += 1

    clock.events = [(float(at), restart) for at in range(3, 60, 5)]
    got = list(cohort_of(grid, clock).ask(make_order(plan, deadline_seconds=100.0), ALL))
    assert by_site(got)["north"] == "internal_error"
    assert [m.metadata.dst_node_id for m in grid.pushed].count(10) == 3
