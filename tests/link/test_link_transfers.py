"""The site's rate cap and its hours, with a clock of the test's own."""

import datetime
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_client.link_session import RETRY_SECONDS, retry_seconds
from asterion_client.link_transfers import RateCap, parse_hours, seconds_until_open


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@given(st.lists(st.tuples(st.integers(1, 2**20), st.floats(0, 30)), min_size=1, max_size=20))
def test_no_more_bytes_than_the_rate_allows(moves: list[tuple[int, float]]) -> None:
    clock = Clock()
    cap = RateCap(50_000, now=clock, pause=clock.pause)
    began, moved = clock.now, 0
    for num_bytes, idle in moves:
        cap.moved(num_bytes)
        moved += num_bytes
        assert moved <= 50_000 * (clock.now - began) + 1e-3
        clock.now += idle  # time in which nothing moved is not saved up
    clock.now += 1000
    before = clock.now
    cap.moved(100_000)
    assert clock.now == pytest.approx(before + 2.0)


def test_an_idle_cap_costs_exactly_the_bytes_over_the_rate() -> None:
    clock = Clock()
    cap = RateCap(10_000, now=clock, pause=clock.pause)
    for _ in range(5):
        cap.moved(2_500)
    assert clock.now == pytest.approx(101.25)


def test_without_a_cap_nothing_waits() -> None:
    RateCap(None, pause=lambda _: pytest.fail("it paused")).moved(2**40)


def test_two_threads_share_one_cap() -> None:
    waits: list[float] = []
    cap = RateCap(1_000_000, now=lambda: 0.0, pause=waits.append)
    threads = [
        threading.Thread(target=lambda: [cap.moved(1000) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(waits) == pytest.approx(0.8)  # all 800 kB were counted


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"2026-03-14T{text}")


@pytest.mark.parametrize(
    ("hours", "now", "seconds"),
    [
        ([], "12:00:00", 0),
        (["19:00-07:00"], "18:59:00", 60),
        (["19:00-07:00"], "19:00:00", 0),
        (["19:00-07:00"], "23:59:59", 0),
        (["19:00-07:00"], "00:00:00", 0),
        (["19:00-07:00"], "06:59:59", 0),
        (["19:00-07:00"], "07:00:00", 12 * 3600),
        (["12:00-13:00"], "13:00:00", 23 * 3600),
        (["12:00-13:00", "15:30-16:00"], "13:00:00", 2.5 * 3600),
        (["00:00-12:00", "12:00-00:00"], "12:00:00", 0),
        (["01:00-02:00"], "23:00:00", 2 * 3600),
    ],
)
def test_hours(hours: list[str], now: str, seconds: float) -> None:
    assert seconds_until_open(hours, at(now)) == seconds


MINUTES = st.integers(0, 24 * 60 - 1)


@given(MINUTES, MINUTES.filter(bool), MINUTES)
def test_hours_open_when_they_say(begin: int, lasts: int, now: int) -> None:
    def text(minutes: int) -> str:
        return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"

    day = datetime.datetime(2026, 6, 15)
    hours = [f"{text(begin)}-{text(begin + lasts)}"]
    wait = seconds_until_open(hours, day + datetime.timedelta(minutes=now))
    # A slow oracle: the first minute from now on that lies inside.
    inside = next(m for m in range(1441) if (now + m - begin) % 1440 < lasts)
    assert wait == 60 * inside


@pytest.mark.parametrize("text", ["", "7-8", "25:00-01:00", "07:00", "07:00-07:00", "a-b"])
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of datetime's own words
        parse_hours(text)


def test_a_session_that_held_is_dialled_again_at_once() -> None:
    assert retry_seconds(0) == min(RETRY_SECONDS)
    pauses = [retry_seconds(failures) for failures in range(1, 9)]
    assert pauses == [*RETRY_SECONDS, *[max(RETRY_SECONDS)] * 3]
