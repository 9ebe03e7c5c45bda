"""The benchmark's verdicts, and what our runner writes and watches."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asterion_shared.plan import read_plan
from bench.bench_simulation import runners
from bench.curves import MemoryWatch
from bench.limits import bounds
from bench.ours import cohort_lines, from_plan_names, plan_text, to_plan_names, watch, write_run
from bench.races import RACES, Race, Verdict, judge, table
from bench.workloads import WORKLOADS, cohort, initial_network

RACE = Race(
    workload="cnn", dtype="f32", rounds=5, flower_rounds=5, pfl_bar=1.5, flower_bar=3.3
)  # fmt: skip


def medians_of(
    ours: float, pfl: float, flower: float, loss: float = 0.5
) -> dict[str, dict[str, dict[str, float]]]:
    def one(cost: float, loss: float = 0.5) -> dict[str, float]:
        return {"cpu_ms_per_client": cost, "clients_per_s": 2000 / cost, "final_loss": loss}

    return {
        "ours": {"auto": one(ours, loss)},
        "pfl": {"one": one(pfl * 1.2), "two": one(pfl), "failed": {}},
        "flower": {"two": one(flower)},
    }


def judged(figures: dict[str, dict[str, dict[str, float]]], race: Race = RACE) -> Verdict:
    return judge(race, figures, "vectorised")


def test_ratios_are_over_the_best_mode() -> None:
    verdict = judged(medians_of(20, 40, 70))
    assert verdict.why_not == ""
    assert verdict.row == {
        "workload": "cnn", "dtype": "f32", "engine": "vectorised",
        "ours_cpu_ms": 20, "pfl_cpu_ms": 40, "flower_cpu_ms": 70,
        "over_pfl": 2.0, "over_flower": 3.5,
        "final_loss_ours": 0.5, "final_loss_pfl": 0.5,
    }  # fmt: skip
    assert verdict.sites_per_second == {"ours": 100.0, "pfl": 50.0, "flower": 2000 / 70}


def test_a_bar_that_is_missed_is_named() -> None:
    assert judged(medians_of(20, 29, 70)).why_not == "1.45 x over pfl, the bar is 1.5 x"


@pytest.mark.parametrize(
    ("loss", "counts"), [(0.5009, True), (0.4991, True), (0.5011, False), (float("nan"), False)]
)
def test_a_row_counts_only_with_the_same_loss(loss: float, counts: bool) -> None:
    verdict = judged(medians_of(20, 40, 70, loss))
    assert (verdict.row["over_pfl"] is not None) == counts
    assert (verdict.row["over_flower"] is not None) == counts
    assert (verdict.why_not == "") == counts


@pytest.mark.parametrize("missing", ["ours", "pfl", "flower"])
def test_a_side_that_failed_leaves_no_ratio(missing: str) -> None:
    verdict = judged(medians_of(20, 40, 70) | {missing: {"two": {}}})
    assert verdict.row["over_flower"] is None
    assert verdict.why_not != ""
    assert verdict.row[f"{missing}_cpu_ms"] is None


def test_the_empty_round_is_judged_by_wall_time() -> None:
    race = RACES[-1]
    assert race.workload == "empty"
    found = {
        "ours": {"auto": {"cpu_ms_per_client": 0.1, "clients_per_s": 9000.0}},
        "flower": {"two": {"cpu_ms_per_client": 8.0, "clients_per_s": 100.0}},
    }
    verdict = judged(found, race)
    assert (verdict.row["over_pfl"], verdict.row["over_flower"]) == (None, 90.0)
    assert verdict.why_not == ""


def test_the_table_says_which_race_is_not_won() -> None:
    text = table([judged(medians_of(20, 40, 70)), judged(medians_of(20, 20, 70))])
    won, lost, _, note = text.splitlines()[-4:]
    assert " ".join(won.split()) == "cnn f32 20 40 70 2 (1.5) 3.5 (3.3) 100 50 28.6 0.5 0.5 yes"
    assert lost.endswith("no")
    assert note == "cnn f32: 1 x over pfl, the bar is 1.5 x"


def test_all_runners_of_a_race_train_the_same_dtype() -> None:
    found = runners(RACES[1], "pfl-python", "flower-python")
    assert [runner.system for runner in found] == ["ours", "pfl", "pfl", "flower"]
    for runner in found:
        at = runner.command.index("--dtype")
        assert runner.command[at + 1] == "bf16"


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_the_plan_is_valid_and_its_network_is_the_peers(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    write_run(workload, 3, tmp_path / "pool", tmp_path)
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.init is not None
    assert plan.rounds.sites_per_round == workload.sites_per_round
    weights = to_plan_names(initial_network(workload), plan, workload)
    again = from_plan_names(tmp_path / "first.safetensors", plan, workload)
    assert len(weights) == len(again.state_dict())
    pairs = zip(
        initial_network(workload).state_dict().values(), again.state_dict().values(), strict=True
    )
    assert all(one.equal(other) for one, other in pairs)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_text(WORKLOADS["mlp"], 2).replace("[200]", "[200, 10]"))
    with pytest.raises(ValueError, match=r"zip|longer|shorter"):
        to_plan_names(initial_network(WORKLOADS["mlp"]), read_plan(path), WORKLOADS["mlp"])


def test_the_trace_counts_rounds_from_one() -> None:
    workload = WORKLOADS["cnn"]
    lines = [json.loads(line) for line in cohort_lines(workload, 2).splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[0]["participants"][0] == f"site_{cohort(workload, 0)[0]:05d}"
    assert len(set(lines[1]["participants"])) == 50


EVENTS = """
import json, time
for event in ({"event": "run_started"}, *(
    {"event": "round_finished", "round_result": {"round": n}} for n in range(4)
)):
    print(json.dumps(event), flush=True)
    time.sleep(0.05)
"""


def test_watching_stamps_the_events_that_are_asked_for() -> None:
    stamps = watch([sys.executable, "-S", "-c", EVENTS], (1, 3))
    assert set(stamps) == {-2, -1, 1, 3}
    walls = [stamps[key].wall_seconds for key in (-1, -2, 1, 3)]
    assert walls == sorted(walls)
    assert walls[3] - walls[2] > 0.09


@pytest.mark.parametrize("code", ["import sys; sys.exit('no such engine')", EVENTS])
def test_a_command_that_fails_or_ends_early_is_an_error(code: str) -> None:
    wanted = "no such engine" if "exit" in code else r"events of \[-2, -1, 1\]"
    with pytest.raises(RuntimeError, match=wanted):
        watch([sys.executable, "-S", "-c", code], (1, 9))


def test_bounds_by_hand() -> None:
    found = bounds({"product f32": 100.0, "convolution f32": 200.0, "product bf16": 400.0,
                    "addition GB/s": 50.0})  # fmt: skip
    # 2 * 2 * 784 * 10 * 50 operations; 5 steps of 5 passes over 7850 weights of 4 bytes
    assert found["logreg"]["arithmetic f32"] == pytest.approx(200e9 / 1_568_000)
    assert found["logreg"]["arithmetic bf16"] == pytest.approx(400e9 / 1_568_000)
    assert found["logreg"]["stacked"] == pytest.approx(50e9 / 785_000)


def test_memory_is_watched_while_it_is_held() -> None:
    code = "import sys; held = b'x' * 60_000_000; sys.stdin.read()"
    watch = MemoryWatch()
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as process:
        watch.begin(process.pid)
        time.sleep(0.6)
        assert process.stdin is not None
        process.stdin.close()
    watch.end()
    assert 57 < watch.peak_own_mb < 75
    assert watch.peak_mb > watch.peak_own_mb
