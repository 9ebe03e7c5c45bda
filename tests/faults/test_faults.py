"""Settings, schedule and traces of faults: what strikes whom is a pure function."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_shared.errors import FileProblemError, SettingsError
from asterion_shared.settings_files import validate
from asterion_sim.faults import Fault, FaultSchedule, FaultSettings, Trace, injected
from asterion_sim.faulty_cohort import changed_update
from asterion_sim.traces import read_trace, trace_of_lines

SITES = tuple(f"site_{n:03d}" for n in range(1, 41))


def schedule(
    *entries: dict[str, object], seed: int = 1, trace: Trace | None = None
) -> FaultSchedule:
    known = [validate(FaultSettings, entry, "scenario") for entry in entries]
    return FaultSchedule(known, seed, SITES, trace)


def struck(plan: FaultSchedule, rounds: range = range(1, 21)) -> set[tuple[int, str]]:
    return {(r, s) for r in rounds for s in SITES if plan.fault(r, s) is not None}


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    probability=st.floats(0, 1),
    share=st.floats(0.01, 1),
    order=st.permutations(range(40)),
)
def test_the_order_of_asking_changes_nothing(
    seed: int, probability: float, share: float, order: list[int]
) -> None:
    entry: dict[str, object] = {"kind": "drop", "probability": probability, "share": share}
    first, again = schedule(entry, seed=seed), schedule(entry, seed=seed)
    known = {SITES[n]: first.fault(3, SITES[n]) for n in order}
    assert all(again.fault(3, site) == fault for site, fault in reversed(known.items()))
    # An entry at the end changes none of the others.
    longer = schedule(entry, {"kind": "nan"}, seed=seed)
    assert all(longer.fault(3, s) == fault for s, fault in known.items() if fault is not None)


def test_probability_is_the_share_of_rounds_and_sites() -> None:
    found = struck(schedule({"kind": "drop", "probability": 0.3}), range(1, 101))
    # 4,000 draws: deviation sqrt(0.3 * 0.7 / 4000) = 0.0072.
    assert len(found) / 4000 == pytest.approx(0.3, abs=0.03)
    by_round = [len({s for r, s in found if r == n}) for n in range(1, 101)]
    by_site = [len({r for r, s in found if s == name}) for name in SITES]
    assert np.var(by_round) == pytest.approx(40 * 0.21, rel=0.5)
    assert np.var(by_site) == pytest.approx(100 * 0.21, rel=0.5)
    assert not struck(schedule({"kind": "drop", "probability": 0.0}))


@pytest.mark.parametrize(("share", "number"), [(0.1, 4), (0.01, 1), (0.5, 20), (1.0, 40)])
def test_share_is_exact_and_the_same_in_every_round(share: float, number: int) -> None:
    found = struck(schedule({"kind": "nan", "share": share}))
    sites = {s for _, s in found}
    assert len(sites) == number
    assert found == {(r, s) for r in range(1, 21) for s in sites}
    other = struck(schedule({"kind": "nan", "share": share}, seed=2))
    assert share == 1 or {s for _, s in other} != sites


def test_patterns_and_rounds() -> None:
    plan = schedule(
        {"kind": "drop", "sites": ["site_00[1-3]", "site_040"], "rounds": "2-3, 7, 19-"}
    )
    sites = {"site_001", "site_002", "site_003", "site_040"}
    assert struck(plan) == {(r, s) for r in (2, 3, 7, 19, 20) for s in sites}
    assert struck(schedule({"kind": "drop", "rounds": [1, "3-4"]})) == {
        (r, s) for r in (1, 3, 4) for s in SITES
    }
    assert struck(schedule({"kind": "drop", "rounds": 5})) == {(5, s) for s in SITES}


def test_the_count_is_struck_only_when_it_is_named() -> None:
    assert schedule({"kind": "drop"}).fault(0, SITES[0]) is None
    assert schedule({"kind": "drop", "rounds": "0-2"}).fault(0, SITES[0]) is not None
    # There is no update in the count.
    assert schedule({"kind": "nan", "rounds": "0-2"}).fault(0, SITES[0]) is None


def test_the_first_entry_that_strikes_counts() -> None:
    plan = schedule({"kind": "drop", "rounds": 2}, {"kind": "scaled", "factor": -3})
    assert plan.fault(2, SITES[0]) == Fault(
        kind="drop", outcome="failed", code="unreachable", stage=""
    )
    assert plan.fault(3, SITES[0]) == Fault(kind="scaled", factor=-3.0)


def test_delays_are_log_normal() -> None:
    plan = schedule({"kind": "delay", "seconds": 20.0, "seconds_sigma": 0.5})
    seconds = [plan.fault(r, s).seconds for r in range(1, 51) for s in SITES]  # type: ignore[union-attr]
    logs = np.log(np.array(seconds, float))
    assert logs.mean() == pytest.approx(np.log(20), abs=0.05)
    assert logs.std() == pytest.approx(0.5, rel=0.1)
    fixed = schedule({"kind": "delay", "seconds": 20.0}).fault(1, SITES[0])
    assert fixed == Fault(kind="delay", seconds=20.0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "explode"}, "must be 'drop', 'delay'"),
        ({"kind": "delay"}, "'delay' needs seconds"),
        ({"kind": "drop", "seconds": 3}, "no other kind takes it"),
        ({"kind": "drop", "seconds_sigma": 3}, "'delay' only"),
        ({"kind": "scaled"}, "'scaled' needs factor"),
        ({"kind": "nan", "factor": 3}, "no other kind takes it"),
        ({"kind": "nan", "wrong": "sign_flipped"}, "'wrong_update' only"),
        ({"kind": "nan", "labels": [1, 0]}, "'label_flip' only"),
        ({"kind": "label_flip", "rounds": "3"}, "the whole run"),
        ({"kind": "label_flip", "probability": 0.5}, "the whole run"),
        ({"kind": "drop", "rounds": "soon"}, "'soon' is no round"),
        ({"kind": "drop", "rounds": "5-3"}, "ends before it begins"),
        ({"kind": "drop", "share": 0}, "must be > 0"),
    ],
)
def test_wrong_entries_are_refused(entry: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        schedule(entry)


def test_a_pattern_that_fits_no_site_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"faults\.1\.sites: 'nord' fits no site; the run's"):
        schedule({"kind": "drop"}, {"kind": "drop", "sites": ["site_001", "nord"]})


def test_changed_updates_by_hand() -> None:
    update = np.array([3.0, -4.0, 0.0], np.float32)

    def changed(fault: Fault) -> np.ndarray:
        got = changed_update(update, fault, np.random.default_rng(1))
        assert got.dtype == np.float32
        return got

    assert changed(Fault(kind="scaled", factor=-2.0)).tolist() == [-6.0, 8.0, 0.0]
    assert changed(Fault(kind="wrong_update", wrong="sign_flipped")).tolist() == [-3.0, 4.0, 0.0]
    assert np.isnan(changed(Fault(kind="nan"))).sum() == 1
    noise = changed(Fault(kind="wrong_update"))
    assert np.linalg.norm(noise) == pytest.approx(5.0)
    assert not np.allclose(noise, update)
    assert update.tolist() == [3.0, -4.0, 0.0]
    assert changed(Fault(kind="scaled", factor=1e39)).tolist() == [np.inf, -np.inf, 0.0]


def test_injected_lists_every_fault_of_a_site_that_was_asked() -> None:
    plan = schedule(
        {"kind": "drop", "sites": ["site_001"], "rounds": 1},
        {"kind": "delay", "sites": ["site_002"], "seconds": 4.0, "rounds": "1-2"},
        {"kind": "scaled", "sites": ["site_003"], "factor": 10},
        {"kind": "label_flip", "sites": ["site_003"]},
    )
    rounds = {0: SITES[:3], 1: SITES[:2], 2: SITES[2:4]}
    assert injected(plan, rounds) == [
        {"round": 1, "site": "site_001", "fault": "drop", "code": "unreachable"},
        {"round": 1, "site": "site_002", "fault": "delay", "seconds": 4.0},
        {"round": 2, "site": "site_003", "fault": "scaled", "factor": 10.0},
        {"round": 2, "site": "site_003", "fault": "label_flip"},
    ]


LINES = """\
{"round": 1, "site": "site_001", "fault": "drop"}

{"round": 2, "site": "site_001", "seconds": 12.5}
{"round": 2, "site": "site_002", "fault": "scaled", "factor": 4, "seconds": 2}
{"round": 3, "participants": ["site_002", "site_001"]}
{"round": 3, "site": "site_002", "fault": "late"}
"""


def test_a_trace_of_lines_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(LINES)
    plan = schedule({"kind": "nan", "rounds": "2-"}, trace=read_trace(tmp_path / "trace.jsonl"))
    drop = Fault(kind="drop", outcome="failed", code="unreachable")
    assert plan.fault(1, "site_001") == drop
    assert plan.fault(1, "site_002") is None
    assert plan.fault(2, "site_001") == Fault(kind="delay", seconds=12.5)
    assert plan.fault(2, "site_002") == Fault(kind="scaled", factor=4.0, seconds=2.0)
    # Where the trace is silent, the entries speak.
    assert plan.fault(2, "site_003") == Fault(kind="nan")
    assert plan.fault(3, "site_002") == Fault(kind="late", outcome="late")
    assert plan.fault(3, "site_001") == Fault(kind="nan")
    # Who did not take part is missing.
    assert plan.fault(3, "site_003") == drop
    assert plan.participants(3) == ("site_001", "site_002")
    assert plan.participants(2) is None


def test_every_wrong_line_of_a_trace_is_named() -> None:
    lines = [
        '{"round": 1, "site": "a", "fault": "drop"}',
        '{"round": 1, "site": "a", "fault": "late"}',
        "not json",
        "[3]",
        '{"round": -1, "site": "a", "fault": "explode"}',
        '{"round": 1}',
        '{"round": 1, "site": "b"}',
        '{"round": 1, "site": "b", "fault": "delay"}',
        '{"round": 1, "site": "b", "fault": "drop", "seconds": 3}',
        '{"round": 1, "participants": ["a"], "seconds": 3}',
    ]
    with pytest.raises(SettingsError) as caught:
        trace_of_lines(lines, "t.jsonl")
    named = {problem.where.partition(":")[0] for problem in caught.value.problems}
    assert named == {f"line {n}" for n in range(2, 11)}
    assert "line 2: a second line about a in round 1" in str(caught.value)


def test_a_trace_of_other_sites_is_refused() -> None:
    trace = trace_of_lines(['{"round": 1, "participants": ["north", "site_001"]}'])
    with pytest.raises(SettingsError, match="names 1 unknown sites: north; rename them"):
        schedule(trace=trace)


def test_a_trace_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="No such file"):
        read_trace(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(FileProblemError, match="UTF-8"):
        read_trace(tmp_path / "latin.jsonl")
