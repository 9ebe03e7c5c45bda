"""Reports of runs with more sites than a person reads."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asterion_shared.plan import AlgorithmSettings, Plan
from asterion_shared.reports.many_sites import (
    evenly,
    missing_words,
    parts_of_sites,
    pick_sites,
    round_span,
)
from asterion_shared.reports.run_charts import MOST_LINES
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.run_tables import MOST_SITE_ROWS, clip_words
from asterion_shared.reports.terminal import MOST_ROWS, final_table, round_line
from asterion_shared.result import Result, RoundResult, SiteOutcome, SiteSummary, headline
from asterion_shared.simulation_facts import InjectedFault, Simulation

Make = Callable[..., Result]
ENGINE: dict[str, str | int] = {
    "kernel": "shared-base",
    "over": "processes",
    "chunk": 16,
    "workers": 2,
    "threads": 1,
    "dtype": "bf16",
    "device": "cpu",
}


def text_of(path: Path) -> str:
    """The words of a page, without its style and its tags; its dashes as plain ones."""
    page = re.sub(r"(?s)<style>.*?</style>", "", path.read_text(encoding="utf-8"))
    return " ".join(re.sub(r"<[^>]*>", " ", page).replace("\u2013", "-").split())


def large(make: Make, num_sites: int, num_rounds: int, cohort: int, **changes: object) -> Result:
    """A run of many sites: each round asks the next ``cohort``; its last one is unreachable.

    Site number i ends with a Dice of i / num_sites.
    """
    names = [f"s{i:05}" for i in range(num_sites)]
    here = SiteOutcome(outcome="answered", num_examples=10, num_test=4)
    away = SiteOutcome(outcome="failed", code="unreachable")
    rounds = [RoundResult(round=0, asked=tuple(names), outcomes=dict.fromkeys(names, here))]
    for number in range(1, num_rounds + 1):
        asked = sorted(names[(number * cohort + i) % num_sites] for i in range(cohort))
        outcomes = {
            name: SiteOutcome(outcome="answered", num_examples=10, train_loss=1 / number,
                              seconds=0.1 * i, update_norm=1.0 + i, clipped=i < 3)
            for i, name in enumerate(asked)
        }  # fmt: skip
        outcomes[asked[-1]] = away
        measured = names if number == num_rounds else asked[:-1]
        rounds.append(
            RoundResult(
                round=number,
                asked=tuple(asked),
                outcomes=outcomes,
                pooled={"dice": 0.5},
                sites={n: {"dice": int(n[1:]) / num_sites, "num_cases": 4.0} for n in measured},
                seconds=1.0,
            )
        )
    values: dict[str, object] = {
        "rounds": tuple(rounds),
        "rounds_planned": num_rounds,
        "final_metrics": {"dice": 0.5},
        "sites": tuple(SiteSummary(name=n, num_examples=10, num_test=4) for n in names),
    }
    return make(**values | changes)


def test_a_thousand_sites_give_a_short_page(make_result: Make, tmp_path: Path) -> None:
    result = large(make_result, 1000, 100, 50)
    write_report(result, tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 300_000
    assert "lowest Dice s00000 " in words
    assert "highest Dice s00990 " in words
    assert "s00999 10 4 0.999" in words
    assert "970 more sites, in result.json." in words
    assert "all 1,000 sites pooled 10,000 4,000 0.500" in words
    # The quantiles of 0, 0.001, ..., 0.999.
    assert "median Dice is 0.499; one in ten is at 0.100 or below, and" in words
    assert "Dice 0.500 0.000 0.100 0.499 0.899 0.999 1,000" in words
    assert "middle 80 % of the sites" in words
    assert "at about 49; the last one at 1,000." in words
    assert "each of" not in words


def test_the_absences_of_many_sites_are_counted(make_result: Make, tmp_path: Path) -> None:
    result = large(make_result, 1000, 100, 50)
    write_report(result, tmp_path / "r.html")
    # 20 cohorts of 50 come round five times, each time without the same last site.
    assert (
        "failed 100 20 1-100 the site could not be reached [unreachable] "
        "s00049, s00099, s00149 and 17 more" in text_of(tmp_path / "r.html")
    )
    said = headline(result)
    assert said == (
        "100 of 100 rounds finished; 20 of 1,000 sites missing in one round or more (20 "
        "unreachable)"
    )


def test_the_headline_counts_the_sites_that_were_never_asked(make_result: Make) -> None:
    result = large(make_result, 900, 2, 50)
    without_count = result.model_copy(update={"rounds": result.rounds[1:]})
    assert headline(without_count).endswith("; 800 of 900 sites were never asked")


def test_the_headline_of_six_absent_sites_counts_by_reason(make_result: Make) -> None:
    late, gone = SiteOutcome(outcome="late"), SiteOutcome(outcome="failed", code="no_data")
    outcomes = {"a": gone} | dict.fromkeys("bcdef", late) | {"g": SiteOutcome(outcome="answered")}
    rounds = (RoundResult(round=1, asked=tuple("abcdefg"), outcomes=outcomes),)
    said = headline(make_result(rounds=rounds, rounds_planned=1, sites=()))
    assert said == (
        "1 of 1 rounds finished; 6 of 7 sites missing in one round or more (5 late, 1 no data)"
    )


def test_the_terminal_shows_some_of_many_sites(make_result: Make) -> None:
    result = large(make_result, 1000, 3, 50)
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_table(result))
    text = console.export_text()
    rows = [line.split()[0] for line in text.splitlines() if re.match(r" ?s\d", line)]
    third = MOST_ROWS // 3
    assert len(rows) == MOST_ROWS
    assert rows[:third] == [f"s{i:05}" for i in range(third)]
    assert rows[-1] == "s00999"
    assert f"{1000 - MOST_ROWS} more sites, in result.json" in text
    assert f" s{1000 // 2 - third // 2 - 1:05} " in text
    assert len(text.splitlines()) < 45


def test_a_line_of_a_round_counts_many_absences(make_result: Make) -> None:
    outcomes = {f"s{i}": SiteOutcome(outcome="late") for i in range(8)}
    round_ = RoundResult(round=1, asked=tuple(outcomes), outcomes=outcomes)
    line = round_line(round_, "segmentation", 3)
    assert line.endswith("missing: 8 late (s0, s1, s2 and 5 more)[/]")


def test_the_section_on_the_simulation(make_result: Make, plan: Plan, tmp_path: Path) -> None:
    faults = tuple(
        InjectedFault(round=r, site=site, fault=kind)
        for r, site, kind in ((1, "east", "scaled"), (2, "east", "scaled"), (2, "north", "drop"))
    )
    simulation = Simulation(engine=ENGINE, scenario_sha256="c" * 64, faults=faults)
    write_report(make_result(simulation=simulation), tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    assert "How it was simulated" in words
    assert "the weights that all of them start from are multiplied once for all" in words
    assert "Up to 16 sites form a chunk. This was done in worker processes (workers: 2)." in words
    assert "rounded to bfloat16" in words
    assert "about 1 part in 200" in words
    assert (
        "--engine processes:shared-base --chunk 16 --workers 2 --dtype bf16 --device cpu" in words
    )
    assert "c" * 64 in words
    # East answered both times; north's drop is why it is missing in round 2.
    assert "drop never got the order 2 1 1 0 north" in words
    assert "scaled multiplied its update by a factor 1-2 2 1 2 east" in words
    assert "clipped" not in words


@pytest.mark.parametrize("kernel", ["sequential", "vectorised", "shared-base"])
def test_every_engine_has_words(make_result: Make, tmp_path: Path, kernel: str) -> None:
    simulation = Simulation(engine=ENGINE | {"kernel": kernel, "dtype": "f32", "over": "here"})
    write_report(make_result(simulation=simulation), tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    assert "The engine is" not in words
    assert f"engine {kernel} where one process sites in a chunk 16" in words
    assert "worker processes 2 threads 1 precision f32" in words
    assert "All numbers are float32 or wider." in words
    assert "No fault was injected." in words
    assert "none: no scenario was given" in words


def test_a_live_run_has_no_section_on_a_simulation(make_result: Make, tmp_path: Path) -> None:
    write_report(make_result(carrier="flower"), tmp_path / "r.html")
    assert "How it was simulated" not in text_of(tmp_path / "r.html")


def test_clipping_is_told_only_with_a_clip_norm(
    make_result: Make, plan: Plan, tmp_path: Path
) -> None:
    clipping = plan.model_copy(update={"algorithm": AlgorithmSettings(clip_norm=2.5)})
    calm = make_result(plan_sha256=clipping.sha256)
    assert clip_words(calm, None) == ""
    assert clip_words(calm, clipping) == (
        "0 of 5 updates (0%) were shortened to a Euclidean length of 2.5"
    )
    write_report(calm, tmp_path / "r.html", plan=clipping)
    assert "rounds clipped" in text_of(tmp_path / "r.html")
    write_report(make_result(), tmp_path / "r.html", plan=plan)
    assert "rounds clipped" not in text_of(tmp_path / "r.html")
    # Four sites a round, of which the last is away and the first three are clipped.
    busy = large(make_result, 8, 4, 4)
    assert clip_words(busy, None) == (
        "12 of 12 updates (100%) were shortened to the plan's clip norm"
    )
    write_report(busy, tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    # s00000 is first in its cohort in rounds 2 and 4; s00003 is the one that is away.
    assert "s00000 10 4 0.000 - - 2 of 2 0 2 " in words
    assert "s00003 10 4 0.375 - - 0 of 2 0 0 " in words


def test_the_data_sets_of_many_sites_are_cut_short(make_result: Make, tmp_path: Path) -> None:
    result = large(make_result, 100, 1, 10)
    sites = tuple(s.model_copy(update={"manifest_sha256": "b" * 64}) for s in result.sites)
    write_report(result.model_copy(update={"sites": sites}), tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    assert words.count("b" * 64) == MOST_SITE_ROWS
    assert "70 more sites, in result.json. " in words
    write_report(result, tmp_path / "r.html")
    assert "Frozen data sets" not in text_of(tmp_path / "r.html")


def test_skipped_files_of_many_sites_are_one_sentence(make_result: Make, tmp_path: Path) -> None:
    sites = tuple(SiteSummary(name=f"s{i}", num_bad_files=i) for i in range(9))
    write_report(make_result(sites=sites), tmp_path / "r.html")
    assert (
        "36 files of 8 sites could not be read and were skipped, most at s8 (8), s7 (7), s6 (6) "
        "and 5 more" in text_of(tmp_path / "r.html")
    )


def test_a_run_of_many_rounds_shows_some(make_result: Make, tmp_path: Path) -> None:
    rounds = tuple(RoundResult(round=number) for number in range(1001))
    write_report(make_result(rounds=rounds, rounds_planned=1000), tmp_path / "r.html")
    words = text_of(tmp_path / "r.html")
    assert "801 more rounds, in result.json." in words
    assert " 1000 0 0 - - - - 0.0 s" in words


def test_up_to_thirty_sites_have_a_curve_each(make_result: Make, tmp_path: Path) -> None:
    write_report(large(make_result, MOST_LINES, 2, 3), tmp_path / "r.html")
    assert f"each of {MOST_LINES} sites" in text_of(tmp_path / "r.html")
    write_report(large(make_result, MOST_LINES + 1, 2, 3), tmp_path / "r.html")
    assert "each of" not in text_of(tmp_path / "r.html")


names = st.lists(st.integers(0, 10**6).map(str), unique=True, max_size=60).map(sorted)


@given(names, st.data(), st.integers(3, 30))
def test_picked_sites_are_the_lowest_the_middle_and_the_highest(
    known: list[str], data: st.DataObject, most: int
) -> None:
    value = st.none() | st.integers(0, 5).map(float)
    values = {name: data.draw(value) for name in known}
    groups = pick_sites(known, values, most)
    picked = [name for group in groups for name in group.sites]
    assert len(picked) == len(set(picked)) <= most
    assert set(picked) <= set(known)
    if len(groups) == 3:
        ranked = [values[name] for name in picked]
        assert ranked == sorted(ranked, key=lambda v: -1 if v is None else v)
        left = [v for name, v in values.items() if v is not None and name not in picked]
        assert all(v >= values[groups[0].sites[-1]] for v in left)  # type: ignore[operator]
        assert all(v <= values[groups[2].sites[0]] for v in left)  # type: ignore[operator]
    else:
        assert len(picked) == min(len(known), most) or all(
            values[name] is None or name in picked for name in known
        )


def test_without_values_the_first_sites_are_shown() -> None:
    (group,) = pick_sites("abcdef", {}, 4)
    assert (group.words, group.sites) == ("by name", tuple("abcd"))


def test_parts_leave_out_the_count_before_training(make_result: Make) -> None:
    parts = parts_of_sites(make_result().rounds)
    assert (parts["north"].asked, parts["north"].answered) == (2, 1)
    assert (parts["east"].asked, parts["east"].answered) == (2, 2)


def test_words_for_nobody_and_for_no_round() -> None:
    assert missing_words({}) == ""
    assert round_span([]) == ""
    assert round_span([0]) == "start"


@given(st.integers(0, 500), st.integers(2, 50))
def test_evenly_spread_entries_keep_both_ends(count: int, most: int) -> None:
    picked = evenly(count, most)
    assert picked == sorted(set(picked))
    assert len(picked) == min(count, most)
    if count:
        assert (picked[0], picked[-1]) == (0, count - 1)
