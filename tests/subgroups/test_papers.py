"""Subgroups in the report, at the release gate and in the model card."""

from pathlib import Path
from typing import Any

import pytest
from tests.release.conftest import small_plan
from tests.release.runs import SITES, a_round, coordinator_with_run, metrics
from tests.reports.test_run_report import Page

from asterion_server.release_card import model_card
from asterion_server.release_claim import claim_report
from asterion_server.release_gate import gate_problems
from asterion_server.release_run import read_trained
from asterion_server.release_settings import AboutSettings, GateSettings
from asterion_server.run_folder import RunFolder
from asterion_shared.plan import Plan
from asterion_shared.release.facts import OnnxFacts
from asterion_shared.reports.metric_words import label
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.site_report import write_site_report
from asterion_shared.result import Metrics, Result
from asterion_shared.site_rounds import SiteRound

ASKED = {"scanner": ["ge", "philips"], "sex": ["female", "male"]}
PLAN = small_plan(rounds={"count": 3}, evaluation={"subgroups": ASKED})
SCANNERS: Metrics = {
    "dice_by_scanner/ge": 0.85, "dice_low_by_scanner/ge": 0.8, "dice_high_by_scanner/ge": 0.9,
    "cases_by_scanner/ge": 20.0, "dice_by_scanner/philips": 0.55, "cases_by_scanner/philips": 10.0,
    "dice_by_scanner/other": None, "cases_by_scanner/other": 0.0,
}  # fmt: skip
SEXES: Metrics = {
    "dice_by_sex/female": 0.8, "cases_by_sex/female": 18.0, "dice_by_sex/male": 0.78,
    "cases_by_sex/male": 17.0, "dice_by_sex/other": None, "cases_by_sex/other": 1.0,
}  # fmt: skip


def result(final: Metrics, plan: Plan = PLAN, **changes: Any) -> Result:
    last = a_round(3, 0.8, 0.7, SITES)
    sites = {site: told | (final if site != "north" else {}) for site, told in last.sites.items()}
    values: dict[str, Any] = {
        "run": "cells", "name": plan.name, "kind": "train", "task": "segmentation",
        "plan_sha256": plan.sha256, "status": "finished", "started": "2026-11-20T08:00:00Z",
        "finished": "2026-11-20T09:30:00Z", "carrier": "link", "rounds_planned": 3,
        "rounds": (last.model_copy(update={"sites": sites}),),
        "final_metrics": metrics(0.8) | {"num_cases": 36.0} | final,
        "sites": tuple({"name": site} for site in SITES),
    }  # fmt: skip
    return Result(**values | changes)


def words(found: Result, plan: Plan | None, folder: Path) -> str:
    write_report(found, folder / "report.html", plan=plan)
    return Page(folder / "report.html").words.replace("\u2013", "-")


def test_the_report_has_a_table_for_each_attribute(tmp_path: Path) -> None:
    said = words(result(SCANNERS), PLAN, tmp_path)
    assert (
        "The final model by scanner, over all sites that told it "
        "scanner cases Dice 95 % interval told by sites "
        "ge 20 0.850 0.800 to 0.900 2 of 3 philips 10 0.550 - 2 of 3 other 0 - - 2 of 3 "
        "all held-out cases 36 0.800 0.770 to 0.830 6 held-out cases are in no row: "
    ) in said
    assert (
        "told by sites female not told - - 0 of 3 male not told - - 0 of 3 other not told - - "
    ) in said
    assert "Dice, scanner ge" not in said  # not a second time among all metrics


def test_without_the_plan_what_was_told_is_shown(tmp_path: Path) -> None:
    said = words(result(SEXES), None, tmp_path)
    assert "Dice is not defined on the cases of other." in said
    assert "female 18 0.800 - 2 of 3 male 17 0.780 - 2 of 3 other 1 - - 2 of 3" in said
    assert "scanner" not in said


def test_without_subgroups_there_is_no_section(tmp_path: Path) -> None:
    plan = small_plan(rounds={"count": 3})
    assert "Subgroups" not in words(result({}, plan), plan, tmp_path)


def test_a_site_s_own_report_has_those_that_it_measures(tmp_path: Path) -> None:
    known = SCANNERS | metrics(0.8) | {"num_cases": 30.0}
    rounds = [SiteRound(round=1, metrics=known, num_examples=9, num_test=30, num_steps=1)]
    write_site_report(tmp_path / "report.html", "north", PLAN, rounds, [], {})
    said = Page(tmp_path / "report.html").words.replace("\u2013", "-")
    assert (
        "The shared model by scanner, on this site's held-out data "
        "scanner cases Dice 95 % interval "
        "ge 20 0.850 0.800 to 0.900 philips 10 0.550 - other 0 - - "
        "all held-out cases 30 0.800 0.770 to 0.830 "
    ) in said
    assert "sex" not in said.split("Subgroups")[1].split("Files that were skipped")[0]
    write_site_report(tmp_path / "report.html", "north", PLAN, [], [], {})
    assert "Subgroups" not in Page(tmp_path / "report.html").words


def test_under_a_secure_sum_nobody_knows_which_sites_told(tmp_path: Path) -> None:
    said = words(result(SCANNERS, secure_sum=True), PLAN, tmp_path)
    assert "ge 20 0.850 0.800 to 0.900 - philips" in said


@pytest.mark.parametrize(
    ("told", "least", "problems"),
    [
        (SCANNERS | SEXES | {"cases_by_sex/other": 0.0}, 0.55, []),
        (SCANNERS | SEXES | {"cases_by_sex/other": 0.0}, 0.56,
         ["worst subgroup: Dice is 0.550 for scanner philips, and 0.56 is asked"]),
        (SCANNERS | SEXES, 0.5, ["Dice is not defined on the 1 case of sex other, and 0.5"]),
        (SEXES | {"cases_by_sex/other": 0.0}, 0.5,
         ["no site told Dice of scanner ge, and 0.5", "no site told Dice of scanner philips"]),
    ],
)  # fmt: skip
def test_the_gate_asks_for_the_worst_subgroup(
    told: Metrics, least: float, problems: list[str]
) -> None:
    gate = GateSettings(worst_subgroup_at_least=least, worst_class_at_least=0.75)
    found = [str(problem) for problem in gate_problems(result(told), PLAN, gate)]
    assert len(found) == len(problems)
    for wanted, problem in zip(problems, found, strict=True):
        assert wanted in problem


def test_a_gate_that_asks_of_a_plan_without_subgroups_holds_back() -> None:
    plan, gate = small_plan(rounds={"count": 3}), GateSettings(worst_subgroup_at_least=0.1)
    (problem,) = gate_problems(result({}, plan), plan, gate)
    assert "the plan asks for no subgroups" in str(problem)
    assert not gate_problems(result({}, plan), plan, GateSettings())


def papers(tmp_path: Path, plan: Plan, final: Metrics) -> tuple[str, str]:
    made = coordinator_with_run(tmp_path, plan, final_metrics=metrics(0.82) | final)
    run = read_trained(RunFolder(made.runs / "cells-2026"), tmp_path / "operators")
    card = model_card(
        run, AboutSettings(), OnnxFacts(why_not="none"), name="cells", version=1,
        maturity="research", held_back=(), despite="",
    )  # fmt: skip
    return card, claim_report(run, AboutSettings(), name="cells", version=1)


def test_card_and_claim_say_how_it_does_in_subgroups(tmp_path: Path) -> None:
    for paper in papers(tmp_path, PLAN, SCANNERS):
        assert "| ge | 20 | 0.850 | 0.800 to 0.900 |" in paper
        assert "| female | not told |" in paper
        assert "Its subgroups were asked for by scanner and sex, and by nothing else." in paper
        assert "No site told anything by sex." in paper


def test_card_and_claim_say_that_nobody_asked(tmp_path: Path) -> None:
    for paper in papers(tmp_path, small_plan(rounds={"count": 3}), {}):
        assert "by age, sex, scanner or instrument was not asked for, and is not known" in paper
        assert "subgroup" not in paper


def test_a_metric_of_a_subgroup_in_words() -> None:
    assert label("auroc_by_sex/female") == "AUROC, sex female"
    assert label("auroc_bound_by_sex/female") == "AUROC, error of its bins, sex female"
    assert label("cases_by_field_size/3.5") == "cases, field size 3.5"
