"""Median, trimmed mean and Krum: by hand, against Flower's strategies, and with liars."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_rounds import FakeCohort, run, table_plan
from tests.core.test_stored_folds import StoredCohort, stored

from asterion_server import robust_fold as robust
from asterion_server.central_step import central_step_of
from asterion_server.flower_strategy import FlowerStep
from asterion_server.robust_fold import KeptUpdates, nearest, squared_distances
from asterion_shared.blocks import is_mapped
from asterion_shared.errors import PlanMismatchError, SettingsError
from asterion_shared.messages import Answer, Order, PartialFold, Report
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan

SITES = tuple("abcdefghi")

FOLDS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "median": ({}, "FedMedian", {}),
    "trimmed_mean": ({"trim_fraction": 0.25}, "FedTrimmedAvg", {"beta": 0.25}),
    "krum": ({"num_malicious": 2}, "Krum", {"num_malicious_nodes": 2}),
    "multi_krum": (
        {"num_malicious": 2, "num_kept": 3},
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 3},
    ),
}
"""Ours with its arguments, and Flower's with its own."""


def plan_of(fold: str, **more: Any) -> Plan:
    algorithm = {"fold": fold, **FOLDS[fold][0]} | more
    return table_plan(algorithm=algorithm, rounds={"count": 2, "quorum": 7})


def finished(
    plan: Plan, updates: dict[str, Vector], weights: Vector, factor: float = 1.0
) -> Vector:
    step = central_step_of(plan, Path("unused"))
    assert not step.linear
    step.begin(sorted(updates), weights.size)
    for number, (site, update) in enumerate(updates.items()):
        step.add(site, update, float(number + 1), factor)
    return step.finish(1, weights)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_flowers_on_the_same_inputs(fold: str, seed: int) -> None:
    draws = np.random.default_rng(seed)
    count = 7 + seed % 3
    updates = {s: draws.standard_normal(40, np.float32) for s in SITES[:count]}
    weights = draws.standard_normal(40, np.float32)
    got = finished(plan_of(fold), updates, weights)
    _, strategy, arguments = FOLDS[fold]
    flower = FlowerStep(
        table_plan(algorithm={"flower_strategy": strategy, "flower_arguments": arguments})
    )
    # The same number of examples for all: Flower's Multi-Krum weighs, the paper's does not.
    wanted = flower.step(1, weights, [(s, u, 1.0) for s, u in updates.items()])
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(got, weights)


@given(st.integers(1, 40), st.integers(0, 100))
def test_columns_are_sorted(count: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(-5, 5, (count, 30)).astype(np.float32)
    assert np.array_equal(robust.in_order(rows), np.sort(rows, axis=0))


def test_krum_by_hand() -> None:
    # Five numbers, f = 1: two neighbours count. 1.0 has 0.04 + 0.09, 1.2 has 0.01 + 0.04, 1.3 has
    # 0.01 + 0.09, 9.0 and -7.0 have far more.
    numbers = np.array([1.0, 1.2, 1.3, 9.0, -7.0])
    distances = (numbers[:, None] - numbers) ** 2
    assert nearest(distances, 1, 1) == (1,)
    assert nearest(distances, 1, 2) == (1, 2)
    assert nearest(np.zeros((5, 5)), 1, 2) == (0, 1)  # ties go to the first


@settings(max_examples=60)
@given(
    fold=st.sampled_from(sorted(FOLDS)),
    order=st.permutations(SITES[:7]),
    liar=st.sampled_from(SITES[:7]),
    lie=st.sampled_from([0.0, -1.0, 1e3, -1e15, 3e38]),
    kind=st.sampled_from(["constant", "scaled", "copied"]),
)
def test_no_order_counts_and_a_liar_among_seven_stays_without_effect(
    fold: str, order: list[str], liar: str, lie: float, kind: str
) -> None:
    draws = np.random.default_rng(5)
    truth = draws.standard_normal(30, np.float32)
    honest: dict[str, Any] = {s: truth + np.float32(0.1) * draws.standard_normal(30, np.float32)
              for s in SITES[:7]}  # fmt: skip
    wrong: Any = {"constant": np.full(30, lie), "scaled": truth * np.sign(lie) * 1e30,
             "copied": honest["a" if liar != "a" else "b"]}[kind]  # fmt: skip
    updates: dict[str, Vector] = {
        s: honest[s] if s != liar else wrong.astype(np.float32) for s in order
    }
    zero = np.zeros(30, np.float32)
    got = finished(plan_of(fold), updates, zero)
    in_order = {s: updates[s] for s in sorted(updates)}
    assert got.tobytes() == finished(plan_of(fold), in_order, zero).tobytes()
    others = np.stack([honest[s] for s in updates if s != liar])
    # Each coordinate stays within the honest sites' own range.
    assert (got >= others.min(axis=0)).all()
    assert (got <= others.max(axis=0)).all()


def test_krum_sees_honest_sites_beside_one_that_is_longer_than_float64_has_digits() -> None:
    draws = np.random.default_rng(6)
    updates = {s: draws.standard_normal(50, np.float32) for s in SITES[:7]}
    updates["c"] = np.full(50, 1e30, np.float32)
    parts = KeptUpdates(Path("unused"))
    for site, update in updates.items():
        parts.add(site, update, 1.0, 1.0)
    found = squared_distances(tuple(parts.parts.values()), 50)
    both = updates["a"].astype(float) - updates["b"]
    assert found[0, 1] == found[1, 0] == pytest.approx(both @ both, rel=1e-12)


def test_distances_and_combined_updates_do_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draws = np.random.default_rng(8)
    size = 5000
    updates = {s: draws.standard_normal(size, np.float32) for s in SITES[:7]}
    weights = draws.standard_normal(size, np.float32)
    whole = {fold: finished(plan_of(fold), updates, weights) for fold in FOLDS}
    monkeypatch.setattr(robust, "MOST_STACKED", 1)
    monkeypatch.setattr(robust, "FEWEST_STACKED", 13)
    for fold, wanted in whole.items():
        mapped = {s: stored(tmp_path, u) for s, u in updates.items()}
        assert finished(plan_of(fold), mapped, weights).tobytes() == wanted.tobytes()


def test_updates_beyond_the_memory_wait_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(robust, "MOST_MEMORY_BYTES", 10)
    kept = KeptUpdates(tmp_path)
    for number, site in enumerate("cab"):
        kept.add(site, np.full(2, number, np.float32), 1.0, 1.0)
    assert [is_mapped(part.update) for part in kept.parts.values()] == [True, True, False]
    assert {s: p.update.tolist() for s, p in kept.parts.items()} == {
        "a": [1, 1], "b": [2, 2], "c": [0, 0],
    }  # fmt: skip


def test_an_update_is_clipped_before_it_is_compared() -> None:
    updates = {s: np.array([i, 1.0], np.float32) for i, s in enumerate(SITES[:7])}
    got = finished(plan_of("median", clip_norm=1.0), updates, np.zeros(2, np.float32), factor=0.5)
    assert got.tolist() == [1.5, 0.5]


class SevenSites(FakeCohort):
    """Seven honest sites, and what one of them makes of its update."""

    def __init__(self, lie: float = 1.0) -> None:
        super().__init__()
        self._lie = lie

    def sites(self) -> tuple[str, ...]:
        return SITES[:7]

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        for number, site in enumerate(sites):
            update = None
            if order.phase == "train":
                assert order.weights is not None
                update = np.full(order.weights.size, 0.1 + 0.001 * number, np.float32)
                update *= np.float32(self._lie if site == "d" else 1.0)
            yield Report(
                site=site, num_examples=10**9 if site == "d" else 10, num_test=0, num_bad_files=0,
                manifest_sha256="0" * 64, update=update, num_steps=1,
            )  # fmt: skip


class FoldingSites(SevenSites):
    """The same; they would add their updates up, if they were asked to."""

    def fold(self, order: Order, times: Any) -> Iterator[Answer | PartialFold]:
        raise AssertionError

    def settings(self) -> dict[str, str | int]:
        return {}

    def restore(self, settings: Any) -> None:
        """Nothing to restore."""


@pytest.mark.parametrize("fold", FOLDS)
def test_a_run_ends_close_to_the_honest_one(tmp_path: Path, fold: str) -> None:
    from asterion_server.checkpoint import load_latest
    from asterion_server.rounds import run_rounds

    def weights(name: str, cohort: SevenSites, plan: Plan) -> Vector:
        run_rounds(plan, cohort, tmp_path / name, run="r", expected_sites=SITES[:7],
                   carrier="simulation")  # fmt: skip
        found = load_latest(tmp_path / name / "checkpoints", "r", plan)
        assert found is not None
        return found.weights

    honest = weights("honest", FoldingSites(), plan_of(fold))
    lied = weights("lied", FoldingSites(-1e6), plan_of(fold))
    assert np.abs(honest - lied).max() < 0.01
    mean = weights("mean", SevenSites(-1e6), table_plan(rounds={"count": 2, "quorum": 7}))
    assert np.abs(honest - mean).max() > 1e4


def test_too_few_reports_for_krum_are_refused() -> None:
    updates = {s: np.ones(3, np.float32) for s in SITES[:6]}
    with pytest.raises(PlanMismatchError, match="krum needs 7"):
        finished(plan_of("krum"), updates, np.zeros(3, np.float32))


def test_all_but_f_plus_two_are_kept_where_the_plan_says_no_number() -> None:
    updates = {s: np.array([float(i)], np.float32) for i, s in enumerate(SITES[:7])}
    plan = plan_of("multi_krum", num_kept=None, num_malicious=2)
    # 3 of 7. 1 to 5 have the same sum, 1 + 1 + 4, and the first of them are taken.
    assert finished(plan, updates, np.zeros(1, np.float32)).tolist() == [2.0]


def test_stored_updates_in_a_run(tmp_path: Path) -> None:
    plan = table_plan(algorithm={"fold": "median"})
    run(plan, FakeCohort(), tmp_path / "memory")
    run(plan, StoredCohort(tmp_path, backwards=True), tmp_path / "stored")
    one, other = (tmp_path / name / "model.safetensors" for name in ("memory", "stored"))
    assert one.read_bytes() == other.read_bytes()


SECURE = {"max_colluders": 1, "max_dropouts": 1}
NOISED = {"protects": "site", "noise": "centre", "clip_norm": 1.0, "noise_multiplier": 1.0,
          "delta": 1e-5, "epsilon_limit": 100.0}  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"algorithm": {"fold": "median", "flower_strategy": "FedMedian"}}, "remove one of them"),
        ({"algorithm": {"fold": "median", "max_weight": 3}}, "counts every site once"),
        ({"algorithm": {"fold": "median", "weighting": "uniform"}}, "counts every site once"),
        ({"algorithm": {"fold": "trimmed_mean"}}, "trim_fraction above 0"),
        ({"algorithm": {"trim_fraction": 0.1}}, "trim_fraction above 0"),
        ({"algorithm": {"fold": "median", "num_malicious": 1}}, "krum and multi_krum"),
        ({"algorithm": {"fold": "krum", "num_kept": 1}}, "multi_krum"),
        ({"algorithm": {"fold": "krum", "num_malicious": 1}}, "quorum to 5 or more"),
        (
            {"algorithm": {"fold": "multi_krum", "num_kept": 3}, "rounds": {"quorum": 4}},
            "set 2 or fewer",
        ),
        (
            {"algorithm": {"fold": "trimmed_mean", "trim_fraction": 0.2}, "rounds": {"quorum": 4}},
            "none would be left out",
        ),
        (
            {"algorithm": {"fold": "median"}, "rounds": {"sites_per_round": 5}, "privacy": NOISED},
            "not proven",
        ),
        (
            {
                "algorithm": {"fold": "median", "clip_norm": 1.0},
                "rounds": {"sites_per_round": 5, "quorum": 4},
                "secure_sum": SECURE,
            },
            "sees sums alone",
        ),
    ],
)
def test_plans_that_a_fold_does_not_suit_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        table_plan(**sections)


def test_a_fold_suits_noise_at_the_site() -> None:
    privacy = NOISED | {"noise": "site"}
    plan = table_plan(algorithm={"fold": "median"}, privacy=privacy)
    assert plan.algorithm.fold == "median"
