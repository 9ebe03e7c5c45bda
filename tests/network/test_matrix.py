"""Real federations on a bad network: some cases of the matrix, and messages in a wrong order."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.network.conditions import CONDITIONS
from tests.network.federation import SITES, federation
from tests.network.matrix import (
    Line,
    Matrix,
    add_to,
    is_good,
    plays,
    summary,
    unreachable_sites,
)
from tests.network.matrix_cases import HIT, cases
from tests.network.namespaces import require


def test_every_condition_hits_one_site_and_all() -> None:
    hit = {(case.condition, len(case.sites)) for case in cases()}
    for name, condition in CONDITIONS.items():
        if name not in ("undisturbed", "cut-6-min"):
            assert {(condition, 1), (condition, len(SITES))} <= hit, name
    moments = {case.moment for case in cases() if case.name.startswith("cut-10-s")}
    assert moments == {"download", "training", "upload"}
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


def test_the_summary_names_what_failed(tmp_path: Path) -> None:
    good = Line("a", 1.5, extra_bytes=10)
    bad = [Line("b", 2.0, lost_rounds=1), Line("c", 2.0, not_identical=1),
           Line("d", 2.0, double_releases=1), Line("e", 2.0, trained_again=1),
           Line("f", 2.0, problems=("it is late",))]  # fmt: skip
    assert is_good(good)
    assert not any(map(is_good, bad))
    told = summary([good, *bad])
    assert told["failed"] == ["b", "c", "d", "e", "f"]
    counted = ("cases", "lost_rounds", "not_identical", "double_releases", "seconds")
    assert [told[name] for name in counted] == [6, 1, 1, 1, 11.5]
    both = tmp_path / "summary.json"
    kills = {"cases": 40, "lost_rounds": 0, "not_identical": 2, "double_releases": 0,
             "seconds": 9.5, "failures": [{"case": "S3"}]}  # fmt: skip
    both.write_text(json.dumps(kills))
    add_to(both, [good, *bad])
    added = json.loads(both.read_text())
    assert [added[name] for name in counted] == [46, 1, 3, 1, 21.0]
    assert [failure["case"] for failure in added["failures"]] == ["S3", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    require()
    with federation(tmp_path_factory.mktemp("federation")) as running:
        yield Matrix(running)


@pytest.mark.live
@pytest.mark.parametrize("name", ["cut-10-s-upload-one", "duplicated-and-reordered-all"])
def test_a_bad_network_costs_time_and_nothing_else(matrix: Matrix, name: str) -> None:
    (case,) = [case for case in cases() if case.name == name]
    line = matrix.play(case)
    assert is_good(line), line


@pytest.mark.live
def test_a_round_that_waits_takes_as_much_longer_as_the_cable_is_gone(matrix: Matrix) -> None:
    line = matrix.pull_cable(30.0)
    assert is_good(line), line


@pytest.mark.live
def test_a_round_with_a_quorum_closes_and_says_who_was_missing(matrix: Matrix) -> None:
    line = matrix.close_at_deadline(360.0)
    assert is_good(line), line
    assert matrix.running.connected(HIT)


@pytest.mark.live
def test_a_site_whose_environment_names_its_proxy_takes_part(matrix: Matrix) -> None:
    line = matrix.pass_proxy("environment")
    assert is_good(line), line


@pytest.mark.live
def test_the_coordinator_cannot_dial_a_site_and_never_tries(matrix: Matrix) -> None:
    line = unreachable_sites(matrix.running)
    assert is_good(line), line


@pytest.mark.nightly
@pytest.mark.live
def test_the_whole_matrix(matrix: Matrix) -> None:
    failed = [line for line in (play() for _, play in plays(matrix)) if not is_good(line)]
    assert not failed
