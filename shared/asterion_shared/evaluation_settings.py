"""The ``[evaluation]`` section of a plan."""

from typing import Annotated, ClassVar

from pydantic import Field

from asterion_shared.settings_files import Positive, Rule, Settings, rule


class EvaluationSettings(Settings):
    """How the metrics are formed. Edges are fixed here, before any data are seen."""

    score_bins: Annotated[int, Field(ge=10, le=100_000)] = 1000
    """Bins of the score histograms behind AUROC and AUPRC."""

    anomaly_score_range: tuple[Positive, Positive] = (1e-4, 1e2)
    """First and last edge of an anomaly score's logarithmic bins; others are counted apart."""

    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """False-alarm rate at which the sensitivity is stated."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda e: e.anomaly_score_range[0] < e.anomaly_score_range[1],
            lambda e: f"anomaly_score_range is {e.anomaly_score_range}; put the smaller first",
        ),
    )
