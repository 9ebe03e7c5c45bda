"""Whole runs: both sides' trails are verified against each other, and say what happened."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from flwr.app import Context
from tests.conftest import Ran
from tests.live.conftest import SITES as LIVE_SITES
from tests.live.conftest import plan_of as live_plan
from tests.live.conftest import running_federation

from asterion_client.app import Desk, client_app_of, desk_of_file
from asterion_server.app import conduct
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.ledger_heads import LedgerHeads
from asterion_server.round_audit import coordinator_trail
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.audit import AuditTrail, trail_files
from asterion_shared.audit_records import Line
from asterion_shared.audit_verify import Verdict, verify_trails
from asterion_shared.carrier import Carrier
from asterion_shared.errors import AsterionError, AuditBrokenError, DiskProblemError
from asterion_shared.messages import Order, Report
from asterion_shared.operator_keys import make_operator_key
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.settings_files import validate
from asterion_shared.signed_plan import read_operator_key, sign_plan
from asterion_sim.local_federation import CONSENT, OPERATOR

SITES = ("north", "south")
PRIVATE = {"protects": "site", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "epsilon_limit": 1000.0}  # fmt: skip
PATIENT = "mueller_anna"


class Federation:
    """Two sites as their settings make them, and a coordinator, in one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.key, public, _ = make_operator_key(root / "operator", OPERATOR)
        for name in SITES:
            folder = root / name
            folder.mkdir()
            (folder / "site.toml").write_text(
                f'name = "{name}"\ntask = "classification"\n'
                '[data]\nformat = "table"\nfolder = "."\ngroup_column = "patient"\n'
                "[privacy]\nepsilon_limit = 1000.0\ndelta = 1e-6\n"
                f"[egress]\nsmallest_group = 1\n{CONSENT}"  # they have eight patients
            )
            (folder / "operators").mkdir()
            (folder / "operators" / public.name).write_bytes(public.read_bytes())
            rows = [f"0.{i},{('well', 'ill')[i % 2]},{PATIENT}{i}" for i in range(8)]
            (folder / "rows.csv").write_text("\n".join(["a,label,patient", *rows]) + "\n")

    def desk(self, context: Context) -> Desk:
        return desk_of_file(str(self.root / str(context.node_config["site"]) / "site.toml"))

    def run(self, name: str, *, sites: tuple[str, ...] = SITES, **sections: object) -> Result:
        app = client_app_of(lambda context: self.desk(context))
        grid = InProcessGrid(
            {n: InProcessSite(site, app, {"site": site}) for n, site in enumerate(sites, 1)}
        )
        plan = plan_of(name, **sections)
        folder = RunFolder(self.root / "centre" / "runs" / name)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.plan_file.write_text(plan.canonical())
        signed = sign_plan(plan, name, OPERATOR, read_operator_key(self.key))
        folder.signature_file.write_text(signed.model_dump_json())
        folder.write_launch(Launch(sites=SITES, wait_seconds=0.0))
        heads = LedgerHeads(self.root / "centre" / "ledger_heads")
        return conduct(grid, folder, heads, coordinator_trail(self.root / "centre"))

    @property
    def folders(self) -> dict[str, Path]:
        sites = {f"site:{name}": self.root / name / "state" / "audit" for name in SITES}
        return {"coordinator:centre": self.root / "centre" / "audit", **sites}

    def verdicts(self) -> dict[str, Verdict]:
        files = [file for folder in self.folders.values() for file in trail_files(folder)]
        return {verdict.side: verdict for verdict in verify_trails(files)}


def plan_of(name: str, **sections: object) -> Plan:
    values: dict[str, object] = {
        "name": name,
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"]},
        "model": {"name": "logistic"},
        "rounds": {"count": 2, "deadline_seconds": 60.0},
    }
    return validate(Plan, values | sections, "plan")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    yield Federation(tmp_path)
    desk_of_file.cache_clear()


def kinds(verdict: Verdict) -> list[tuple[str, int | None]]:
    return [(line.record.kind, line.record.round) for line in verdict.lines]


def of(verdict: Verdict, kind: str) -> list[Line]:
    return [line for line in verdict.lines if line.record.kind == kind]


def test_a_run_is_on_record_at_both_ends(federation: Federation) -> None:
    result = federation.run("plain")
    found = federation.verdicts()
    assert [v.problem for v in found.values()] == [None] * 3
    centre = found["coordinator:centre"]
    rounds = [(kind, n) for n in (0, 1, 2, 3) for kind in ("orders", "answers")]
    assert kinds(centre) == [("begun", None), ("plan_launched", None), *rounds,
                             ("release", None), ("run_ended", None)]  # fmt: skip
    assert result.final_model is not None
    assert of(centre, "release")[0].record.facts == {"model_sha256": result.final_model.sha256}
    assert of(centre, "run_ended")[0].record.facts == {"status": "finished"}
    assert of(centre, "plan_launched")[0].record.facts["plan_sha256"] == plan_of("plain").sha256
    for name in SITES:
        site = found[f"site:{name}"]
        came = [(kind, n) for n in (0, 1, 2, 3) for kind in ("order", "report")]
        assert kinds(site) == [("begun", None), ("plan_seen", None), *came]
        assert site.told == site.last.number if site.last else False
        sent = [line.record.facts["sha256"] for line in of(site, "report")]
        got = [line.record.facts[f"site:{name}"] for line in of(centre, "answers")]
        assert got == [f"report {sha256}" for sha256 in sent]
        asked = [line.record.facts["order_sha256"] for line in of(centre, "orders")]
        assert [line.record.facts["order_sha256"] for line in of(site, "order")] == asked
    assert centre.told == of(centre, "orders")[-1].record.number


def test_no_trail_names_a_patient(federation: Federation) -> None:
    federation.run("plain")
    federation.run("private", privacy=PRIVATE)
    for folder in federation.folders.values():
        for file in trail_files(folder):
            assert PATIENT.encode() not in file.read_bytes()


def test_a_charge_is_on_record_before_its_report(federation: Federation) -> None:
    federation.run("private", privacy=PRIVATE)
    for name in SITES:
        site = federation.verdicts()[f"site:{name}"]
        assert site.problem is None
        trained = [kind for kind, n in kinds(site) if n in (1, 2)]
        assert trained == ["order", "charge", "report"] * 2
        heads = LedgerHeads(federation.root / "centre" / "ledger_heads")
        assert of(site, "charge")[-1].record.facts["ledger_head"] == heads.of(name)


def test_a_refusal_is_on_record_at_both_ends(federation: Federation) -> None:
    toml = federation.root / "south" / "site.toml"
    toml.write_text(toml.read_text().replace("classification", "segmentation").replace(
        '"table"', '"npz"').replace('group_column = "patient"\n', ""))  # fmt: skip
    federation.run("plain", rounds={"count": 1, "quorum": 1, "deadline_seconds": 60.0})
    found = federation.verdicts()
    assert [v.problem for v in found.values()] == [None] * 3
    refused = of(found["site:south"], "refusal")
    assert {line.record.facts["code"] for line in refused} == {"wrong_task"}
    told = [line.record for line in of(found["coordinator:centre"], "answers")]
    assert {record.facts["site:south"] for record in told} == {"refusal wrong_task"}
    assert told[-1].other["site:south"] == str(refused[-1].head)


def test_a_site_that_is_not_there_is_on_record(federation: Federation) -> None:
    rounds = {"count": 1, "quorum": 1, "deadline_seconds": 5.0}
    federation.run("plain", sites=("north",), rounds=rounds)
    [*_, last] = of(federation.verdicts()["coordinator:centre"], "answers")
    assert last.record.facts["site:south"] == "unreachable"
    assert set(last.record.other) == {"site:north"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuditBrokenError("p", "w", "f"), "audit_broken"),
        (DiskProblemError("p", "full"), "disk_problem"),
    ],
)
@pytest.mark.parametrize("kind", ["order", "report"])
def test_nothing_but_a_code_leaves_what_cannot_be_on_record(
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: AsterionError,
    code: str,
) -> None:
    real, worked = AuditTrail.append, []

    def append(self: AuditTrail, what: str, **rest: object):  # type: ignore[no-untyped-def]
        if what == kind and self.side == "site:south":
            raise error
        return real(self, what, **rest)  # type: ignore[arg-type]

    desk = federation.desk

    def watched(context: Context) -> Desk:
        found = desk(context)

        def answer(order: Order) -> Report:
            worked.append(found.name)
            return found.answer(order)

        return dataclasses.replace(found, answer=answer)

    monkeypatch.setattr(federation, "desk", watched)
    monkeypatch.setattr(AuditTrail, "append", append)
    result = federation.run("plain", rounds={"count": 1, "quorum": 1, "deadline_seconds": 60.0})
    assert [r.missing for r in result.rounds] == [{"south": code}] * 2
    assert ("south" in worked) is (kind == "report")
    found = federation.verdicts()
    assert found["coordinator:centre"].problem is None
    told = [line.record for line in of(found["coordinator:centre"], "answers")]
    # The refusal of an order that came is on record; the one in place of a report is not.
    heads = {tuple(record.other) for record in told}
    assert heads == {("site:north", "site:south") if kind == "order" else ("site:north",)}


def test_a_coordinator_that_cannot_write_its_trail_asks_nobody(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = AuditTrail.append, DiskProblemError("audit", "full")

    def append(self: AuditTrail, what: str, **rest: object):  # type: ignore[no-untyped-def]
        if what == "orders":
            raise full
        return real(self, what, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(AuditTrail, "append", append)
    with pytest.raises(DiskProblemError):
        federation.run("plain")
    assert not (federation.root / "north" / "state" / "audit").exists()


def test_a_coordinator_in_another_folder_goes_on_with_its_trail(tmp_path: Path) -> None:
    old, new = tmp_path / "center", tmp_path / "restored"
    coordinator_trail(old).append("run_ended", run="one")
    old.rename(new)
    coordinator_trail(new).append("run_ended", run="two")
    [verdict] = verify_trails(trail_files(new / "audit"))
    assert (verdict.side, verdict.problem) == ("coordinator:center", None)
    assert [line.record.run for line in of(verdict, "run_ended")] == ["one", "two"]


def test_trails_of_several_runs_and_a_changed_site(
    federation: Federation, asterion: Callable[..., Ran]
) -> None:
    federation.run("plain")
    federation.run("second")
    ran = asterion("audit", "verify", *federation.folders.values())
    assert ran.code == 0, ran.said
    [file] = trail_files(federation.folders["site:north"])
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2]))
    ran = asterion("audit", "verify", *federation.folders.values())
    assert (ran.code, "is missing: coordinator:centre (its record" in ran.out) == (26, True)


@pytest.mark.live
@pytest.mark.parametrize("carrier", get_args(Carrier))
def test_real_processes_leave_trails_that_agree(carrier: Carrier, tmp_path: Path) -> None:
    limits = dict.fromkeys(LIVE_SITES, 100.0)
    with running_federation(tmp_path, limits, carrier=carrier) as live:
        code, said = live.launch(live_plan("plain", 2)).end()
        assert code == 0, said
        folders = [live.made.folder / "audit", *(tmp_path / "sites").glob("*/state/audit")]
        found = verify_trails([file for folder in folders for file in trail_files(folder)])
    assert len(found) == 1 + len(LIVE_SITES)
    assert [verdict.problem for verdict in found] == [None] * len(found)
    centre = found[0]
    assert [kind for kind, _ in kinds(centre)] == [
        "begun", "operator_enrolled", *["enrolled"] * 3,
        "plan_launched", *["orders", "answers"] * 4, "release", "run_ended",
    ]  # fmt: skip
    for verdict in found[1:]:
        assert verdict.last is not None
        assert verdict.told == verdict.last.number
