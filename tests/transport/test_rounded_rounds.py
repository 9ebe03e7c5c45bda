"""Rounded updates over rounds: what a site keeps and is charged, who forms equal numbers."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

sys.path.insert(0, str(Path(__file__).parents[1] / "equality"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from engine_cases import order_of, plan_of, sites_of
from site_folders import make_folders
from site_folders import plan_of as folder_plan
from tests.flower.conftest import make_order, make_plan, make_report

from asterion_client.app import Desk, client_app_of
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_client.update_rounding import keep_residual, rounded, store_residual
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_shared.errors import (
    BudgetSpentError,
    FileProblemError,
    OrderRefusedError,
    PlanMismatchError,
    RunStoppedError,
)
from asterion_shared.events import Event, RoundFinished
from asterion_shared.flower_messages import encode_report
from asterion_shared.messages import Order
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.settings_files import validate
from asterion_shared.update_codec import encode
from asterion_sim.engines.choice import read_wish
from asterion_sim.engines.shared_base import SharedBase
from asterion_sim.engines.vectorised import Vectorised
from asterion_sim.faults import FaultSchedule, FaultSettings
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import VirtualCohort, VirtualSites, read_virtual_sites

KINDS = ("bf16", "int8")
UPDATE = np.array([0.5, -2.0, 0.01], np.float32)


def rounded_order(kind: str, **changes: object) -> Order:
    return make_order(make_plan(transport={"update": kind}), **changes)


def kept(folder: Path, round_: int, residual: np.ndarray | None) -> None:
    store_residual(folder, round_, residual)
    keep_residual(folder, round_)


def test_the_residual_is_added_in_the_next_round_that_the_site_is_asked_for(tmp_path: Path) -> None:
    order = rounded_order("int8")
    report = make_report(order, update=np.array([127.0, 0.3, 0.0], np.float32))
    found, residual = rounded(order, report, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing is stored before the update was charged
    kept(tmp_path, 1, residual)
    later, again = (rounded_order("int8", round=number) for number in (7, 1))
    assert found.update is not None
    assert found.update.tolist() == [127, 0, 0]
    second, residual = rounded(later, report, tmp_path)  # 0.6 rounds to 1
    assert second.update is not None
    assert second.update.tolist() == [127, 1, 0]
    assert residual is not None
    assert residual.tolist() == pytest.approx([0, -0.4, 0])
    kept(tmp_path, 7, residual)
    # Asked again: the same bytes, from the residual of round 1, although round 7 stored its own.
    assert rounded(later, report, tmp_path)[0].update.tolist() == [127, 1, 0]  # type: ignore[union-attr]
    assert rounded(again, report, tmp_path)[0].update.tolist() == [127, 0, 0]  # type: ignore[union-attr]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["residual-000001.safetensors", "residual-000007.safetensors"]


def test_a_run_that_came_back_to_an_earlier_round_forgets_the_later_ones(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    for number in (1, 2, 5, 9, 2):
        kept(tmp_path, number, number * ones)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["residual-000002.safetensors"]


def test_without_feedback_nothing_is_kept(tmp_path: Path) -> None:
    order = make_order(make_plan(transport={"update": "int8", "error_feedback": False}))
    kept(tmp_path, 1, np.full(3, 9.0, np.float32))
    found, residual = rounded(replace(order, round=2), make_report(order, update=UPDATE), tmp_path)
    assert residual is None
    assert found.update is not None
    assert found.update == pytest.approx(UPDATE, abs=0.02)


def test_a_residual_that_is_none_is_named_with_the_fix(tmp_path: Path) -> None:
    order = rounded_order("bf16", round=3)
    report = make_report(order, update=UPDATE)
    kept(tmp_path, 2, np.zeros(4, np.float32))
    with pytest.raises(FileProblemError, match=r"residual-000002.*has 4 numbers.*remove the file"):
        rounded(order, report, tmp_path)
    (tmp_path / "residual-000002.safetensors").write_bytes(b"\x00" * 9)
    with pytest.raises(FileProblemError, match="no stored residual; remove the file"):
        rounded(order, report, tmp_path)


def test_an_update_that_ends_in_infinity_with_its_residual_has_diverged(tmp_path: Path) -> None:
    order = rounded_order("bf16", round=2)
    kept(tmp_path, 1, np.full(3, 3e38, np.float32))
    with pytest.raises(OrderRefusedError) as caught:
        rounded(order, make_report(order, update=np.full(3, 3e38, np.float32)), tmp_path)
    assert caught.value.code == "diverged"


class Federation:
    """Live sites over a grid without a network, which can be stopped and started again."""

    def __init__(self, plan: Plan, folders: dict[str, Path]) -> None:
        self.plan, self.folders = plan, folders
        self.replies: list[RecordDict] = []

    def run(self, out: Path, stop_after: int | None = None) -> Result:
        """With new site processes each time: nothing lasts but what is on the disk."""
        workers = {
            name: SiteWorker(read_site_settings(folder / "site.toml"), folder)
            for name, folder in self.folders.items()
        }

        def desk_of(context: Context) -> Desk:
            name = str(context.node_config["site"])
            return Desk(name, workers[name].answer)

        app = client_app_of(desk_of)

        def heard(message, context):  # type: ignore[no-untyped-def]
            found = app(message, context)
            self.replies.append(found.content)
            return found

        grid = InProcessGrid(
            {10 - n: InProcessSite(name, heard, {"site": name})  # type: ignore[arg-type]
             for n, name in enumerate(self.folders)}
        )  # fmt: skip
        return run_rounds(
            self.plan, LiveCohort(grid), out, run=self.plan.name,
            expected_sites=list(self.folders), carrier="flower", emit=stopping(stop_after),
        )  # fmt: skip


def stopping(after: int | None) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round_result.round == after:
            raise RunStoppedError

    return emit


@pytest.mark.parametrize("kind", KINDS)
def test_live_with_a_stop_in_between_and_simulated_end_in_the_same_bytes(
    kind: str, tmp_path: Path
) -> None:
    """Two of three sites a round, so that residuals wait; a wide network, so that blocks show."""
    plan = folder_plan(
        "table",
        transport={"update": kind},
        model={"name": "mlp", "widths": [300]},
        rounds={"count": 5, "sites_per_round": 2, "deadline_seconds": 120.0},
    )
    live = Federation(plan, make_folders("table", tmp_path / "sites"))
    with pytest.raises(RunStoppedError):
        live.run(tmp_path / "live", stop_after=2)
    there = live.run(tmp_path / "live")
    virtual = read_virtual_sites(plan, list(live.folders.values()))
    here = simulate(plan, virtual, tmp_path / "whole", report=False)
    with pytest.raises(RunStoppedError):
        simulate(plan, virtual, tmp_path / "cut", report=False, emit=stopping(3))
    simulate(plan, virtual, tmp_path / "cut", report=False)
    models = {(tmp_path / name / "model.safetensors").read_bytes()
              for name in ("live", "whole", "cut")}  # fmt: skip
    assert len(models) == 1
    for one, other in zip(there.rounds, here.rounds, strict=True):
        assert one.pooled == other.pooled
        norms = [{s: o.update_norm for s, o in r.outcomes.items()} for r in (one, other)]
        assert norms[0] == norms[1]
    updates = [content["update"] for content in live.replies if "update" in content]
    assert all("codes" in record for record in updates)
    exact = plan.model_copy(
        update={"transport": plan.transport.model_copy(update={"update": "float32"})}
    )
    simulate(exact, virtual, tmp_path / "exact", report=False)
    assert (tmp_path / "exact/model.safetensors").read_bytes() not in models
    alone = plan.transport.model_copy(update={"error_feedback": False})
    simulate(
        plan.model_copy(update={"transport": alone}), virtual, tmp_path / "alone", report=False
    )
    assert (tmp_path / "alone/model.safetensors").read_bytes() not in models


def test_what_a_late_site_keeps_moves_on_and_that_of_a_crashed_one_does_not(
    tmp_path: Path,
) -> None:
    plan = plan_of("mlp", transport={"update": "int8"}, rounds={"count": 2})
    sites = VirtualSites({site.site: site for site in sites_of(plan)}, {})
    entries = [
        {"kind": "late", "sites": ["site_1"], "rounds": "1-2"},
        {"kind": "crash", "sites": ["site_2"], "rounds": "1-2"},
    ]
    known = [validate(FaultSettings, entry, "scenario") for entry in entries]
    schedule = FaultSchedule(known, plan.seed, sorted(sites.data))
    simulate(plan, sites, tmp_path, schedule=schedule, report=False)
    kept = {path.parent.name for path in tmp_path.rglob("residual-000002.*")}
    assert kept == {"site_0", "site_1", "site_3"}


LEDGER = "[privacy]\nepsilon_limit = 100.0\ndelta = 1e-5\n"
WHOLE = {"protects": "site", "noise": "site", "clip_norm": 0.5, "noise_multiplier": 3.0,
         "epsilon_limit": 50.0}  # fmt: skip


def private_site(tmp_path: Path, limit: str) -> tuple[SiteWorker, Path]:
    folder = make_folders("table", tmp_path)["north"]
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(text + LEDGER.replace("100.0", limit))
    return SiteWorker(read_site_settings(folder / "site.toml"), folder), folder


def private_order(round_: int = 1) -> Order:
    rounds = {"count": 3, "sites_per_round": 3, "deadline_seconds": 9.0}
    plan = folder_plan("table", privacy=WHOLE, transport={"update": "int8"}, rounds=rounds)
    return replace(order_of(plan, round_), evaluate=True)


def test_the_ledger_charges_the_bytes_that_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asterion_client import site_worker

    charged: list[bytes] = []
    charge = site_worker.charge_release

    def charging(*given: object) -> str | None:
        charged.append(given[-1])  # type: ignore[arg-type]
        return charge(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(site_worker, "charge_release", charging)
    worker, folder = private_site(tmp_path, "100.0")
    report = worker.answer(private_order())
    record = encode_report(report)["update"]
    assert charged == [record["codes"].data + record["scales"].data]
    ledger = b"".join(
        p.read_bytes() for p in folder.rglob("*") if p.is_file() and "ledger" in str(p)
    )
    assert hashlib.sha256(charged[0]).hexdigest().encode() in ledger


def test_what_was_not_charged_leaves_no_residual(tmp_path: Path) -> None:
    """Else a noised update that nobody paid for would show in the next one."""
    worker, folder = private_site(tmp_path, "0.01")
    with pytest.raises(BudgetSpentError):
        worker.answer(private_order())
    assert not list(folder.rglob("residual-*"))


def test_what_a_private_site_keeps_and_sends_is_made_of_noised_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asterion_client import local_round

    noised: list[np.ndarray] = []
    release = local_round.release_privately

    def releasing(*given: object) -> np.ndarray:
        noised.append(release(*given).copy())  # type: ignore[arg-type]
        return noised[-1]

    monkeypatch.setattr(local_round, "release_privately", releasing)
    worker, _ = private_site(tmp_path, "100.0")
    residual = None
    for number in (1, 2, 3):
        report = worker.answer(private_order(number))
        encoded, residual = encode(noised[-1], "int8", residual)
        assert report.encoded is not None
        assert report.encoded.tobytes() == encoded.tobytes()
    assert len(noised) == 3


@pytest.mark.parametrize("kernel", [Vectorised, SharedBase])
@pytest.mark.parametrize("kind", KINDS)
def test_engines_that_are_not_exact_refuse_by_name(kernel: type, kind: str) -> None:
    with pytest.raises(PlanMismatchError, match=f"transport.update is '{kind}'.*sequential"):
        kernel(plan_of("cnn", transport={"update": kind}))


def test_workers_share_the_residuals(tmp_path: Path) -> None:
    """Wherever a chunk is trained, a site's residual is found."""
    plan = plan_of("mlp", transport={"update": "int8"}, rounds={"count": 4})
    sites = VirtualSites({site.site: site for site in sites_of(plan)}, {})
    wishes = {
        "one": ("processes:sequential", 1),
        "two": ("processes:sequential", 2),
        "auto": ("auto", None),
    }
    for name, (engine, workers) in wishes.items():
        wish = read_wish(engine, chunk=1 if workers else None, workers=workers)
        with closing(VirtualCohort(plan, sites, tmp_path / name / "sites", wish)) as cohort:
            run_rounds(plan, cohort, tmp_path / name, run="r", expected_sites=cohort.sites(),
                       carrier="simulation")  # fmt: skip
            assert cohort.settings()["kernel"] == "sequential"
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert models[0] == models[1]
