"""The attack of a plan, in results, reports, the terminal and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asterion_client import local_round, private_round
from asterion_server import central_step
from asterion_shared.errors import ClaimBrokenError, PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import planned_account
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.result import Result, read_result, write_result
from asterion_shared.settings_files import validate
from asterion_sim import plan_attack, privacy_audit
from asterion_sim.command_line import simulate_app
from asterion_sim.plan_attack import attacked, audit_plan
from asterion_sim.privacy_command_line import privacy_app
from asterion_sim.record_canaries import loudness

RECORD = {"protects": "record", "noise": "site", "noise_multiplier": 1.5, "sampling_rate": 0.5}
LOUD = RECORD | {"noise_multiplier": 3.0, "sampling_rate": 1.0}
"""Without the clip this is broken whatever the noise."""

SITE = {"protects": "site", "noise": "site", "noise_multiplier": 1.5}
IMAGES = {"channels": ["x"], "classes": ["a", "b"], "patch_size": [16, 16]}
SHARES: dict[str, Any] = {
    "privacy": {"protects": "site", "noise": "shares", "noise_multiplier": 1.5},
    "algorithm": {"max_weight": 3},
    "rounds": {"count": 1, "sites_per_round": 30},
    "secure_sum": {"max_colluders": 2, "max_dropouts": 3},
}


def plan_of(**sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "attacked",
        "task": "classification",
        "data": IMAGES,
        "model": {"name": "logistic"},
        "local": {"amount": 2, "batch_size": 8},
        "rounds": {"count": 2},
        "privacy": RECORD,
    }
    for name, section in sections.items():
        whole = name in ("data", "privacy", "model") or not isinstance(section, dict)
        values[name] = section if whole else values.get(name, {}) | section
    values["privacy"] = {"clip_norm": 0.7, "epsilon_limit": 1e6} | values["privacy"]
    return validate(Plan, values, "test")


@pytest.fixture(autouse=True)
def _keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise from fixed keys, so that the outcome is the same every time."""
    key = iter(range(10**9))

    def keyed() -> SecretStream:
        return SecretStream(next(key).to_bytes(32, "big"))

    for module in (local_round, central_step, privacy_audit):
        monkeypatch.setattr(module, "secret_stream", keyed)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of a second."""
    monkeypatch.setattr(plan_attack, "ENOUGH_CANARIES", 1024)
    monkeypatch.setattr(plan_attack, "GAME_ROUNDS", 3000)
    monkeypatch.setattr(plan_attack, "FEWEST_GAMES", 2000)


@pytest.fixture
def unclipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """DP-SGD without its clip."""
    whole = private_round.clipped_gradient_sum

    def sum_of(model: Any, loss: Any, batch: Any, clip: float, *others: Any) -> Any:
        return whole(model, loss, batch, float("inf"), *others)

    monkeypatch.setattr(private_round, "clipped_gradient_sum", sum_of)


@pytest.mark.parametrize(
    ("sections", "network", "words"),
    [
        ({"local": {"optimiser": "sgd", "learning_rate": 0.01}}, "logistic on 1 x 16 x 16", ()),
        ({}, "logistic on 1 x 16 x 16", ("plain SGD",)),
        ({"model": {"name": "mlp", "widths": [8]}}, "mlp on 1 x 16 x 16", ("plain SGD",)),
        ({"privacy": RECORD | {"protects": "patient"}}, "logistic on 1 x 16 x 16", ("plain SGD",)),
        ({"task": "segmentation", "model": {"name": "small_unet"}}, "logistic on 1 x 16 x 16",
         ("in place of small_unet on 1 x 16 x 16 inputs: canaries", "plain SGD")),
        ({"local": {"augment": ["flip"]}}, "logistic on 1 x 16 x 16",
         ("augmentation", "plain SGD")),
        ({"data": IMAGES | {"patch_size": [8, 8]}}, "logistic on 1 x 32 x 32",
         ("64 inputs make too few", "plain SGD")),
        ({"data": IMAGES | {"patch_size": [256, 256]}}, "logistic on 1 x 32 x 32",
         ("would take hours", "plain SGD")),
        ({"data": {"kind": "table", "features": ["u"], "scale": {"u": [0, 1]},
                   "classes": ["a", "b"]}}, "logistic on 1 x 32 x 32",
         ("in place of logistic on 2 inputs", "plain SGD")),
        ({"privacy": SITE}, "logistic on 1 x 16 x 16", ()),
        ({"privacy": SITE, "model": {"name": "cnn"}}, "logistic on 1 x 8 x 8", ("thousands",)),
        (SHARES, "logistic on 1 x 16 x 16", ("8 honest sites in place of 25",)),
    ],
)  # fmt: skip
def test_what_is_attacked_in_a_plans_place(
    sections: dict[str, Any], network: str, words: tuple[str, ...]
) -> None:
    plan = plan_of(**sections)
    found = attacked(plan)
    assert found.network == f"{network} inputs"
    assert len(found.differs) == len(words)
    for word, said in zip(words, found.differs, strict=True):
        assert word in said
    # What the claim rests on is the plan's own.
    assert found.plan.privacy == plan.privacy
    assert found.plan.rounds.count == plan.rounds.count
    assert (found.plan.local.unit, found.plan.local.amount) == ("steps", plan.local.amount)
    assert found.plan.algorithm == plan.algorithm


def test_a_large_clip_norm_has_louder_canaries() -> None:
    privacy = plan_of(privacy=RECORD | {"clip_norm": 50.0}).privacy
    assert privacy is not None
    assert loudness(privacy) == 60 * 50


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("sections", "mechanism", "method"),
    [
        ({}, "record at site", "one_run"),
        ({"privacy": RECORD | {"protects": "patient"}}, "patient at site", "one_run"),
        ({"privacy": RECORD | {"clip_norm": 50.0}}, "record at site", "one_run"),
        ({"privacy": SITE}, "site at site", "repeated_game"),
        ({"privacy": SITE | {"noise": "centre"}, "algorithm": {"max_weight": 3},
          "rounds": {"sites_per_round": 4}}, "site at centre", "repeated_game"),
        (SHARES, "site in shares", "repeated_game"),
    ],
)  # fmt: skip
def test_each_kind_of_plan(sections: dict[str, Any], mechanism: str, method: str) -> None:
    plan = plan_of(**sections)
    found = audit_plan(plan)
    assert (found.mechanism, found.method) == (mechanism, method)
    assert not found.broken
    assert not found.blind
    assert found.claimed_epsilon is not None
    assert 0.1 * found.claimed_epsilon < found.lower_bound < found.claimed_epsilon
    account = planned_account(plan)
    assert account is not None
    if method == "one_run":  # stated at the plan's own delta, so it is the account's own epsilon
        assert found.claimed_epsilon == pytest.approx(account.epsilon)
    else:
        assert found.delta == 0.01


def test_a_plan_without_privacy_is_refused() -> None:
    plan = Plan.model_validate(plan_of().model_dump() | {"privacy": None})
    with pytest.raises(PlanMismatchError, match=r"no \[privacy\]"):
        audit_plan(plan)


def test_contradictions_are_refused(whole: PrivacyAudit) -> None:
    with pytest.raises(ValueError, match="broken and blind"):
        PrivacyAudit.model_validate(whole.model_dump() | {"broken": True, "blind": True})


@pytest.fixture
def whole() -> PrivacyAudit:
    return PrivacyAudit(
        mechanism="record at site", method="one_run", network="logistic on 4 inputs",
        differs=("another optimiser",), claimed_epsilon=2.001, lower_bound=1.019, confidence=0.99,
        delta=1e-5, num_canaries=8192, broken=False, blind=False,
    )  # fmt: skip


def test_the_verdict_rounds_the_claim_up_and_the_bound_down(whole: PrivacyAudit) -> None:
    assert whole.verdict == (
        "epsilon 2.01 is claimed at delta 1e-05, an attack shows epsilon 1.01 or more (99 % "
        "confidence): the attack does not contradict the claim"
    )
    blind = whole.model_copy(update={"blind": True, "lower_bound": 0.0, "claimed_epsilon": None})
    assert "no epsilon is claimed" in blind.verdict
    assert "shows nothing" in blind.verdict
    assert "says little" in blind.verdict


@pytest.mark.usefixtures("quick")
def test_a_simulated_run_has_claim_and_bound_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of()))
    words = [str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run"), "--num-sites", "2"]
    ran = CliRunner().invoke(simulate_app, ["run", *words, "--audit"])
    assert ran.exit_code == 0, ran.output
    result = read_result(tmp_path / "run/result.json")
    audit, account = result.privacy_audit, result.privacy_account
    assert audit is not None
    assert account is not None
    assert audit.claimed_epsilon == pytest.approx(account.epsilon)
    assert result.status == "finished"
    assert f"attacked: {audit.verdict}" in " ".join(ran.output.split())
    report = (tmp_path / "run/report.html").read_text()
    assert audit.verdict[1:] in report
    assert "1,024 canaries" in report
    assert "plain SGD" in report


@pytest.mark.usefixtures("quick", "unclipped")
def test_a_run_whose_claim_is_broken_has_failed_and_keeps_its_model(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of(privacy=LOUD)))
    words = [str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run"), "--num-sites", "2"]
    ran = CliRunner().invoke(simulate_app, ["run", *words, "--audit"])
    assert isinstance(ran.exception, ClaimBrokenError)
    assert ran.exception.exit_code == 24
    result = read_result(tmp_path / "run/result.json")
    assert result.status == "failed"
    assert "the attack shows more than the claimed epsilon" in result.headline
    assert (tmp_path / "run/model.safetensors").exists()
    assert "failed:" in ran.output
    assert "must not be trusted" in ran.output
    report = (tmp_path / "run/report.html").read_text()
    assert 'class="status lost">failed' in report
    assert "Do not trust this model" in report
    assert "kept, but not to be trusted" in report


@pytest.mark.usefixtures("quick")
def test_the_audit_alone_prints_one_short_table(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of(privacy=SITE)))
    ran = CliRunner().invoke(privacy_app, ["audit", str(tmp_path / "plan.toml")])
    assert ran.exit_code == 0, ran.output
    assert "shown by the attack" in ran.output
    assert len(ran.output.splitlines()) < 16
    as_json = CliRunner().invoke(privacy_app, ["audit", str(tmp_path / "plan.toml"), "--json"])
    assert json.loads(as_json.output)["mechanism"] == "site at site"


@pytest.mark.usefixtures("quick", "unclipped")
def test_the_audit_alone_ends_with_the_code_of_a_broken_claim(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan_of(privacy=LOUD)))
    ran = CliRunner().invoke(privacy_app, ["audit", str(tmp_path / "plan.toml")])
    assert isinstance(ran.exception, ClaimBrokenError)
    assert "does not keep the claim" in " ".join(ran.output.split())


def test_an_audit_of_a_run_without_privacy_is_refused_at_once(tmp_path: Path) -> None:
    plan = Plan.model_validate(plan_of().model_dump() | {"privacy": None})
    (tmp_path / "plan.toml").write_text(plan_to_toml(plan))
    words = ["run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run"), "--audit"]
    ran = CliRunner().invoke(simulate_app, words)
    assert isinstance(ran.exception, PlanMismatchError)
    assert not (tmp_path / "run").exists()


def test_a_finished_result_with_a_broken_claim_is_refused(
    whole: PrivacyAudit, tmp_path: Path
) -> None:
    broken = whole.model_copy(update={"broken": True, "lower_bound": 3.0})
    values: dict[str, Any] = {
        "run": "r", "name": "r", "kind": "train", "task": "classification", "plan_sha256": "0" * 64,
        "status": "failed", "started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:04:06Z",
        "carrier": "simulation", "rounds_planned": 1, "privacy_audit": broken,
    }  # fmt: skip
    written = write_result(Result.model_validate(values), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == written
    with pytest.raises(ValueError, match="broke the claim"):
        Result.model_validate(values | {"status": "finished"})


def test_live_reports_say_that_nothing_was_attacked(tmp_path: Path) -> None:
    from asterion_shared.reports.run_report import write_report

    account = planned_account(plan_of())
    result = Result(
        run="r", name="r", kind="train", task="classification", plan_sha256="0" * 64,
        status="finished", started="2026-01-02T03:04:05Z", finished="2026-01-02T03:04:06Z",
        carrier="flower", rounds_planned=1, privacy_account=account,
    )  # fmt: skip
    write_report(result, tmp_path / "report.html")
    assert "asterion privacy audit PLAN.toml attacks" in (tmp_path / "report.html").read_text()
