import io
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from asterion_shared.cases import SiteData
from asterion_shared.errors import SettingsError, UserInputError
from asterion_shared.plan import Plan, parse_plan, read_plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.privacy.account import planned_account
from asterion_shared.result import read_result
from asterion_sim import privacy_sweep
from asterion_sim.case_arrays import Pool, PoolCases
from asterion_sim.plan_values import changed
from asterion_sim.privacy_command_line import privacy_app
from asterion_sim.privacy_curve import (
    Curve,
    Estimate,
    over_seeds,
    read_curve,
    verdict_of,
    write_curve,
)
from asterion_sim.privacy_studies import DIRICHLET, IID, PRIVACY_STUDIES, PRIVATE_PLANS, dealt_chest
from asterion_sim.privacy_sweep import plan_within, run_privacy_sweep, settings_of
from asterion_sim.privacy_sweep_chart import sweep_chart
from asterion_sim.privacy_sweep_table import curve_table, with_interval
from asterion_sim.virtual_cohort import VirtualSites

PLAN = """{"name": "small", "task": "classification", "seed": 5,
 "data": {"classes": ["dark", "bright"], "patch_size": [2, 2], "normalisation": "none"},
 "model": {"name": "logistic"},
 "algorithm": {"max_weight": 1},
 "local": {"unit": "epochs", "amount": 2, "optimiser": "sgd", "learning_rate": 0.3},
 "rounds": {"count": 3, "sites_per_round": 4, "evaluate_every": 3},
 "privacy": {"protects": "site", "noise": "centre", "clip_norm": 1.0, "noise_multiplier": 2.0,
             "delta": 1e-3, "epsilon_limit": 10.0}}"""
LITTLE_NOISE, MUCH_NOISE = 1e4, 0.01


@pytest.fixture(scope="module")
def plan() -> Plan:
    return parse_plan(PLAN)


@pytest.fixture(scope="module")
def sites(plan: Plan) -> VirtualSites:
    """Four sites of 40 images, the bright ones one deviation brighter."""
    draws = np.random.default_rng(3)
    labels = np.arange(160) % 2
    images = draws.normal(labels[:, None, None, None] - 0.5, 1.0, (160, 1, 2, 2))
    pool = Pool("drawn", images.astype(np.float32), labels)
    return VirtualSites(
        {
            f"site-{number}": SiteData(
                site=f"site-{number}",
                train=PoolCases(pool, np.arange(40 * number, 40 * number + 24)),
                test=PoolCases(pool, np.arange(40 * number + 24, 40 * number + 40)),
            )
            for number in range(4)
        },
        {},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def curve(plan: Plan, sites: VirtualSites, folder: Path) -> Curve:
    return run_privacy_sweep(
        plan, sites, folder, epsilons=(LITTLE_NOISE, MUCH_NOISE),
        placements=("centre", "shares", "site"), seeds=(5, 6, 7),
    )  # fmt: skip


def test_the_noise_keeps_to_epsilon_and_three_digits_less_would_not(plan: Plan) -> None:
    record = changed(plan, {"privacy.protects": "record", "privacy.noise": "site",
                            "privacy.sampling_rate": 0.1}, "test")  # fmt: skip
    for one in (plan, record):
        for epsilon in (0.5, 4.0):
            found = plan_within(one, epsilon)
            account = planned_account(found)
            assert account is not None
            assert account.epsilon is not None
            assert found.privacy is not None
            assert account.epsilon <= epsilon == found.privacy.epsilon_limit
            less = changed(
                found, {"privacy.noise_multiplier": found.privacy.noise_multiplier * 0.98}, "test"
            )
            over = planned_account(less)
            assert over is not None
            assert over.epsilon is not None
            assert over.epsilon > epsilon


def test_the_points_are_the_plan_without_privacy_and_each_placement(plan: Plan) -> None:
    found = settings_of(plan, (8.0, 2.0), ("site", "centre"))
    assert [one.folder for one in found] == [
        "without-privacy", "site-epsilon-2", "site-epsilon-8", "centre-epsilon-2",
        "centre-epsilon-8",
    ]  # fmt: skip
    assert found[0].plan.privacy is None
    # a site's releases cost the same wherever the noise is added
    assert found[1].plan.privacy is not None
    assert found[3].plan.privacy is not None
    assert found[1].plan.privacy.noise_multiplier == found[3].plan.privacy.noise_multiplier
    assert settings_of(plan, (2.0,))[1].placement == "centre"  # the plan's own


def test_an_adaptive_clip_stays_at_the_centre(plan: Plan) -> None:
    adaptive = changed(plan, {"privacy.adaptive_clip.count_share": 0.1}, "test")
    for setting in settings_of(adaptive, (4.0,), ("site", "shares", "centre"))[1:]:
        assert setting.plan.privacy is not None
        assert (setting.plan.privacy.adaptive_clip is None) is (setting.placement != "centre")


def test_shares_need_more_noise_than_the_centre_and_one_secure_sum(plan: Plan) -> None:
    for epsilon in (1.0, 8.0):
        without, shares, centre = settings_of(plan, (epsilon,), ("shares", "centre"))
        assert without.plan.secure_sum is None
        assert centre.plan.secure_sum is None
        assert shares.plan.secure_sum is not None
        assert shares.plan.privacy is not None
        assert centre.plan.privacy is not None
        more = shares.plan.privacy.noise_multiplier / centre.plan.privacy.noise_multiplier
        assert 1 < more < 1.2
        account = planned_account(shares.plan)
        assert account is not None
        assert account.epsilon is not None
        assert 0.9 * epsilon < account.epsilon <= epsilon
    # the plan's own assumptions are kept, and go where there is no secure sum
    assumed = changed(plan, {"privacy.noise": "shares", "secure_sum.max_colluders": 1,
                             "secure_sum.max_dropouts": 0}, "test")  # fmt: skip
    own = settings_of(assumed, (8.0,))[1]
    assert own.placement == "shares"
    assert own.plan.secure_sum == assumed.secure_sum
    assert settings_of(assumed, (8.0,), ("site",))[1].plan.secure_sum is None


def test_what_cannot_be_swept_is_refused_with_the_reason(plan: Plan) -> None:
    with pytest.raises(UserInputError, match=r"has no \[privacy\]"):
        settings_of(changed(plan, {"privacy": None}, "test"), (1.0,))
    for wrong in ((), (1.0, 1.0), (0.0, 1.0)):
        with pytest.raises(UserInputError, match="at least one above 0, each once"):
            settings_of(plan, wrong)
    with pytest.raises(UserInputError, match="list each once"):
        settings_of(plan, (1.0,), ("site", "site"))
    with pytest.raises(SettingsError, match="sampling_rate is missing"):
        settings_of(plan, (1.0,), ("record",))
    uncapped = changed(plan, {"privacy.noise": "site", "algorithm.max_weight": None}, "test")
    with pytest.raises(SettingsError, match="no site's weight has a bound"):
        settings_of(uncapped, (1.0,), ("site", "centre"))


def test_little_noise_costs_little_and_much_noise_makes_models_that_are_not_usable(
    curve: Curve, folder: Path
) -> None:
    assert curve.seeds == (5, 6, 7)
    plain = read_result(folder / "without-privacy" / "seed-5" / "result.json")
    assert curve.baseline == pytest.approx(plain.final_metrics["baseline/auroc"])
    assert curve.untrained is not None
    assert curve.without.verdict == "above the baseline"
    assert len(curve.points) == 6
    for point in curve.points:
        assert point.headline.value == pytest.approx(sum(v or 0 for v in point.values) / 3)
        assert point.relative_loss is not None
        losses = [1 - (with_ or 0) / (without or 1) for with_, without in
                  zip(point.values, curve.without.values, strict=True)]  # fmt: skip
        assert point.relative_loss.value == pytest.approx(sum(losses) / 3)
        assert point.spent is not None
        assert point.epsilon is not None
        assert point.spent <= point.epsilon
    little = [p for p in curve.points if p.epsilon == LITTLE_NOISE]
    much = [p for p in curve.points if p.epsilon == MUCH_NOISE]
    assert {p.verdict for p in little} == {"above the baseline"}
    assert {p.verdict for p in much} == {"not usable"}
    assert all((p.relative_loss.value or 0) < 0.1 for p in little if p.relative_loss)
    # the numbers are those of the runs, whose accounts keep to epsilon
    run = read_result(folder / "site-epsilon-0.01" / "seed-6" / "result.json")
    assert much[2].placement == "site"
    assert run.final_metrics["auroc"] == much[2].values[1]
    assert run.privacy_account is not None
    assert run.privacy_account.epsilon == much[2].spent
    assert read_curve(folder / "curve.json") == curve


def test_the_table_the_chart_and_the_page_say_it(curve: Curve, folder: Path) -> None:
    from rich.console import Console

    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(curve_table(curve))
    text = console.export_text()
    assert text.count("not usable") == 3
    assert f"trivial baseline {curve.baseline:.3f}, untrained network" in " ".join(text.split())
    for point in curve.points:
        # nothing is cut at 80 columns
        said = f"{point.epsilon:g}", f"{point.noise_multiplier:g}", with_interval(point.headline)
        assert any(
            all(part in line for part in (point.placement or "", *said))
            for line in text.splitlines()
        )
    assert "interval of the mean over the seeds" in text
    drawn = (folder / "curve.svg").read_text()
    root = ElementTree.fromstring(drawn)  # noqa: S314  # our own file
    assert drawn == sweep_chart(curve) + "\n"
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("not usable" in (title or "") for title in titles) == 3
    page = (folder / "report.html").read_text()
    assert "the models at epsilon 0.01 are not usable" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_begins_anew(
    plan: Plan, sites: VirtualSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_privacy_sweep(plan, sites, tmp_path, epsilons=(100.0,), seeds=(5,))
    broken = tmp_path / "centre-epsilon-100" / "seed-5"
    (broken / "result.json").unlink()
    asked: list[tuple[Path, bool]] = []
    real = privacy_sweep.simulate

    def counted(plan: Plan, sites: VirtualSites, out: Path, **options: object):  # type: ignore[no-untyped-def]
        asked.append((out, out.exists()))
        return real(plan, sites, out, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(privacy_sweep, "simulate", counted)
    again = run_privacy_sweep(plan, sites, tmp_path, epsilons=(100.0,), seeds=(5,))
    assert asked == [(broken, False)]
    # one seed has no spread: the interval is that of the held-out cases
    assert "held-out cases of the one run" in again.interval
    assert again.without.headline.low is not None


def test_a_verdict_needs_the_whole_interval_and_every_run() -> None:
    assert verdict_of(Estimate(value=0.8, low=0.7, high=0.9), (0.8,), 0.5) == "above the baseline"
    assert verdict_of(Estimate(value=0.8, low=0.5, high=0.9), (0.8,), 0.5) == "not usable"
    assert verdict_of(Estimate(value=0.8, low=0.7, high=0.9), (0.8, None), 0.5) == "not usable"
    assert verdict_of(Estimate(value=None), (None,), 0.5) == "not usable"
    assert verdict_of(Estimate(value=0.6), (0.6,), 0.5) == "above the baseline"


def test_the_interval_by_hand() -> None:
    # mean 2, deviation 1, half width t(0.975, 2 degrees) / sqrt(3) = 4.302653 / 1.732051
    found = over_seeds([1.0, None, 2.0, 3.0])
    assert found.value == 2
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)
    assert over_seeds([0.5]) == Estimate(value=0.5)
    assert over_seeds([None]) == Estimate(value=None)
    assert with_interval(Estimate(value=-0.0001), factor=100, digits=1) == "0.0"
    assert with_interval(Estimate(value=0.5, low=0.4, high=0.6)) == "0.500 (0.400 to 0.600)"


def test_a_run_that_came_to_none_is_not_usable(curve: Curve, tmp_path: Path) -> None:
    lost = curve.points[0].model_copy(
        update={"values": (None,) * 3, "headline": Estimate(value=None), "verdict": "not usable"}
    )
    shown = curve.model_copy(update={"points": (lost, *curve.points[1:])})
    write_curve(shown, tmp_path / "curve.json")
    assert read_curve(tmp_path / "curve.json") == shown
    ElementTree.fromstring(sweep_chart(shown))  # noqa: S314


def test_the_command(plan: Plan, tmp_path: Path) -> None:
    table = {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]}
    (tmp_path / "plan.toml").write_text(plan_to_toml(changed(plan, {"data": table}, "test")))
    arguments = ["sweep", str(tmp_path / "plan.toml"), "--num-sites", "4", "--seeds", "1",
                 "--epsilon", "3,10", "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(privacy_app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "small: AUROC over 1 seed, 4 sites" in done.output
    assert len(read_curve(tmp_path / "out" / "curve.json").points) == 2
    for extra, match in ((["--placement", "moon"], "no placement is named 'moon'"),
                         (["--epsilon", "few"], "give numbers between commas")):  # fmt: skip
        with pytest.raises(UserInputError, match=match):
            CliRunner().invoke(privacy_app, [*arguments, *extra], catch_exceptions=False)


@pytest.mark.parametrize("study", PRIVACY_STUDIES, ids=lambda study: study.name)
def test_the_plans_of_the_studies_can_be_swept(study) -> None:  # type: ignore[no-untyped-def]
    plan = read_plan(PRIVATE_PLANS / f"{study.plan}.toml")
    assert plan.privacy is not None
    account = planned_account(plan)
    assert account is not None
    assert account.epsilon is not None
    assert account.epsilon <= plan.privacy.epsilon_limit
    found = settings_of(plan, study.epsilons, study.placements)
    assert len(found) == 1 + len(study.epsilons) * len(study.placements)


def test_the_chest_images_are_dealt_without_loss() -> None:
    folder = os.environ.get("ASTERION_DATA")
    if folder is None:
        pytest.skip("ASTERION_DATA does not name the folder of data sets")
    plan = read_plan(PRIVATE_PLANS / "chest_thousand.toml")
    for split in (IID, DIRICHLET):
        sites = dealt_chest(Path(folder), plan, split, 1000)
        assert len(sites) == 1000
        assert sum(len(site.train) for site in sites.values()) == 4708
        assert sum(len(site.test) for site in sites.values()) == 624
        assert min(len(site.train) for site in sites.values()) >= 1
