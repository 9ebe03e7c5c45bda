"""Plans whose proof would not hold are refused; the others state epsilon before and after."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asterion_server.asked_rounds import note_asked, times_asked
from asterion_server.central_step import central_step_of
from asterion_server.rounds import run_rounds
from asterion_server.selection import clip_factor
from asterion_shared.errors import PlanMismatchError, PrivacyProofError, SettingsError
from asterion_shared.plan import Plan
from asterion_shared.plan_command_line import check
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import account_of, in_one_line, rounds_allowed
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.charges import GaussianCharge
from asterion_shared.privacy.planned import charge_of, private_steps
from asterion_shared.result import Result
from asterion_shared.settings_files import validate
from asterion_sim.synthetic import synthetic_sites
from asterion_sim.virtual_cohort import VirtualCohort, VirtualSites

RECORD = {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 1.0,
          "sampling_rate": 0.1, "epsilon_limit": 50.0}  # fmt: skip
CENTRE = {"protects": "site", "noise": "centre", "clip_norm": 0.5, "noise_multiplier": 2.0,
          "epsilon_limit": 50.0}  # fmt: skip
SITES: dict[str, Any] = {
    "algorithm": {"max_weight": 3},
    "rounds": {"count": 3, "sites_per_round": 4},
    "privacy": CENTRE,
}


def plan_of(**sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "private",
        "task": "classification",
        "data": {"channels": ["x"], "classes": ["a", "b"], "patch_size": [16, 16]},
        "model": {"name": "logistic"},
        "local": {"unit": "epochs", "amount": 1, "batch_size": 8, "optimiser": "sgd"},
        "rounds": {"count": 3},
        "privacy": RECORD,
    }
    for name, section in sections.items():
        known = values.get(name, {}) if name != "privacy" else {}
        values[name] = known | section if isinstance(section, dict) else section
    return validate(Plan, values, "test")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"privacy": RECORD | {"noise": "centre"}}, "only the site sees a record"),
        ({"privacy": RECORD | {"sampling_rate": None}}, "sampling_rate is missing"),
        ({"privacy": CENTRE | {"sampling_rate": 0.1}}, "no amplification"),
        ({"privacy": RECORD | {"sensitivity": 1.0}}, "sensitivity"),
        ({"privacy": RECORD | {"relation": "replace_one"}}, "relation"),
        ({"kind": "count"}, "it is about training"),
        (SITES | {"algorithm": {"max_weight": 3, "clip_norm": 1.0}},
         "algorithm.clip_norm is given beside"),
        ({"parameters": {"batch_norm_statistics": "share"}}, "averages of the data"),
        ({"parameters": {"keep": ["head.*"]}}, "not noised"),
        ({"local": {"patches_per_image": 2}}, "with one patch"),
        ({"data": {"kind": "table", "channels": ["x"], "features": ["a", "b"],
                   "scale": {"a": [0.0, 1.0]}}}, "each row would change all others"),
        ({"local": {"seconds_limit": 5.0}}, "stated before the run"),
        (SITES | {"algorithm": {}}, "no site's weight has a bound"),
        (SITES | {"algorithm": {"weighting": "uniform"}}, "no site's weight has a bound"),
        (SITES | {"rounds": {"count": 3}}, "must be a constant of the plan"),
        (SITES | {"algorithm": {"max_weight": 1, "flower_strategy": "FedAvg"}},
         "weighs updates as it likes"),
    ],
)  # fmt: skip
def test_a_plan_whose_proof_does_not_hold_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_of(**sections)


def test_the_charge_follows_from_the_plan_alone() -> None:
    plan = plan_of()
    assert private_steps(plan) == 10
    assert private_steps(plan_of(local={"unit": "steps", "amount": 7})) == 7
    assert private_steps(plan_of(privacy=RECORD | {"sampling_rate": 0.3})) == 4
    assert charge_of(plan, 2) == GaussianCharge(
        relation="add_or_remove_one", noise_multiplier=1.0, sampling_rate=0.1, times=20
    )
    at_centre = charge_of(plan_of(**SITES), 2)
    assert at_centre is not None
    assert (at_centre.times, at_centre.sampling_rate) == (2, 1.0)


def test_a_plan_that_exceeds_its_own_limit_is_refused_with_the_noise_that_would_do() -> None:
    tight = plan_of(privacy=RECORD | {"epsilon_limit": 2.0})
    with pytest.raises(PrivacyProofError, match="epsilon_limit is 2") as caught:
        rounds_allowed(tight)
    enough = float(caught.value.fix.split("noise_multiplier = ")[1].split(",")[0])
    mended = plan_of(privacy=RECORD | {"epsilon_limit": 2.0, "noise_multiplier": enough})
    allowed = rounds_allowed(mended)
    assert allowed is not None
    assert allowed >= 3


def test_an_account_follows_how_often_each_site_was_asked() -> None:
    account = account_of(plan_of(), {"a": 3, "b": 1})
    assert account is not None
    three = GaussianCharge(
        relation="add_or_remove_one", noise_multiplier=1.0, sampling_rate=0.1, times=30
    )
    assert account.epsilon == spent([three], 1e-5).epsilon
    assert account.epsilons["a"] == account.epsilon
    one = account.epsilons["b"]
    assert one is not None
    assert 0 < one < spent([three], 1e-5).epsilon
    assert "record" in account.sentence
    assert in_one_line(account).startswith("epsilon ")
    assert in_one_line(None).startswith("none: updates leave the sites in clear")


@pytest.mark.parametrize("weights", [(3.0, 3.0, 1.0, 2.0), (3.0,)])
def test_noise_at_the_centre_rests_on_the_capped_weight_and_a_constant(
    weights: tuple[float, ...], tmp_path: Path
) -> None:
    plan, size = plan_of(**SITES), 40_000
    step = central_step_of(plan, tmp_path)
    names = [f"s{n}" for n in range(len(weights))]
    step.begin(names, size)
    for name, weight in zip(names, weights, strict=True):
        step.add(name, np.full(size, 0.01, np.float32), weight)
    moved = step.finish(1, np.zeros(size, np.float32))
    # The sum over 3 x 4, whoever answered; the noise is 2 x 0.5 x 3 before that.
    assert moved.mean() == pytest.approx(0.01 * sum(weights) / 12, abs=5 * 0.25 / np.sqrt(size))
    assert moved.std() == pytest.approx(2.0 * 0.5 * 3 / 12, rel=0.03)


def test_updates_are_clipped_a_little_shorter_than_the_noise_rests_on() -> None:
    plan = plan_of(**SITES)
    update = np.full(1000, 0.3, np.float32)
    norm = float(np.linalg.norm(update))
    shortened = (clip_factor(plan, norm) * update).astype(np.float32)
    assert 0.499 < np.linalg.norm(shortened.astype(np.float64)) <= 0.5
    assert clip_factor(plan, 0.4) == 1.0
    assert clip_factor(plan_of(), 1e9) == 1.0  # the sites did it


def test_asked_rounds_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "asked.jsonl"
    assert times_asked(path) == {}
    note_asked(path, 1, ["b", "a"])
    with path.open("ab") as file:
        file.write(b'{"round": 2, "sit')
    note_asked(path, 2, ["a"])
    assert times_asked(path) == {"a": 2, "b": 1}
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()
            if line.endswith("}")] == [1, 2]  # fmt: skip


def run(plan: Plan, folder: Path) -> Result:
    sites = VirtualSites(synthetic_sites(plan, 4), {})
    with closing(VirtualCohort(plan, sites, folder / "sites")) as cohort:
        return run_rounds(
            plan, cohort, folder, run="r", expected_sites=cohort.sites(), carrier="simulation"
        )


@pytest.mark.parametrize("sections", [{}, SITES, {"privacy": CENTRE | {"noise": "site"}}])
def test_a_private_run_says_what_it_spent(sections: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(**sections)
    result = run(plan, tmp_path)
    account = result.privacy_account
    assert account is not None
    assert set(account.rounds.values()) == {3}
    charge = charge_of(plan, 3)
    assert charge is not None
    assert account.epsilon == spent([charge], 1e-5).epsilon
    assert result.privacy == in_one_line(account)
    losses = [o.train_loss for r in result.rounds for o in r.outcomes.values()]
    at_centre = plan.privacy is not None and plan.privacy.noise == "centre"
    assert any(loss is not None for loss in losses) == at_centre


def test_rounds_that_were_begun_again_count_and_end_the_run_at_the_limit(tmp_path: Path) -> None:
    plan = plan_of(privacy=RECORD | {"epsilon_limit": 5.0})
    allowed = rounds_allowed(plan)
    assert allowed is not None
    for _ in range(allowed - 2):  # as if the coordinator had been killed as often after asking
        note_asked(tmp_path / "asked.jsonl", 1, ["site_001"])
    with pytest.raises(PrivacyProofError, match="site_001 was asked"):
        run(plan, tmp_path)
    assert times_asked(tmp_path / "asked.jsonl")["site_001"] == allowed
    assert (tmp_path / "result.json").exists()
    assert (tmp_path / "model.safetensors").exists()


def test_plan_check_states_epsilon_before_a_run_and_refuses_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan_of()))
    check(path)
    words = capsys.readouterr().out
    account = account_of(plan_of(), {"a": 3})
    assert account is not None
    assert in_one_line(account) in words
    assert account.sentence in words
    assert all(one in words for one in account.outside)
    check(path, as_json=True)
    assert json.loads(capsys.readouterr().out)["privacy"]["epsilon"] == account.epsilon
    mixing = plan_of(model={"name": "densenet121"}, data={"patch_size": [32, 32]})
    path.write_text(plan_to_toml(mixing))
    with pytest.raises(PlanMismatchError, match="BatchNorm"):
        check(path)
