"""One small run, made by hand: three sites, two rounds, site north gone in round 2."""

from collections.abc import Callable
from typing import Any

import pytest

from asterion_shared.plan import DataContract, ModelSettings, Plan
from asterion_shared.result import (
    FinalModel,
    Result,
    RoundResult,
    SiteOutcome,
    SiteSummary,
)
from asterion_shared.round_settings import RoundSettings
from asterion_shared.site_rounds import SiteRound

SITES = ("east", "north", "south")


@pytest.fixture
def plan() -> Plan:
    return Plan(
        name="small-run",
        task="segmentation",
        model=ModelSettings(name="unet"),
        data=DataContract(classes=("sky", "source")),
        rounds=RoundSettings(count=2),
    )


def metrics(dice: float) -> dict[str, float | None]:
    return {
        "dice": dice,
        "dice_low": dice - 0.05,
        "dice_high": dice + 0.05,
        "hd95_mm": None,
        "num_cases": 4.0,
        "baseline/dice": 0.01,
    }


def _round(number: int, missing: tuple[str, ...] = ()) -> RoundResult:
    outcomes = {
        site: SiteOutcome(outcome="failed", code="unreachable", stage="receiving")
        if site in missing
        else SiteOutcome(
            outcome="answered",
            num_examples=10,
            num_test=4,
            num_steps=5 if number else 0,
            train_loss=1.0 / number if number else None,
            seconds=1.5,
            bytes_down=1000,
            bytes_up=2000,
        )
        for site in SITES
    }
    here = [site for site in SITES if site not in missing]
    return RoundResult(
        round=number,
        asked=SITES,
        outcomes=outcomes,
        pooled=metrics(0.2 + 0.2 * number),
        sites={site: metrics(0.2 + 0.2 * number + 0.01 * i) for i, site in enumerate(here)},
        seconds=2.0,
        bytes_down=3000,
        bytes_up=6000,
        update_norm=0.5 if number else None,
    )


@pytest.fixture
def make_result(plan: Plan) -> Callable[..., Result]:
    def make(**changes: Any) -> Result:
        rounds = (_round(0), _round(1), _round(2, missing=("north",)))
        values: dict[str, Any] = {
            "run": "small-run-1",
            "name": plan.name,
            "kind": "train",
            "task": "segmentation",
            "plan_sha256": plan.sha256,
            "status": "finished",
            "started": "2026-01-02T03:04:05Z",
            "finished": "2026-01-02T03:05:05Z",
            "carrier": "simulation",
            "versions": {"torch": "2.13.0"},
            "rounds_planned": 2,
            "rounds": rounds,
            "final_metrics": rounds[-1].pooled,
            "final_model": FinalModel(path="model.safetensors", sha256="a" * 64),
            "sites": tuple(
                SiteSummary(
                    name=site,
                    num_examples=10,
                    num_test=4,
                    num_bad_files=int(site == "south"),
                    manifest_sha256="b" * 64,
                )
                for site in SITES
            ),
        }
        return Result(**values | changes)

    return make


@pytest.fixture
def history() -> list[SiteRound]:
    return [
        SiteRound(
            round=number,
            metrics=metrics(0.2 + 0.2 * number),
            num_examples=10,
            num_test=4,
            num_steps=5 if number else 0,
            train_loss=1.0 / number if number else None,
            seconds=1.5,
        )
        for number in range(3)
    ]
