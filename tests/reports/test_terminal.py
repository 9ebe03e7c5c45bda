import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from asterion_shared.events import RoundFinished, RunFinished, RunStarted
from asterion_shared.reports.terminal import RoundPrinter, final_table
from asterion_shared.result import Result, SiteSummary

Make = Callable[..., Result]


def play(result: Result, printer: RoundPrinter) -> None:
    with printer:
        printer(
            RunStarted(
                run=result.run, plan=result.name, task=result.task, rounds=2,
                sites=("east", "north", "south"),
            )
        )  # fmt: skip
        for round_ in result.rounds:
            printer(RoundFinished(round_result=round_))
        printer(RunFinished(result=result))


def test_a_line_a_round_says_who_is_missing(make_result: Make) -> None:
    stream = io.StringIO()
    play(make_result(headline="the end"), RoundPrinter(stream=stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "small-run run small-run-1: segmentation, 2 rounds, 3 sites (east, north, south)"
    )
    assert lines[2] == (
        "round 1/2  3/3 sites  Dice 0.400 (baseline 0.010)  lowest east 0.400  loss 1.000  2.0 s"
    )
    assert lines[3].startswith("round 2/2  2/3 sites  Dice 0.600")
    assert lines[3].endswith("missing: north (unreachable)")
    assert lines[-1] == "finished: the end"


def test_json_lines_are_whole_objects_and_end_with_the_result(make_result: Make) -> None:
    stream, result = io.StringIO(), make_result()
    play(result, RoundPrinter(as_json=True, stream=stream))
    values = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [v["event"] for v in values] == ["run_started", *["round_finished"] * 3, "run_finished"]
    assert Result.model_validate(values[-1]["result"]) == result


def test_markup_in_a_name_is_printed_not_obeyed(make_result: Make) -> None:
    stream = io.StringIO()
    play(make_result(headline="[bold]x[/bold]", run="[red]"), RoundPrinter(stream=stream))
    assert "[bold]x[/bold]" in stream.getvalue()
    assert "run [red]:" in stream.getvalue()


def test_the_table_has_a_row_a_site_and_the_pooled_one(make_result: Make) -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_table(make_result()))
    text = console.export_text()
    assert "…" not in text  # an ellipsis: a number that did not fit
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert {"east", "north", "south", "pooled"} <= set(rows)
    assert "0.600" in rows["east"]
    assert "2/2" in rows["east"]
    assert "1/2" in rows["north"]
    assert "0.55-0.65" in rows["pooled"]
    assert "9.0 kB down, 18.0 kB up" in text


def test_in_a_narrow_terminal_names_are_cut_and_never_numbers(make_result: Make) -> None:
    result = make_result()
    long = "a-hospital-with-a-name-that-is-longer-than-its-column"
    sites = (*result.sites, SiteSummary(name=long, num_examples=1234567))
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_table(result.model_copy(update={"sites": sites})))
    (row,) = [line for line in console.export_text().splitlines() if "1,234,567" in line]
    assert row.split()[0].endswith("…")
    assert row.count("…") == 1
    assert row.split()[-2:] == ["0/0", "0"]


def test_a_wide_terminal_shows_the_secondary_metrics(make_result: Make) -> None:
    def heads(width: int) -> list[object]:
        return [column.header for column in final_table(make_result(), width=width).columns]

    assert "HD95\n(mm)" in heads(110)
    assert "HD95\n(mm)" not in heads(109)


def test_a_wide_terminal_has_room_for_the_names_of_a_classifiers_sites(make_result: Make) -> None:
    metrics = {"auroc": 0.9, "balanced_accuracy": 0.8, "auprc": 0.7, "calibration_error": 0.1,
               "auroc_low": 0.85, "auroc_high": 0.95, "num_cases": 1000.0}  # fmt: skip
    result = make_result(task="classification", final_metrics=metrics)
    console = Console(file=io.StringIO(), width=110, record=True)
    console.print(final_table(result, width=110))
    text = console.export_text()
    assert "…" not in text
    for word in ("north", "pooled", "calibration", "balanced", "0.85-0.95"):
        assert word in text


def test_the_bar_is_gone_when_the_run_breaks_off(make_result: Make) -> None:
    stream = io.StringIO()
    printer = RoundPrinter(stream=stream)
    printer._console = Console(file=stream, force_terminal=True, width=120)

    def break_off() -> None:
        with printer:
            printer(RunStarted(run="r", plan="p", task="anomaly", sites=("a",), rounds=2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert printer._progress is None
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is shown again
