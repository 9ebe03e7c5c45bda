"""Shifts on whole sites: addressed, lazy, true where truth must stay."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from asterion_client.data.transforms import normalise
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import DataProblemError, SettingsError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim.shift_settings import (
    AnnotationStyle,
    BiasField,
    CosmicRays,
    Crowding,
    GainOffset,
    LabelNoise,
    MissingLabels,
    Noise,
    Psf,
    Resolution,
)
from asterion_sim.shifts import Shift, apply_shifts, drawn_shifts, shifted_label, shifted_site
from asterion_sim.synthetic import generated_sites

MODELS = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}


def plan_for(task: str = "segmentation", seed: int = 5, **data: Any) -> Plan:
    data = {"patch_size": [32, 32]} | data
    values = {"name": "p", "task": task, "seed": seed, "model": {"name": MODELS[task]}}
    return validate(Plan, values | {"data": data}, "test")


def site(plan: Plan, num_cases: int = 24) -> SiteData:
    return generated_sites(plan, 1, cases_per_site=num_cases)["site_001"]


MANY: tuple[Shift, ...] = (
    BiasField(ratio=(1.5, 3)),
    Noise(sigma_percent=(2, 8), distribution="rician"),
    Resolution(in_plane_mm=(1.5, 3)),
    AnnotationStyle(grow_mm=(0.5, 2)),
)


def test_equal_addresses_give_equal_cases_and_others_do_not() -> None:
    plan = plan_for()
    data = site(plan)
    first, again = (shifted_site(data, MANY, plan).train[3] for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    other_site = shifted_site(replace(data, site="other"), MANY, plan).train[3]
    other_seed = shifted_site(data, MANY, plan_for(seed=6)).train[3]
    for other in (other_site, other_seed):
        assert other.id == first.id
        assert not np.array_equal(other.image, first.image)


def test_a_case_does_not_depend_on_where_it_stands_in_the_list() -> None:
    plan = plan_for()
    data = site(plan)
    turned = replace(data, train=CaseList.of(list(data.train)[::-1]))
    shifted, reverse = (shifted_site(d, MANY, plan).train for d in (data, turned))
    np.testing.assert_array_equal(shifted[0].image, reverse[len(reverse) - 1].image)


def test_an_added_shift_does_not_change_the_draws_of_those_before_it() -> None:
    plan = plan_for()
    one = drawn_shifts(MANY[:1], plan.seed, "a")
    assert drawn_shifts(MANY, plan.seed, "a")[:1] == one


def test_images_are_normalised_again_and_arguments_stay() -> None:
    plan = plan_for()
    data = site(plan)
    before = data.train[0].image.copy()
    shifted = shifted_site(data, (GainOffset(gain=300, offset_percent=20), *MANY), plan).train[0]
    assert shifted.image.dtype == np.float32
    assert shifted.image.mean() == pytest.approx(0, abs=1e-4)
    assert shifted.image.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(data.train[0].image, before)


@pytest.mark.parametrize("kind", ["standardise", "asinh", "zscale"])
def test_normalisation_takes_gain_and_offset_out(kind: str) -> None:
    plan = plan_for(normalisation=kind)
    data = site(plan)
    shifted = shifted_site(data, (GainOffset(gain=50, offset_percent=30),), plan)
    np.testing.assert_allclose(shifted.train[0].image, data.train[0].image, atol=5e-3)


def test_asinh_is_undone_before_a_shift() -> None:
    plan = plan_for(normalisation="asinh", pixel_scale_arcsec=0.3)
    raw = np.random.default_rng(0).normal(0, 1, (1, 32, 32)).astype(np.float32)
    raw[0, 16, 16] = 4000.0
    case = Case(id="a" * 12, image=normalise(raw, "asinh"), mask=np.zeros((32, 32), np.int16))
    data = SiteData(site="s", train=CaseList.of([case]), test=CaseList([]))
    seen = shifted_site(data, (Psf(seeing_arcsec=1.5),), plan).train[0]
    # linear again, the point's light is that of the raw one in units of its noise
    linear = np.sinh(seen.image)
    noise = 1.4826 * np.median(np.abs(raw - np.median(raw)))
    blurred_noise = linear[0, :8].std()
    assert linear[0, 12:21, 12:21].max() < np.sinh(case.image).max() / 5
    assert blurred_noise == pytest.approx(1.0, rel=0.5)
    assert np.sinh(case.image).max() == pytest.approx(4000 / noise, rel=0.01)


def test_test_truth_stays_unless_asked_for() -> None:
    plan = plan_for(classes=["background", "organ", "lesion"])
    data = site(plan)
    for test_too in (False, True):
        shifted = shifted_site(data, (AnnotationStyle(grow_mm=3, test_too=test_too),), plan)
        grown = [
            int((after.mask != 0).sum()) > int((before.mask != 0).sum())  # type: ignore[operator, union-attr]
            for before, after in zip(data.train, shifted.train, strict=True)
        ]
        assert all(grown)
        same = [
            np.array_equal(before.mask, after.mask)  # type: ignore[arg-type]
            for before, after in zip(data.test, shifted.test, strict=True)
        ]
        assert all(same) != test_too


def test_image_shifts_leave_every_truth() -> None:
    plan = plan_for()
    data = site(plan)
    shifted = shifted_site(data, MANY[:3], plan)
    for before, after in zip([*data.train, *data.test], [*shifted.train, *shifted.test],
                             strict=True):  # fmt: skip
        assert after.id == before.id
        np.testing.assert_array_equal(before.mask, after.mask)  # type: ignore[arg-type]
        assert not np.array_equal(before.image, after.image)


def test_label_noise_is_as_often_as_said_fixed_and_in_training_alone() -> None:
    plan = plan_for("classification", classes=["a", "b", "c"])
    data = site(plan, 1200)
    shifted = shifted_site(data, (LabelNoise(probability=0.25),), plan)
    drawn = drawn_shifts((LabelNoise(probability=0.25),), plan.seed, data.site)
    true = data.train.labels()
    ids = [data.train[i].id for i in range(0, len(true), 10)]
    noisy = np.array([
        shifted_label(int(label), shifts=drawn, plan=plan, case_id=f"case {n}")
        for n, label in enumerate(true)
    ])  # fmt: skip
    assert abs((noisy != true).mean() - 0.25) < 4 * np.sqrt(0.1875 / len(true))
    some = [shifted.train[i] for i in range(0, len(true), 10)]
    assert [case.id for case in some] == ids
    for case, index in zip(some, range(0, len(true), 10), strict=True):
        expected = shifted_label(int(true[index]), shifts=drawn, plan=plan, case_id=case.id)
        assert case.label == expected
    assert [shifted.test[i].label for i in range(20)] == data.test.labels()[:20].tolist()


def test_labels_are_known_without_shifting_images() -> None:
    plan = plan_for("classification", classes=["a", "b", "c"])
    data = site(plan, 60)
    for shifts in (MANY[:2], (*MANY[:2], LabelNoise(probability=0.5, test_too=True))):
        shifted = shifted_site(data, shifts, plan, memory_bytes=0)
        for part in (shifted.train, shifted.test):
            labels = part.labels()
            assert not part._kept
            assert labels.dtype == np.int64
            assert labels.tolist() == [case.label for case in part]


def test_missing_labels_are_unknown() -> None:
    classes = plan_for("classification")
    gone = shifted_site(site(classes), (MissingLabels(probability=1.0),), classes)
    assert {case.label for case in gone.train} == {-1}
    assert -1 not in {case.label for case in gone.test}
    masks = plan_for()
    unknown = shifted_site(site(masks), (MissingLabels(probability=1.0),), masks)
    assert all((case.mask == -1).all() for case in unknown.train)  # type: ignore[union-attr]


def test_a_star_added_is_a_source_but_no_anomaly() -> None:
    crowding = (Crowding(per_arcmin2=2000, fwhm_arcsec=0.6),)
    sky = {"normalisation": "asinh", "pixel_scale_arcsec": 0.3}
    plan = plan_for(**sky, classes=["sky", "source"])
    data = site(plan)
    crowded = shifted_site(data, crowding, plan)
    more = [int((b.mask > 0).sum()) - int((a.mask > 0).sum())  # type: ignore[operator, union-attr]
            for a, b in zip(data.test, crowded.test, strict=True)]  # fmt: skip
    assert min(more) > 0
    odd = plan_for("anomaly", **sky)
    data = site(odd)
    for before, after in zip(data.test, shifted_site(data, crowding, odd).test, strict=True):
        np.testing.assert_array_equal(before.mask, after.mask)  # type: ignore[arg-type]


def test_a_native_mask_follows_where_the_mask_changed() -> None:
    plan = plan_for(spacing_mm=[2.0, 2.0])
    mask = np.zeros((16, 16), np.int16)
    mask[6:10, 6:10] = 1
    native = np.zeros((32, 32), np.int16)
    native[13:19, 13:19] = 1  # finer than the plan's grid can say
    image = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)
    case = Case(id="b" * 12, image=image, mask=mask, native_mask=native)
    data = SiteData(site="s", train=CaseList.of([case]), test=CaseList.of([case]))
    shifted = shifted_site(data, (AnnotationStyle(grow_mm=2.0, test_too=True),), plan)
    after = shifted.test[0].native_mask
    assert after is not None
    grown = np.zeros((32, 32), np.int16)
    grown[12:20, 10:22] = 1
    grown[10:22, 12:20] = 1
    grown[12:20, 12:20] = 0
    grown[13:19, 13:19] = 1
    np.testing.assert_array_equal(after, grown)
    kept = shifted_site(data, (AnnotationStyle(grow_mm=2.0),), plan).test[0].native_mask
    np.testing.assert_array_equal(kept, native)  # type: ignore[arg-type]


def test_a_shifted_site_is_lazy_and_travels_to_worker_processes() -> None:
    plan = plan_for()
    shifted = shifted_site(site(plan, 12), MANY, plan)
    assert not shifted.train._kept
    assert not pickle.loads(pickle.dumps(shifted)).train._kept  # noqa: S301
    sent = pickle.loads(pickle.dumps(shifted))  # noqa: S301
    np.testing.assert_array_equal(sent.train[2].image, shifted.train[2].image)


def test_a_site_that_no_shift_affects_is_the_same_object() -> None:
    plan = plan_for()
    data = site(plan)
    assert shifted_site(data, (Noise(sigma_percent=1, sites=("x*",)),), plan) is data
    assert shifted_site(data, (), plan) is data


def test_a_size_in_mm_may_come_from_the_file_or_is_asked_for() -> None:
    plan = plan_for()
    mask = np.zeros((16, 16), np.int16)
    mask[4:8, 4:8] = 1
    image = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)
    case = Case(id="c" * 12, image=image, mask=mask)
    for spacing, unit in (((2.0, 2.0), "mm"), ((), "")):
        known = replace(case, native_spacing=spacing, spacing_unit=unit)
        data = SiteData(site="s", train=CaseList.of([known]), test=CaseList([]))
        shifted = shifted_site(data, (AnnotationStyle(grow_mm=2.0),), plan)
        if unit:
            assert int((shifted.train[0].mask == 1).sum()) == 16 + 16  # type: ignore[union-attr]
        else:
            with pytest.raises(DataProblemError, match="not known"):
                _ = shifted.train[0]


def test_a_shift_that_does_not_fit_is_refused_before_anything_is_read() -> None:
    plan = plan_for()
    with pytest.raises(SettingsError, match="classification"):
        shifted_site(site(plan), (LabelNoise(probability=0.1),), plan)


def test_shifts_act_in_the_order_of_the_list() -> None:
    plan = plan_for(normalisation="asinh", pixel_scale_arcsec=0.3)
    image = np.full((1, 32, 32), 100, np.float32)
    hits, blur = CosmicRays(hits_per_1000_pixels=20), Psf(seeing_arcsec=1.5)

    def seen(*shifts: Shift) -> np.ndarray:
        drawn = drawn_shifts(shifts, 3, "a")
        return apply_shifts(image, None, -1, shifts=drawn, plan=plan, case_id="x", noise=1.0,
                            spacing=(0.3, 0.3), unit="arcsec")[0]  # fmt: skip

    sharp, soft = seen(blur, hits), seen(hits, blur)
    assert np.abs(np.diff(sharp)).max() > 3 * np.abs(np.diff(soft)).max()
