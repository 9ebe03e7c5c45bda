"""The clip norm that follows a quantile: its rule, its charge, its way through a run."""

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from asterion_server import central_step
from asterion_server.central_step import CentralStep, central_step_of
from asterion_server.rounds import run_rounds
from asterion_server.selection import ROUNDING_MARGIN, clip_factor
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import RunStoppedError, SettingsError
from asterion_shared.events import Event, RoundFinished
from asterion_shared.plan import Plan
from asterion_shared.plan_command_line import check
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.adaptive_clip import next_clip, split_noise
from asterion_shared.privacy.charges import GaussianCharge
from asterion_shared.privacy.planned import charge_of
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.run_tables import clip_words, round_table
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate
from asterion_sim.engines.choice import EngineWish, read_wish
from asterion_sim.virtual_cohort import SEQUENTIAL, VirtualCohort, VirtualSites

CENTRE: dict[str, Any] = {"protects": "site", "noise": "centre", "clip_norm": 2.0,
                          "noise_multiplier": 1.0, "epsilon_limit": 500.0}  # fmt: skip
ADAPTIVE: dict[str, Any] = {"quantile": 0.5, "learning_rate": 0.2, "count_share": 0.04}


def privacy_of(adaptive: dict[str, Any] | None = ADAPTIVE, **changes: Any) -> PrivacySettings:
    return validate(PrivacySettings, CENTRE | {"adaptive_clip": adaptive} | changes, "privacy")


def plan_of(
    adaptive: dict[str, Any] | None = ADAPTIVE,
    rounds: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    values = {
        "name": "adaptive",
        "task": "classification",
        "data": {"kind": "table", "features": ["x", "y", "z"], "classes": ["a", "b"]},
        "model": {"name": "logistic"},
        "algorithm": {"max_weight": 3},
        "local": {"amount": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.05},
        "rounds": {"count": 3, "sites_per_round": 6} | (rounds or {}),
        "privacy": CENTRE | {"adaptive_clip": adaptive} | changes,
    }
    return validate(Plan, values, "test")


# 8 of 10 are within: (8 - 2) / 2 / 10 = 0.3 more than half, so exp(-0.2 x 0.3) = 0.941765;
# 1 of 10: exp(-0.2 x -0.4) = 1.083287. Towards the quantile 0.8 the first would stay.
@pytest.mark.parametrize(
    ("within", "quantile", "factor"), [(8, 0.5, 0.941765), (1, 0.5, 1.083287), (8, 0.8, 1.0)]
)
def test_one_step_by_hand(within: int, quantile: float, factor: float) -> None:
    privacy = privacy_of(ADAPTIVE | {"quantile": quantile})
    for clip in (2.0, 5.0):
        found = next_clip(privacy, clip, (within - (10 - within)) / 2 / 10)
        assert found == pytest.approx(factor * clip, rel=1e-6)
        assert found == np.float32(found)


def test_no_noise_takes_the_clip_norm_out_of_all_bounds() -> None:
    privacy = privacy_of()
    assert next_clip(privacy, 2.0, 1e300) == 2.0**-19
    assert next_clip(privacy, 2.0, -1e300) == 2.0**21


@pytest.mark.parametrize("share", [0.001, 0.04, 0.5, 0.99])
@pytest.mark.parametrize("multiplier", [0.4, 1.0, 7.0])
def test_sum_and_count_together_cost_the_noise_multiplier(share: float, multiplier: float) -> None:
    noise = split_noise(privacy_of({"count_share": share}, noise_multiplier=multiplier))
    total = (noise.sum_multiplier**-2 + (2 * noise.count_deviation) ** -2) ** -0.5  # theorem 1
    assert total == pytest.approx(multiplier, rel=1e-12)
    assert noise.sum_multiplier > multiplier


def test_the_charge_agrees_with_an_independent_composition() -> None:
    plan = plan_of(ADAPTIVE | {"count_share": 0.3})
    charge, privacy = charge_of(plan, 1), plan.privacy
    assert isinstance(charge, GaussianCharge)
    assert privacy is not None
    noise = split_noise(privacy)
    # Two Gaussian mechanisms, composed numerically: the sum, whose sensitivity is 1 in its own
    # unit, and the count, which one site changes by 1/2.
    composed = pld.from_gaussian_mechanism(
        noise.sum_multiplier, value_discretization_interval=1e-3
    ).compose(
        pld.from_gaussian_mechanism(
            noise.count_deviation, sensitivity=0.5, value_discretization_interval=1e-3
        )
    )
    charged = pld.from_gaussian_mechanism(
        charge.noise_multiplier, value_discretization_interval=1e-3
    )
    for delta in (1e-2, 1e-5, 1e-8):
        both = composed.get_epsilon_for_delta(delta)
        assert both == pytest.approx(charged.get_epsilon_for_delta(delta), abs=5e-3)
    alone = pld.from_gaussian_mechanism(noise.sum_multiplier, value_discretization_interval=1e-3)
    assert alone.get_epsilon_for_delta(1e-5) < 0.9 * charged.get_epsilon_for_delta(1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adaptive": {}}, "must be paid for: give it a share of the budget"),
        ({"adaptive": {"quantile": 0.5, "learning_rate": 0.1}}, "count_share is missing"),
        ({"adaptive": {"count_share": 0.0}}, "must be > 0"),
        ({"adaptive": {"count_share": 1.0}}, "must be < 1"),
        ({"adaptive": {"count_share": 0.1, "count_noise": 5.0}}, "count_noise"),
        ({"noise": "site"}, "only the coordinator counts"),
        ({"adaptive": ADAPTIVE | {"quantile": 0.8}}, "raise the quorum above 3.6"),
        ({"adaptive": ADAPTIVE | {"quantile": 0.2}, "rounds": {"quorum": 3}}, "half within"),
        ({"rounds": {"sites_per_round": None}}, "constant of the plan"),
    ],
)
def test_a_plan_whose_count_is_not_paid_for_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_of(**changes)


def test_a_quantile_that_the_quorum_can_meet_is_taken() -> None:
    assert plan_of(ADAPTIVE | {"quantile": 0.8}, {"quorum": 4}).privacy is not None


def test_plan_check_says_how_the_noise_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan_of()))
    check(path)
    words = capsys.readouterr().out
    assert "the count of 6 sites has noise of deviation 2.5" in words  # 1 / (2 sqrt 0.04)
    assert "a noise multiplier of 1.02;" in words  # 1 / sqrt 0.96


def finish_round(step: CentralStep, plan: Plan, norms: np.ndarray, size: int = 1) -> np.ndarray:
    """A round of sites with updates of these lengths, each along the first axis."""
    names = [f"s{n:04d}" for n in range(len(norms))]
    step.begin(names, size)
    clipped = 0
    for name, norm in zip(names, norms.tolist(), strict=True):
        factor = clip_factor(plan, norm, step.clip_norm)
        clipped += factor < 1
        update = np.zeros(size, np.float32)
        update[0] = factor * norm
        step.add(name, update, 1.0)
    step.count_clipped(len(norms) - clipped, clipped)
    return step.finish(1, np.zeros(size, np.float32))


def test_both_sums_get_the_noise_that_was_charged(tmp_path: Path) -> None:
    plan, size = plan_of(ADAPTIVE | {"count_share": 0.36}), 40_000
    step = central_step_of(plan, tmp_path)
    norms = np.full(6, 0.01)  # all six within: 3 more than half
    moved = finish_round(step, plan, norms, size)
    # The sum has 1 / sqrt(0.64) x 2 x 3 = 7.5, and is divided by 3 x 6.
    assert moved.std() == pytest.approx(7.5 / 18, rel=0.03)
    means = []
    for _ in range(2000):
        step.restore({"clip_norm": np.array([2.0], np.float32)})
        finish_round(step, plan, norms)
        assert step.clip_norm is not None
        means.append(-math.log(step.clip_norm / 2.0) / 0.2)
    # The count has 1 / (2 x 0.6) = 0.8333, over 6 sites.
    assert np.mean(means) == pytest.approx(0.5, abs=5 * 0.1389 / math.sqrt(2000))
    assert np.std(means) == pytest.approx(0.8333 / 6, rel=0.08)


def test_the_noise_follows_the_clip_norm_of_the_round(tmp_path: Path) -> None:
    plan, size = plan_of(), 40_000
    step = central_step_of(plan, tmp_path)
    step.restore({"clip_norm": np.array([0.25], np.float32)})
    moved = finish_round(step, plan, np.full(6, 100.0), size)
    assert moved.std() == pytest.approx(0.25 * 3 / math.sqrt(0.96) / 18, rel=0.03)
    assert step.clip_norm != 0.25


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_clip_norm_comes_to_the_quantile_of_the_lengths(
    quantile: float, tmp_path: Path
) -> None:
    draw = np.random.default_rng(3)
    plan = plan_of(
        ADAPTIVE | {"quantile": quantile}, {"sites_per_round": 200, "quorum": 180}, clip_norm=50.0
    )
    step, clips = central_step_of(plan, tmp_path), []
    for _ in range(160):
        finish_round(step, plan, draw.lognormal(mean=0.0, sigma=0.5, size=200))
        clips.append(step.clip_norm)
    lengths = draw.lognormal(mean=0.0, sigma=0.5, size=100_000)
    found = np.mean([(lengths <= clip).mean() for clip in clips[-40:]])
    assert found == pytest.approx(quantile, abs=0.03)


def test_a_step_that_was_not_told_the_count_does_not_guess(tmp_path: Path) -> None:
    step = central_step_of(plan_of(), tmp_path)
    step.begin(["a"], 1)
    step.count_clipped(1, 0)
    step.begin(["a"], 1)
    step.add("a", np.ones(1, np.float32), 1.0)
    with pytest.raises(ValueError, match="nobody counted"):
        step.finish(1, np.zeros(1, np.float32))


def test_no_engine_can_clip_by_the_plan_where_the_round_decides() -> None:
    with pytest.raises(ValueError, match="given exactly where it adapts"):
        clip_factor(plan_of(), 3.0)
    with pytest.raises(ValueError, match="given exactly where it adapts"):
        clip_factor(plan_of(None), 3.0, 1.0)
    assert clip_factor(plan_of(), 3.0, 1.5) == 0.5 * (1 - ROUNDING_MARGIN)
    assert clip_factor(plan_of(None), 3.0) == pytest.approx(2 / 3 * (1 - ROUNDING_MARGIN))


def test_the_clip_norm_survives_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    plan = plan_of(clip_norm=0.1)  # not a float32
    step = central_step_of(plan, tmp_path)
    assert step.state() == {}
    assert step.clip_norm == 0.1
    for _ in range(3):
        finish_round(step, plan, np.full(6, 1.0))
        again = central_step_of(plan, tmp_path)
        again.restore(step.state())
        assert again.clip_norm == step.clip_norm != 0.1
    assert central_step_of(plan_of(None), tmp_path).clip_norm is None


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Noise by number of the draw, from the last of these on; so that runs can be compared."""
    next_key = [0]

    def stream() -> SecretStream:
        next_key[0] += 1
        return SecretStream(next_key[0].to_bytes(32, "big"))

    monkeypatch.setattr(central_step, "secret_stream", stream)
    return next_key


def site_of(number: int) -> SiteData:
    draw = np.random.default_rng(number)
    cases = [
        Case(
            id=f"{number:06x}{row:06x}",
            image=(draw.standard_normal(6) + row % 2).astype(np.float32),
            label=row % 2,
        )
        for row in range(8 + 4 * number)
    ]
    train, test = CaseList.of(cases[4:]), CaseList.of(cases[:4])
    return SiteData(site=f"site_{number}", train=train, test=test)


def run(
    plan: Plan, folder: Path, wish: EngineWish = SEQUENTIAL, stop_after: int | None = None
) -> Result:
    def emit(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round_result.round == stop_after:
            raise RunStoppedError

    data = [site_of(number) for number in range(8)]
    sites = VirtualSites({one.site: one for one in data}, {})
    with closing(VirtualCohort(plan, sites, folder / "sites", wish)) as cohort:
        return run_rounds(
            plan, cohort, folder, run="r", expected_sites=cohort.sites(), carrier="simulation",
            emit=emit,
        )  # fmt: skip


def test_a_run_states_the_clip_norm_of_each_round(tmp_path: Path) -> None:
    plan = plan_of(clip_norm=0.05)
    result = run(plan, tmp_path)
    clips = [r.clip_norm for r in result.rounds]
    assert clips[:2] == [None, 0.05]
    assert len(set(clips)) == 4
    for round_ in result.rounds[1:]:
        for outcome in round_.outcomes.values():
            assert outcome.update_norm is not None
            assert round_.clip_norm is not None
            beyond = outcome.update_norm > round_.clip_norm * (1 - ROUNDING_MARGIN)
            assert outcome.clipped == beyond
    clipped = {o.clipped for r in result.rounds for o in r.outcomes.values()}
    assert clipped == {True, False}
    assert read_result(tmp_path / "result.json") == result
    account = result.privacy_account
    assert account is not None
    assert account.noise_multiplier == 1.0
    table = round_table(result, "auroc")
    place = table["round_head"].index("clip norm")
    assert [row[place] for row in table["round_rows"]][:2] == [number(None), "0.05"]
    assert "shortened to the clip norm of their round" in clip_words(result, plan)
    fixed = run(plan_of(None), tmp_path / "fixed")
    assert all(r.clip_norm is None for r in fixed.rounds)
    assert "clip norm" not in round_table(fixed, "auroc")["round_head"]


@pytest.mark.parametrize("engine", ["vectorised", "processes:sequential", "processes:vectorised"])
def test_the_round_s_clip_norm_reaches_every_engine(
    engine: str, tmp_path: Path, keyed: list[int]
) -> None:
    plan = plan_of(clip_norm=0.05)
    oracle = run(plan, tmp_path / "oracle")
    keyed[0] = 0
    found = run(plan, tmp_path / "found", read_wish(engine, chunk=2, workers=2))
    for here, there in zip(found.rounds, oracle.rounds, strict=True):
        assert here.clip_norm == there.clip_norm
        if there.update_norm is not None:
            assert here.update_norm == pytest.approx(there.update_norm, rel=1e-5)
        clipped = {site: o.clipped for site, o in here.outcomes.items()}
        assert clipped == {site: o.clipped for site, o in there.outcomes.items()}


def test_a_resumed_run_goes_on_with_its_clip_norm(tmp_path: Path, keyed: list[int]) -> None:
    plan = plan_of(rounds={"count": 4}, clip_norm=0.05)
    whole = run(plan, tmp_path / "whole")
    keyed[0] = 0
    with pytest.raises(RunStoppedError):
        run(plan, tmp_path / "broken", stop_after=2)
    assert keyed[0] == 4  # two rounds, a sum and a count in each
    resumed = run(plan, tmp_path / "broken")
    assert [r.clip_norm for r in resumed.rounds] == [r.clip_norm for r in whole.rounds]
    model = (tmp_path / "broken/model.safetensors").read_bytes()
    assert model == (tmp_path / "whole/model.safetensors").read_bytes()
