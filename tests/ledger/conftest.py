"""Releases by hand, and an accountant whose numbers can be checked with a pencil."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asterion_client.privacy_entries import Release
from asterion_client.privacy_ledger import Ledger
from asterion_client.settings import PrivacySettings
from asterion_shared.privacy.charges import Charge, GaussianCharge

DELTA = 1e-6


def zcdp_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Bun and Steinke 2016, proposition 1.3, of unsampled Gaussian charges of one relation."""
    assert len({charge.relation for charge in charges}) == 1
    rho = 0.0
    for charge in charges:
        assert isinstance(charge, GaussianCharge)
        rho += charge.times / (2 * charge.noise_multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_release(payload: str = "a", **changes: object) -> Release:
    values: dict[str, object] = {
        "run": "run-1",
        "round": 1,
        "phase": "train",
        "payload_sha256": digest(payload),
        "charges": (GaussianCharge(relation="add_or_remove_one", noise_multiplier=10.0),),
        "fingerprint": digest("data"),
        "unit_kind": "patient",
        "units": frozenset(digest(f"patient {i}") for i in range(3)),
    }
    return Release(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def release() -> Callable[..., Release]:
    return make_release


@pytest.fixture
def open_ledger(tmp_path: Path):
    """Open the ledger of this test; whatever is open is closed at its end."""
    opened: list[Ledger] = []

    def open_(epsilon_limit: float | None = 100.0, **options: object) -> Ledger:
        privacy = None
        if epsilon_limit is not None:
            privacy = PrivacySettings(epsilon_limit=epsilon_limit, delta=DELTA)
        folder = tmp_path / "ledger"
        opened.append(Ledger(folder, privacy, **{"bounds": (zcdp_epsilon,), **options}))
        return opened[-1]

    yield open_
    for ledger in opened:
        ledger.close()
