"""Numbers on a grid: exact sums, a range that is checked, weights inside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.errors import OrderRefusedError, UserInputError
from asterion_shared.privacy.fixed_point import FixedPoint, choose_fixed_point


def grid(bits: int = 32, largest: float = 8.0, num_summands: int = 10) -> FixedPoint:
    return FixedPoint(bits=bits, step=1 / 64, largest=largest, num_summands=num_summands)


@given(
    rows=st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=10),
    bits=st.sampled_from([14, 20, 32, 40, 64]),
)
def test_a_modular_sum_decodes_to_the_sum_of_the_rounded(
    rows: list[list[float]], bits: int
) -> None:
    fixed = grid(bits)
    coded = [fixed.encode(np.array(row)) for row in rows]
    assert all(int(one.max()) < 1 << bits for one in coded)
    total = np.zeros(5, coded[0].dtype)
    for one in coded:
        total = (total + one) & total.dtype.type((1 << bits) - 1)
    wanted = [sum(round(row[i] * 64) for row in rows) / 64 for i in range(5)]
    assert fixed.decode(total).tolist() == wanted


def test_by_hand() -> None:
    fixed = FixedPoint(bits=8, step=0.5, largest=3.0, num_summands=20)
    coded = fixed.encode(np.array([0.0, 0.5, -0.5, 3.0, -3.0, 0.75, -1.25], np.float32))
    assert coded.dtype == np.uint32
    assert coded.tolist() == [0, 1, 255, 6, 250, 2, 254]  # 1.5 and -2.5 steps go to even
    assert fixed.decode(coded).tolist() == [0, 0.5, -0.5, 3, -3, 1, -1]
    assert fixed.encode(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("where", [0, 300_000])
def test_a_value_outside_is_refused_by_its_size(where: int) -> None:
    values = np.zeros(400_000, np.float32)
    values[where], values[7] = 9.0, -8.5
    with pytest.raises(OrderRefusedError, match=r"magnitude is 9, .* ends at 8; .* clip") as caught:
        grid().encode(values)
    assert caught.value.code == "secure_sum_out_of_range"
    values[where], values[7] = 8.0, -8.0
    assert grid().decode(grid().encode(values))[where] == 8.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(OrderRefusedError, match="not finite"):
        grid().encode(np.array([0.0, bad, 100.0]))
    with pytest.raises(OrderRefusedError, match="not finite"):
        grid().encode(np.array([0.0, 1.0]), weight=bad)


def test_so_many_summands_that_the_sum_could_wrap_are_refused() -> None:
    # 8 x 64 steps: 512 a summand, and 2^13 - 1 = 8191 holds 15 of them
    assert grid(bits=14, num_summands=15).levels == 512
    with pytest.raises(UserInputError, match=r"reach 8192, beyond 2\^13 - 1"):
        grid(bits=14, num_summands=16)


@pytest.mark.parametrize("values", [{"step": 0.0}, {"largest": np.inf}, {"bits": 65}, {"bits": 7}])
def test_fields_are_checked(values: dict[str, float]) -> None:
    right = {"bits": 32, "step": 0.1, "largest": 1.0, "num_summands": 3}
    with pytest.raises(UserInputError):
        FixedPoint(**(right | values))


@given(
    largest=st.floats(1e-20, 1e20),
    num_summands=st.integers(1, 1000),
    steps=st.integers(1, 1 << 50),
)
def test_the_chosen_grid_is_fine_enough_and_holds_the_sum(
    largest: float, num_summands: int, steps: int
) -> None:
    fixed = choose_fixed_point(largest=largest, num_summands=num_summands, steps=steps)
    assert fixed.levels >= steps
    assert (fixed.bits == 32) == (steps <= (2**31 - 1) // num_summands)
    total = np.zeros(2, fixed.encode(np.zeros(2)).dtype)
    for _ in range(num_summands):
        total = total + fixed.encode(np.array([largest, -largest]))
    wanted = largest * num_summands
    assert fixed.decode(total) == pytest.approx([wanted, -wanted], rel=1e-12)


def test_what_fits_no_grid_is_refused() -> None:
    with pytest.raises(UserInputError, match="do not fit 64 bits"):
        choose_fixed_point(largest=1.0, num_summands=1 << 20, steps=1 << 50)
    with pytest.raises(UserInputError, match="0 summands"):
        choose_fixed_point(largest=1.0, num_summands=0)


def test_a_weighted_update_beyond_the_range_names_the_product() -> None:
    with pytest.raises(OrderRefusedError, match="magnitude is 6,"):
        grid(largest=4.0).encode(np.array([2.0, -1.0]), 3.0)
