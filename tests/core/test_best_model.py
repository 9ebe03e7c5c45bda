"""``best.safetensors`` is the model whose headline metric, as the result tells it, is highest."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_server.initial_weights import known_layout
from asterion_server.rounds import run_rounds
from asterion_shared.errors import QuorumLostError
from asterion_shared.messages import Answer, NoReport, Order
from asterion_shared.metrics.scores import probability_edges, score_histograms
from asterion_shared.parameters import from_bytes
from asterion_shared.plan import Plan
from asterion_shared.result import Result

sys.path.insert(0, str(Path(__file__).parent))
from test_rounds import FakeCohort, PowerCutError, honest, table_plan

ROUNDS = 4
PLAN = table_plan(rounds={"count": ROUNDS, "quorum": 2})
TENTHS = st.lists(st.one_of(st.none(), st.integers(0, 10)), min_size=ROUNDS + 1,
                  max_size=ROUNDS + 1)  # fmt: skip
"""Ten times the AUROC of the model after each round; None: nobody measured it."""


class Judges(FakeCohort):
    """Sites that find the AUROC they are told, and remember which weights they judged."""

    def __init__(self, tenths: list[int | None], cut: int | None = None, quorum_lost: int = 0):
        super().__init__()
        self.tenths, self.cut, self.quorum_lost = tenths, cut, quorum_lost
        self.judged: dict[int, npt.NDArray[np.float32]] = {}

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        if order.evaluate:
            assert order.weights is not None
            self.judged[order.round - 1] = order.weights.copy()
        for site in sites:
            if (order.round, site) == (self.cut, "c"):
                raise PowerCutError
            if order.phase == "train" and order.round == self.quorum_lost and site != "a":
                yield NoReport(site=site, outcome="failed", code="unreachable")
                continue
            report = honest(order, site)
            tenths = self.tenths[order.round - 1] if order.evaluate else None
            if tenths is not None:
                scores = [0.9] * tenths + [0.1] * (10 - tenths) + [0.5] * 10
                found = score_histograms(scores, [True] * 10 + [False] * 10,
                                         probability_edges(PLAN.evaluation))  # fmt: skip
                report = replace(report, num_test=20, statistics={"score": found})
            yield report


def carried_out(cohort: Judges, folder: Path, plan: Plan = PLAN) -> Result:
    return run_rounds(
        plan, cohort, folder, run="r1", expected_sites=("a", "b", "c"), carrier="simulation"
    )


def assert_best(result: Result, folder: Path, judged: dict[int, npt.NDArray[np.float32]]) -> None:
    told = {r.round: r.pooled.get("auroc") for r in result.rounds}
    known = [value for value in told.values() if value is not None]
    kept = {int(p.stem[6:]) for p in (folder / "checkpoints").glob("round-*")}
    before = {n: v for n, v in list(told.items())[:-1] if v is not None}
    best_then = max(before, key=lambda n: (before[n], -n), default=ROUNDS)
    assert kept == {ROUNDS - 1, ROUNDS, best_then}
    if not known:
        assert result.best_model is None
        assert not (folder / "best.safetensors").exists()
        return
    first = next(number for number, value in told.items() if value == max(known))
    best = result.best_model
    assert best is not None
    assert (best.round, best.metric, best.value) == (first, "auroc", max(known))
    assert best.path == ("model.safetensors" if first == ROUNDS else "best.safetensors")
    assert (folder / "best.safetensors").exists() == (first != ROUNDS)
    layout = known_layout(PLAN, folder)
    flat = from_bytes((folder / best.path).read_bytes(), layout)
    assert flat.tobytes() == judged[first].tobytes()


@settings(max_examples=60, deadline=None)
@given(tenths=TENTHS)
def test_the_file_is_the_argmax_of_what_is_told(
    tmp_path_factory: pytest.TempPathFactory, tenths: list[int | None]
) -> None:
    cohort, folder = Judges(tenths), tmp_path_factory.mktemp("run")
    assert_best(carried_out(cohort, folder), folder, cohort.judged)


@settings(max_examples=60, deadline=None)
@given(first=TENTHS, then=TENTHS, cut=st.integers(0, ROUNDS + 1))
def test_it_is_so_after_a_cut_with_other_metrics(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[int | None],
    then: list[int | None],
    cut: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    before, after = Judges(first, cut), Judges(then)
    with pytest.raises(PowerCutError):
        carried_out(before, folder)
    assert_best(carried_out(after, folder), folder, before.judged | after.judged)


def test_a_run_that_lost_its_quorum_has_one_and_going_on_changes_it(tmp_path: Path) -> None:
    cohort = Judges([1, 9, 3, 5, 5], quorum_lost=3)
    with pytest.raises(QuorumLostError):
        carried_out(cohort, tmp_path)
    lost = tmp_path / "best.safetensors"
    assert safetensors.safe_open(lost, "np").metadata() == {
        "asterion": f'{{"plan_sha256": "{PLAN.sha256}", "round": "1", "run": "r1"}}'
    }
    again = Judges([1, 9, 3, 5, 10])
    result = carried_out(again, tmp_path)
    assert_best(result, tmp_path, cohort.judged | again.judged)
    assert not lost.exists()


def test_weights_that_an_older_version_did_not_keep_are_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        carried_out(Judges([1, 9, 3, 3, 3], cut=4), tmp_path)
    (tmp_path / "checkpoints/round-000001.safetensors").unlink()
    assert carried_out(Judges([1, 9, 3, 3, 3]), tmp_path).best_model is None
    assert not (tmp_path / "best.safetensors").exists()
