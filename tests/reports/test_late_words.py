"""Who was late, waited for or carried over: in headline, terminal and report."""

import io
from collections.abc import Callable
from pathlib import Path

from asterion_shared.events import (
    DeadlineDerived,
    RoundFinished,
    SiteAwaited,
    append_event,
    read_events,
)
from asterion_shared.plan import Plan
from asterion_shared.reports.many_sites import late_words, parts_of_sites
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.terminal import RoundPrinter, awaited_line, deadline_line, round_line
from asterion_shared.result import Result, RoundResult, SiteOutcome, headline

Make = Callable[..., Result]


def waited(seconds: float) -> SiteOutcome:
    return SiteOutcome(outcome="answered", late_seconds=seconds)


def carried(made_for: int) -> SiteOutcome:
    return SiteOutcome(outcome="carried", made_for=made_for, num_examples=3, train_loss=9.0)


def round_of(number: int, **outcomes: SiteOutcome) -> RoundResult:
    fine = {site: SiteOutcome(outcome="answered", num_examples=1, train_loss=1.0)
            for site in ("a", "b")}  # fmt: skip
    all_of = fine | outcomes
    return RoundResult(
        round=number, asked=tuple(sorted(all_of)), outcomes=all_of, deadline_seconds=84.0
    )


def test_headline_names_who_was_waited_for_and_carried_over(make_result: Make) -> None:
    rounds = (
        round_of(1, north=waited(30.0), south=SiteOutcome(outcome="late")),
        round_of(2, north=waited(362.0), south=carried(1)),
        round_of(3, south=SiteOutcome(outcome="late")),
        round_of(5, south=carried(3)),
    )
    said = headline(make_result(rounds=rounds, rounds_planned=5, sites=()))
    assert said == (
        "4 of 5 rounds finished; site south missing in rounds 1, 3 (late); "
        "site north waited for in rounds 1-2 (at most 6 min 2 s beyond the deadline); "
        "site south carried over into rounds 2, 5 (made for rounds 1, 3)"
    )
    only = headline(make_result(rounds=(round_of(1, north=waited(2.5)),), sites=()))
    assert only.endswith(
        "no site was missing; site north waited for in round 1 (2.5 s beyond the deadline)"
    )


def test_headline_counts_many(make_result: Make) -> None:
    many = {f"s{n}": waited(n + 1.0) for n in range(7)} | {f"t{n}": carried(1) for n in range(6)}
    said = headline(make_result(rounds=(round_of(2, **many),), sites=()))
    assert "7 sites waited for, at most 7.0 s beyond a deadline" in said
    assert "reports of 6 sites carried over into a later round" in said


def test_a_carried_report_is_neither_missing_nor_of_the_round() -> None:
    found = round_of(3, south=carried(1), west=SiteOutcome(outcome="late"))
    assert found.answered == ("a", "b")
    assert found.missing == {"west": "late"}
    assert found.carried == {"south": 1}
    held = SiteOutcome(outcome="quarantined", made_for=1)
    assert round_of(3, south=held).carried == {}
    assert found.train_loss == 1.0, "its loss is of an older model"
    assert parts_of_sites([found])["south"].answered == 1


def test_lines_of_the_terminal() -> None:
    round_ = round_of(3, north=waited(362.0), south=carried(1))
    assert late_words(round_) == "waited for north (6 min 2 s), carried over: south (of round 1)"
    assert "waited for north" in round_line(round_, "classification", 5)
    many = {f"s{n}": waited(n + 1.0) for n in range(7)} | {f"t{n}": carried(1) for n in range(6)}
    assert late_words(round_of(2, **many)) == (
        "waited for s0, s1, s2 and 4 more (at most 7.0 s), carried over: t0, t1, t2 and 3 more"
    )
    assert late_words(round_of(1)) == ""
    first = DeadlineDerived(round=1, phase="train", deadline_seconds=3600.0)
    assert deadline_line(first) == "round 1: deadline 1 h; nothing is measured yet"
    later = DeadlineDerived(
        round=3, phase="train", deadline_seconds=84.0, site="north", site_seconds=28.0
    )
    assert deadline_line(later) == (
        "round 3: deadline 1 min 24 s; slowest is site north with 28.0 s"
    )
    last = DeadlineDerived(round=6, phase="evaluate", deadline_seconds=60.0)
    assert deadline_line(last) == "evaluation: deadline 1 min; nothing is measured yet"
    since = "2026-01-02T14:02:11Z"
    lines = [
        awaited_line(SiteAwaited(round=3, phase="train", site="north", state=state, since=since))
        for state in ("away", "late", "back")
    ]
    assert lines == [
        "round 3: waiting for site north, away since 14:02 UTC (2026-01-02)",
        "round 3: waiting for site north, past the deadline, at work since 14:02 UTC (2026-01-02)",
        "round 3: site north is back, it was away since 14:02 UTC (2026-01-02)",
    ]


def test_the_printer_and_the_file_take_the_new_events(tmp_path: Path) -> None:
    events = [
        DeadlineDerived(round=1, phase="train", deadline_seconds=3600.0),
        SiteAwaited(
            round=1, phase="train", site="north", state="away", since="2026-01-02T14:02:11Z"
        ),
        RoundFinished(round_result=round_of(1, north=waited(3.0))),
    ]
    stream = io.StringIO()
    printer = RoundPrinter(stream=stream)
    for event in events:
        printer(event)
        append_event(tmp_path / "events.jsonl", event)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "waiting for site north" in lines[1]
    assert read_events(tmp_path / "events.jsonl") == events


def test_an_event_behind_many_others_is_appended_to_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = DeadlineDerived(round=1, phase="train", deadline_seconds=3600.0)
    append_event(path, event)
    line = path.read_bytes()
    path.write_bytes(line * 2000 + b"x" * 200_000)  # a torn line longer than a block
    append_event(path, event)
    assert path.read_bytes() == line * 2001
    path.write_bytes(b"y" * 70_000)
    append_event(path, event)
    assert path.read_bytes() == line


def test_the_report_shows_deadline_and_late_sites(
    make_result: Make, plan: Plan, tmp_path: Path
) -> None:
    rounds = (round_of(0), round_of(1, north=waited(362.0)), round_of(2, south=carried(1)))
    write_report(make_result(rounds=rounds), tmp_path / "report.html", plan=plan)
    page = (tmp_path / "report.html").read_text()
    assert "waited for, carried over" in page
    assert "waited for north (6 min 2 s)" in page
    assert "carried over: south (of round 1)" in page
    assert "1 min 24 s" in page
    write_report(make_result(), tmp_path / "other.html", plan=plan)
    assert "carried over" not in (tmp_path / "other.html").read_text()
