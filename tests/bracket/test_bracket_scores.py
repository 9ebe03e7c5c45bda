from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from asterion_client.held_out_scores import held_out_of, score_units
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.metrics.overlap import overlaps
from asterion_shared.plan import Plan, parse_plan

PLAN = parse_plan(
    '{"name": "s", "task": "segmentation", "model": {"name": "unet"},'
    ' "data": {"classes": ["sky", "star", "galaxy"], "patch_size": [8, 8]}}'
)


def case(number: int, group: str, shape: tuple[int, int] = (20, 12)) -> Case:
    draws = np.random.default_rng(number)
    mask = draws.integers(-1, 3, shape).astype(np.int16)  # -1: nobody knows
    image = draws.standard_normal((1, *shape)).astype(np.float32)
    return Case(id=f"{number:012x}", image=image, mask=mask, group=group)


def site(*cases: Case) -> SiteData:
    return SiteData(site="a", train=CaseList([]), test=CaseList.of(cases))


def guess(cases: Iterable[Case]) -> Iterator[npt.NDArray[np.float32]]:
    for one in cases:
        draws = np.random.default_rng(int(one.id, 16) + 100)
        yield draws.random((3, *one.image.shape[1:])).astype(np.float32)


def dice_of(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 2 * counts[..., 0] / counts[..., 1]


def test_counts_give_the_dice_of_the_metrics() -> None:
    data = site(case(1, "p"), case(2, "q"), case(3, "q"))
    units = held_out_of(data, PLAN)
    assert units.resampled == "groups"
    assert units.unit_groups.tolist() == [0, 1, 1]
    assert units.num_groups == 2
    counts = score_units(guess, data, units, PLAN)
    for one, found, probability in zip(data.test, counts, guess(data.test), strict=True):
        assert one.mask is not None
        expected, _ = overlaps(one.mask, probability.argmax(0), 3)
        assert dice_of(found) == pytest.approx(expected)


def test_one_field_is_cut_into_blocks_that_add_up() -> None:
    data = site(case(1, "field"))
    units = held_out_of(data, PLAN)
    # 20 x 12 points in blocks of 8 x 8: 3 x 2
    assert units.resampled == "blocks"
    assert units.num_groups == 6
    counts = score_units(guess, data, units, PLAN)
    assert counts.shape == (6, 2, 2)
    (one,), (probability,) = list(data.test), list(guess(data.test))
    assert one.mask is not None
    assert dice_of(counts.sum(axis=0)) == pytest.approx(
        overlaps(one.mask, probability.argmax(0), 3)[0]
    )
    corner, called = one.mask[16:, 8:], probability.argmax(0)[16:, 8:]
    assert dice_of(counts[5]) == pytest.approx(overlaps(corner, called, 3)[0])


def test_unknown_groups_are_groups_of_their_own() -> None:
    units = held_out_of(site(case(1, ""), case(2, ""), case(3, "")), PLAN)
    assert units.unit_groups.tolist() == [0, 1, 2]


def test_cases_without_truth_are_left_out() -> None:
    data = site(case(1, "p"), replace(case(2, "q"), mask=None), case(3, "r"))
    units = held_out_of(data, PLAN)
    assert units.case_ids == (f"{1:012x}", f"{3:012x}")
    assert len(score_units(guess, data, units, PLAN)) == 2
    empty = site()
    assert held_out_of(empty, PLAN).num_groups == 0
    assert score_units(guess, empty, held_out_of(empty, PLAN), PLAN).shape == (0, 2, 2)


def test_the_hash_tells_test_sets_apart() -> None:
    hashes = {
        held_out_of(site(*cases), PLAN).sha256
        for cases in (
            [case(1, "p"), case(2, "q")],
            [case(1, "p"), case(2, "p"), case(3, "q")],
            [case(1, "p"), case(2, "q"), case(3, "q")],
        )
    }
    assert len(hashes) == 3


def test_classification_and_anomaly_scores() -> None:
    table = Plan.model_validate(
        {"name": "c", "task": "classification", "model": {"name": "logistic"},
         "data": {"kind": "table", "features": ["a"]}}
    )  # fmt: skip
    row = np.zeros(2, np.float32)
    data = site(Case(id="1", image=row, label=1), Case(id="2", image=row, label=-1))
    units = held_out_of(data, table)
    assert units.labels.tolist() == [1]
    share = np.array([0.25, 0.75], np.float32)
    assert score_units(lambda some: (share for _ in some), data, units, table).tolist() == [
        [0.25, 0.75]
    ]
    normal = Plan.model_validate(
        {"name": "n", "task": "anomaly", "model": {"name": "conv_autoencoder"}}
    )
    errors = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    found = score_units(
        lambda some: (errors for _ in some), data, held_out_of(data, normal), normal
    )
    assert found.tolist() == [[3.0]]
