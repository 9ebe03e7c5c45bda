"""The bench of a site's private step: both sides take the same step, and a failed mode says why."""

import pytest

from bench import private_live_step

MODES = ("ours", "hooks", "functorch", "ew", "ghost")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_live_step, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(private_live_step, "STEPS", 2)


@pytest.mark.parametrize("network", ["logistic", "conv_autoencoder"])
def test_every_mode_takes_our_step(network: str) -> None:
    rows = list(private_live_step.measure(network, 3, repetitions=2))
    assert tuple(row.way for row in rows) == MODES
    for row in rows:
        assert row.cpu_ms is not None
        assert row.ours_over_it is not None
        assert row.cpu_ms > 0
        assert (row.way == "ours") == (row.difference is None)
        assert row.difference is None or row.difference < 0.01
    assert rows[0].ours_over_it == 1.0


def test_a_mode_that_lacks_an_operation_is_named_in_the_table() -> None:
    rows = list(private_live_step.measure("unet", 2, repetitions=1))
    (lacking,) = [row for row in rows if row.cpu_ms is None]
    assert (lacking.way, "prelu" in lacking.failure) == ("ew", True)
    assert "prelu" in private_live_step.table(rows).splitlines()[4]
