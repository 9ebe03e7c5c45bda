"""A ledger from a backup is noticed by what a coordinator was told, also in an earlier run."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context

from asterion_client.app import Desk, client_app_of
from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.privacy_ledger_audit import verify_ledger
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_server.app import conduct
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.ledger_heads import LedgerHeads
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.flower_messages import decode_order
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.settings_files import validate

SITES = ("north", "south")
PRIVATE = {"protects": "patient", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "sampling_rate": 0.5, "epsilon_limit": 100.0}  # fmt: skip


def plan_of(name: str, **sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": name,
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"],
                 "scale": {"a": [0.5, 1.0]}},
        "model": {"name": "logistic"},
        "local": {"amount": 2, "optimiser": "sgd"},
        "rounds": {"count": 2, "deadline_seconds": 60.0},
        "privacy": PRIVATE,
    }  # fmt: skip
    return validate(Plan, values | sections, "plan")


class Federation:
    """Two real sites, and coordinators that share nothing but them."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        for name in SITES:
            folder = parent / name
            folder.mkdir()
            (folder / "site.toml").write_text(
                f'name = "{name}"\ntask = "classification"\n'
                '[data]\nformat = "table"\nfolder = "."\ngroup_column = "patient"\n'
                "[privacy]\nepsilon_limit = 1000.0\ndelta = 1e-6\n"
            )
            rows = [f"0.{i},{('well', 'ill')[i % 2]},{name}{i}" for i in range(8)]
            (folder / "rows.csv").write_text("\n".join(["a,label,patient", *rows]) + "\n")

    def heads(self, coordinator: str = "one") -> LedgerHeads:
        return LedgerHeads(self.parent / coordinator / "ledger_heads")

    def run(self, plan: Plan, coordinator: str = "one", heads: LedgerHeads | None = None) -> Result:
        workers = {
            name: SiteWorker(read_site_settings(self.parent / name / "site.toml"),
                             self.parent / name)
            for name in SITES
        }  # fmt: skip

        def desk_of(context: Context) -> Desk:
            name = str(context.node_config["site"])
            return Desk(name, workers[name].answer)

        app = client_app_of(desk_of)
        sites = {n: InProcessSite(name, app, {"site": name}) for n, name in enumerate(SITES, 1)}
        self.grid = InProcessGrid(sites)
        folder = RunFolder(self.parent / coordinator / "runs" / plan.name)
        folder.path.mkdir(parents=True)
        folder.plan_file.write_text(plan.canonical())
        folder.write_launch(Launch(sites=SITES))
        return conduct(self.grid, folder, heads or self.heads(coordinator))

    def ledger(self, site: str = "north") -> Path:
        settings = read_site_settings(self.parent / site / "site.toml")
        return ledger_folder(settings, self.parent / site)

    def head(self, site: str = "north") -> str:
        settings = read_site_settings(self.parent / site / "site.toml")
        with Ledger(self.ledger(site), settings.privacy) as ledger:
            return ledger.head().sha256

    def restored(self, act: Callable[[], object]) -> None:
        """Do something, and put the ledger of ``north`` back as it was before."""
        shutil.copytree(self.ledger(), self.parent / "backup")
        act()
        shutil.rmtree(self.ledger())
        (self.parent / "backup").rename(self.ledger())


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def why(result: Result) -> list[dict[str, str]]:
    return [round_.missing for round_ in result.rounds]


def test_the_coordinator_remembers_the_head_of_each_site_over_runs(federation: Federation) -> None:
    assert federation.heads().of("north") is None
    first = federation.run(plan_of("first"))
    assert why(first) == [{}, {}, {}]
    for site in SITES:
        assert federation.heads().of(site) == federation.head(site)
    assert federation.head("north") != federation.head("south")
    before = federation.head()
    assert why(federation.run(plan_of("second"))) == [{}, {}, {}]
    sent = [decode_order(message.content) for message in federation.grid.pushed]
    of_north = [one.order.ledger_head for one in sent if one.site == "north"]
    assert of_north[:2] == [before, before]  # the count and the first round
    assert len(set(of_north)) == 3  # each of the two rounds told a new one
    assert of_north[-1] == federation.head()


def test_a_run_that_is_not_private_tells_and_is_told_nothing(federation: Federation) -> None:
    federation.run(plan_of("private"))
    kept = federation.heads().of("north")
    federation.run(plan_of("plain", privacy=None))
    sent = [decode_order(message.content).order for message in federation.grid.pushed]
    assert [order.ledger_head for order in sent] == [None] * len(sent)
    assert federation.heads().of("north") == kept


def test_a_ledger_from_a_backup_stops_hard(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.run(plan_of("first"))
    federation.restored(lambda: federation.run(plan_of("second")))
    old, told = federation.head(), federation.heads().of("north")
    caplog.set_level(logging.WARNING)
    third = federation.run(plan_of("third"))
    assert why(third) == [{"north": "ledger_stopped"}] * 3
    assert third.status == "finished"
    assert "asterion site ledger verify" in caplog.text
    [problem] = verify_ledger(federation.ledger())[1]
    assert f"run 'third' was told the head {told}" in problem.what
    assert old in problem.what
    assert "When the ledger stops" in problem.fix
    report = (federation.parent / "one/runs/third/report.html").read_text()
    assert "privacy ledger lacks what it once had" in report
    # Another coordinator, which was never told anything, is refused too.
    assert why(federation.run(plan_of("elsewhere"), "other"))[1] == {"north": "ledger_stopped"}
    # A run that is not private goes on.
    assert why(federation.run(plan_of("plain", privacy=None))) == [{}, {}, {}]


def test_a_new_ledger_in_the_place_of_one_that_is_gone_is_noticed(federation: Federation) -> None:
    federation.run(plan_of("first"))
    federation.ledger().rename(federation.parent / "aside")
    assert why(federation.run(plan_of("second")))[1] == {"north": "ledger_stopped"}
    # What a person does who decides to begin anew: both sides forget.
    (federation.ledger() / "ledger.told").unlink()
    (federation.parent / "one/ledger_heads/north").unlink()
    assert why(federation.run(plan_of("third"))) == [{}, {}, {}]


def test_coordinators_have_heads_of_their_own(federation: Federation) -> None:
    federation.run(plan_of("first"), "one")
    federation.run(plan_of("first-elsewhere"), "other")
    assert federation.heads("one").of("north") != federation.heads("other").of("north")
    assert why(federation.run(plan_of("second"), "one")) == [{}, {}, {}]
    assert why(federation.run(plan_of("second-elsewhere"), "other")) == [{}, {}, {}]


def test_a_made_up_head_makes_the_site_refuse_and_no_more(federation: Federation) -> None:
    federation.run(plan_of("first"))
    before = federation.head()
    federation.heads("hostile").keep("north", "f" * 64)
    found = federation.run(plan_of("second"), "hostile")
    assert why(found) == [{"north": "ledger_stopped"}] * 3
    (federation.ledger() / "ledger.told").unlink()
    assert federation.head() == before


def test_a_report_whose_head_cannot_be_kept_is_not_used(federation: Federation) -> None:
    class Full(LedgerHeads):
        def keep(self, site: str, head: str) -> None:
            raise DiskProblemError(self._folder / site, "No space left on device")

    folder = federation.parent / "one/ledger_heads"
    with pytest.raises(DiskProblemError):
        federation.run(plan_of("first"), heads=Full(folder))
    run = federation.parent / "one/runs/first"
    assert sorted(path.name for path in (run / "checkpoints").glob("round-*")) == [
        "round-000000.safetensors"
    ]


@pytest.mark.parametrize("content", [b"", b"not a head\n", b"F" * 64, b"\xff" * 64])
def test_a_kept_head_that_was_damaged_is_named(content: bytes, tmp_path: Path) -> None:
    heads = LedgerHeads(tmp_path / "heads")
    heads.keep("north", "a" * 64)
    assert LedgerHeads(tmp_path / "heads").of("north") == "a" * 64
    assert heads.of("south") is None
    heads.keep("north", "b" * 64)
    assert heads.of("north") == "b" * 64
    (tmp_path / "heads/north").write_bytes(content)
    with pytest.raises(FileProblemError, match="not the head of a site's privacy ledger"):
        heads.of("north")
