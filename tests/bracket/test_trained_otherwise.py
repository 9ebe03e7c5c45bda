import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asterion_shared.bracket_result import Bracket
from asterion_shared.errors import PlanMismatchError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.report_command_line import app
from asterion_shared.reports.metric_words import number, signed
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.trained_otherwise import otherwise_section
from asterion_shared.result import Result, read_result
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import VirtualSites

HEADING = "The same plan trained otherwise"


@pytest.fixture(scope="module")
def run(
    plan: Plan, sites: VirtualSites, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("run")
    return folder, simulate(plan, sites, folder)


def cells_of(page: str) -> dict[str, list[str]]:
    """The rows of the section's table, by site."""
    section = page.partition(HEADING)[2].partition("</section>")[0]
    rows = re.findall(r"<tr[^>]*>(<th scope=\"row\".*?)</tr>", section)
    found = [re.findall(r">([^<]*)</t[hd]>", row) for row in rows]
    return {row[0]: row[1:] for row in found}


def test_the_report_says_what_each_site_and_pooled_data_would_have_reached(
    run: tuple[Path, Result], bracket: Bracket, folder: Path
) -> None:
    here, result = run
    assert HEADING not in (here / "report.html").read_text()
    done = CliRunner().invoke(app, ["show", str(here), "--bracket", str(folder)])
    assert done.exit_code == 0, done.output
    rows = cells_of((here / "report.html").read_text())
    assert list(rows) == ["site_001", "site_002", "site_003", "mean of the sites"]
    for site in bracket.sites:
        this, own, pooled, gain, verdict = rows[site.name]
        assert this == number(result.final_sites[site.name]["auroc"])
        assert own.startswith(number(site.own.value))
        assert pooled.startswith(number(site.pooled.value))
        assert gain.startswith(signed(site.versus_own["fedavg"].difference.value))
        expected = {"neutral": "no clear difference", "undefined": "cannot be said"}
        found = site.versus_own["fedavg"].verdict
        assert verdict == expected.get(found, found)
    values = [m["auroc"] for m in result.final_sites.values() if m["auroc"] is not None]
    mean = rows["mean of the sites"]
    assert mean[0] == number(sum(values) / 3)
    assert mean[1].startswith(number(bracket.overall.own.value))
    assert mean[2].startswith(number(bracket.overall.pooled["mean of sites"].value))
    before = (here / "report.html").read_bytes()
    again = CliRunner().invoke(app, ["show", str(here)])
    assert again.exit_code == 0, again.output
    assert (here / "report.html").read_bytes() == before


def test_this_run_is_one_of_the_repetitions(run: tuple[Path, Result], folder: Path) -> None:
    piece = read_result(folder / "pieces" / "fedavg" / "seed-5" / "run" / "result.json")
    assert run[1].final_sites == piece.final_sites


def test_no_difference_is_told_of_another_algorithm(
    run: tuple[Path, Result], bracket: Bracket
) -> None:
    arms = {name: arm for name, arm in bracket.arms.items() if name != "fedavg"}
    found = otherwise_section(run[1], bracket.model_copy(update={"arms": arms}))
    assert found["otherwise_head"] == ("site", "this run", "the site's own model", "pooled")
    assert {len(row) for row in found["otherwise_rows"]} == {4}
    assert any("its own report" in note for note in found["otherwise_notes"])


def test_a_bracket_of_something_else_is_refused(
    run: tuple[Path, Result], bracket: Bracket, tmp_path: Path
) -> None:
    result, page = run[1], tmp_path / "report.html"
    with pytest.raises(PlanMismatchError, match="is of the plan with SHA-256 000000000000"):
        write_report(result, page, bracket=bracket.model_copy(update={"plan_sha256": "0" * 64}))
    for change in ({"manifest_sha256": "0" * 64}, {"num_train": 1}):
        sites = (bracket.sites[0].model_copy(update=change), *bracket.sites[1:])
        with pytest.raises(PlanMismatchError, match="other records of the site site_001"):
            write_report(result, page, bracket=bracket.model_copy(update={"sites": sites}))
    fewer = bracket.model_copy(update={"sites": bracket.sites[1:]})
    with pytest.raises(PlanMismatchError, match="at the site site_001 in the run alone"):
        write_report(result, page, bracket=fewer)
    last = result.rounds[-1]
    sites_left = {name: m for name, m in last.sites.items() if name != "site_001"}
    gone = result.model_copy(
        update={"rounds": (*result.rounds[:-1], last.model_copy(update={"sites": sites_left}))}
    )
    with pytest.raises(PlanMismatchError, match="at the site site_001 in the bracket alone"):
        write_report(gone, page, bracket=bracket)
    bare = result.model_copy(update={"rounds": ()})
    with pytest.raises(UserInputError, match="no metrics by site"):
        write_report(bare, page, bracket=bracket)
    assert not page.exists()
