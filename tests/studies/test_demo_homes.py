"""What a site of the demo is given: keys, connection, and a ledger's limit under a private plan."""

from pathlib import Path
from typing import Any

import pytest

from asterion_client.settings import PrivacySettings, read_site_settings
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_sim import demo
from asterion_sim.local_federation import enrol_on_this_machine

PRIVATE = {"protects": "site", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "delta": 1e-4, "epsilon_limit": 7.0}  # fmt: skip
ALLOWED = "[privacy]\nepsilon_limit = 2.0\ndelta = 1e-6\n"


@pytest.mark.parametrize(
    ("own", "privacy", "expected"),
    [
        ("", None, None),
        ("", PRIVATE, PrivacySettings(epsilon_limit=7.0, delta=1e-4)),
        (ALLOWED, PRIVATE, PrivacySettings(epsilon_limit=2.0, delta=1e-6)),
    ],
)
def test_a_site_allows_what_it_says_or_else_what_the_plan_asks_for(
    own: str, privacy: dict[str, Any] | None, expected: PrivacySettings | None, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "site.toml").write_text(
        f'name = "north"\ntask = "classification"\n{own}[data]\nformat = "npz"\n'
    )
    values = {"name": "p", "task": "classification", "model": {"name": "residual"},
              "data": {"classes": ["a", "b"]}, "privacy": privacy}  # fmt: skip
    plan = validate(Plan, values, "plan")
    path = demo._settle(data, tmp_path / "home", plan)
    other = tmp_path / "south.toml"
    other.write_text('name = "south"\ntask = "anomaly"\n[data]\nformat = "npz"\n')
    enrol_on_this_machine(tmp_path / "center", [path, other])
    settings = read_site_settings(path)
    assert settings.privacy == expected
    assert settings.connection is not None
    assert (path.parent / settings.data.folder).resolve() == data
    peers = path.parent / str(settings.connection.peers)
    assert {key.stem for key in peers.glob("*.pem")} == {"north", "south"}
