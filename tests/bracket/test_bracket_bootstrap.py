import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_client.bootstrap import (
    Draws,
    Sampled,
    area_under_roc,
    at_site,
    difference,
    draw,
    mean_of,
    ratio,
    together,
)
from asterion_client.held_out_scores import Floats, HeldOut
from asterion_sim.bracket import verdict_of


def held_out(groups: list[int], labels: list[int] | None = None, site: str = "a") -> HeldOut:
    count = len(groups)
    return HeldOut(
        site=site,
        resampled="groups",
        unit_groups=np.array(groups, np.int64),
        unit_cases=np.arange(count),
        labels=np.array(labels or [-1] * count, np.int64),
        case_ids=tuple(f"{n:012x}" for n in range(count)),
    )


def fixed(groups: list[list[float]], seeds: list[list[float]], site: str = "a") -> Draws:
    """Draws written by hand; the first row is the sample itself."""
    return Draws({site: np.array(groups, float)}, np.array(seeds, float))


def dice_counts(values: list[float]) -> Floats:
    """Counts of one class whose Dice are these: of 100 points, 50 times the Dice agree."""
    return np.array([[[50 * value, 100.0]] for value in values])


def slow_area(scores: Floats, positive: Floats, weights: Floats) -> float:
    """Every pair, one by one."""
    right = total = 0.0
    for i in np.flatnonzero(positive == 1):
        for j in np.flatnonzero(positive == 0):
            pair = weights[i] * weights[j]
            total += pair
            right += pair * (1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]))
    return right / total if total else float("nan")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_the_area_equals_the_count_of_pairs(count: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    scores = draws.integers(-3, 4, count) / 3  # both sides of zero, with ties
    positive = draws.integers(0, 2, count)
    weights = draws.integers(0, 4, (5, count)).astype(float)
    found = area_under_roc(scores, positive, weights)
    expected = [slow_area(scores, positive, row) for row in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)


def test_the_area_of_no_case_is_undefined() -> None:
    found = area_under_roc(np.zeros(0), np.zeros(0, np.int64), np.zeros((2, 0)))
    assert np.isnan(found).all()


def test_dice_by_hand_whole_groups_are_drawn() -> None:
    # groups: patient 0 has two cases (0.2, 0.4), patient 1 one (0.9)
    units = held_out([0, 0, 1])
    draws = fixed([[1, 1], [2, 0], [0, 2]], [[1], [1], [1]])
    found = at_site("dice", units, [dice_counts([0.2, 0.4, 0.9])], draws)
    # (0.2 + 0.4 + 0.9) / 3; patient 0 twice: 0.3; patient 1 twice: 0.9
    assert found.values == pytest.approx([0.5, 0.3, 0.9])


def test_dice_of_blocks_is_a_ratio_of_sums() -> None:
    units = HeldOut("a", "blocks", np.arange(2), np.zeros(2, np.int64), np.full(2, -1), ("x",))
    counts = np.array([[[10.0, 100.0]], [[45.0, 100.0]]])
    draws = fixed([[1, 1], [2, 0], [0, 2]], [[1], [1], [1]])
    found = at_site("dice", units, [counts], draws)
    # 2 * 55 / 200; 2 * 20 / 200; 2 * 90 / 200
    assert found.values == pytest.approx([0.55, 0.2, 0.9])


def test_an_empty_block_that_is_called_empty_is_right() -> None:
    units = HeldOut("a", "blocks", np.arange(2), np.zeros(2, np.int64), np.full(2, -1), ("x",))
    counts = np.array([[[0.0, 0.0]], [[0.0, 10.0]]])
    found = at_site("dice", units, [counts], fixed([[1, 1], [2, 0]], [[1], [1]]))
    assert found.values == pytest.approx([0.0, 1.0])


def test_accuracy_by_hand_and_seeds_are_drawn() -> None:
    units = held_out([0, 1], [0, 1])
    both_right = np.array([[0.9, 0.1], [0.2, 0.8]])
    one_right = np.array([[0.9, 0.1], [0.7, 0.3]])
    # seeds: both alike; only the first; only the second
    draws = fixed([[1, 1]] * 3, [[0.5, 0.5], [1, 0], [0, 1]])
    found = at_site("accuracy", units, [both_right, one_right], draws)
    assert found.values == pytest.approx([0.75, 1.0, 0.5])


def test_cases_together_are_not_the_mean_of_sites() -> None:
    few, many = held_out([0], [1], "few"), held_out([0, 1, 2], [0, 0, 0], "many")
    wrong, right = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]] * 3)
    draws = Draws({"few": np.ones((1, 1)), "many": np.ones((1, 3))}, np.ones((1, 1)))
    assert together("accuracy", [few, many], [[wrong, right]], draws).value == 0.75
    parts = [at_site("accuracy", few, [wrong], draws), at_site("accuracy", many, [right], draws)]
    assert mean_of(parts).value == 0.5


def test_three_classes_are_each_ranked_against_the_rest() -> None:
    units = held_out([0, 1, 2], [0, 1, 2])
    perfect = np.eye(3)
    draws = fixed([[1, 1, 1], [3, 0, 0]], [[1], [1]])
    found = at_site("auroc", units, [perfect], draws)
    assert found.value == 1.0
    assert np.isnan(found.values[1])  # one class alone cannot be ranked


def test_draws_are_of_whole_sites_and_repeat() -> None:
    units = {"a": held_out([0, 1, 1, 2]), "b": held_out([0, 0], site="b")}
    one, other = draw(units, 5, 400, 7), draw(units, 5, 400, 7)
    for site, groups in (("a", 3), ("b", 1)):
        assert one.groups[site].shape == (401, groups)
        assert np.array_equal(one.groups[site], other.groups[site])
        assert (one.groups[site].sum(axis=1) == groups).all()
    assert np.allclose(one.seeds.sum(axis=1), 1)
    assert not np.array_equal(one.groups["a"], draw(units, 5, 400, 8).groups["a"])


def test_undefined_resamples_are_counted() -> None:
    units = held_out([0, 1], [0, 1])
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = at_site("auroc", units, [scores], draw({"a": units}, 1, 2000, 3))
    # of four ordered draws of two cases two are of one class: half of them
    assert found.num_undefined == pytest.approx(1000, abs=80)
    assert found.interval == (1.0, 1.0)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    count = 400
    values = np.random.default_rng(1).uniform(0.2, 0.8, count)
    units = held_out(list(range(count)))
    found = at_site("dice", units, [dice_counts(list(values))], draw({"a": units}, 1, 4000, 3))
    half = 1.96 * values.std() / np.sqrt(count)
    assert found.interval is not None
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)


def test_the_chance_of_training_widens_the_interval() -> None:
    units = held_out(list(range(50)))
    level = [dice_counts([0.5] * 50)] * 2
    apart = [dice_counts([0.4] * 50), dice_counts([0.6] * 50)]
    draws = draw({"a": units}, 2, 500, 3)
    assert at_site("dice", units, level, draws).interval == pytest.approx((0.5, 0.5))
    assert at_site("dice", units, apart, draws).interval == pytest.approx((0.4, 0.6))


def test_a_paired_difference_is_sure_where_the_numbers_are_not() -> None:
    values = np.random.default_rng(1).uniform(0.1, 0.7, 30)
    units = held_out(list(range(30)))
    draws = draw({"a": units}, 1, 500, 3)
    own = at_site("dice", units, [dice_counts(list(values))], draws)
    better = at_site("dice", units, [dice_counts(list(values + 0.02))], draws)
    assert own.interval is not None
    assert own.interval[1] - own.interval[0] > 0.1
    assert difference(better, own).interval == pytest.approx((0.02, 0.02))
    assert verdict_of(difference(better, own)).verdict == "helps"
    assert verdict_of(difference(own, better)).verdict == "hurts"
    assert verdict_of(difference(own, own)).verdict == "neutral"


def test_what_is_undefined_has_no_verdict_and_no_ratio() -> None:
    nothing = Sampled(np.array([np.nan, 0.3]))
    assert verdict_of(nothing).verdict == "undefined"
    assert mean_of([nothing]).value is None
    zero, one = Sampled(np.array([0.0, 1.0])), Sampled(np.array([1.0, 2.0]))
    assert ratio(one, zero).value is None
    assert ratio(zero, one).values == pytest.approx([0.0, 0.5])
