"""The Grafana dashboard asks for nothing that the pages do not serve."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.link.loopback import free_port
from tests.papers import provisioned

from asterion_client.check_machine import Vital
from asterion_client.site_standing import SiteStatus, write_status
from asterion_client.site_vitals import HELP, metrics_page, write_vitals
from asterion_server import coordinator_metrics
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.run_folder import Launch, RunFolder

BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "asterion.json"
NAME = re.compile(r"asterion_[a-z_]+")


def served(folder: Path) -> str:
    """Both pages, of a coordinator and a site about which everything is known."""
    made = provisioned(folder / "center", ["localhost"], ["north"], port=free_port())
    store = LinkStore(database_url(made))
    store.open_session("north", "a", "1", "0.1")
    store.close()
    run = RunFolder(made.runs / "outcome")
    run.write_launch(Launch(sites=("north",)))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints/round-000003.safetensors").touch()
    state, now = folder / "state", time.time()
    write_status(state, SiteStatus(site="north", connected=True, last_contact=now, refused="quota",
                                   working="outcome", started=now, written=now))  # fmt: skip
    write_vitals(state, [Vital(name, 1.0) for name in HELP])
    pages = [coordinator_metrics.metrics_page(made), metrics_page("north", state, 5)]
    assert [page.status for page in pages] == [200, 200]
    return "".join(page.body for page in pages)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    text = served(tmp_path_factory.mktemp("pages"))
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def queries(board: dict[str, Any]) -> list[tuple[str, str]]:
    """Each expression with its legend; and what the variables ask."""
    asked = [(t["expr"], t["legendFormat"]) for p in board["panels"] for t in p.get("targets", ())]
    variables = board["templating"]["list"]
    return asked + [(v["definition"], "") for v in variables if "definition" in v]


def test_every_metric_of_the_dashboard_is_served_and_the_reverse(
    board: dict[str, Any], lines: list[str]
) -> None:
    known = {line.partition("{")[0].partition(" ")[0] for line in lines}
    asked = {name for expression, _ in queries(board) for name in NAME.findall(expression)}
    assert asked == known


def test_every_label_and_state_of_the_dashboard_is_served(
    board: dict[str, Any], lines: list[str]
) -> None:
    """``{state="open"}`` and the legend ``{{run}}`` name what the lines of that metric have."""
    for expression, legend in queries(board):
        for name, wanted in re.findall(r"(asterion_[a-z_]+)(?:\{([^}]*)\})?", expression):
            mine = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', wanted):
                for value in () if values.startswith("$") else values.split("|"):
                    assert any(f'{label}="{value}"' in line for line in mine), (expression, value)
                assert all(f"{label}=" in line for line in mine), (expression, label)
            for label in re.findall(r"\{\{(\w+)\}\}", legend):
                assert all(f"{label}=" in line for line in mine), (expression, label)


def test_the_dashboard_asks_the_chosen_source_and_lies_on_its_grid(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y)
                 for x in range(place["w"]) for y in range(place["h"])}  # fmt: skip
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
