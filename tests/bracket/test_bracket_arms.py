import json
from pathlib import Path
from typing import Any

import pytest

from asterion_client.held_out_scores import held_out_of
from asterion_shared.errors import PlanMismatchError, SettingsError, UserInputError
from asterion_shared.plan import Plan, parse_plan
from asterion_sim import bracket_arms
from asterion_sim.bracket_arms import arms_of, train_piece
from asterion_sim.virtual_cohort import VirtualSites

SITES = ("b", "a", "c")


def with_values(plan: Plan, **sections: dict[str, Any]) -> Plan:
    values = plan.model_dump(mode="json")
    for name, section in sections.items():
        values[name] |= section
    return parse_plan(json.dumps(values))


def test_every_arm_does_the_same_local_work(plan: Plan) -> None:
    texts = ["fedavg", "fedavg:rounds.count=6,local.amount=2"]
    arms = {a.name: a for a in arms_of(plan, SITES, texts, leave_one_site_out=True)}
    kinds = [arm.kind for arm in arms.values()]
    assert [kinds.count(k) for k in ("pooled", "alone", "federated", "left out")] == [1, 3, 2, 6]
    pooled = arms["pooled"]
    assert (pooled.plan.rounds.count, pooled.plan.local.amount) == (3, 12)  # 4 steps, 3 sites
    for name, arm in arms.items():
        if name != "pooled":
            assert arm.plan.rounds.count * arm.plan.local.amount == 12
    assert arms["fedavg-without-a"].sites == ("b", "c")
    # measured after the same shares of the work: every round, and every second of twice as many
    assert arms["fedavg_rounds.count=6_local.amount=2"].plan.rounds.evaluate_every == 2


def test_an_algorithm_begins_from_its_own_defaults(plan: Plan) -> None:
    prox = with_values(plan, algorithm={"name": "fedprox", "mu": 0.3, "weighting": "uniform"})
    texts = ["fedavg", "fedprox:mu=0.1", "fedavg:flower_strategy=FedAdam,flower_arguments.eta=0.1"]
    plain, pulled, adam = arms_of(prox, SITES, texts, leave_one_site_out=False)[-3:]
    assert (plain.plan.algorithm.name, plain.plan.algorithm.mu) == ("fedavg", 0.0)
    assert plain.plan.algorithm.weighting == "uniform"
    assert (pulled.plan.algorithm.name, pulled.plan.algorithm.mu) == ("fedprox", 0.1)
    assert adam.plan.algorithm.flower_strategy == "FedAdam"
    assert adam.plan.algorithm.flower_arguments == {"eta": 0.1}


def test_all_problems_are_named_at_once(plan: Plan) -> None:
    wrong = with_values(plan, rounds={"sites_per_round": 2}, local={"seconds_limit": 9.0})
    texts = [
        "fedavg:rounds.count=4",
        "fedavg:local.batch_size=4",
        "fedprox:mu=0.1,evaluation.score_bins=50",
    ]
    with pytest.raises(SettingsError) as error:
        arms_of(wrong, ("a", "b", "c"), texts, leave_one_site_out=False)
    said = str(error.value)
    for part in ("sites_per_round", "seconds_limit", "does 16 steps in all, in the plan 12",
                 "local.batch_size is 4, in the plan 8", "evaluation is changed"):  # fmt: skip
        assert part in said
    with pytest.raises(SettingsError) as error:
        arms_of(
            plan, ("a",), ["fedprox:mu=-1", "fedavg:weighing=uniform"], leave_one_site_out=False
        )
    for part in ("at least 2", "algorithm.mu: got -1; must be >= 0", "algorithm.weighing"):
        assert part in str(error.value)


@pytest.mark.parametrize("texts", [["fedavg", "fedavg"], []])
def test_algorithms_are_named_once(plan: Plan, texts: list[str]) -> None:
    with pytest.raises(SettingsError, match="algorithms"):
        arms_of(plan, SITES, texts, leave_one_site_out=False)


def test_a_part_without_a_value_is_refused(plan: Plan) -> None:
    with pytest.raises(UserInputError, match="'mu' is not PATH=VALUE"):
        arms_of(plan, SITES, ["fedprox:mu"], leave_one_site_out=False)


def test_tensors_that_stay_at_sites_are_refused() -> None:
    plan = parse_plan(
        '{"name": "s", "task": "classification", "model": {"name": "densenet121"},'
        ' "data": {"patch_size": [32, 32]}}'
    )
    with pytest.raises(SettingsError, match="tensors stay at each site"):
        arms_of(plan, SITES, ["fedavg"], leave_one_site_out=False)


def test_a_finished_piece_is_read_not_trained(
    plan: Plan, sites: VirtualSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {name: held_out_of(data, plan) for name, data in sites.data.items()}
    (arm, *others) = arms_of(plan, tuple(sites.data), ["fedavg"], leave_one_site_out=False)
    first = train_piece(arm, 1, sites.data, held_out, tmp_path)
    assert first.steps == {"pooled": 36}  # 3 rounds of 4 steps for 3 sites
    assert [point.work for point in first.curve] == [0, 4, 8, 12]

    def never(*_: object, **__: object) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr(bracket_arms, "simulate", never)
    again = train_piece(arm, 1, sites.data, held_out, tmp_path)
    assert again.curve == first.curve
    assert all((again.scores[name] == first.scores[name]).all() for name in first.scores)
    with pytest.raises(PlanMismatchError, match="another plan_sha256; choose another folder"):
        train_piece(arm, 2, sites.data, held_out, tmp_path)
    with pytest.raises(PlanMismatchError, match="another arm and plan_sha256 and sites"):
        train_piece(others[0], 1, sites.data, held_out, tmp_path)
    fewer = {name: units for name, units in held_out.items() if name != "site_001"}
    with pytest.raises(PlanMismatchError, match="another held_out"):
        train_piece(arm, 1, sites.data, fewer, tmp_path)
    (tmp_path / "scores.npz").write_bytes(b"x")
    with pytest.raises(PlanMismatchError, match="not the file that was written"):
        train_piece(arm, 1, sites.data, held_out, tmp_path)
