from collections.abc import Callable
from pathlib import Path

import pytest

from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.events import (
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
    append_event,
    event_line,
    read_events,
    told_the_end,
)
from asterion_shared.result import Result


@pytest.fixture
def events(make_result: Callable[..., Result]) -> list[Event]:
    result = make_result()
    start = RunStarted(
        run="r", plan="small-run", task="segmentation", sites=("east", "north"), rounds=2
    )
    return [
        start,
        *(RoundFinished(round_result=r) for r in result.rounds),
        RunFinished(result=result),
    ]


def test_events_come_back_equal_and_in_order(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "run" / "events.jsonl"
    assert read_events(path) == []
    for number, event in enumerate(events, start=1):
        append_event(path, event)
        assert read_events(path) == events[:number]


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_half_written_line_waits_and_is_replaced(
    tmp_path: Path, events: list[Event], cut: int
) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, events[0])
    with path.open("ab") as file:
        file.write(event_line(events[1]).encode()[:cut])
    assert read_events(path) == events[:1]
    append_event(path, events[2])
    assert read_events(path) == [events[0], events[2]]


def test_a_last_line_with_zeros_in_it_was_torn(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, events[0])
    torn = event_line(events[-1]).encode()
    with path.open("ab") as file:
        file.write(bytes(20) + torn[20:] + b"\n")  # its first page was lost, its last was not
    assert read_events(path) == events[:1]
    assert not told_the_end(path)
    append_event(path, events[1])
    assert read_events(path) == events[:2]


def test_a_whole_line_that_is_no_event_is_named(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, events[0])
    with path.open("ab") as file:
        file.write(b'{"event": "party"}\n')
    with pytest.raises(FileProblemError, match="line 2 is not an event"):
        read_events(path)


def test_a_folder_that_cannot_be_made_is_a_disk_problem(
    tmp_path: Path, events: list[Event]
) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(DiskProblemError):
        append_event(tmp_path / "taken" / "events.jsonl", events[0])


def test_an_event_is_one_line(events: list[Event]) -> None:
    assert all("\n" not in event_line(event) for event in events)
