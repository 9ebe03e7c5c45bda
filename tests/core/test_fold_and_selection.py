from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_server.fold import Fold
from asterion_server.selection import select, weight_of
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


def plan(**sections: object) -> Plan:
    values = {"name": "a", "task": "segmentation", "model": {"name": "unet"}}
    return validate(Plan, values | sections, "plan")


def test_the_mean_by_hand(tmp_path: Path) -> None:
    # (3 * 1 + 1 * 4) / (3 + 1) = 1.75
    fold = Fold(["a", "b"], 1, tmp_path)
    fold.add("a", np.float32([1.0]), 3)
    fold.add("b", np.float32([4.0]), 1)
    assert fold.mean().tolist() == [1.75]


@given(
    order=st.permutations(range(5)),
    missing=st.sets(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_mean_does_not_depend_on_the_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], missing: set[int], seed: int
) -> None:
    draws = np.random.default_rng(seed)
    updates = (draws.normal(size=(5, 7)) * 10.0 ** draws.integers(-6, 6, (5, 1))).astype(np.float32)
    weights = draws.uniform(0.1, 100, 5)
    sites = [f"s{i}" for i in range(5)]

    def run(arrivals: list[int]) -> bytes:
        folder = tmp_path_factory.mktemp("early")
        fold = Fold(sites, 7, folder)
        for i in arrivals:
            if i in missing:
                fold.leave_out(sites[i])
            else:
                fold.add(sites[i], updates[i], float(weights[i]))
        assert not list(folder.iterdir())
        return fold.mean().tobytes()

    assert run(order) == run(list(range(5)))
    present = [i for i in range(5) if i not in missing]
    oracle = np.average(updates[present].astype(float), axis=0, weights=weights[present])
    assert np.allclose(np.frombuffer(run(order), np.float32), oracle, rtol=1e-6)


def test_an_unfinished_or_empty_fold_has_no_mean(tmp_path: Path) -> None:
    fold = Fold(["a", "b"], 1, tmp_path)
    fold.add("b", np.float32([1.0]), 1)
    with pytest.raises(ValueError, match="waits"):
        fold.mean()
    fold.leave_out("a")
    assert fold.mean().tolist() == [1.0]
    nobody = Fold(["a"], 1, tmp_path)
    nobody.leave_out("a")
    with pytest.raises(ValueError, match="weight 0"):
        nobody.mean()


SIZES = {f"s{i}": 10 * (i + 1) for i in range(6)}


def test_everybody_is_asked_without_a_number() -> None:
    assert select(plan(), 1, SIZES) == dict.fromkeys(SIZES, 1)
    assert select(plan(), 1, {}) == {}


def test_uniform_selection_is_addressed_by_the_round() -> None:
    few = plan(rounds={"sites_per_round": 3})
    rounds = [select(few, r, SIZES) for r in range(1, 30)]
    assert all(len(chosen) == 3 and set(chosen.values()) == {1} for chosen in rounds)
    assert rounds[4] == select(few, 5, SIZES)
    assert len({tuple(chosen) for chosen in rounds}) > 5


def test_selection_by_size_follows_the_sizes_and_counts_repeats() -> None:
    paper = plan(algorithm={"weighting": "uniform"}, rounds={"sites_per_round": 3})
    times = dict.fromkeys(SIZES, 0)
    for r in range(1, 801):
        chosen = select(paper, r, SIZES)
        assert sum(chosen.values()) == 3
        for site, count in chosen.items():
            times[site] += count
    shares = {site: count / 2400 for site, count in times.items()}
    # Six standard deviations of a binomial share.
    for site, size in SIZES.items():
        expected = size / sum(SIZES.values())
        assert abs(shares[site] - expected) < 6 * (expected * (1 - expected) / 2400) ** 0.5


def test_weights_by_examples_are_capped_and_uniform_ones_count_draws() -> None:
    assert weight_of(plan(), 70, 1) == 70
    assert weight_of(plan(algorithm={"max_weight": 50}), 70, 1) == 50
    assert weight_of(plan(algorithm={"weighting": "uniform"}), 70, 2) == 2
