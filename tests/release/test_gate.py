"""What the release gate finds, from results made by hand."""

from typing import Any

import pytest
from tests.release.conftest import small_plan
from tests.release.runs import SITES, a_round, metrics

from asterion_server.release_gate import gate_problems
from asterion_server.release_settings import GateSettings
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.result import Result

PLAN = small_plan(rounds={"count": 1})
BROKEN = PrivacyAudit(
    mechanism="site at centre", method="one_run", network="small", claimed_epsilon=1.0,
    lower_bound=2.0, confidence=0.95, delta=1e-5, num_canaries=100, broken=True, blind=False,
)  # fmt: skip


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "run": "cells", "name": "cells", "kind": "train", "task": "segmentation",
        "plan_sha256": PLAN.sha256, "status": "finished", "started": "2026-11-20T08:00:00Z",
        "finished": "2026-11-20T09:30:00Z", "carrier": "link", "rounds_planned": 1,
        "rounds": (a_round(1, 0.8, 0.7, SITES),), "final_metrics": metrics(0.8),
        "sites": tuple({"name": site} for site in SITES),
    }  # fmt: skip
    return Result(**values | changes)


def final(**changes: float | None) -> dict[str, Any]:
    return {"final_metrics": metrics(0.8) | changes}


SOUTH_UNKNOWN = {"rounds": (a_round(1, 0.8, 0.7, SITES).model_copy(
    update={"sites": {site: metrics(0.8) for site in ("east", "north")}}),)}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "gate", "words"),
    [
        ({}, {}, ""),
        ({}, {"worst_site_at_least": 0.7, "worst_class_at_least": 0.8}, ""),
        ({"status": "quorum_lost"}, {}, "the run: did not finish (quorum lost)"),
        ({"status": "failed", "privacy_audit": BROKEN}, {}, "privacy: an attack shows more"),
        (final(**{"baseline/dice": 0.77}), {}, "Dice 0.800 (95 % interval 0.770 to 0.830) is not"),
        (final(dice=0.0, dice_low=None, **{"baseline/dice": None}), {}, "the value of guessing"),
        (final(dice=None), {}, "no Dice over all sites was measured"),
        ({}, {"worst_site_at_least": 0.701}, "Dice is 0.700 at south, and 0.701 is asked"),
        (SOUTH_UNKNOWN, {"worst_site_at_least": 0.7}, "Dice is not known at south"),
        (final(**{"dice/cell": 0.6}), {"worst_class_at_least": 0.7}, "Dice, cell is 0.600"),
        (final(**{"dice/cell": None}), {"worst_class_at_least": 0.7}, "was not measured"),
        ({}, {"worst_class_at_least": 0.81}, "worst class: Dice is 0.800"),
        (final(calibration_error=0.2), {"calibration_error_at_most": 0.1}, "is 0.200, and at most"),
        (final(calibration_error=0.1), {"calibration_error_at_most": 0.1}, ""),
        ({}, {"calibration_error_at_most": 0.1}, "no calibration error was measured"),
    ],
)
def test_the_gate(changes: dict[str, Any], gate: dict[str, float], words: str) -> None:
    found = [str(p) for p in gate_problems(result(**changes), PLAN, GateSettings(**gate))]
    assert bool(found) == bool(words)
    assert any(words in problem for problem in found) or not words
