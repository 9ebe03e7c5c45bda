import io
from collections.abc import Callable
from pathlib import Path

import pytest

from asterion_shared.events import RunFinished, RunStarted
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.privacy.account import planned_account
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.terminal import RoundPrinter
from asterion_shared.reports.usability import not_usable
from asterion_shared.result import Metrics, Result

Make = Callable[..., Result]
ACCOUNT = planned_account(
    parse_plan(
        """{"name": "small-run", "task": "segmentation", "model": {"name": "unet"},
        "rounds": {"count": 2}, "privacy": {"protects": "site", "noise": "site", "clip_norm": 1,
        "noise_multiplier": 2, "epsilon_limit": 9}}"""
    )
)
POOR: Metrics = {"dice": 0.05, "dice_low": 0.01, "dice_high": 0.09, "baseline/dice": 0.02}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (POOR, "This model is not usable: Dice 0.050 (95 % interval 0.010 to 0.090), trivial "
         "baseline 0.020."),
        (POOR | {"dice_low": 0.03}, "Training did not make this model better: Dice 0.050 (95 % "
         "interval 0.030 to 0.090), at the start 0.200."),
        # without a baseline: a Dice of 0 is what no training gives
        ({"dice": 0.0}, "This model is not usable: Dice 0.000, without training 0.000."),
        ({"dice": 0.3}, ""),
        ({"dice": None}, ""),
    ],
)  # fmt: skip
def test_one_sentence_where_a_private_model_is_not_usable(
    make_result: Make, metrics: Metrics, said: str
) -> None:
    private = make_result(privacy_account=ACCOUNT, final_metrics=metrics)
    assert not_usable(private) == said
    assert not_usable(make_result(final_metrics=metrics)) == ""  # nothing is claimed


def test_a_ranking_without_a_baseline_is_held_against_a_coin(make_result: Make) -> None:
    metrics: Metrics = {"auroc": 0.52, "auroc_bound": 0.0, "prevalence": 0.5, "num_cases": 200.0}
    found = not_usable(
        make_result(
            task="classification", rounds=(), privacy_account=ACCOUNT, final_metrics=metrics
        )
    )
    assert found.startswith("This model is not usable: AUROC 0.520 (95 % interval 0.4")
    assert found.endswith("without training 0.500.")


def test_the_report_and_the_terminal_say_it(make_result: Make, plan: Plan, tmp_path: Path) -> None:
    for metrics, shown in ((POOR, True), (POOR | {"dice": 0.9, "dice_low": 0.8}, False)):
        result = make_result(privacy_account=ACCOUNT, final_metrics=metrics)
        write_report(result, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert (">This model is not usable: Dice 0.050" in page) is shown
        stream = io.StringIO()
        with RoundPrinter(stream=stream) as printer:
            printer(
                RunStarted(
                    run="r", plan=plan.name, task="segmentation", rounds=2, sites=("east", "north")
                )
            )
            printer(RunFinished(result=result))
        assert ("This model is not usable: Dice 0.050" in stream.getvalue()) is shown
