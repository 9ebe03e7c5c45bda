"""How sites stand, as ``asterion server status`` shows it."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.papers import provisioned
from typer.testing import CliRunner

from asterion_server import run_queue as queues
from asterion_server.command_line import app
from asterion_server.flower_server_compat import FlowerNode, FlowerRun
from asterion_server.run_queue import FlowerQueue, standing_of
from asterion_shared.site_standing import SiteStanding, in_words

ON, OFF = "2026-01-02T14:02:11.123456+00:00", "2026-01-02T15:30:00+01:00"


def node(*, online: bool = False, on: str = "", off: str = "") -> FlowerNode:
    return FlowerNode("north", b"key", online, on, off)


@pytest.mark.parametrize(
    ("known", "state", "since"),
    [
        (None, "registered", None),
        (node(), "registered", None),
        (node(online=True, on=ON), "connected", "2026-01-02T14:02:11Z"),
        (node(on=ON, off=OFF), "away", "2026-01-02T14:30:00Z"),
        (node(on=ON), "away", None),
    ],
)
def test_what_stock_flower_knows(known: FlowerNode | None, state: str, since: str | None) -> None:
    found = standing_of("north", known)
    assert found.model_dump() == {
        "name": "north", "state": state, "since": since, "run": "", "round": None, "version": "",
    }  # fmt: skip


def test_a_standing_says_only_what_it_can() -> None:
    busy = SiteStanding(name="a", state="training", run="r", round=0, since="2026-01-02T14:02:11Z")
    assert in_words(busy) == "site a: training, round 0 of run r, since 14:02 UTC (2026-01-02)"
    assert in_words(SiteStanding(name="a", state="registered")) == (
        "site a: registered, never heard of"
    )
    with pytest.raises(ValueError, match="they are of 'training'"):
        SiteStanding(name="a", state="configured", round=3)


class FakeControl:
    def nodes(self) -> list[FlowerNode]:
        return [
            FlowerNode("south", b"s", True, ON, ""),
            FlowerNode("north", b"n", False, ON, OFF),
        ]

    def runs(self) -> list[FlowerRun]:
        return []


def test_status_shows_every_enrolled_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provisioned(tmp_path / "center", ["127.0.0.1"], ["north", "south", "west"])

    @contextmanager
    def queue_of(made: object):  # type: ignore[no-untyped-def]
        yield FlowerQueue(FakeControl())  # type: ignore[arg-type]

    monkeypatch.setattr(queues, "queue_of", queue_of)
    said = CliRunner().invoke(app, ["status", "--folder", str(tmp_path / "center")])
    assert said.output.splitlines() == [
        "site north: away, since 14:30 UTC (2026-01-02)",
        "site south: connected, since 14:02 UTC (2026-01-02)",
        "site west: registered, never heard of",
    ]
    told = CliRunner().invoke(app, ["status", "--folder", str(tmp_path / "center"), "--json"])
    assert json.loads(told.output) == {
        "sites": {
            "north": {"state": "away", "since": "2026-01-02T14:30:00Z", "run": "", "round": None,
                      "version": ""},
            "south": {
                "state": "connected", "since": "2026-01-02T14:02:11Z", "run": "", "round": None,
                "version": "",
            },
            "west": {"state": "registered", "since": None, "run": "", "round": None, "version": ""},
        },
        "runs": {},
        "papers": [],
    }  # fmt: skip
