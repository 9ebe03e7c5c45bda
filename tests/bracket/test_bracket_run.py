import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from asterion_shared.bracket_result import Bracket, bracket_schema, read_bracket
from asterion_shared.errors import FileProblemError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.reports.estimate_words import difference
from asterion_shared.result import read_result
from asterion_sim import bracket_arms
from asterion_sim.bracket import run_bracket, seeds_of
from asterion_sim.bracket_table import bracket_table
from asterion_sim.bracket_words import algorithm_words
from asterion_sim.virtual_cohort import Refused, VirtualSites

MOMENTUM = "fedavg:flower_strategy=FedAvgM,flower_arguments.server_momentum=0.5"


def test_it_says_for_each_site_what_each_model_does(bracket: Bracket) -> None:
    assert bracket.metric == "auroc"
    assert bracket.over == "all cases together"
    assert [site.name for site in bracket.sites] == ["site_001", "site_002", "site_003"]
    for site in bracket.sites:
        assert set(site.federated) == set(site.left_out) == set(bracket.algorithms)
        for text, comparison in site.versus_own.items():
            one, own = site.federated[text].value, site.own.value
            if one is None or own is None:
                assert comparison.verdict == "undefined"
                continue
            assert comparison.difference.value == pytest.approx(one - own, abs=2e-6)
            low, high = comparison.difference.low, comparison.difference.high
            assert low is not None
            assert high is not None
            assert low <= high
            expected = "helps" if low > 0 else "hurts" if high < 0 else "neutral"
            assert comparison.verdict == expected
    share = bracket.overall.share_of_pooled["fedavg"].value
    together = bracket.overall.federated["fedavg"]["all cases together"].value
    pooled = bracket.overall.pooled["all cases together"].value
    assert share is not None
    assert together is not None
    assert pooled is not None
    assert share == pytest.approx(together / pooled, abs=2e-6)


def test_the_numbers_are_those_of_the_runs(bracket: Bracket, folder: Path) -> None:
    values = []
    for seed in (5, 6):
        result = read_result(folder / "pieces" / "fedavg" / f"seed-{seed}" / "run" / "result.json")
        values.append(result.final_metrics)
    aurocs = [metrics["auroc"] for metrics in values]
    bounds = [metrics["auroc_bound"] for metrics in values]
    found = bracket.overall.federated["fedavg"]["all cases together"].value
    # the run's own is formed from histograms, off by at most its bound
    assert found == pytest.approx(sum(aurocs) / 2, abs=sum(bounds) / 2 + 1e-6)  # type: ignore[arg-type]
    assert bracket.arms["fedavg"].curve[-1].mean == pytest.approx(sum(aurocs) / 2, abs=1e-6)  # type: ignore[arg-type]


def test_work_is_equal_as_it_was_counted(bracket: Bracket) -> None:
    for name, arm in bracket.arms.items():
        assert set(arm.steps.values()) == ({36} if name == "pooled" else {12})
        assert arm.curve[-1].work == 12
    assert bracket.arms["pooled"].changes == {"local.amount": 12}
    assert bracket.arms["fedprox_mu=0.5"].changes == {"algorithm.name": "fedprox",
                                                     "algorithm.mu": 0.5}  # fmt: skip
    assert "12 optimiser steps of 8 examples" in bracket.equal_work
    assert "36 steps (3 sites times 12)" in bracket.equal_work


def test_it_is_written_and_read_back(bracket: Bracket, folder: Path) -> None:
    assert read_bracket(folder / "bracket.json") == bracket
    assert set(bracket_schema()["properties"]) == set(json.loads(bracket.model_dump_json()))
    other = folder / "other.json"
    other.write_text('{"schema_version": 7}')
    with pytest.raises(FileProblemError, match="schema_version 7"):
        read_bracket(other)
    with pytest.raises(FileProblemError, match="No such file"):
        read_bracket(folder / "absent.json")


def test_run_again_it_trains_nothing_and_writes_the_same(
    bracket: Bracket, plan: Plan, sites: VirtualSites, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "bracket.json").read_bytes()
    monkeypatch.setattr(bracket_arms, "simulate", lambda *_, **__: pytest.fail("trained again"))
    said: list[str] = []
    again = run_bracket(
        plan, sites, folder, algorithms=bracket.algorithms, seeds=(5, 6), leave_one_site_out=True,
        num_resamples=300, say=said.append,
    )  # fmt: skip
    assert again == bracket
    assert (folder / "bracket.json").read_bytes() == before
    assert said[0] == "seed 1 of 2: pooled"


def test_a_fresh_folder_gives_the_same_bytes(
    plan: Plan, sites: VirtualSites, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run_bracket(plan, sites, tmp_path / name, algorithms=[MOMENTUM], seeds=[1])
    one, two = ((tmp_path / name / "bracket.json").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"With one seed the intervals do not contain the chance of training" in one


def test_a_refusing_site_is_named(plan: Plan, sites: VirtualSites, tmp_path: Path) -> None:
    refusing = VirtualSites(
        sites.data, {"west": Refused(site="west", outcome="refused", code="wrong_task")}
    )
    bracket = run_bracket(plan, refusing, tmp_path, algorithms=["fedavg"], seeds=[1],
                          metric="accuracy")  # fmt: skip
    assert bracket.refused == {"west": "wrong_task"}
    assert bracket.metric == "accuracy"
    assert "west (wrong_task)" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": []}, r"seeds are \[\]"),
        ({"seeds": [1, 1]}, r"seeds are \[1, 1\]"),
        ({"metric": "dice"}, "metric is 'dice'; a bracket of classification has auroc or accuracy"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    given: dict[str, object], message: str, plan: Plan, sites: VirtualSites, tmp_path: Path
) -> None:
    values = {"algorithms": ["fedavg"], "seeds": [1]} | given
    with pytest.raises(UserInputError, match=message):
        run_bracket(plan, sites, tmp_path / "out", **values)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_seeds_begin_at_the_plans_own(plan: Plan) -> None:
    assert seeds_of(plan, 3) == (5, 6, 7)


def test_the_report_stands_alone_and_says_it_in_words(bracket: Bracket, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    for part in ("Does it help?", "What was held equal", "How to reproduce", "Whose model works",
                 "FedProx (mu 0.5)", "A site that does not take part", "site_003 alone",
                 "--leave-one-site-out", "12 optimiser steps", bracket.plan_sha256):  # fmt: skip
        assert part in page
    assert page.count('<svg class="chart"') == 2
    assert not re.search(r"\b(nan|None|inf)\b", page.partition("</style>")[2])


def test_the_table_has_a_row_for_each_site_and_algorithm(bracket: Bracket) -> None:
    table = bracket_table(bracket)
    assert table.row_count == 3 * 3 + 3
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "of pooled (all cases together)" in text
    assert "FedAvg (6 rounds of 2)" in text


def test_the_table_breaks_no_word_on_a_narrow_terminal(bracket: Bracket) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(bracket_table(bracket))
    text = console.export_text()
    for site in bracket.sites:
        assert site.name in text
        for comparison in site.versus_own.values():
            assert comparison.verdict in text
            assert difference(comparison).partition(" (")[2] in text
    assert "pooled" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fedavg", "FedAvg"),
        ("fedprox:mu=0.01", "FedProx (mu 0.01)"),
        (MOMENTUM, "FedAvgM (momentum 0.5)"),
        ("fedavg:rounds.count=6,local.amount=2", "FedAvg (6 rounds of 2)"),
        ("fedavg:local.learning_rate=0.1", "FedAvg (learning rate 0.1)"),
    ],
)
def test_an_algorithm_in_words(text: str, words: str) -> None:
    assert algorithm_words(text) == words
