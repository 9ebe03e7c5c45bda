"""``docs/guides/four-institutions.md``, carried out on five machines."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.guides.conftest import write_patients
from tests.guides.player import ROOT, Machine, Player
from tests.network.namespaces import network, require

from asterion_sim.demo_sites import make_demo_sites

pytestmark = pytest.mark.live
GUIDE = ROOT / "docs/guides/four-institutions.md"
SITES = ("clinic", "infirmary", "mountain", "island")
FINGERPRINT = re.compile(r"(?:[A-Z2-7]{4}-){7}[A-Z2-7]{4}")


@pytest.fixture
def player(wheels: Path, tmp_path: Path) -> Iterator[Player]:
    require()
    with network(SITES) as net:
        hosts = {"coordinator": net.coordinator, **net.sites}
        machines = {name: Machine(tmp_path / name, host) for name, host in hosts.items()}
        player = Player(machines, wheels, "coordinator.example.org", net.coordinator.address)
        try:
            yield player
        finally:
            player.stop()


def bring_data(machines: dict[str, Machine], tmp_path: Path) -> None:
    """What the institutions have before they hear of a federation."""
    write_patients(machines["clinic"].folder / "clinic/patients.csv", 0)
    write_patients(machines["infirmary"].folder / "infirmary/patients.csv", 60)
    for made in make_demo_sites(tmp_path / "sky"):
        if made.name in ("mountain", "island"):
            for path in made.rglob("*.fits"):
                shutil.copy(path, machines[made.name].folder / made.name)


def rounds(center: Path, run: str) -> list[dict[str, Any]]:
    path = center / "runs" / run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines]
    return [e["round_result"] for e in events if "round_result" in e]


def test_the_guide_runs_as_it_is_written(player: Player, tmp_path: Path) -> None:
    machines = dict(player.machines)
    center = machines["coordinator"].folder / "center"
    for name in ("mountain", "island"):
        (machines[name].folder / name).mkdir(parents=True)
    bring_data(machines, tmp_path)
    problems: dict[str, str] = {}
    shut_out: list[float] = []

    def keep_problem(run: str) -> None:
        problems[run] = (center / "runs" / run / "problem.json").read_text()

    def wait_for_rounds(more: int) -> None:
        wanted, until = len(rounds(center, "stars")) + more, time.monotonic() + 120
        while len(rounds(center, "stars")) < wanted:
            assert time.monotonic() < until, "the run does not go on"
            time.sleep(0.05)

    def island_is_out() -> None:
        began, log = time.monotonic(), center / "logs/link.log"
        while "site island: session closed" not in log.read_text():
            assert time.monotonic() < began + 10, log.read_text()[-2000:]
            time.sleep(0.02)
        shut_out.append(time.monotonic() - began)

    hospitals = "--folder center --key keys/anna.key --site clinic --site infirmary"
    player.play(
        GUIDE,
        before={
            'pkill -9 -f "site start mountain/site.toml"': lambda: wait_for_rounds(3),
            "asterion server revoke center island": lambda: wait_for_rounds(3),
            "asterion site review clinic/site.toml outcome": lambda: keep_problem("outcome"),
        },
        after={
            "asterion server revoke center island": island_is_out,
            f"asterion server launch open.toml {hospitals}": lambda: keep_problem("open"),
        },
    )
    assert "approval_missing" in problems["outcome"]
    assert "noise_not_allowed" in problems["open"]
    assert shut_out[0] <= 1.5  # one second of the link, and a look at its log
    done = json.loads((center / "runs/outcome/result.json").read_text())
    assert done["status"] == "finished"
    told = rounds(center, "stars")
    answered = [{s for s, o in r["outcomes"].items() if o["outcome"] == "answered"} for r in told]
    assert {"mountain", "island"} in answered
    assert answered[-1] == {"mountain"}
    assert json.loads((center / "runs/stars/result.json").read_text())["status"] == "finished"
    look_at_fingerprints(machines)
    look_for_keys(machines)
    audit = machines["coordinator"].said[
        "asterion audit verify center/audit/audit-000001.jsonl audit-000001.jsonl"
    ]
    assert "site:clinic" in audit


def look_at_fingerprints(machines: dict[str, Machine]) -> None:
    """What is read aloud at one end is what the other end shows."""
    said = machines["coordinator"].said
    made = said["asterion server init center --host coordinator.example.org --port 8000"]
    (authority,) = set(FINGERPRINT.findall(made))
    for site in SITES:
        own = FINGERPRINT.findall(machines[site].said[f"asterion site init {site}/site.toml"])
        shown = said[f"asterion server enrol center {site}.request.json"]
        assert set(own) <= set(FINGERPRINT.findall(shown))
        joined = machines[site].said[f"asterion site join {site}/site.toml {site}.enrolment.json"]
        assert authority in joined


def look_for_keys(machines: dict[str, Machine]) -> None:
    """No private key of a site is anywhere but at the site."""
    for site in SITES:
        key = (machines[site].folder / site / "site.key").read_bytes()
        middle = key.splitlines()[len(key.splitlines()) // 2]
        assert len(middle) > 40
        for name, machine in machines.items():
            if name != site:
                found = [
                    path for path in machine.folder.rglob("*")
                    if path.is_file()
                    and path.relative_to(machine.folder).parts[0] not in ("asterion", "wheels")
                    and middle in path.read_bytes()
                ]  # fmt: skip
                assert found == []
