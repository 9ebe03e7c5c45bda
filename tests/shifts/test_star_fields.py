"""Drawn sky: profiles against their formulas, and truth where the light is."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as parts_of

from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim.star_fields import (
    DETECTION_SIGMA,
    EDGE_ON,
    ELLIPTICAL,
    SKY_ELECTRONS,
    SKY_NOISE,
    SPIRAL,
    Galaxy,
    draw_field,
    galaxy_stamp,
    moffat_stamp,
    power_law,
    sersic,
    trail,
)

MODELS = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}


def plan_for(task: str, classes: list[str], **data: Any) -> Plan:
    values = {"name": "p", "task": task, "seed": 2, "model": {"name": MODELS[task]}}
    data = {"classes": classes, "normalisation": "asinh"} | data
    return validate(Plan, values | {"data": data}, "test")


def drawn(plan: Plan, shape: tuple[int, ...], label: int, seed: int) -> Any:
    return draw_field(plan, shape, label, np.random.default_rng(seed))


def test_a_star_has_the_moffat_flux_and_width() -> None:
    stamp, corner = moffat_stamp((101, 101), 50.0, 50.0, 100.0, 4.0)
    assert stamp.max() == 100.0
    assert corner == (26, 26)
    core = 4.0 / (2 * math.sqrt(2 ** (1 / 3) - 1))
    # flux of a Moffat profile of peak I: I pi core^2 / (beta - 1); 24 pixels hold 99.9 % of it
    assert stamp.sum() == pytest.approx(100 * math.pi * core**2 / 2, rel=0.002)
    assert stamp[24, 26] == pytest.approx(50.0, rel=1e-4)


def test_a_star_at_the_rim_is_cut_and_one_far_outside_is_nothing() -> None:
    whole, _ = moffat_stamp((40, 40), 20.0, 20.0, 1.0, 2.0)
    cut, corner = moffat_stamp((40, 40), 0.0, 20.0, 1.0, 2.0)
    assert corner[0] == 0
    np.testing.assert_array_equal(cut, whole[12:])
    assert moffat_stamp((40, 40), -100.0, 20.0, 1.0, 2.0)[0].size == 0


@pytest.mark.parametrize("index", [1.0, 2.0, 4.0])
def test_half_of_a_sersic_profiles_light_lies_within_its_radius(index: float) -> None:
    radius = np.linspace(1e-4, 60, 600_000)
    light = sersic(radius, index).astype(float) * radius
    within = light[radius < 1].sum() / light.sum()
    assert within == pytest.approx(0.5, abs=0.02)
    assert sersic(np.array([1.0]), index)[0] == 1.0


def galaxy(kind: int, **changes: float) -> Galaxy:
    values: dict[str, Any] = {
        "kind": kind, "row": 40.0, "column": 40.0, "radius": 8.0, "axis_ratio": 1.0,
        "angle": 0.5, "surface": 50.0, "phase": 0.3,
    }  # fmt: skip
    return Galaxy(**(values | changes))


def test_galaxies_have_their_axis_ratio_and_angle() -> None:
    upright = galaxy(EDGE_ON, axis_ratio=0.25, angle=math.pi / 2, row=100, column=100, radius=40)
    stamp, corner = galaxy_stamp((201, 201), upright)
    assert corner == (0, 0)
    rows, columns = np.nonzero(stamp > 25)
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(4, rel=0.1)


def test_a_spiral_has_two_arms_and_an_elliptical_none() -> None:
    def turns(kind: int) -> int:
        stamp, _ = galaxy_stamp((81, 81), galaxy(kind))
        angle = np.linspace(0, 2 * math.pi, 720, endpoint=False)
        ring = stamp[
            np.round(40 + 10 * np.sin(angle)).astype(int),
            np.round(40 + 10 * np.cos(angle)).astype(int),
        ]
        return int(np.abs(np.fft.rfft(ring))[1:20].argmax()) + 1

    assert turns(SPIRAL) == 2
    assert turns(5) == 3
    stamp, _ = galaxy_stamp((81, 81), galaxy(ELLIPTICAL))
    np.testing.assert_allclose(stamp, stamp.T, rtol=1e-4)


def test_fluxes_follow_their_power_law() -> None:
    fluxes = power_law(20_000, 5.0, 500.0, np.random.default_rng(0))
    assert fluxes.min() >= 5
    assert fluxes.max() <= 500
    # N(> F) = (1/F - 1/500) / (1/5 - 1/500)
    for flux in (10.0, 50.0, 200.0):
        expected = (1 / flux - 1 / 500) / (1 / 5 - 1 / 500)
        assert (fluxes > flux).mean() == pytest.approx(
            expected, abs=4 * math.sqrt(expected / 20_000)
        )


def test_a_trail_is_a_straight_track() -> None:
    light = trail((51, 51), centre=(25, 25), angle=0.0, peak=10.0, fwhm_pixels=4.0,
                  length_pixels=20)  # fmt: skip
    np.testing.assert_allclose(light[25, 15:36], 10.0)
    np.testing.assert_allclose(light[[23, 27], 20], 5.0, rtol=1e-5)
    assert (light[:, :15] == 0).all()
    assert (light[:, 36:] == 0).all()


@given(
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)), depth=st.integers(0, 1),
    num_classes=st.integers(2, 6), bands=st.integers(1, 3), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_field_honours_the_contract(
    size: tuple[int, int], depth: int, num_classes: int, bands: int, seed: int
) -> None:
    shape = (12,) * depth + size
    plan = plan_for(
        "segmentation", [f"c{i}" for i in range(num_classes)], dimensions=len(shape),
        patch_size=list(shape), channels=[f"b{i}" for i in range(bands)],
    )  # fmt: skip
    image, mask = drawn(plan, shape, -1, seed)
    assert image.shape == (bands, *shape)
    assert image.dtype == np.float32
    assert image.min() >= SKY_ELECTRONS - 1e-3
    assert np.isfinite(image).all()
    assert mask.shape == shape
    assert mask.dtype == np.int16
    assert set(np.unique(mask)) <= set(range(num_classes))
    assert mask.max() >= 1


def test_truth_is_where_the_noiseless_light_is() -> None:
    plan = plan_for("segmentation", ["sky", "star", "galaxy"])
    for seed in range(20):
        image, mask = drawn(plan, (64, 64), -1, seed)
        light = image[0] - SKY_ELECTRONS  # of one band: all of it
        sure = np.abs(light - DETECTION_SIGMA * SKY_NOISE) > 0.01
        np.testing.assert_array_equal((mask > 0)[sure], (light > DETECTION_SIGMA * SKY_NOISE)[sure])


def test_sources_are_as_dense_as_said() -> None:
    plan = plan_for("segmentation", ["sky", "source"])
    counts = [parts_of(drawn(plan, (64, 64), -1, seed)[1])[1] for seed in range(60)]
    # 11.7 on average, some of them blended, at least one
    assert 7 < np.mean(counts) < 12.5
    assert min(counts) >= 1


def test_bands_show_stars_and_galaxies_in_other_colours() -> None:
    plan = plan_for("segmentation", ["sky", "star", "galaxy"], channels=["g", "r"])
    ratios: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(20):
        image, mask = drawn(plan, (64, 64), -1, seed)
        for number, found in ratios.items():
            first, second = (image - SKY_ELECTRONS)[:, mask == number]
            found += (second / first).tolist()
    assert abs(np.median(ratios[1]) - np.median(ratios[2])) > 0.02


def test_an_anomaly_is_added_to_a_normal_galaxy() -> None:
    plan = plan_for("anomaly", ["normal", "odd"])
    long, short = 0, 0
    for seed in range(40):
        normal, nothing = drawn(plan, (48, 48), 0, seed)
        odd, truth = drawn(plan, (48, 48), 1, seed)
        assert not nothing.any()
        added = (odd - normal)[0]
        assert ((added > DETECTION_SIGMA * SKY_NOISE) == (truth == 1)).mean() > 0.999
        rim = np.concatenate([truth[0], truth[-1], truth[:, 0], truth[:, -1]])
        long, short = long + bool(rim.any()), short + (not rim.any())
    assert min(long, short) > 8  # trails cross the image, arcs do not


def test_classification_shows_the_labels_kind_in_the_middle() -> None:
    plan = plan_for("classification", ["elliptical", "spiral", "edge_on"])
    for seed in range(10):
        for kind in range(3):
            image, truth = drawn(plan, (64, 64), kind, seed)
            assert truth[28:36, 28:36].any()
            assert 40 < truth.sum() < 64 * 64 / 2
            assert image.max() > SKY_ELECTRONS + 5 * SKY_NOISE
