"""Runs side by side: what is compared, the page, the terminal, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.reports.test_run_report import Page
from typer.testing import CliRunner

from asterion_shared.errors import FileProblemError, PlanMismatchError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.report_command_line import app
from asterion_shared.reports.compared_runs import (
    PairedSite,
    mean_difference,
    paired_sites,
    plan_differences,
    read_runs,
)
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import Result, RoundResult, SiteSummary, write_result

Make = Callable[..., Result]
Put = Callable[..., Path]


@pytest.fixture
def put(make_result: Make, plan: Plan, tmp_path: Path) -> Put:
    """Writes a run's folder: the run of conftest with its headline metric moved."""

    def write(name: str, *, moved: float = 0.0, by: Plan | None = plan, **changes: object) -> Path:
        folder = tmp_path / name
        result = make_result(**({"plan_sha256": by.sha256} if by else {}) | changes)
        rounds = tuple(
            r.model_copy(
                update={
                    "pooled": _moved(r.pooled, moved),
                    "sites": {site: _moved(m, moved) for site, m in r.sites.items()},
                }
            )
            for r in result.rounds
        )
        final = _moved(result.final_metrics, moved)
        moved_result = result.model_copy(update={"rounds": rounds, "final_metrics": final})
        write_result(moved_result, folder / "result.json")
        if by is not None:
            (folder / "plan.json").write_text(by.canonical())
        return folder

    return write


def _moved(metrics: dict[str, float | None], by: float) -> dict[str, float | None]:
    return metrics | {"dice": (metrics.get("dice") or 0.0) + by}


def run(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if found.exception is not None:
        raise found.exception
    return found.stdout


def site(name: str, *values: float | None, same: bool | None = True) -> PairedSite:
    return PairedSite(name=name, values=values, same_records=(True, *[same] * (len(values) - 1)))


def test_the_mean_difference_is_over_sites_that_both_have_with_students_interval() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t(0.975, 2) = 4.303, so half is 0.248.
    sites = [site("a", 0.1, 0.2), site("b", 0.1, 0.3, same=False), site("c", 0.1, 0.4),
             site("d", None, 0.9, same=False), site("e", 0.5, None)]  # fmt: skip
    found = mean_difference(sites, 1)
    assert (found.num_sites, found.num_higher, found.num_lower) == (3, 3, 0)
    assert found.num_other_records == 1
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)


def test_two_sites_have_no_interval_and_none_has_no_mean() -> None:
    found = mean_difference([site("a", 0.1, 0.2), site("b", 0.4, 0.2)], 1)
    assert (found.low, found.high, found.num_higher, found.num_lower) == (None, None, 1, 1)
    assert mean_difference([site("a", None, 0.2)], 1).mean is None


def test_sites_are_paired_by_name_and_records_by_hash(put: Put) -> None:
    others = tuple(
        SiteSummary(name=name, manifest_sha256=sha)
        for name, sha in (("east", "b" * 64), ("south", "c" * 64), ("west", ""))
    )
    runs = read_runs([put("a"), put("b", moved=0.1, sites=others)])
    found = {one.name: one for one in paired_sites(runs)}
    assert list(found) == ["east", "north", "south", "west"]
    assert found["east"].difference(1) == pytest.approx(0.1)
    assert found["east"].same_records == (True, True)
    assert found["south"].same_records == (True, False)
    assert found["north"].values == (None, None)
    assert found["west"].same_records == (None, None)


def test_settings_that_differ_are_told_by_their_path(plan: Plan) -> None:
    more = plan.model_copy(
        update={"seed": 9, "rounds": plan.rounds.model_copy(update={"count": 7})}
    )
    found = dict(plan_differences([plan, None, more]))
    assert found == {
        "rounds.count": ("2", "\u2013", "7"),
        "seed": (str(plan.seed), "\u2013", "9"),
    }
    assert plan_differences([plan, plan]) == []


def test_the_page_tells_the_comparison(put: Put, plan: Plan, tmp_path: Path) -> None:
    other = plan.model_copy(update={"seed": 9})
    long = "a-very-long-name-of-a-run-" * 3
    paths = [put("one"), put(long, moved=-0.05, by=other), put("three", by=None, carrier="link")]
    out = tmp_path / "compare.html"
    told = run("compare", *paths, "--out", out)
    assert f"the page: {out}" in told.replace("\n", "")
    page = Page(out)
    assert "0.550" in page.words
    assert "0.560 (\u22120.050)" in page.words or "0.600 (\u22120.050)" in page.words
    assert "seed" in page.words
    assert "The plan of three is not known" in page.words
    assert "site north missing in round 2 (unreachable)" in page.words
    assert long in page.words
    assert sum(tag == "svg" and a.get("class") == "chart" for tag, a in page.tags) == 1
    assert not {"script", "link", "img"} & {tag for tag, _ in page.tags}
    assert "http" not in page.source.replace("http-equiv", "")


def test_the_terminal_and_json_say_the_same(put: Put) -> None:
    paths = [put("one"), put("two", moved=0.05)]
    told = run("compare", *paths)
    for words in ("2 of 2", "0.600", "0.650", "+0.050", "east", "All runs have one plan"):
        assert words in told
    values = json.loads(run("compare", *paths, "--json"))
    assert [one["label"] for one in values["runs"]] == ["one", "two"]
    assert values["against_first"][0]["mean"] == pytest.approx(0.05)
    assert values["runs"][0]["bytes_down"] == 9000
    assert values["plan_differences"] == {}


def test_what_cannot_be_compared_is_refused(put: Put, plan: Plan, tmp_path: Path) -> None:
    one = put("one")
    with pytest.raises(UserInputError, match="1 runs are named; name 2 to 12"):
        read_runs([one])
    with pytest.raises(UserInputError, match="named twice"):
        read_runs([one, one / "result.json"])
    with pytest.raises(UserInputError, match="one is segmentation and sky is anomaly"):
        read_runs([one, put("sky", task="anomaly")])
    with pytest.raises(FileProblemError, match="a run that goes on has none yet"):
        read_runs([one, tmp_path])
    wrong = put("wrong")
    (wrong / "plan.json").write_text(plan.model_copy(update={"seed": 5}).canonical())
    with pytest.raises(PlanMismatchError, match=plan.sha256[:12]):
        read_runs([one, wrong])


def test_runs_of_one_name_and_of_nothing_measured_have_a_page(put: Put, tmp_path: Path) -> None:
    lost = put("x/run", rounds=(RoundResult(round=0),), final_metrics={}, final_model=None,
               status="quorum_lost")  # fmt: skip
    out = tmp_path / "c.html"
    told = run("compare", lost, put("y/run"), "--out", out)
    assert "run (2)" in told
    assert "quorum lost 0 of 2" in Page(out).words


def test_a_round_that_lost_its_quorum_is_not_counted(put: Put) -> None:
    lost = put("lost", status="quorum_lost")
    values = json.loads(run("compare", put("one"), lost, "--json"))
    assert [one["rounds"] for one in values["runs"]] == [2, 1]
    run("show", lost)
    words = Page(lost / "report.html").words
    assert "quorum lost after 1 of 2 rounds" in words
    assert "rounds 1 of 2" in words


def test_a_run_that_asked_nobody_does_not_say_that_all_answered(put: Put) -> None:
    lost = put("lost", status="failed", rounds=(), final_metrics={}, final_model=None, sites=())
    run("show", lost)
    words = Page(lost / "report.html").words
    assert "Faults, refusals and skipped files No site was asked." in words


def test_more_sites_than_a_page_shows(put: Put, tmp_path: Path) -> None:
    names = [f"site-{i:03d}" for i in range(100)]

    def rounds(step: float) -> tuple[RoundResult, ...]:
        sites = {name: {"dice": 0.9 + step * i} for i, name in enumerate(names)}
        return (RoundResult(round=1, pooled={"dice": 0.5}, sites=sites),)

    known = tuple(SiteSummary(name=name) for name in names)
    paths = [put(n, rounds=rounds(s), sites=known) for n, s in (("a", -0.002), ("b", -0.001))]
    run("compare", *paths, "--out", tmp_path / "c.html")
    page = Page(tmp_path / "c.html")
    assert "largest drop from a to b" in page.words
    assert "70 more sites, in the results." in page.words
    assert "site-099 0.702 0.801 (+0.099)" in page.words
    assert page.words.index("largest gain from a to b") < page.words.index("site-099")
    assert "site-040" not in page.words


def test_a_report_is_written_again_with_its_pictures(put: Put, plan: Plan) -> None:
    folder = put("one")
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (300).to_bytes(4, "big") * 2 + b"<&>"
    result = read_runs([folder, put("two")])[0].result
    pictures = [Picture("Best of 4 & more", "Dice 0.9 <sky>", png), Picture("Worst", "low", png)]
    write_report(result, folder / "report.html", plan=plan, pictures=pictures)
    before = (folder / "report.html").read_bytes()
    run("show", folder)
    assert (folder / "report.html").read_bytes() == before
    (folder / "report.html").unlink()
    run("show", folder / "result.json", "--out", folder / "other.html")
    assert "base64" not in (folder / "other.html").read_text()
    assert not (folder / "report.html").exists()
