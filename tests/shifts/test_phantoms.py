"""Drawn bodies: their parts, and that the truth is where they are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion, label

from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim.phantoms import draw_phantom, tissues_of

MODELS = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}


def plan_for(task: str, classes: list[str], **data: Any) -> Plan:
    values = {"name": "p", "task": task, "seed": 2, "model": {"name": MODELS[task]}}
    return validate(Plan, values | {"data": {"classes": classes} | data}, "test")


def drawn(plan: Plan, shape: tuple[int, ...], label_: int, seed: int) -> Any:
    return draw_phantom(plan, shape, label_, np.random.default_rng(seed))


@given(
    shape=st.one_of(
        st.tuples(st.integers(16, 80), st.integers(16, 80)),
        st.tuples(*[st.integers(12, 28)] * 3),
    ),
    num_classes=st.integers(2, 6), channels=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_shape_honours_the_contract(
    shape: tuple[int, ...], num_classes: int, channels: int, seed: int
) -> None:
    plan = plan_for(
        "segmentation",
        [f"c{i}" for i in range(num_classes)],
        channels=[f"t{i}" for i in range(channels)],
        dimensions=len(shape),
        patch_size=list(shape),
    )
    image, mask = drawn(plan, shape, -1, seed)
    assert image.shape == (channels, *shape)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert mask.shape == shape
    assert mask.dtype == np.int16
    assert set(np.unique(mask)) <= set(range(num_classes))
    assert mask.max() >= 1
    # The body fills the middle and leaves air in the corner.
    assert image[(0, *(n // 2 for n in shape))] > 0
    assert (image[(slice(None), *[0] * len(shape))] == 0).all()


def test_organs_are_the_first_classes_and_lesions_the_last() -> None:
    plan = plan_for("segmentation", ["air", "liver", "kidney", "lesion"])
    tissues = tissues_of(plan)
    counts = np.zeros(4)
    for seed in range(60):
        image, mask = drawn(plan, (64, 64), -1, seed)
        counts += np.bincount(mask.ravel(), minlength=4)
        for number in (1, 2):
            pixels = binary_erosion(mask == number, iterations=2)
            if pixels.sum() > 20:
                near_lesion = binary_dilation(mask == 3, iterations=3)
                level = np.median(image[0][pixels & ~near_lesion])
                assert level == pytest.approx(tissues.organs[number - 1, 0], rel=0.15)
        assert label(mask == 1)[1] <= 3  # one organ, cut at most by lesions
    assert (counts[1:] > 1000).all()


def test_a_lesion_is_brighter_than_what_it_lies_on() -> None:
    plan = plan_for("anomaly", ["normal", "lesion"])
    for seed in range(30):
        healthy, nothing = drawn(plan, (48, 48), 0, seed)
        ill, truth = drawn(plan, (48, 48), 1, seed)
        assert not nothing.any()
        # the same draws come first, so that the body is the same one
        difference = ill[0] - healthy[0]
        assert truth.sum() >= 5
        assert difference[truth == 1].min() > 100
        outside = ~binary_dilation(truth == 1, iterations=2)
        np.testing.assert_array_equal(difference[outside], 0)


def test_classes_have_lesions_of_their_own_kind() -> None:
    plan = plan_for("classification", ["none", "bright", "dark", "long_bright", "long_dark"])
    elongation = {k: [] for k in range(5)}
    for seed in range(40):
        healthy, _ = drawn(plan, (64, 64), 0, seed)
        for kind in range(1, 5):
            ill, truth = drawn(plan, (64, 64), kind, seed)
            change = (ill - healthy)[0][truth == 1]
            assert (change.mean() > 0) == (kind in (1, 3))
            parts, count = label(truth)
            if count == 1:
                points = np.argwhere(parts == 1)
                spread = np.linalg.eigvalsh(np.cov(points.T))
                elongation[kind].append(np.sqrt(spread[1] / spread[0]))
    assert max(np.median(elongation[k]) for k in (1, 2)) < 1.5
    assert min(np.median(elongation[k]) for k in (3, 4)) > 1.6


def test_tissues_are_the_plans_and_differ_between_channels() -> None:
    plan = plan_for("segmentation", ["air", "a", "b", "c", "lesion"], channels=["t1", "t2"])
    tissues = tissues_of(plan)
    assert tissues.organs.shape == (3, 2)
    assert tissues_of(plan) is tissues
    assert np.abs(tissues.organs - tissues.trunk).min() > 100
