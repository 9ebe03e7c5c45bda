"""A live run and a simulation of one plan end in the same parameters: here, not nearly.

Over the in-process grid every message of the live path is built and read; only the carrier's own
processes are absent. tests/live does the same with real ones.
"""

import sys
from pathlib import Path

import pytest
from flwr.app import Context

from asterion_client.app import Desk, client_app_of
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_shared.result import Result
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import read_virtual_sites

sys.path.insert(0, str(Path(__file__).parent))
from site_folders import PLANS, make_folders, plan_of


def run_live(kind: str, folders: dict[str, Path], out: Path) -> Result:
    workers = {
        name: SiteWorker(read_site_settings(folder / "site.toml"), folder)
        for name, folder in folders.items()
    }

    def desk_of(context: Context) -> Desk:
        name = str(context.node_config["site"])
        return Desk(name, workers[name].answer)

    app = client_app_of(desk_of)
    # The node numbers are not in the order of the names: the fold must not care.
    sites = {10 - n: InProcessSite(name, app, {"site": name}) for n, name in enumerate(folders)}
    cohort = LiveCohort(InProcessGrid(sites))
    return run_rounds(
        plan_of(kind), cohort, out, run=kind, expected_sites=list(folders), carrier="flower"
    )


@pytest.mark.parametrize("kind", sorted(PLANS))
def test_live_and_simulated_end_in_the_same_bytes_and_metrics(kind: str, tmp_path: Path) -> None:
    folders = make_folders(kind, tmp_path / "sites")
    live = run_live(kind, folders, tmp_path / "live")
    virtual = read_virtual_sites(plan_of(kind), list(folders.values()))
    simulated = simulate(plan_of(kind), virtual, tmp_path / "simulated", report=False)
    assert live.status == simulated.status == "finished"
    live_bytes = (tmp_path / "live/model.safetensors").read_bytes()
    assert live_bytes == (tmp_path / "simulated/model.safetensors").read_bytes()
    for there, here in zip(live.rounds, simulated.rounds, strict=True):
        assert there.pooled == here.pooled
        assert there.sites == here.sites
    for folder in folders.values():
        page = (folder / "state/runs" / kind / "report.html").read_text()
        assert ("data:image/png" in page) == (kind != "table")
    assert live.rounds[3].bytes_up > 0
    assert simulated.rounds[3].bytes_up == 0
