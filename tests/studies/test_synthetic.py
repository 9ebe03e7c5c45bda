from typing import Any

import numpy as np
import pytest

from asterion_shared.cases import Case, SiteData
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.table_columns import table_width
from asterion_sim.synthetic import CASES_2D, PRIOR_FLOOR, site_profile, synthetic_sites
from asterion_sim.synthetic_scenes import see

PLANS: dict[str, dict[str, Any]] = {
    "medical": {
        "task": "segmentation",
        "data": {"classes": ["background", "disc", "rod"], "patch_size": [48, 32]},
        "model": {"name": "unet"},
    },
    "volume": {
        "task": "segmentation",
        "data": {"dimensions": 3, "patch_size": [24, 16, 16], "channels": ["t1", "t2"]},
        "model": {"name": "unet"},
    },
    "sky": {
        "task": "segmentation",
        "data": {"classes": ["sky", "source"], "patch_size": [48, 48], "normalisation": "asinh"},
        "model": {"name": "unet"},
    },
    "classes": {
        "task": "classification",
        "data": {"classes": ["a", "b", "c", "d"], "patch_size": [32, 32]},
        "model": {"name": "residual"},
    },
    "anomaly": {
        "task": "anomaly",
        "data": {"classes": ["normal", "odd"], "patch_size": [32, 32]},
        "model": {"name": "conv_autoencoder"},
    },
    "table": {
        "task": "classification",
        "data": {
            "kind": "table",
            "features": ["age", "sex", "dose"],
            "categorical": ["sex=0|1"],
            "classes": ["well", "ill"],
        },
        "model": {"name": "logistic"},
    },
}


def plan_named(name: str, seed: int = 3) -> Plan:
    return validate(Plan, {"name": name, "seed": seed} | PLANS[name], "test")


def some(data: SiteData, count: int = 12) -> list[Case]:
    parts = (data.train, data.test)
    return [part[i] for part in parts for i in range(min(count, len(part)))]


@pytest.mark.parametrize("name", PLANS)
def test_cases_honour_the_contract(name: str) -> None:
    plan = plan_named(name)
    num_classes = len(plan.data.classes)
    for site, data in synthetic_sites(plan, 3).items():
        assert data.site == site
        assert len(data.train) > 0
        assert len(data.test) >= 2
        for case in some(data):
            assert case.image.dtype == np.float32
            assert np.isfinite(case.image).all()
            if plan.data.kind == "table":
                assert case.image.shape == (table_width(plan.data),)
            else:
                assert case.image.shape == (len(plan.data.channels), *plan.data.patch_size)
            if plan.task == "segmentation":
                assert case.mask is not None
                assert case.mask.shape == plan.data.patch_size
                assert 1 <= case.mask.max() < num_classes
                assert case.mask.min() == 0
            else:
                assert 0 <= case.label < num_classes


def test_the_same_plan_gives_the_same_data_and_another_seed_another() -> None:
    def first(seed: int, num_sites: int) -> Case:
        return synthetic_sites(plan_named("sky", seed), num_sites)["site_001"].train[0]

    assert np.array_equal(first(3, 1).image, first(3, 5).image)
    assert first(3, 1).id == first(3, 5).id
    assert not np.array_equal(first(3, 1).image, first(4, 1).image)


def test_ids_differ_and_train_and_test_are_disjoint() -> None:
    sites = synthetic_sites(plan_named("anomaly"), 2)
    ids = [case.id for data in sites.values() for part in (data.train, data.test) for case in part]
    assert len(set(ids)) == len(ids)


def test_anomalies_are_in_the_test_alone_and_marked() -> None:
    data = synthetic_sites(plan_named("anomaly"), 1)["site_001"]
    assert all(case.label == 0 for case in data.train)
    assert {case.label for case in data.test} == {0, 1}
    for case in data.test:
        assert case.mask is not None
        assert bool(case.mask.any()) == (case.label == 1)


def test_profiles_keep_the_floor_and_spread() -> None:
    plan = plan_named("classes")
    profiles = [site_profile(plan, f"site_{i:03d}") for i in range(200)]
    assert all(min(p.prior) >= PRIOR_FLOOR - 1e-9 for p in profiles)
    assert all(sum(p.prior) == pytest.approx(1) for p in profiles)
    counts = np.array([p.num_cases for p in profiles])
    assert counts.min() >= CASES_2D[0]
    assert counts.max() <= CASES_2D[1]
    # log-uniform: the median is near the geometric mean of the ends, sqrt(20 * 400) = 89
    assert 65 < np.median(counts) < 125
    assert np.ptp(np.log10([p.gain for p in profiles])) > 3


def test_blur_keeps_the_light_and_spreads_it() -> None:
    point = np.zeros((1, 33, 33), np.float32)
    point[0, 16, 16] = 1.0
    blurred = see(point, 2.0, 0.0, np.random.default_rng(0))
    assert blurred.sum() == pytest.approx(1.0, abs=1e-4)
    offsets = np.arange(33) - 16
    spread = np.sqrt((blurred[0].sum(axis=0) * offsets**2).sum())
    assert spread == pytest.approx(2.0, abs=0.01)


def test_a_tables_classes_differ() -> None:
    data = synthetic_sites(plan_named("table"), 6)
    cases = [case for site in data.values() for case in site.train]
    rows = np.stack([case.image for case in cases])
    labels = np.array([case.label for case in cases])
    gap = rows[labels == 1].mean(axis=0) - rows[labels == 0].mean(axis=0)
    assert np.abs(gap).max() > 0.5
