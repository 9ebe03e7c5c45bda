"""Statistics add, travel as JSON, and refuse what they cannot read."""

import json

import numpy as np
import pytest

from asterion_shared.metrics import Statistic, decode, encode, merge
from asterion_shared.metrics.statistic import place

EDGES = np.array([0.0, 1.0, 2.0])


def test_place_by_hand() -> None:
    # below | [0, 1) | [1, 2] | above: the lower edge belongs to its bin, the last edge to the last
    counts = place([-0.1, 0.0, 0.5, 1.0, 2.0, 2.1, 7.0], EDGES)
    assert counts.tolist() == [1, 2, 2, 2]


def test_place_of_nothing_is_zeros() -> None:
    assert place([], EDGES).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_place_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        place([0.5, bad], EDGES)


def test_merge_by_hand() -> None:
    parts = [
        {"a": Statistic("k", np.array([1.0, 2.0]))},
        {"a": Statistic("k", np.array([10.0, 20.0])), "b": Statistic("k", np.array([5.0]))},
    ]
    total = merge(parts)
    assert {name: part.values.tolist() for name, part in total.items()} == {"a": [11, 22], "b": [5]}
    assert parts[0]["a"].values.tolist() == [1.0, 2.0]  # the parts are left alone
    assert merge([]) == {}


@pytest.mark.parametrize(
    "other", [Statistic("other", np.zeros(2)), Statistic("k", np.zeros(3))], ids=["kind", "length"]
)
def test_merge_refuses_what_does_not_fit(other: Statistic) -> None:
    with pytest.raises(ValueError, match="statistic a comes as"):
        merge([{"a": Statistic("k", np.zeros(2))}, {"a": other}])


def test_json_round_trip_is_exact() -> None:
    values = np.array([0.1, 1e300, 5e-324, 3.0])
    back = decode(json.loads(json.dumps(encode({"x/y": Statistic("k", values)}))))
    assert back.keys() == {"x/y"}
    assert back["x/y"].kind == "k"
    assert back["x/y"].values.dtype == np.float64
    assert np.array_equal(back["x/y"].values, values)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {"a": 1},
        {"a": {"kind": "k"}},
        {"a": {"kind": 3, "values": []}},
        {"a": {"kind": "k", "values": "12"}},
        {"a": {"kind": "k", "values": ["1"]}},
        {"a": {"kind": "k", "values": [[1.0]]}},
        {"a": {"kind": "k", "values": [True]}},
        {"a": {"kind": "k", "values": [10**400]}},
        {"a": {"kind": "k", "values": [], "more": 1}},
    ],
)
def test_decode_refuses(bad: object) -> None:
    with pytest.raises(ValueError, match="statistic"):
        decode(bad)
