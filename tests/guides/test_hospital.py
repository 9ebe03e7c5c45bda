"""``docs/guides/hospital.md``, carried out by somebody who has nothing but the wheels."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guides.conftest import write_patients
from tests.guides.player import ROOT, Machine, Player
from tests.network.namespaces import network, require

from asterion_sim.local_federation import enrol_on_this_machine

pytestmark = pytest.mark.live
GUIDE = ROOT / "docs/guides/hospital.md"
PLAN = """
name = "outcome"
task = "classification"
[data]
kind = "table"
features = ["age", "pressure"]
classes = ["well", "ill"]
scale = { age = [55.0, 9.0], pressure = [130.0, 17.0] }
[model]
name = "logistic"
[local]
amount = 5
[rounds]
count = 1
quorum = 2
[privacy]
protects = "record"
noise = "site"
clip_norm = 1.0
noise_multiplier = 4.0
sampling_rate = 0.1
epsilon_limit = 2.0
"""
OTHER = (
    'name = "other"\ntask = "classification"\n[data]\nformat = "table"\n'
    'group_column = "patient"\n[privacy]\nepsilon_limit = 8.0\n'
    '[consent]\noperators = ["anna"]\nnoise = ["site"]\napproval = "auto"\n'
)


@pytest.fixture
def player(wheels: Path, tmp_path: Path) -> Iterator[Player]:
    require()
    with network(["clinic", "other"]) as net:
        hosts = {"operator": net.coordinator, **net.sites}
        machines = {name: Machine(tmp_path / name, host) for name, host in hosts.items()}
        player = Player(machines, wheels, "coordinator.example.org", net.coordinator.address)
        try:
            yield player
        finally:
            player.stop()


def test_a_new_user_comes_to_an_approved_first_round(player: Player) -> None:
    operator, clinic = player.machines["operator"].folder, player.machines["clinic"].folder
    use_this_checkout(player, "operator", "other")
    prepare_operator(player)
    write_patients(clinic / "clinic/patients.csv", 0)
    player.play(GUIDE)
    result = json.loads((operator / "center/runs/outcome/result.json").read_text())
    assert result["status"] == "finished"
    assert set(result["rounds"][1]["outcomes"]) == {"clinic", "other"}
    said = player.machines["clinic"].said
    review = said["asterion site review clinic/site.toml outcome"]
    assert "trains a classification model" in review
    assert "with the network closed" in review
    assert "approved: run outcome" in said["asterion site approve clinic/site.toml outcome"]
    egress = said["asterion site egress clinic/site.toml"]
    assert "approval_missing" in egress


def use_this_checkout(player: Player, *names: str) -> None:
    """The operator and the other hospital need no new installation: the guide is not theirs."""
    for name in names:
        (player.machines[name].folder / "asterion").symlink_to(sys.prefix)


def prepare_operator(player: Player) -> None:
    """What the operator has before: a coordinator that runs, a key, a plan, another hospital."""
    operator, other = player.machines["operator"], player.machines["other"]
    for words in (
        "asterion operator new anna --folder keys",
        "asterion server init center --host coordinator.example.org --port 8000",
        "asterion server operator center anna --key keys/anna.pem",
    ):
        player.type("operator", words)
    (operator.folder / "outcome.toml").write_text(PLAN)
    toml = other.folder / "other/site.toml"
    write_patients(toml.parent / "patients.csv", 60)
    toml.write_text(OTHER)
    enrol_on_this_machine(operator.folder / "center", [toml], ["coordinator.example.org"])
    player.type("operator", "asterion server start center &")
    player.type("other", "asterion site start other/site.toml &")
