"""Whether a private run's model can do more than one that learnt nothing."""

from collections.abc import Mapping

from asterion_shared.reports import metric_words
from asterion_shared.reports.intervals import bounds_95
from asterion_shared.reports.metric_words import number
from asterion_shared.result import Result

CHANCE: dict[str, float] = {"auroc": 0.5, "dice": 0.0}
"""What a headline metric is without any training, where no baseline was measured."""


def trivial_value(metrics: Mapping[str, float | None], metric: str) -> tuple[float, str]:
    """The number that a model must exceed, and what to call it.

    Args:
        metrics: pooled ones of a final model. Where sites add noise they hold no baseline, which
            would learn from the training cases.
        metric: a headline metric.

    Returns:
        The measured trivial baseline; else the value of guessing, :data:`CHANCE`.
    """
    baseline = metrics.get(f"baseline/{metric}")
    if baseline is not None:
        return baseline, "trivial baseline"
    return CHANCE[metric], "without training"


def not_usable(result: Result) -> str:
    """One sentence where a private run's model is no better than one that learnt nothing, else "".

    It is not usable where the 95 % interval of the headline metric reaches down to the trivial
    baseline; where the interval is not known, the metric itself. A model above it that is no
    better than the weights that the run began from is named too: any overlap exceeds a Dice of 0.
    Runs without ``[privacy]``, and runs that measured no headline metric, are not judged.

    For example ``This model is not usable: AUROC 0.512 (95 % interval 0.471 to 0.553), trivial
    baseline 0.500.``
    """
    metric = metric_words.headline_metric(result.task)
    value = result.final_metrics.get(metric)
    if result.privacy_account is None or value is None:
        return ""
    trivial, called = trivial_value(result.final_metrics, metric)
    ends = bounds_95(result.final_metrics, metric)
    spread = f" (95 % interval {number(ends[0])} to {number(ends[1])})" if ends else ""
    reached = f"{metric_words.label(metric)} {number(value)}{spread}"
    if min((value, *(ends or ()))) <= trivial:
        return f"This model is not usable: {reached}, {called} {number(trivial)}."
    start = next((r.pooled.get(metric) for r in result.rounds if r.round == 0), None)
    if start is not None and value <= start:
        return f"Training did not make this model better: {reached}, at the start {number(start)}."
    return ""
