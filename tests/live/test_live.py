"""Real processes, real TLS: a coordinator and three sites, as people start them, and kill them.

Everything runs through the commands that a person types. A run that survived a kill must end in
the very bytes of a simulation of the same plan, which nobody disturbed.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.live.conftest import (
    ASTERION,
    PATIENT,
    SITES,
    Federation,
    plan_of,
    running_federation,
    said,
)
from tests.papers import provisioned

from asterion_shared.plan import Plan
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.planned import charge_of
from asterion_shared.result import read_result

pytestmark = pytest.mark.live

PRIVATE = {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "sampling_rate": 0.2, "epsilon_limit": 10.0}  # fmt: skip
PRIVATE_LIMITS = {"north": 100.0, "south": 100.0, "west": 2.5}
"""``west`` can afford two rounds of three."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with running_federation(tmp_path_factory.mktemp("live"), PRIVATE_LIMITS) as running:
        yield running


def simulated_bytes(federation: Federation, plan: Plan, out: Path) -> bytes:
    from asterion_sim.simulate import simulate
    from asterion_sim.virtual_cohort import read_virtual_sites

    folders = [federation.root / "sites" / name for name in SITES]
    simulate(plan, read_virtual_sites(plan, folders), out, report=False)
    return (out / "model.safetensors").read_bytes()


def test_a_live_run_ends_in_the_bytes_of_the_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of("plain", 3)
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert (result.status, result.carrier) == ("finished", "flower")
    assert [r.answered for r in result.rounds] == [tuple(SITES)] * 4
    assert result.rounds[1].bytes_up > 0
    assert launch.events()[-1]["event"] == "run_finished"
    assert "<html" in (launch.folder / "report.html").read_text().lower()
    model = (launch.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)
    # Idle machines do 4 to 5 s; the bound leaves room for a busy one.
    assert statistics.median(r.seconds for r in result.rounds[1:]) < 20


def test_a_secure_sum_ends_in_the_bytes_of_the_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of(
        "summed", 1, algorithm={"max_weight": 50, "clip_norm": 100.0},
        rounds={"count": 1, "sites_per_round": 3, "deadline_seconds": 240.0},
        secure_sum={"max_colluders": 0, "max_dropouts": 1},
    )  # fmt: skip
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert result.rounds[1].answered == tuple(SITES)
    assert result.final_metrics["num_cases"] is not None
    assert {site.num_examples for site in result.sites} == {0}
    model = (launch.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)


def test_killed_processes_cost_time_and_nothing_else(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of("killed", 5)
    first = federation.launch(plan)
    first.wait_for_round(1)
    federation.child("north", "asterion_client.supernode_entry").kill()
    federation.child("south", "asterion_client.runner").kill()
    first.wait_for_round(2)
    federation.child("center", "asterion_server.superlink_entry").kill()
    first.wait_for_round(3)
    federation.child("center", "flwr-serverapp").kill()
    code, words = first.end()
    assert code == 1
    assert "launch it again to go on" in words
    second = federation.launch(plan)
    assert second.end() == (0, "")
    result = read_result(second.folder / "result.json")
    assert result.headline.startswith("5 of 5 rounds finished; no site was missing")
    model = (second.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)


def test_a_killed_site_is_named_and_the_run_finishes(federation: Federation) -> None:
    launch = federation.launch(plan_of("mourning", 4))
    launch.wait_for_round(0)
    family = psutil.Process(federation.processes["west"].pid).children(recursive=True)
    os.kill(federation.processes["west"].pid, signal.SIGKILL)
    assert launch.end()[0] == 0
    result = read_result(launch.folder / "result.json")
    assert result.status == "finished"
    assert result.rounds[-1].missing == {"west": "unreachable"}
    assert "site west missing in" in result.headline
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    federation.processes.pop("west").wait()
    federation.start_site("west")


def test_a_stopped_run_goes_on(federation: Federation, tmp_path: Path) -> None:
    plan = plan_of("stopped", 4)
    first = federation.launch(plan)
    first.wait_for_round(1)
    stop = [*ASTERION, "server", "stop", "stopped", "--folder", str(federation.made.folder)]
    assert subprocess.run(stop, capture_output=True, check=False).returncode == 0
    code, words = first.end()
    assert code == 50
    assert "was stopped" in words
    second = federation.launch(plan)
    assert second.end() == (0, "")
    model = (second.folder / "model.safetensors").read_bytes()
    assert model == simulated_bytes(federation, plan, tmp_path)


def test_a_private_run_is_charged_at_the_sites_and_stops_at_their_limits(
    federation: Federation,
) -> None:
    scaled = {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"],
              "scale": {"a": [0.5, 1.0], "b": [0.5, 1.0]}}  # fmt: skip
    plan = plan_of("private", 3, privacy=PRIVATE, data=scaled)
    rounds = {n: spent([charge], 1e-5).epsilon for n in (2, 3) if (charge := charge_of(plan, n))}
    assert rounds[2] < PRIVATE_LIMITS["west"] < rounds[3]
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert result.privacy_account is not None
    assert result.privacy_account.epsilon == rounds[3]
    assert result.rounds[3].missing == {"west": "budget_spent"}
    assert all(outcome.train_loss is None for outcome in result.rounds[2].outcomes.values())
    for name, releases in {"north": 3, "west": 2}.items():
        folder = str(federation.root / "sites" / name)
        assert said("site", "ledger", "verify", folder) == (0, "")
        told = federation.root / f"{name}.jsonl"
        assert said("site", "ledger", "export", folder, "--out", str(told)) == (0, "")
        charged = [json.loads(line) for line in told.read_text().splitlines()]
        remembered = federation.made.folder / "ledger_heads" / name
        assert remembered.read_text().strip() == charged[-1]["head"]
        assert sum("private" in json.dumps(line) for line in charged) == releases


def test_noise_in_shares_goes_on_without_the_site_whose_limit_is_reached(
    federation: Federation,
) -> None:
    plan = plan_of(
        "shares", 1, algorithm={"max_weight": 1},
        rounds={"count": 1, "sites_per_round": 3, "deadline_seconds": 240.0},
        secure_sum={"max_colluders": 0, "max_dropouts": 1},
        privacy={"protects": "site", "noise": "shares", "clip_norm": 0.5, "noise_multiplier": 3.0,
                 "epsilon_limit": 10.0},
    )  # fmt: skip
    launch = federation.launch(plan)
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert result.rounds[1].missing == {"west": "budget_spent"}
    charge = charge_of(plan, 1)
    assert charge is not None
    assert result.privacy_account is not None
    assert result.privacy_account.epsilon == spent([charge], 1e-5).epsilon
    assert result.final_metrics["num_cases"] is not None


def test_the_status_names_every_site(federation: Federation) -> None:
    command = [*ASTERION, "server", "status", "--folder", str(federation.made.folder), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert {name: site["state"] for name, site in told["sites"].items()} == dict.fromkeys(
        SITES, "connected"
    )
    assert all(site["since"] for site in told["sites"].values())


def test_a_wrong_certificate_port_or_key_is_one_clear_line(
    federation: Federation, tmp_path: Path
) -> None:
    code, words = said("server", "start", str(federation.made.folder))
    assert (code, "already in use" in words) == (31, True)
    other = provisioned(tmp_path / "other", ["127.0.0.1"], ["north"])
    shutil.copytree(federation.root / "sites" / "north", tmp_path / "north")
    shutil.copy(other.root_certificate, tmp_path / "north" / "ca.pem")
    code, words = said("site", "start", str(tmp_path / "north" / "site.toml"))
    assert (code, "not issued by the authority" in words) == (30, True)
    assert len(words.strip().splitlines()) == 1
    (tmp_path / "north" / "site.key").chmod(0o644)
    code, words = said("site", "start", str(tmp_path / "north" / "site.toml"))
    assert (code, "chmod 600" in words) == (11, True)


def test_no_log_names_a_patient(federation: Federation) -> None:
    logs = [*federation.root.rglob("*.log")]
    assert len(logs) > 8
    for log in logs:
        assert PATIENT not in log.read_text(errors="replace"), log.name
