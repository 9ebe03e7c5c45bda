"""The statistics of subgroups are those of their cases alone, and add up to the whole."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from asterion_client.local_round import evaluate
from asterion_client.small_groups import CellPatients, shareable
from asterion_shared.cases import Case, CaseList, Predict, SiteData
from asterion_shared.errors import SettingsError
from asterion_shared.metrics import (
    Statistic,
    check_statistics,
    expected_statistics,
    merge,
    summarise,
)
from asterion_shared.metrics.merged_bins import beside, merged
from asterion_shared.metrics.subgroups import by_subgroup, headline_of, metrics_of, whole_of
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.privacy.summed_vector import SummedVector
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module

ASKED = {"scanner": ["ge", "philips", "siemens"], "sex": ["female", "male"]}
TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {"task": "segmentation", "model": {"name": "unet"}},
    "two classes": {"task": "classification", "model": {"name": "cnn"}},
    "three classes": {"task": "classification", "model": {"name": "cnn"},
                      "data": {"classes": ["a", "b", "c"]}},
    "anomaly": {"task": "anomaly", "model": {"name": "conv_autoencoder"}},
}  # fmt: skip
NAMES = {"by_scanner/ge", "by_scanner/philips", "by_scanner/siemens", "by_scanner/other",
         "by_sex/female", "by_sex/male", "by_sex/other"}  # fmt: skip


def plan_of(kind: str, subgroups: dict[str, Any] | None = None, **sections: Any) -> Plan:
    asked = ASKED if subgroups is None else subgroups
    values = {"name": "p", "evaluation": {"score_bins": 40, "subgroups": asked}} | sections
    return validate(Plan, values | TASKS[kind], "plan")


def site_of(plan: Plan, size: int = 30) -> SiteData:
    """Nobody's scanner is a Philips; of every fifth case the sex is not listed."""
    draws = np.random.default_rng(4)
    cases = []
    for number in range(size):
        mask = draws.integers(0, 2, (8, 8)).astype(np.int16)
        sex = "other" if number % 5 == 0 else ("female", "male")[number % 3 > 0]
        cases.append(Case(
            id=f"{number:012x}", image=draws.normal(size=(1, 8, 8)).astype(np.float32),
            label=int(draws.integers(len(plan.data.classes))),
            mask=mask if plan.task == "segmentation" else None, group=f"p{number}",
            subgroups={"scanner": ("ge", "siemens")[number % 2], "sex": sex},
        ))  # fmt: skip
    return SiteData(site="north", train=CaseList.of(cases), test=CaseList.of(cases))


def predictor(plan: Plan) -> Predict:
    """Unsure answers from the image itself, so that each case always has the same one."""

    def predict(cases: Any) -> Iterator[np.ndarray]:
        for case in cases:
            if plan.task == "anomaly":
                yield np.square(case.image[0]) + np.float32(0.01)
            elif plan.task == "segmentation":
                share = 1 / (1 + np.exp(-case.image[0]))
                yield np.stack([1 - share, share])
            else:
                weights = np.exp(case.image.ravel()[: len(plan.data.classes)])
                yield (weights / weights.sum()).astype(np.float32)

    return predict


def subset(site: SiteData, attribute: str, value: str) -> CaseList:
    return CaseList.of([case for case in site.test if case.subgroups[attribute] == value])


@pytest.mark.parametrize("noted", [None, CellPatients()])
@pytest.mark.parametrize("kind", TASKS)
def test_a_subgroup_is_measured_as_if_there_were_no_other_case(
    kind: str, noted: CellPatients | None
) -> None:
    plan = plan_of(kind)
    site, predict, task = site_of(plan), predictor(plan), task_module(plan.task)
    found = evaluate(predict, site, plan, noted)
    assert {name for name in found if name.startswith("by_")} == NAMES
    assert not [name for name in found if name.startswith("baseline/by_")]
    assert found.keys() <= expected_statistics(plan).keys()
    check_statistics(found, plan, num_cases=30)
    said = summarise(found, plan)
    for attribute, value in [name.removeprefix("by_").split("/") for name in NAMES]:
        cases = subset(site, attribute, value)
        alone = task.scores(predict, cases, plan)[whole_of(plan)]
        ours = found[f"by_{attribute}/{value}"]
        assert ours.kind == alone.kind
        np.testing.assert_allclose(ours.values, alone.values, rtol=1e-12)
        part, wanted = metrics_of(said, f"{attribute}/{value}"), summarise({
            whole_of(plan): alone}, plan)  # fmt: skip
        assert part["num_cases"] == len(cases)
        assert part[headline_of(plan)] == pytest.approx(wanted[headline_of(plan)])
    for attribute in ASKED:
        parts = [found[n].values for n in NAMES if n.startswith(f"by_{attribute}/")]
        np.testing.assert_allclose(np.sum(parts, axis=0), found[whole_of(plan)].values, rtol=1e-12)
    if noted is not None:
        patients, _ = noted.of("by_sex/female")
        assert len(set(patients.tolist())) == len(subset(site, "sex", "female"))


@pytest.mark.parametrize("kind", TASKS)
def test_the_whole_is_what_it_is_without_subgroups(kind: str) -> None:
    plan, plain = plan_of(kind), plan_of(kind, {})
    site = site_of(plan)
    said = summarise(evaluate(predictor(plan), site, plan), plan)
    without = summarise(evaluate(predictor(plain), site, plain), plain)
    assert {n: v for n, v in said.items() if "_by_" not in n} == pytest.approx(without)
    assert not [name for name in without if "_by_" in name]


def test_of_an_attribute_that_is_not_told_nothing_leaves() -> None:
    plan = plan_of("two classes")
    cases = [Case(id=c.id, image=c.image, label=c.label, subgroups={"sex": c.subgroups["sex"]})
             for c in site_of(plan).test]  # fmt: skip
    site = SiteData(site="north", train=CaseList.of(cases), test=CaseList.of(cases))
    found = evaluate(predictor(plan), site, plan)
    assert {n for n in found if n.startswith("by_")} == {n for n in NAMES if "sex" in n}


def test_a_single_case_brings_a_statistic_of_each_value() -> None:
    plan = plan_of("two classes")
    found = evaluate(predictor(plan), site_of(plan, 1), plan)
    assert {name for name in found if name.startswith("by_")} == NAMES
    assert summarise(found, plan)["cases_by_scanner/philips"] == 0


def test_what_cannot_be_is_refused() -> None:
    plan = plan_of("two classes")
    found = evaluate(predictor(plan), site_of(plan), plan)
    twice = found | {"by_sex/male": found["score"]}
    with pytest.raises(ValueError, match=r"subgroups by sex have \d+ cases and the report 30"):
        check_statistics(twice, plan, num_cases=30)
    for name in ("by_sex/hans", "by_age/old", "baseline/by_sex/male"):
        with pytest.raises(ValueError, match="is unknown"):
            check_statistics({name: found["score"]}, plan)
    with pytest.raises(ValueError, match="is unknown"):
        check_statistics(found, plan_of("two classes", {}))
    with pytest.raises(ValueError, match="kind"):
        check_statistics({"by_sex/male": found["confusion"]}, plan)


def test_merged_bins_of_a_subgroup_are_read_by_what_is_beside_them() -> None:
    plan = plan_of("two classes")
    found = evaluate(predictor(plan), site_of(plan), plan)
    kept = np.zeros(41, np.bool_)
    kept[20] = True
    own = found["by_sex/male"]
    coarse, moved = merged(own, kept), beside(own, kept)
    left = found | {"by_sex/male": coarse, "by_sex_moved/male": moved}
    check_statistics(left, plan, num_cases=30)
    said = summarise(left, plan)
    alone = summarise({"score": coarse, "score_moved": moved}, plan)
    assert said["auroc_bound_by_sex/male"] == alone["auroc_bound"]
    assert said["auroc_by_sex/male"] == alone["auroc"]
    assert (alone["auroc_bound"] or 0) > 0.05  # without what is beside it would be as good as 0
    assert said["auroc_by_sex/female"] == summarise(found, plan)["auroc_by_sex/female"]
    both = merge([{"score": coarse, "score_moved": moved}, {"score": own}])
    assert (
        summarise(merge([left, found]), plan)["auroc_by_sex/male"]
        == (summarise(both, plan)["auroc"])
    )


def test_small_subgroups_stay_and_what_leaves_is_read() -> None:
    plan = plan_of("segmentation")
    noted, site = CellPatients(), site_of(plan)
    left = shareable(evaluate(predictor(plan), site, plan, noted), 7, noted)
    check_statistics(left, plan, num_cases=30)
    said = summarise(left, plan)
    assert "cases_by_sex/other" not in said  # 6 patients
    assert said["cases_by_scanner/ge"] == said["cases_by_scanner/siemens"] == 15
    assert said["cases_by_scanner/philips"] == 0


def test_a_secure_sum_adds_them_and_a_silent_site_adds_nothing() -> None:
    kind, flow = "two classes", {
        "secure_sum": {"max_dropouts": 1, "max_colluders": 1},
        "algorithm": {"max_weight": 20, "clip_norm": 50.0},
        "rounds": {"sites_per_round": 5, "quorum": 3},
    }  # fmt: skip
    plan = plan_of(kind, **flow)
    told = evaluate(predictor(plan), site_of(plan), plan)
    silent = {name: part for name, part in told.items() if not name.startswith("by_sex/")}
    form, secret = SummedVector(plan, 0, 1), SecretStream(bytes(32))
    vectors = [form.encode(None, 0, part, secret) for part in (told, silent)]
    found = form.decode((vectors[0] + vectors[1]).astype(np.uint32)).statistics
    said, once = summarise(found, plan), summarise(told, plan)
    assert said["cases_by_sex/female"] == once["cases_by_sex/female"]
    assert said["auroc_by_sex/female"] == once["auroc_by_sex/female"]
    assert said["cases_by_scanner/ge"] == 2 * (once["cases_by_scanner/ge"] or 0)
    nobody = form.decode((vectors[1] * np.uint32(2)).astype(np.uint32)).statistics
    assert not [name for name in nobody if name.startswith("by_sex/")]


def test_pooled_sums_are_uniform_though_a_site_lacks_a_value() -> None:
    plan = plan_of("two classes")
    whole = Statistic("score", np.arange(4.0))
    first = by_subgroup({"score": whole}, {"sex": "male"}, plan, first=True)
    later = by_subgroup({"score": whole}, {"sex": "other"}, plan, first=False)
    total = merge([first, later])
    assert {n: s.values.sum() for n, s in total.items()} == {
        "by_sex/female": 0, "by_sex/male": 6, "by_sex/other": 6}  # fmt: skip


def test_a_plan_without_subgroups_has_the_text_and_the_hash_it_always_had() -> None:
    plain = plan_of("two classes", {})
    assert "subgroups" not in plain.canonical()
    asked = plan_of("two classes")
    assert parse_plan(asked.canonical()) == asked
    assert parse_plan(plain.canonical()) == plain
    assert asked.sha256 != plain.sha256
    turned = plan_of("two classes", dict(reversed(ASKED.items())))
    assert turned.sha256 == asked.sha256
    assert list(expected_statistics(turned)) == list(expected_statistics(asked))


@pytest.mark.parametrize(
    ("subgroups", "words"),
    [
        ({"sex": ["female", "other"]}, "lists 'other'"),
        ({"sex": ["male", "male"]}, "lists a value twice"),
        ({"sex_edges": ["male"]}, "ends in '_edges'"),
        ({"sex_moved": ["male"]}, "or '_moved'"),
        ({"Sex": ["male"]}, "should match pattern"),
        ({"sex": ["Male"]}, "should match pattern"),
        ({"sex": ["male "]}, "should match pattern"),
        ({"sex": []}, "at least 1 item"),
        ({"sex": [f"v{i}" for i in range(13)]}, "at most 12 items"),
        ({name: ["x"] for name in "abcdefg"}, "at most 6 items"),
    ],
)
def test_a_plan_that_asks_wrongly_is_refused(subgroups: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_of("two classes", subgroups)
