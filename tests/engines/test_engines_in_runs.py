"""The engines in whole runs: the same numbers wherever chunks are trained, and after a resume."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from asterion_server.rounds import run_rounds
from asterion_shared.errors import EngineFailedError, PlanMismatchError, RunStoppedError
from asterion_shared.events import Event, RoundFinished
from asterion_shared.messages import NoReport, PartialFold, Report
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_sim.engines.choice import EngineWish, read_wish
from asterion_sim.engines.probe import decide
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualCohort, VirtualSites

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import EPOCH, order_of, plan_of, renamed, site_of, sites_of

NUM_SITES = 7


def federation(plan: Plan) -> VirtualSites:
    sizes = (9, 17, 4, 12, 6, 6, 11)
    sites = [site_of(plan, f"site_{n}", size) for n, size in enumerate(sizes)]
    refused = NoReport(site="zz_refused", outcome="refused", code="wrong_task")
    return VirtualSites({site.site: site for site in sites}, {"zz_refused": refused})


def run(plan: Plan, folder: Path, wish: EngineWish, stop_after: int | None = None) -> Result:
    def emit(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round_result.round == stop_after:
            raise RunStoppedError

    with closing(VirtualCohort(plan, federation(plan), folder / "sites", wish)) as cohort:
        return run_rounds(
            plan,
            cohort,
            folder,
            run="r",
            expected_sites=cohort.sites(),
            carrier="simulation",
            emit=emit,
        )


def weights(folder: Path) -> np.ndarray:
    named = safetensors.numpy.load_file(folder / "model.safetensors")
    return np.concatenate([named[name].ravel() for name in sorted(named)])


def rounds_plan(network: str = "cnn", **sections: object) -> Plan:
    rounds = {"count": 4, "sites_per_round": 6, "evaluate_every": 2}
    return plan_of(network, **{"rounds": rounds, "algorithm": {"clip_norm": 0.09}} | sections)


@pytest.mark.parametrize("engine", ["vectorised", "shared-base", "processes:sequential"])
def test_whole_runs_agree_with_the_sequential_engine(engine: str, tmp_path: Path) -> None:
    plan = rounds_plan()
    oracle = run(plan, tmp_path / "oracle", SEQUENTIAL)
    found = run(plan, tmp_path / "found", read_wish(engine, chunk=3, workers=2))
    assert weights(tmp_path / "found") == pytest.approx(weights(tmp_path / "oracle"), abs=2e-6)
    for here, there in zip(found.rounds, oracle.rounds, strict=True):
        assert here.asked == there.asked
        assert here.missing == there.missing
        for site, outcome in there.outcomes.items():
            mine = here.outcomes[site]
            assert mine.outcome == outcome.outcome
            if outcome.update_norm is None:
                assert mine.update_norm is None
                continue
            assert (mine.num_steps, mine.clipped) == (outcome.num_steps, outcome.clipped)
            assert mine.update_norm == pytest.approx(outcome.update_norm, rel=1e-4)
            assert mine.train_loss == pytest.approx(outcome.train_loss, rel=1e-4)
    clipped = [o.clipped for r in oracle.rounds for o in r.outcomes.values()]
    assert any(clipped)
    assert not all(clipped)
    for here, there in zip(found.rounds, oracle.rounds, strict=True):
        assert here.pooled.keys() == there.pooled.keys()


@pytest.mark.parametrize("engine", ["vectorised", "shared-base", "sequential"])
def test_the_number_of_workers_changes_nothing(engine: str, tmp_path: Path) -> None:
    plan = rounds_plan()
    for name, wish in {
        "one": read_wish(f"processes:{engine}", chunk=2, workers=1),
        "three": read_wish(f"processes:{engine}", chunk=2, workers=3),
    }.items():
        run(plan, tmp_path / name, wish)
    one = (tmp_path / "one/model.safetensors").read_bytes()
    assert one == (tmp_path / "three/model.safetensors").read_bytes()
    if engine != "sequential":  # here it adds site by site, as a live fold does
        run(plan, tmp_path / "here", read_wish(f"here:{engine}", chunk=2))
        assert one == (tmp_path / "here/model.safetensors").read_bytes()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",  # Ray leaves the null device open
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_ray_on_two_local_workers_equals_one_process(tmp_path: Path) -> None:
    plan = rounds_plan()
    run(plan, tmp_path / "ray", read_wish("ray:shared-base", chunk=2, workers=2))
    run(plan, tmp_path / "here", read_wish("here:shared-base", chunk=2))
    there = (tmp_path / "ray/model.safetensors").read_bytes()
    assert there == (tmp_path / "here/model.safetensors").read_bytes()


def test_a_resumed_run_keeps_its_engine_and_its_bytes(tmp_path: Path) -> None:
    plan = rounds_plan()
    wish = read_wish("vectorised", chunk=3)
    whole = run(plan, tmp_path / "whole", wish)
    with pytest.raises(RunStoppedError):
        run(plan, tmp_path / "cut", wish, stop_after=2)
    resumed = run(plan, tmp_path / "cut", read_wish("shared-base", chunk=5))
    bytes_of = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert bytes_of[0] == bytes_of[1]
    assert len(resumed.rounds) == len(whole.rounds) == 5
    with closing(VirtualCohort(plan, federation(plan), tmp_path, SEQUENTIAL)) as cohort:
        cohort.restore({"kernel": "vectorised", "chunk": 3})
        assert cohort.settings()["kernel"] == "vectorised"


def test_sites_answer_each_for_itself_when_asked_so(tmp_path: Path) -> None:
    plan = rounds_plan()
    order = order_of(plan)
    sites = federation(plan)
    with closing(VirtualCohort(plan, sites, tmp_path, read_wish("vectorised", chunk=3))) as cohort:
        alone = [a for a in cohort.ask(order, cohort.sites()) if isinstance(a, Report)]
        parts = list(cohort.fold(order, dict.fromkeys(cohort.sites(), 2)))
    assert sorted(a.site for a in alone) == sorted(sites.data)
    total = sum(part.total for part in parts if isinstance(part, PartialFold))
    expected = np.zeros(len(total))
    for answer in alone:
        assert answer.update is not None
        norm = np.linalg.norm(answer.update.astype(np.float64))
        expected += answer.num_examples * min(1, 0.09 / norm) * answer.update.astype(np.float64)
    assert np.allclose(total, expected, atol=1e-4)
    refused = [part for part in parts if isinstance(part, NoReport)]
    assert [answer.code for answer in refused] == ["wrong_task"]


def test_uniform_weights_count_how_often_a_site_was_drawn(tmp_path: Path) -> None:
    plan = rounds_plan(algorithm={"weighting": "uniform"})
    order, names = order_of(plan), ["site_0", "site_1"]
    with closing(
        VirtualCohort(plan, federation(plan), tmp_path, read_wish("vectorised"))
    ) as cohort:
        (part,) = cohort.fold(order, {"site_0": 1, "site_1": 3})
        alone = {a.site: a for a in cohort.ask(order, names) if isinstance(a, Report)}
    assert isinstance(part, PartialFold)
    assert part.weight == 4
    one, other = (alone[name].update for name in names)
    assert one is not None
    assert other is not None
    assert np.allclose(part.total, one.astype(np.float64) + 3 * other, atol=1e-5)


def test_auto_measures_and_picks_one_that_can(tmp_path: Path) -> None:
    plan = rounds_plan()
    order, sites = order_of(plan), sites_of(plan)
    assert decide(EngineWish(over="here"), plan, sites, order).kernel != "sequential"
    deep = rounds_plan("residual", model={"name": "densenet121"},
                       data={"patch_size": [32, 32], "classes": ["a", "b"]})  # fmt: skip
    assert decide(EngineWish(over="here"), deep, sites_of(deep), order_of(deep)).kernel == (
        "sequential"
    )
    unet = plan_of("unet")
    unet_sites, unet_order = sites_of(unet), order_of(unet)
    with pytest.raises(PlanMismatchError, match="is no chain"):
        decide(read_wish("shared-base"), unet, unet_sites, unet_order)
    result = run(plan, tmp_path, read_wish("auto"))
    assert result.status == "finished"


def test_sites_without_work_refuse_and_the_others_go_on(tmp_path: Path) -> None:
    plan = rounds_plan()
    sites = dict(federation(plan).data)
    empty = site_of(plan, "empty", 0)
    sites["empty"] = renamed(empty, "empty")
    wild = site_of(plan, "wild", 5)
    wild.train[0].image[:] = np.inf
    sites["wild"] = wild
    wish = read_wish("vectorised", chunk=20)
    cohort = VirtualCohort(plan, VirtualSites(sites, {}), tmp_path, wish)
    parts = list(cohort.fold(order_of(plan), dict.fromkeys(sites, 1)))
    answers = {a.site: a for p in parts if isinstance(p, PartialFold) for a in p.answers}
    codes = {site: a.code for site, a in answers.items() if isinstance(a, NoReport)}
    assert codes == {"empty": "no_data", "wild": "diverged"}
    (part,) = parts
    assert isinstance(part, PartialFold)
    assert np.isfinite(part.total).all()


def test_a_worker_that_dies_ends_the_run_with_words(tmp_path: Path) -> None:
    plan = rounds_plan("residual", local=EPOCH | {"amount": 50})

    def children() -> Iterator[int]:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == os.getpid():
                    yield int(stat.parent.name)

    before = set(children())
    wish = read_wish("processes:vectorised", chunk=1, workers=2)
    cohort = VirtualCohort(plan, federation(plan), tmp_path, wish)
    with closing(cohort):
        answers = cohort.fold(order_of(plan), dict.fromkeys(federation(plan).data, 1))
        next(answers)
        for pid in set(children()) - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailedError, match="worker process died"):
            list(answers)


def test_chunks_do_not_depend_on_who_is_missing_in_the_first_round() -> None:
    plan = rounds_plan()
    order, sites = order_of(plan), sites_of(plan)
    wish = read_wish("here:vectorised", workers=1)
    assert decide(wish, plan, sites[:1], order, num_sites=3).chunk == 3
