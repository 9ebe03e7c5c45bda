"""Thresholds and the temperature that were fitted for the final model, as the page shows them."""

from typing import Any

from asterion_shared.reports.metric_words import number
from asterion_shared.result import Result

_RULES = {
    "false_alarm_rate": "the lowest that keeps the plan's false-alarm rate",
    "youden": "the largest sensitivity less false-alarm rate (Youden)",
}
_SAME_CASES = (
    "They are fitted on the cases that the model is judged on, so on other cases they do a little "
    "worse than is said here."
)


def decision_section(result: Result) -> dict[str, Any]:
    """Rows and sentences; empty where nothing was fitted."""
    found = result.decisions
    if found is None:
        return {"threshold_rows": [], "decision_notes": []}
    rows = [
        (_RULES.get(name, name.replace("_", " ")), number(one.score), number(one.sensitivity),
         number(one.false_alarm_rate))
        for name, one in found.thresholds.items()
    ]  # fmt: skip
    notes = []
    if found.temperature is not None:
        sure = (
            "too sure"
            if found.temperature > 1
            else "not sure enough"
            if found.temperature < 1
            else "as sure as it should be"
        )
        notes.append(
            f"A temperature of {number(found.temperature)} brings the mean log loss from "
            f"{number(found.log_loss)} to {number(found.log_loss_after)}: the model is {sure}."
        )
    notes.append(f"{_SAME_CASES} Cases: {found.num_cases:,}, in {found.num_bins:,} bins.")
    return {"threshold_rows": rows, "decision_notes": notes}
