import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.errors import FileProblemError, SettingsError
from asterion_shared.plan import Plan, parse_plan, read_plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.settings_files import validate

MINIMAL = {"name": "a", "task": "segmentation", "model": {"name": "unet"}}


def problems(values: dict[str, object]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        validate(Plan, values, "plan.toml")
    return {p.where: str(p) for p in caught.value.problems}


def test_unknown_key_wrong_range_and_contradictions_are_named_at_once() -> None:
    found = problems(
        MINIMAL
        | {
            "nope": 1,
            "rounds": {"count": 0, "quorum": 5, "sites_per_round": 2},
            "algorithm": {"mu": 0.5},
            "model": {"name": "mlp", "wide": 3},
        }
    )
    assert "unknown key" in found["nope"]
    assert "unknown key" in found["model.wide"]
    assert found["rounds.count"] == "rounds.count: got 0; must be >= 1"
    assert "quorum is 5 and sites_per_round is 2" in found["rounds"]
    assert "set name = 'fedprox' or mu = 0" in found["algorithm"]
    assert "model.name is 'mlp'" in found["(whole file)"]


def test_a_rule_over_a_wrong_field_is_not_judged() -> None:
    found = problems(MINIMAL | {"algorithm": {"name": "fedproxx", "mu": 0.5}})
    assert list(found) == ["algorithm.name"]
    assert "'fedavg' or 'fedprox'" in found["algorithm.name"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "evaluate"}, "(whole file)"),
        ({"data": {"patch_size": [8]}}, "data"),
        ({"data": {"classes": ["one"]}}, "data"),
        ({"data": {"kind": "table"}}, "data"),
        ({"local": {"momentum": 0.5}}, "local"),
        ({"algorithm": {"flower_arguments": {"eta": 1}}}, "algorithm"),
        ({"seed": -1}, "seed"),
        ({"rounds": {"deadline_seconds": float("inf")}}, "rounds.deadline_seconds"),
        ({"model": 3}, "model."),
    ],
)
def test_each_refusal_names_its_place(change: dict[str, object], where: str) -> None:
    assert where in problems(MINIMAL | change)


@given(st.integers(0, 2**63 - 1), st.floats(0.01, 100), st.integers(1, 500))
def test_canonical_form_and_toml_round_trip(seed: int, mu: float, count: int) -> None:
    values = MINIMAL | {
        "seed": seed,
        "algorithm": {"name": "fedprox", "mu": mu},
        "rounds": {"count": count},
    }
    plan = validate(Plan, values, "plan")
    assert parse_plan(plan.canonical()) == plan
    assert parse_plan(plan.canonical()).sha256 == plan.sha256
    reordered = json.loads(plan.canonical())
    assert parse_plan(json.dumps(dict(reversed(reordered.items())))).sha256 == plan.sha256


def test_the_commented_file_reads_back_as_the_same_plan(tmp_path: Path) -> None:
    plan = validate(
        Plan,
        MINIMAL
        | {
            "algorithm": {"flower_strategy": "FedAdam", "flower_arguments": {"eta": 0.1}},
            "init": {"file": "a.safetensors", "sha256": "0" * 64},
        },
        "plan",
    )
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan), encoding="utf-8")
    assert read_plan(path) == plan


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(FileProblemError, match=r"plan\.toml"):
        read_plan(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="no such file"):
        read_plan(tmp_path / "absent.toml")
