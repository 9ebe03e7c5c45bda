import math

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asterion_shared.blocks import length
from asterion_shared.errors import PlanMismatchError
from asterion_shared.parameters import (
    Layout,
    Vector,
    from_bytes,
    layout_of,
    named_parts,
    read_kept,
    read_vector,
    take_vector,
    write_kept,
    write_vector,
)
from asterion_shared.plan import ParameterPolicy


def package_bytes(vector: Vector, layout: Layout) -> bytes:
    return safetensors.numpy.save(named_parts(vector, layout))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))


def test_integer_counters_and_statistics_stay_at_the_site() -> None:
    layout = layout_of(network(), ParameterPolicy())
    assert {t.name for t in layout.kept} == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert layout.size == 18 + 2 + 2 + 2 + 2 + 1


def test_shared_statistics_are_in_the_vector_and_counters_still_are_not() -> None:
    layout = layout_of(network(), ParameterPolicy(batch_norm_statistics="share"))
    assert {t.name for t in layout.kept} == {"1.num_batches_tracked"}


def test_forbidden_statistics_are_refused_by_name() -> None:
    with pytest.raises(PlanMismatchError, match=r"1\.running_mean"):
        layout_of(network(), ParameterPolicy(batch_norm_statistics="forbid"))


def test_personal_layers_are_kept_and_a_pattern_without_match_is_refused() -> None:
    layout = layout_of(network(), ParameterPolicy(keep=("2.*",)))
    assert {"2.weight", "2.bias"} <= {t.name for t in layout.kept}
    with pytest.raises(PlanMismatchError, match="head"):
        layout_of(network(), ParameterPolicy(keep=("head.*",)))
    with pytest.raises(PlanMismatchError, match="no tensor to share"):
        layout_of(network(), ParameterPolicy(keep=("*",)))


@given(st.integers(0, 2**32 - 1))
def test_a_vector_survives_the_model_and_the_bytes(seed: int) -> None:
    model = network()
    layout = layout_of(model, ParameterPolicy())
    vector = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
    write_vector(model, layout, vector)
    assert read_vector(model, layout).tobytes() == vector.tobytes()
    assert from_bytes(package_bytes(vector, layout), layout).tobytes() == vector.tobytes()


def test_taking_a_vector_leaves_no_second_copy_and_tied_weights_come_twice() -> None:
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    layout = layout_of(model, ParameterPolicy())
    assert take_vector(model, layout).tobytes() == read_vector(twin, layout).tobytes()
    shared = [model.state_dict()[t.name].untyped_storage().nbytes() for t in layout.shared]
    assert shared == [0] * len(shared)

    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    nn.init.eye_(tied[0].weight)
    taken = take_vector(tied, layout_of(tied, ParameterPolicy()))
    assert taken.tolist() == [1, 0, 0, 1, 1, 0, 0, 1]


def test_a_read_only_vector_is_written_into_a_model() -> None:
    model = network()
    layout = layout_of(model, ParameterPolicy())
    vector = np.arange(layout.size, dtype=np.float32)
    vector.flags.writeable = False
    write_vector(model, layout, vector)
    assert read_vector(model, layout).tobytes() == vector.tobytes()


def test_writing_shared_weights_leaves_kept_tensors_alone() -> None:
    model = network()
    layout = layout_of(model, ParameterPolicy())
    model(torch.ones(2, 1, 5, 5))
    kept = read_kept(model, layout)
    write_vector(model, layout, np.zeros(layout.size, np.float32))
    assert all(np.array_equal(kept[n], v) for n, v in read_kept(model, layout).items())
    other = network()
    write_kept(other, layout, kept)
    assert int(other.state_dict()["1.num_batches_tracked"]) == 1


def test_wrong_lengths_names_and_bytes_are_refused() -> None:
    layout = layout_of(network(), ParameterPolicy())
    other = layout_of(nn.Linear(2, 1), ParameterPolicy())
    with pytest.raises(PlanMismatchError, match="shape"):
        write_vector(network(), layout, np.zeros(3, np.float32))
    with pytest.raises(PlanMismatchError, match="missing"):
        from_bytes(package_bytes(np.zeros(3, np.float32), other), layout)
    with pytest.raises(PlanMismatchError, match="not safetensors"):
        from_bytes(b"\x80\x04pickle", layout)


@given(st.lists(st.floats(-1e150, 1e150), max_size=40))
def test_a_length_is_the_root_of_the_exactly_added_squares(numbers: list[float]) -> None:
    expected = math.sqrt(math.fsum(number * number for number in numbers))
    assert length(np.array(numbers)) == pytest.approx(expected, rel=1e-14)


def test_a_length_of_float32_is_added_in_float64() -> None:
    many = np.full(3_000_000, 0.1, np.float32)
    assert length(many) == pytest.approx(float(many[0]) * math.sqrt(many.size), rel=1e-12)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_length_shows_a_number_that_is_not_finite(number: float) -> None:
    assert not math.isfinite(length(np.array([1.0, number])))
