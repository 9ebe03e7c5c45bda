"""Real processes are killed at each numbered step; the whole matrix is ``make test-faults``."""

import threading
import time
from collections.abc import Iterator

import pytest
from tests.faults.kill_cases import few_cases, matrix_plan
from tests.faults.kill_checks import ledger_entries
from tests.faults.kill_harness import Harness, stopped_federation
from tests.faults.kill_matrix import play_all
from tests.live.conftest import SITES, said

from asterion_server.coordinator import MOST_DEATHS
from asterion_server.launch import launch
from asterion_server.run_folder import RunFolder
from asterion_shared.errors import AsterionError
from asterion_sim.local_federation import signed_here

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with stopped_federation(tmp_path_factory.mktemp("kills")) as running:
        yield running


def test_a_process_that_dies_at_any_step_costs_time_and_nothing_else(harness: Harness) -> None:
    cases = few_cases()
    summary = play_all(harness, cases)
    assert summary["failures"] == []
    assert summary["cases"] == len(cases)
    assert (summary["lost_rounds"], summary["not_identical"], summary["double_releases"]) == (
        0, 0, 0
    )  # fmt: skip
    for site in SITES:
        folder = harness.federation.root / "sites" / site
        assert said("site", "ledger", "verify", str(folder)) == (0, "")
        # Noise at the site: no two releases are alike. What the centre noises may be.
        entries = [e for e in ledger_entries(folder) if "run" in e and "centre" not in e["run"]]
        assert len({entry["payload_sha256"] for entry in entries}) == len(entries) > 0


def test_a_run_that_dies_each_time_ends_with_a_problem_and_keeps_no_other_waiting(
    harness: Harness,
) -> None:
    harness.wait_until_whole()
    over = threading.Event()
    deaths = 0

    def keep_killing() -> None:
        nonlocal deaths
        while not over.is_set():
            deaths += harness.kill_run("doomed")
            time.sleep(0.2)

    problems: list[str] = []
    plan, center = matrix_plan("prox"), harness.made.folder

    def follow() -> None:
        try:
            launch(harness.made, plan, run="doomed", signature=signed_here(center, plan, "doomed"))
        except AsterionError as error:
            problems.append(str(error))

    killer, follower = threading.Thread(target=keep_killing), threading.Thread(target=follow)
    killer.start()
    follower.start()
    try:
        signature = signed_here(center, plan, "lively")
        result = launch(harness.made, plan, run="lively", signature=signature)
        follower.join(120)
    finally:
        over.set()
        killer.join()
    assert result.status == "finished"
    assert [r.answered for r in result.rounds] == [tuple(SITES)] * 4
    assert not follower.is_alive()
    assert deaths == MOST_DEATHS
    assert "died 5 times without finishing a round" in problems[0]
    assert RunFolder(harness.made.runs / "doomed").has_ended
    assert harness.orders_of("doomed") == 0
