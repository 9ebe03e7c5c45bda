"""Cutting, filling up, mirroring and turning patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.tasks.patches import (
    augment,
    centre_start,
    grid_starts,
    put,
    random_start,
    start_around_object,
    take,
)

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**32 - 1)


def test_take_by_hand() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    assert take(image, (1, 2), (2, 2)).tolist() == [[[6, 7], [10, 11]]]
    assert take(image, (-1, 3), (2, 2)).tolist() == [[[0, 0], [3, 0]]]
    assert take(image[0], (2, -1), (2, 2), fill=-1).tolist() == [[-1, 8], [-1, -1]]


def test_centre_by_hand() -> None:
    assert centre_start((10, 3), (4, 6)) == (3, -2)


@given(SIZES, SIZES, SEEDS)
def test_random_patch_is_inside_or_centred(
    shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    start = random_start(shape, size, np.random.default_rng(seed))
    for first, length, wanted, middle in zip(
        start, shape, size, centre_start(shape, size), strict=True
    ):
        assert 0 <= first <= length - wanted if length >= wanted else first == middle


def test_every_inner_patch_is_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = {random_start((5, 4), (3, 4), generator) for _ in range(100)}
    assert drawn == {(0, 0), (1, 0), (2, 0)}


@given(SIZES, SIZES, SEEDS)
def test_patch_around_an_object_holds_it(
    shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.int16)
    mask[tuple(int(generator.integers(length)) for length in shape)] = 2
    start = start_around_object(mask, size, generator)
    assert start is not None
    patch = take(mask, start, size, fill=-1)
    if all(length >= wanted for length, wanted in zip(shape, size, strict=True)):
        assert (patch >= 0).all()
        assert (patch == 2).sum() == 1


def test_no_object_no_patch_around_it() -> None:
    assert start_around_object(np.zeros((4, 4), np.int16), (2, 2), np.random.default_rng(0)) is None


@given(SIZES, SIZES)
def test_tiles_put_back_give_the_image(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).normal(size=shape)
    back = np.full(shape, np.nan)
    for start in grid_starts(shape, size):
        put(back, start, take(image, start, size))
    assert np.array_equal(back, image)


@given(SEEDS, st.sampled_from([(4, 4), (3, 4, 4), (4, 3)]))
def test_arrays_are_turned_together(seed: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(seed)
    mask = np.arange(np.prod(shape)).reshape(shape)
    image = np.stack([mask * 10.0, mask * 10.0 + 1])
    turned, label = augment([image, mask], len(shape), ("flip", "rotate90"), generator)
    assert label.shape == shape
    assert np.array_equal(turned[0], label * 10.0)
    assert np.array_equal(turned[1], label * 10.0 + 1)
    assert sorted(label.ravel()) == sorted(mask.ravel())


def test_all_eight_poses_of_a_square_are_drawn_and_none_without_asking() -> None:
    generator = np.random.default_rng(0)
    square = np.arange(4).reshape(2, 2)
    kinds = ("flip", "rotate90")
    poses = {tuple(augment([square], 2, kinds, generator)[0].ravel()) for _ in range(200)}
    assert len(poses) == 8
    state = generator.bit_generator.state
    assert augment([square], 2, (), generator)[0] is square
    assert generator.bit_generator.state == state


def test_a_volume_turns_in_its_last_two_axes_only() -> None:
    volume = np.arange(3)[:, None, None] * np.ones((3, 4, 4))
    for seed in range(20):
        (turned,) = augment([volume], 3, ("rotate90",), np.random.default_rng(seed))
        assert np.array_equal(turned, volume)


def test_a_patch_that_is_not_square_is_not_turned() -> None:
    flat = np.arange(6).reshape(2, 3)
    for seed in range(20):
        (turned,) = augment([flat], 2, ("rotate90",), np.random.default_rng(seed))
        assert np.array_equal(turned, flat)


def test_take_keeps_the_dtype() -> None:
    for dtype in (np.int16, np.float32):
        assert take(np.zeros((2, 2), dtype), (0, 0), (4, 4), fill=-1).dtype == dtype


def test_take_of_several_channels() -> None:
    image = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 2.0)])
    patch = take(image, (0, 0), (2, 3))
    assert patch.shape == (2, 2, 3)
    assert patch[:, 0].tolist() == [[1, 1, 0], [2, 2, 0]]


@pytest.mark.parametrize("shape", [(10, 10), (3, 10), (3, 3)])
def test_grid_has_as_few_tiles_as_cover(shape: tuple[int, int]) -> None:
    assert len(grid_starts(shape, (4, 4))) == int(np.prod([max(1, -(-n // 4)) for n in shape]))
