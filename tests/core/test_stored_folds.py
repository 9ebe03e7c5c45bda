"""Updates over mapped files: the same bytes as updates in memory, and no whole sum."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_rounds import FakeCohort, run, table_plan

from asterion_server import central_step
from asterion_server.central_step import central_step_of
from asterion_server.checkpoint import MAPPED_BYTES, Checkpoint, load_latest, store
from asterion_server.fold import Fold
from asterion_server.initial_weights import begin, initial_weights, known_layout
from asterion_shared.blocks import BLOCK, is_mapped, map_numbers
from asterion_shared.errors import AsterionError, PlanMismatchError
from asterion_shared.messages import Answer, Order, Report
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.result import RoundResult

SITES = ("a", "b", "c", "d")
FACTORS = {"a": 1.0, "b": 0.25, "c": 1.0, "d": 1 / 3}


def stored(folder: Path, update: Vector) -> Vector:
    path = folder / "update"
    update.tofile(path)
    mapped = map_numbers(path, update.size)
    path.unlink()
    return mapped


@settings(max_examples=40)
@given(
    order=st.permutations(SITES),
    mapped=st.sets(st.sampled_from(SITES)),
    missing=st.sets(st.sampled_from(SITES), max_size=3),
    summed=st.booleans(),
)
def test_stored_and_streamed_updates_fold_into_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[str],
    mapped: set[str],
    missing: set[str],
    summed: bool,
) -> None:
    size = BLOCK + 9
    draws = np.random.default_rng(7)
    updates = {s: draws.standard_normal(size, np.float32) * np.float32(10.0**i)
               for i, s in enumerate(SITES)}  # fmt: skip
    extra = draws.standard_normal(size)
    folder = tmp_path_factory.mktemp("early")

    def fold(stored_sites: Iterable[str]) -> bytes:
        one = Fold([*SITES, "sum"] if summed else SITES, size, folder)
        for site in order:
            if site in missing:
                one.leave_out(site)
            else:
                update = updates[site]
                if site in stored_sites:
                    update = stored(folder, update)
                one.add(site, update, 3.7, FACTORS[site])
        if summed:
            one.add_sum(["sum"], extra, 2.0)
        assert not list(folder.iterdir())
        return one.mean().tobytes() + one.total(slice(5, BLOCK)).tobytes()

    total, weight = np.zeros(size), 0.0
    for site in SITES:
        if site not in missing:
            clipped = (FACTORS[site] * updates[site]).astype(np.float32)
            total += 3.7 * clipped.astype(np.float64)
            weight += 3.7
    if summed:
        total, weight = total + extra, weight + 2.0
    oracle = (total / weight).astype(np.float32).tobytes() + total[5:BLOCK].tobytes()
    assert fold(mapped) == fold(()) == fold(SITES) == oracle


class StoredCohort(FakeCohort):
    """Hands its updates over as maps of files."""

    def __init__(self, folder: Path, *, backwards: bool = False) -> None:
        super().__init__(backwards=backwards)
        self._folder = folder

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        for answer in super().ask(order, sites):
            if isinstance(answer, Report) and answer.update is not None:
                yield replace(answer, update=stored(self._folder, answer.update))
            else:
                yield answer


@pytest.mark.parametrize("algorithm", [{}, {"clip_norm": 0.5}, {"flower_strategy": "FedAvg"}])
def test_runs_with_stored_updates_end_in_the_same_bytes(
    tmp_path: Path, algorithm: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table_plan(algorithm=algorithm)
    run(plan, FakeCohort(), tmp_path / "memory")
    # Small weights behave as large ones do.
    monkeypatch.setattr("asterion_server.checkpoint.MAPPED_BYTES", 1)
    run(plan, StoredCohort(tmp_path, backwards=True), tmp_path / "stored")
    one, other = (tmp_path / name / "model.safetensors" for name in ("memory", "stored"))
    assert one.read_bytes() == other.read_bytes()
    for name in ("round-000002", "round-000003"):
        found = [
            load_latest_weights(tmp_path / kind / "checkpoints" / f"{name}.safetensors")
            for kind in ("memory", "stored")
        ]
        assert found[0] == found[1]


def load_latest_weights(path: Path) -> bytes:
    from safetensors.numpy import load

    return load(path.read_bytes())["weights"].tobytes()


def test_noise_by_blocks_is_the_noise_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table_plan(
        rounds={"count": 1, "sites_per_round": 2},
        algorithm={"max_weight": 1},
        privacy={
            "protects": "site", "noise": "centre", "clip_norm": 1.0, "noise_multiplier": 1.0,
            "delta": 1e-5, "epsilon_limit": 100.0,
        },
    )  # fmt: skip
    monkeypatch.setattr(central_step, "secret_stream", lambda: SecretStream(b"k" * 32))
    size = 2 * BLOCK + 3
    updates = np.random.default_rng(4).standard_normal((2, size), np.float32)
    weights = np.ones(size, np.float32)

    def finished() -> bytes:
        step = central_step_of(plan, tmp_path)
        step.begin(("a", "b"), size)
        for site, update in zip("ba", updates, strict=True):
            step.add(site, stored(tmp_path, update), 1.0)
        return step.finish(1, weights).tobytes()

    by_blocks = finished()
    monkeypatch.setattr(central_step, "through", lambda size, *arrays: iter([slice(0, size)]))
    assert finished() == by_blocks
    assert (weights == 1).all()


def checkpoint(weights: Vector, plan: Plan) -> Checkpoint:
    return Checkpoint(
        run="r1", plan_sha256=plan.sha256, round=1, weights=weights, last=RoundResult(round=1),
        sites="", started="2026-01-01T00:00:00Z", strategy={"m": np.array([1, 2], np.float32)},
    )  # fmt: skip


def test_large_weights_are_a_view_of_the_checkpoint_that_outlives_it(tmp_path: Path) -> None:
    plan = table_plan()
    large = np.arange(MAPPED_BYTES // 4, dtype=np.float32)
    kept = store(checkpoint(large, plan), tmp_path)
    assert is_mapped(kept.weights)
    found = load_latest(tmp_path, "r1", plan)
    assert found is not None
    assert is_mapped(found.weights)
    assert found.strategy["m"].tolist() == [1, 2]
    for path in tmp_path.iterdir():
        path.unlink()
    assert np.array_equal(kept.weights, large)
    assert np.array_equal(found.weights, large)

    small = store(checkpoint(large[:9], plan), tmp_path)
    assert not is_mapped(small.weights)
    again = load_latest(tmp_path, "r1", plan)
    assert again is not None
    assert again.weights.flags.writeable
    assert again.weights.tolist() == large[:9].tolist()


def test_a_network_that_is_built_apart_is_the_same_and_its_layout_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = table_plan()
    layout, weights = initial_weights(plan, tmp_path)
    found, other = begin(plan, tmp_path, tmp_path / "run", apart=lambda: True)
    assert found == layout
    assert other.tobytes() == weights.tobytes()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["layout.json"]

    monkeypatch.setattr("asterion_server.initial_weights.NETWORKS", "not loaded")
    monkeypatch.setattr("asterion_server.initial_weights.subprocess.run", None)
    assert known_layout(plan, tmp_path / "run") == layout
    with pytest.raises(TypeError):  # of another plan nothing is kept: a child is needed
        known_layout(table_plan(seed=9), tmp_path / "run")


def test_a_plan_that_does_not_fit_its_network_is_told_in_the_childs_words(tmp_path: Path) -> None:
    plan = table_plan(parameters={"keep": ["head.*"]})
    with pytest.raises(PlanMismatchError, match=r"head\.\*"):
        begin(plan, tmp_path, tmp_path, apart=lambda: True)
    (tmp_path / "file").touch()
    with pytest.raises(AsterionError, match="file"):
        begin(plan, tmp_path, tmp_path / "file" / "run", apart=lambda: True)
