import json
import os
from pathlib import Path

import pytest

from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.bracket_result import Bracket
from asterion_shared.errors import UserInputError
from asterion_shared.plan import read_plan
from asterion_sim import bracket_studies
from asterion_sim.bracket_arms import arms_of
from asterion_sim.bracket_studies import (
    BRACKET_STUDIES,
    BracketStudy,
    bracket_plan,
    markdown_table,
    reached,
    run_study_brackets,
    summary_rows,
    summary_table,
)
from asterion_sim.studies import PLANS, STUDIES

SMALL = BracketStudy("small", "auroc", ("fedavg", "fedprox:mu=0.5"), 0.97)


@pytest.mark.parametrize("study", BRACKET_STUDIES, ids=lambda study: study.name)
def test_every_bracket_is_of_a_study_and_does_equal_work(study: BracketStudy) -> None:
    assert study.name in {one.name for one in STUDIES}
    arms = arms_of(bracket_plan(study), ("a", "b"), study.algorithms, leave_one_site_out=False)
    assert [arm.algorithm for arm in arms if arm.kind == "federated"] == list(study.algorithms)
    assert "fedavg" in study.algorithms


def test_the_bars_are_those_that_were_asked_for() -> None:
    bars = {study.name: study.at_least for study in BRACKET_STUDIES}
    assert bars == {
        "hippocampus": 0.97, "sky_noise": 0.97, "chest": 0.97, "nuclei": None, "radio": None
    }  # fmt: skip


def test_an_unknown_bracket_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no bracket is named 'lung'; .*hippocampus"):
        run_study_brackets(tmp_path, tmp_path / "out", ["chest", "lung"])
    assert not (tmp_path / "out").exists()


def test_a_summary_row_for_each_algorithm(bracket: Bracket) -> None:
    first, second = summary_rows(SMALL, bracket)
    assert (first["recommended"], second["recommended"]) == (True, False)
    share = bracket.overall.share_of_pooled["fedavg"]
    assert first["share_of_pooled"] == {
        "value": share.value, "interval": [share.low, share.high],
        "num_undefined": share.num_undefined,
    }  # fmt: skip
    verdicts = [site.versus_own["fedavg"].verdict for site in bracket.sites]
    assert first["helps"] == verdicts.count("helps")
    json.dumps([first, second], allow_nan=False)
    assert summary_table([(SMALL, bracket)]).row_count == 2
    lines = markdown_table([(SMALL, bracket)]).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "**FedAvg**" in lines[2]
    assert "**" not in lines[3]


def test_the_bar_is_for_the_recommended_one(bracket: Bracket) -> None:
    share = bracket.overall.share_of_pooled["fedavg"].value
    assert share is not None
    for at_least, expected in ((None, True), (share - 0.01, True), (share + 0.01, False)):
        assert reached(BracketStudy("s", "auroc", ("fedavg",), at_least), bracket) is expected


@pytest.mark.slow
def test_chest_reaches_its_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.environ.get("ASTERION_DATA")
    if data is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    chest = BracketStudy("chest", "auroc", ("fedavg",), 0.97)
    monkeypatch.setattr(bracket_studies, "BRACKET_STUDIES", (chest,))
    assert run_study_brackets(Path(data), tmp_path, ["chest"], 1) == []
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert row["study"] == "chest"
    assert (tmp_path / "chest" / "report.html").exists()


def test_the_bracket_of_nuclei_begins_from_plain_fedavg_in_longer_rounds() -> None:
    (study,) = [one for one in BRACKET_STUDIES if one.name == "nuclei"]
    own, plan = read_plan(PLANS / "nuclei.toml"), bracket_plan(study)
    assert own.algorithm.flower_strategy == "FedAvgM"
    assert plan.algorithm == AlgorithmSettings()
    assert own.rounds.count * own.local.amount == plan.rounds.count * plan.local.amount == 320
