import pytest

from asterion_shared.reports.intervals import bounds_95


def test_a_mean_brings_its_own() -> None:
    assert bounds_95({"dice": 0.5, "dice_low": 0.4, "dice_high": 0.6}, "dice") == (0.4, 0.6)


def test_hanley_and_mcneil_by_hand() -> None:
    # A = 0.8, 10 of each: Q1 = 0.8/1.2 = 2/3, Q2 = 1.28/1.8 = 0.7111
    # variance = (0.16 + 9 * 0.026667 + 9 * 0.071111) / 100 = 0.0104; 1.96 * sqrt = 0.19988
    metrics = {"auroc": 0.8, "prevalence": 0.5, "num_cases": 20.0}
    assert bounds_95(metrics, "auroc") == pytest.approx((0.60012, 0.99988), abs=1e-4)
    wider = bounds_95({**metrics, "auroc_bound": 0.01}, "auroc")
    assert wider == pytest.approx((0.59012, 1.0), abs=1e-4)


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"auroc": 0.8},
        {"auroc": None, "prevalence": 0.5, "num_cases": 20.0},
        {"auroc": 1.0, "prevalence": 0.5, "num_cases": 20.0},
        {"auroc": 0.8, "prevalence": 0.0, "num_cases": 20.0},
    ],
)
def test_no_interval_where_it_is_not_defined(metrics: dict[str, float | None]) -> None:
    assert bounds_95(metrics, "auroc") is None


def test_no_interval_is_invented_for_other_metrics() -> None:
    metrics = {"accuracy": 0.8, "prevalence": 0.5, "num_cases": 20.0}
    assert bounds_95(metrics, "accuracy") is None
