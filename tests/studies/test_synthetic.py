import pickle
from typing import Any

import numpy as np
import pytest

from asterion_client.data.transforms import normalise
from asterion_shared.cases import Case, SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.table_columns import table_width
from asterion_sim.shift_settings import LabelNoise, Noise, Psf
from asterion_sim.shifts import shifted_site
from asterion_sim.synthetic import (
    CASES_2D,
    PRIOR_FLOOR,
    _normalised,
    generated_sites,
    make_image_case,
    site_profile,
    synthetic_sites,
)

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
    names = [f"site_{i:03d}" for i in range(200)]
    profiles = [site_profile(plan, name, CASES_2D, (), 1.0) for name in names]
    assert all(min(p.prior) >= PRIOR_FLOOR - 1e-9 for p in profiles)
    assert all(sum(p.prior) == pytest.approx(1) for p in profiles)
    counts = np.array([p.num_cases for p in profiles])
    assert counts.min() >= CASES_2D[0]
    assert counts.max() <= CASES_2D[-1]
    # log-uniform: the median is near the geometric mean of the ends, sqrt(20 * 400) = 89
    assert 65 < np.median(counts) < 125
    alike = site_profile(plan, "a", 50)
    assert alike.num_cases == 50
    assert alike.prior == pytest.approx([0.25] * 4)


def test_sites_differ_in_instrument_by_default() -> None:
    for name in ("medical", "sky"):
        plan = plan_named(name)
        sites = synthetic_sites(plan, 5)
        words = set()
        for data in sites.values():
            words |= {shift.words for shift in data.train._profile.shifts}  # type: ignore[attr-defined]
        assert len(words) >= 10


def test_a_site_does_not_depend_on_the_others_or_on_the_number_of_cases() -> None:
    plan = plan_named("medical")
    small = generated_sites(plan, 1, cases_per_site=8)["site_001"]
    large = generated_sites(plan, 3, cases_per_site=400)["site_001"]
    np.testing.assert_array_equal(small.test[1].image, large.test[1].image)


def test_cases_are_made_when_read_kept_nowhere_and_travel_light() -> None:
    plan = plan_named("medical")
    (data,) = generated_sites(plan, 1, cases_per_site=100_000).values()
    assert (len(data.train), len(data.test)) == (75_000, 25_000)
    first = data.train[74_999]
    assert data.train[-1].id == first.id
    assert data.train[74_999] is not first
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).train[74_999].image, first.image)  # noqa: S301
    with pytest.raises(IndexError):
        data.train[75_000]


def test_images_may_be_larger_than_the_patch() -> None:
    plan = plan_named("sky")
    (data,) = generated_sites(plan, 1, cases_per_site=4, image_size=(100, 80)).values()
    assert data.train[0].image.shape == (1, 100, 80)


@pytest.mark.parametrize("name", ["classes", "anomaly", "medical"])
def test_labels_are_known_without_making_images(name: str) -> None:
    plan = plan_named(name)
    shifts = (LabelNoise(probability=0.4),) if name == "classes" else ()
    (data,) = generated_sites(plan, 1, cases_per_site=40, shifts=shifts).values()
    for part in (data.train, data.test):
        assert part.labels().tolist() == [case.label for case in part]


def test_label_noise_is_in_training_alone() -> None:
    plan = plan_named("classes")
    clean, noisy = (
        generated_sites(plan, 1, cases_per_site=2000, shifts=shifts)["site_001"]
        for shifts in ((), (LabelNoise(probability=0.3),))
    )
    wrong = (clean.train.labels() != noisy.train.labels()).mean()
    assert abs(wrong - 0.3) < 4 * np.sqrt(0.21 / 1500)
    assert (clean.test.labels() == noisy.test.labels()).all()
    np.testing.assert_array_equal(clean.train[0].image, noisy.train[0].image)


def test_label_noise_reaches_tables() -> None:
    plan = plan_named("table")
    clean, noisy = (
        generated_sites(plan, 1, cases_per_site=400, shifts=shifts)["site_001"]
        for shifts in ((), (LabelNoise(probability=0.5),))
    )
    assert 0.35 < (clean.train.labels() != noisy.train.labels()).mean() < 0.65
    assert (clean.test.labels() == noisy.test.labels()).all()
    changed = shifted_site(clean, (LabelNoise(probability=0.5),), plan)
    np.testing.assert_array_equal(changed.train.labels(), noisy.train.labels())


def test_shifts_act_on_the_signal_before_the_noise() -> None:
    """Seeing blurs a generated image's sources and not its noise; a recorded image's, both."""
    plan = plan_named("sky")
    seeing = (Psf(seeing_arcsec=2.0),)
    (before,) = generated_sites(plan, 1, cases_per_site=8, shifts=seeing).values()
    (clean,) = generated_sites(plan, 1, cases_per_site=8).values()
    after = shifted_site(clean, seeing, plan)

    def roughness(data: SiteData) -> float:
        """Deviation between neighbours over deviation, where there is no source."""
        image = data.train[0].image[0]
        mask = data.train[0].mask
        assert mask is not None
        dark = (mask == 0) & (image < 2)
        pairs = dark[:, 1:] & dark[:, :-1]
        return float(np.diff(image, axis=1)[pairs].std() / image[dark].std())

    # sqrt(2) for independent pixels
    assert roughness(before) > 1.0
    assert roughness(after) < 0.5


def test_noise_of_a_shift_takes_the_place_of_the_scanners_own() -> None:
    plan = plan_named("medical")
    silent, own = (
        make_image_case(plan, site_profile(plan, "a", 8, shifts), (48, 32), 3)
        for shifts in ((Noise(sigma_percent=0),), ())
    )
    corner = (0, slice(0, 2), slice(0, 2))
    assert np.ptp(silent.image[corner]) == 0
    assert np.ptp(own.image[corner]) > 0


@pytest.mark.parametrize("cases", [2, range(1, 9), range(0)])
def test_too_few_cases_are_refused(cases: int | range) -> None:
    with pytest.raises(UserInputError, match="at least 3"):
        generated_sites(plan_named("medical"), 1, cases_per_site=cases)


def test_a_fast_standardisation_is_the_hospitals() -> None:
    plan = plan_named("volume")
    image = np.random.default_rng(0).gamma(2, 300, (2, 24, 16, 16)).astype(np.float32)
    image[1] = 5.0  # a constant channel becomes 0
    np.testing.assert_allclose(_normalised(image, plan), normalise(image, "standardise"), atol=2e-5)


def test_a_tables_classes_differ() -> None:
    data = synthetic_sites(plan_named("table"), 6)
    cases = [case for site in data.values() for case in site.train]
    rows = np.stack([case.image for case in cases])
    labels = np.array([case.label for case in cases])
    gap = rows[labels == 1].mean(axis=0) - rows[labels == 0].mean(axis=0)
    assert np.abs(gap).max() > 0.5
