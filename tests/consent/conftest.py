"""A hospital with a table, its keys, and an operator whose plans it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from asterion_client.settings import SiteSettings, read_site_settings
from asterion_shared.key_files import write_private
from asterion_shared.messages import Order
from asterion_shared.operator_keys import make_operator_key
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.signed_plan import read_operator_key, sign_plan

SITE = """
name = "clinic"
task = "classification"
[data]
format = "table"
group_column = "patient"
[connection]
address = "localhost:1"
root_certificate = "ca.pem"
private_key = "site.key"
[privacy]
epsilon_limit = 8.0
[consent]
operators = ["anna"]
noise = ["none", "site", "centre"]
smallest_cohort = 2
approval = "auto"
"""
PLAN: dict[str, Any] = {
    "name": "r",
    "task": "classification",
    "data": {"kind": "table", "features": ["age", "pressure"], "classes": ["well", "ill"]},
    "model": {"name": "logistic"},
    "rounds": {"count": 3, "quorum": 2},
}
PRIVATE: dict[str, Any] = {
    "data": PLAN["data"] | {"scale": {"age": [55.0, 9.0], "pressure": [130.0, 17.0]}},
    "privacy": {
        "protects": "record",
        "noise": "site",
        "clip_norm": 1.0,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.2,
        "epsilon_limit": 20.0,
    },
}


@dataclass
class Clinic:
    """A site's folder, and an operator's key outside of it."""

    folder: Path
    key: Path
    plan: Plan = field(default_factory=lambda: validate(Plan, PLAN, "plan"))
    signs_at: float | None = None
    """When the operator signs, UTC, seconds since 1970; None: now."""

    @property
    def toml(self) -> Path:
        return self.folder / "site.toml"

    def settings(self, **consent: Any) -> SiteSettings:
        settings = read_site_settings(self.toml)
        assert settings.consent is not None
        values = settings.consent.model_dump() | consent
        changed = validate(type(settings.consent), values, "consent")
        return settings.model_copy(update={"consent": changed})

    def order(self, run: str = "r", *, signed: bool = True, **fields: Any) -> Order:
        """An order of the plan, signed by the operator for its run."""
        plan = fields.pop("plan", self.plan)
        signature = None
        if signed:
            signature = sign_plan(plan, run, "anna", read_operator_key(self.key), now=self.signs_at)
        values: dict[str, Any] = {"run": run, "plan": plan, "round": 1, "phase": "count"}
        return Order(**(values | {"signature": signature} | fields))


def write_table(path: Path, patients: int = 60) -> None:
    rows = (f"{40 + i % 30},{100 + 7 * i % 60},{'ill' if i % 30 > 14 else 'well'},p{i}"
            for i in range(patients))  # fmt: skip
    path.write_text("age,pressure,label,patient\n" + "\n".join(rows) + "\n")


def new_clinic(tmp_path: Path) -> Clinic:
    """A hospital in a folder below."""
    folder = tmp_path / "clinic"
    folder.mkdir()
    (folder / "site.toml").write_text(SITE)
    write_table(folder / "patients.csv")
    own = ec.generate_private_key(ec.SECP384R1())
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(folder / "site.key", pem)
    private, public, _ = make_operator_key(tmp_path / "operator", "anna")
    (folder / "operators").mkdir()
    (folder / "operators" / "anna.pem").write_bytes(public.read_bytes())
    return Clinic(folder, private)


@pytest.fixture
def make_clinic(tmp_path: Path) -> Callable[[], Clinic]:
    return lambda: new_clinic(tmp_path)


@pytest.fixture
def clinic(make_clinic: Callable[[], Clinic]) -> Clinic:
    return make_clinic()
