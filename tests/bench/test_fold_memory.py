"""Peak memory of a run's process, measured in a process of its own."""

from typing import Any

import pytest

from bench.fold_memory import WIDTHS, measured_apart, plan_of

QUORUM = {"rounds": {"count": 2, "quorum": 5}}


def test_beside_its_imports_a_run_holds_the_next_weights_and_little_more() -> None:
    found = measured_apart(plan_of((2048, 2048, 2048, 1024), 2, {}))
    assert found["model_bytes"] > 40e6
    beside = found["peak_bytes"] - found["imports_peak_bytes"]
    assert beside < 1.4 * found["model_bytes"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("sections", "num_sites"),
    [
        ({}, 3),
        ({"algorithm": {"clip_norm": 1.0}}, 5),
        ({"algorithm": {"fold": "median"}}, 5),
        ({"algorithm": {"fold": "krum", "num_malicious": 1}} | QUORUM, 5),
        ({"quarantine": {}} | QUORUM, 5),
    ],
    ids=["mean", "clipped", "median", "krum", "quarantine"],
)
def test_a_model_of_200_mb_takes_less_than_three_times_its_size(
    sections: dict[str, Any], num_sites: int
) -> None:
    found = measured_apart(plan_of(WIDTHS, 2, sections), num_sites)
    assert found["model_bytes"] > 200e6
    assert found["peak_over_model"] <= 2.7
