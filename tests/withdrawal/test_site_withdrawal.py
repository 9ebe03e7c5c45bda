"""A patient withdraws in the middle of a run: out of the next order, and of what was not sent."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asterion_client.data.site_data import manifest_path
from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.privacy_ledger_store import Store
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_client.stored_reports import site_blobs
from asterion_client.withdrawals import FILE, read_withdrawals
from asterion_server.initial_weights import initial_weights
from asterion_shared.errors import DataProblemError, FileProblemError, OrderRefusedError
from asterion_shared.messages import Order, Phase, Report, SumOrder
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

PATIENTS = tuple(f"patient {chr(97 + i)}" for i in range(8))
PRIVATE = {"protects": "patient", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "sampling_rate": 0.5, "epsilon_limit": 100.0}  # fmt: skip


def plan_of(**sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "p",
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"],
                 "scale": {"a": [0.5, 1.0]}},
        "model": {"name": "logistic"},
        "local": {"amount": 2, "optimiser": "sgd"},
        "rounds": {"count": 3, "deadline_seconds": 60.0},
    }  # fmt: skip
    return validate(Plan, values | sections, "plan")


def write_site(folder: Path, protocols: str = "") -> None:
    consent = f"[consent]\nprotocols = [{protocols}]\n" if protocols else ""
    (folder / "site.toml").write_text(
        'name = "north"\ntask = "classification"\n[data]\nformat = "table"\nfolder = "data"\n'
        'group_column = "patient"\ntest_fraction = 0.25\n'
        f"[privacy]\nepsilon_limit = 1000.0\ndelta = 1e-6\n{consent}"
    )
    (folder / "data").mkdir()
    write_rows(folder)


def write_rows(folder: Path, consents: dict[str, str] | None = None) -> None:
    """Two rows a patient."""
    rows = [f"0.{n}{i},{('well', 'ill')[i % 2]},{p},{(consents or {}).get(p, 'broad')}"
            for i, p in enumerate(PATIENTS) for n in (1, 2)]  # fmt: skip
    table = "\n".join(["a,label,patient,consent", *rows]) + "\n"
    (folder / "data" / "rows.csv").write_text(table)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_site(tmp_path)
    return tmp_path


def worker_of(folder: Path) -> SiteWorker:
    site_blobs.cache_clear()
    return SiteWorker(read_site_settings(folder / "site.toml"), folder)


def order_of(plan: Plan, round_: int, phase: Phase = "train", **more: Any) -> Order:
    layout, weights = initial_weights(plan, Path())
    vector = weights + np.float32(0.1 * round_)
    return Order(run="r", plan=plan, round=round_, phase=phase,
                 weights=vector, layout_sha256=layout.sha256, **more)  # fmt: skip


def in_training(worker: SiteWorker, plan: Plan) -> list[float]:
    return sorted(float(case.image[0]) for case in worker.data("r", plan).train)


def trained_patient(worker: SiteWorker, plan: Plan, folder: Path) -> str:
    """Somebody whose rows are trained on; features are scaled, so rows are told apart by them."""
    stored = json.loads(
        manifest_path(worker.settings, folder, "r").read_text()  # type: ignore[union-attr]
    )
    marks = {row["mark"] for row in stored["records"] if row["split"] == "train"}
    known = read_withdrawals(folder / "state")
    return next(p for p in PATIENTS if known.mark_of(p) in marks)


def test_the_next_order_trains_without_a_patient_who_withdrew(
    site: Path, asterion: Callable[..., Any]
) -> None:
    plan, worker = plan_of(), worker_of(site)
    first = worker.answer(order_of(plan, 1))
    before = in_training(worker, plan)
    out = trained_patient(worker, plan, site)
    done = asterion("site", "withdraw", site / "site.toml", out, "--json")
    told = json.loads(done.out)
    assert (told["new"], told["known"], told["unknown"]) == (1, 0, 0)
    assert (told["records"], told["runs"]) == (2, 1)
    second = worker.answer(order_of(plan, 2))  # the same warm process
    after = in_training(worker, plan)
    assert second.num_examples == first.num_examples - 2
    assert len(after) == len(before) - 2
    assert set(after) < set(before)
    assert second.manifest_sha256 != first.manifest_sha256
    assert second.num_test == first.num_test
    # A new process, and the data gone from the disk besides: it is no surprise.
    rows = (site / "data" / "rows.csv").read_text().splitlines()
    (site / "data" / "rows.csv").write_text("\n".join(r for r in rows if out not in r) + "\n")
    third = worker_of(site).answer(order_of(plan, 3))
    assert third.manifest_sha256 == second.manifest_sha256
    listed = json.loads(asterion("site", "withdrawals", site / "site.toml", "--json").out)
    assert listed["count"] == 1
    everything = b"".join(p.read_bytes() for p in (site / "state").rglob("*") if p.is_file())
    assert out.encode() not in everything
    assert (site / "state" / FILE).stat().st_mode & 0o777 == 0o600


def test_withdrawn_and_gone_at_once_is_still_a_withdrawal(
    site: Path, asterion: Callable[..., Any]
) -> None:
    plan = plan_of()
    worker = worker_of(site)
    first = worker.answer(order_of(plan, 1))
    out = trained_patient(worker, plan, site)
    rows = (site / "data" / "rows.csv").read_text().splitlines()
    (site / "data" / "rows.csv").write_text("\n".join(r for r in rows if out not in r) + "\n")
    with pytest.raises(DataProblemError, match="2 records") as caught:
        worker_of(site).answer(order_of(plan, 2))
    assert caught.value.code == "data_withdrawn"
    asterion("site", "withdraw", site / "site.toml", out)
    assert worker_of(site).answer(order_of(plan, 2)).num_examples == first.num_examples - 2


def test_a_consent_that_is_taken_away_is_a_withdrawal(tmp_path: Path) -> None:
    write_site(tmp_path, '"broad"')
    plan, worker = plan_of(), worker_of(tmp_path)
    first = worker.answer(order_of(plan, 1))
    out = trained_patient(worker, plan, tmp_path)
    write_rows(tmp_path, {out: "broad; heart"})  # more than before: the same records
    same = worker.answer(order_of(plan, 2))
    assert same.manifest_sha256 == first.manifest_sha256
    write_rows(tmp_path, {out: "heart"})
    third = worker.answer(order_of(plan, 3))
    assert third.num_examples == first.num_examples - 2
    stored = json.loads(
        manifest_path(worker.settings, tmp_path, "r").read_text()  # type: ignore[union-attr]
    )
    (left,) = stored["left"]
    assert (left["num_records"], left["sha256_before"]) == (2, first.manifest_sha256)


def test_a_stored_report_with_the_patient_in_it_does_not_leave(
    site: Path, asterion: Callable[..., Any]
) -> None:
    plan = plan_of(transport={"update": "int8", "error_feedback": True})
    worker = worker_of(site)
    worker.answer(order_of(plan, 1))
    old = worker.answer(order_of(plan, 2))
    again = worker_of(site).answer(order_of(plan, 2))
    assert again.update is not None
    assert old.update is not None
    assert again.update.tobytes() == old.update.tobytes()
    run, out = site / "state" / "runs" / "r", trained_patient(worker, plan, site)
    assert list(run.glob("*residual*"))
    asterion("site", "withdraw", site / "site.toml", out)
    assert not list(run.glob("*residual*"))
    assert not list(run.glob("reports/*"))
    anew = worker_of(site).answer(order_of(plan, 2))
    assert anew.update is not None
    assert anew.num_examples == old.num_examples - 2
    assert anew.update.tobytes() != old.update.tobytes()


@pytest.mark.parametrize("warm", [True, False])
def test_without_the_command_the_site_itself_removes_what_the_patient_had_a_part_in(
    site: Path, warm: bool
) -> None:
    """As after a kill between the withdrawal that was stored and what follows it."""
    from asterion_client.withdrawals import withdraw

    plan = plan_of(transport={"update": "int8", "error_feedback": True})
    worker = worker_of(site)
    old = worker.answer(order_of(plan, 1))
    withdraw(site / "state", [trained_patient(worker, plan, site)])
    anew = (worker if warm else worker_of(site)).answer(order_of(plan, 1))
    assert anew.num_examples == old.num_examples - 2
    assert anew.update is not None
    assert old.update is not None
    assert anew.update.tobytes() != old.update.tobytes()


def test_who_withdraws_during_the_training_is_not_in_what_leaves(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asterion_client.site_worker as module
    from asterion_client.withdrawals import withdraw

    plan, worker, worked = plan_of(privacy=PRIVATE), worker_of(site), module.work
    count = worker.answer(order_of(plan, 0, "count"))
    out = trained_patient(worker, plan, site)

    def slow(*given: Any) -> Report:
        report = worked(*given)
        withdraw(site / "state", [out])
        return report

    monkeypatch.setattr(module, "work", slow)
    report = worker.answer(order_of(plan, 1))
    assert report.num_examples == count.num_examples - 2
    with Ledger(ledger_folder(worker.settings, site), worker.settings.privacy) as ledger:
        (spent,) = ledger.runs()
    assert spent.num_releases == 1  # what was formed with the patient was never charged
    assert spent.last_entry.num_units == 5


def test_the_ledger_goes_on_counting_for_all_who_were_in_it(
    site: Path, asterion: Callable[..., Any]
) -> None:
    plan, worker = plan_of(privacy=PRIVATE), worker_of(site)
    worker.answer(order_of(plan, 1))
    out = trained_patient(worker, plan, site)
    with Ledger(ledger_folder(worker.settings, site), worker.settings.privacy) as ledger:
        once = ledger.exposure().epsilon
    asterion("site", "withdraw", site / "site.toml", out)
    worker.answer(order_of(plan, 2))
    with Ledger(ledger_folder(worker.settings, site), worker.settings.privacy) as ledger:
        (run,) = ledger.runs()
        assert run.num_releases == 2
        assert run.exposure.epsilon > once
    store = Store(ledger_folder(worker.settings, site))
    try:
        sizes = sorted((group.data_sets, group.num_units) for group in store.groups())
    finally:
        store.close()
    assert sizes == [(0b01, 1), (0b11, 5)]  # the patient once, the others twice


def test_what_is_held_for_a_secure_sum_stays_here(site: Path) -> None:
    from asterion_client.withdrawals import withdraw

    plan = plan_of(
        algorithm={"max_weight": 1, "clip_norm": 1.0},
        rounds={"count": 3, "sites_per_round": 3, "deadline_seconds": 60.0},
        secure_sum={"max_colluders": 0, "max_dropouts": 1},
    )
    worker = worker_of(site)
    worker.answer(order_of(plan, 1))
    keys = SumOrder(id="i", of="train", step="keys", sites=("a", "b", "north"), size=1,
                    content={"north": b""})  # fmt: skip
    ask = order_of(plan, 1, "sum", sum=keys)
    with pytest.raises(OrderRefusedError) as caught:
        worker.answer(ask)
    assert caught.value.code == "layout_mismatch"  # it is held, and the step looked at
    withdraw(site / "state", [trained_patient(worker, plan, site)])
    with pytest.raises(OrderRefusedError) as caught:
        worker.answer(ask)
    assert caught.value.code == "secure_sum_out_of_step"


def test_a_killed_process_forgets_no_withdrawal(site: Path) -> None:
    """kill -9 right after each write of the withdrawal, and while the run's manifest is thawed."""
    plan, worker = plan_of(), worker_of(site)
    first = worker.answer(order_of(plan, 1))
    out = trained_patient(worker, plan, site)
    program = (
        "import os, signal, sys, pathlib\n"
        "import asterion_client.withdrawals as w, asterion_shared.key_files as k\n"
        "from asterion_client.withdrawing import withdraw_groups\n"
        "from asterion_client.settings import read_site_settings\n"
        "import asterion_client.withdrawing as d\n"
        "d.forget_trained = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "withdraw_groups(read_site_settings(p / 'site.toml'), p, [sys.argv[2]])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(site), out], check=False)
    assert killed.returncode == -9
    thaw = (
        "import os, signal, sys, pathlib\n"
        "import asterion_client.data.manifest as m\n"
        "from asterion_client.data.site_data import check_frozen\n"
        "from asterion_client.settings import read_site_settings\n"
        "from asterion_shared.plan import read_plan\n"
        "m.write_atomically = lambda path, text: os.kill(os.getpid(), signal.SIGKILL)\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "check_frozen(read_site_settings(p / 'site.toml'), p, read_plan(p / 'p.toml'), 'r', '')\n"
    )
    from asterion_shared.plan_file import plan_to_toml

    (site / "p.toml").write_text(plan_to_toml(plan))
    killed = subprocess.run([sys.executable, "-c", thaw, str(site)], check=False)
    assert killed.returncode == -9
    assert not list((site / "state/runs/r").glob("reports/*.report"))
    second = worker_of(site).answer(order_of(plan, 1))
    assert second.num_examples == first.num_examples - 2


@pytest.mark.parametrize("deed", ["lost", "replaced", "open", "cut"])
def test_withdrawals_that_were_lost_stop_the_run(site: Path, deed: str) -> None:
    from asterion_client.withdrawals import withdraw

    plan, worker = plan_of(), worker_of(site)
    worker.answer(order_of(plan, 1))
    withdraw(site / "state", ["patient a"])
    path = site / "state" / FILE
    if deed == "lost":
        path.unlink()
    elif deed == "replaced":
        path.unlink()
        withdraw(site / "state", [])
    elif deed == "open":
        path.chmod(0o640)
    else:
        os.truncate(path, 20)
    with pytest.raises(FileProblemError) as caught:
        worker.answer(order_of(plan, 2))
    assert "patient a" not in str(caught.value)
    if deed != "replaced":  # then a person has entered withdrawals anew
        with pytest.raises(FileProblemError):
            worker.answer(replace(order_of(plan, 1), run="another"))


def test_names_from_a_file_or_the_terminal_and_names_that_cannot_be(
    site: Path, asterion: Callable[..., Any]
) -> None:
    toml, names = site / "site.toml", site / "names.txt"
    names.write_text("patient a\n\n  patient b \nnobody at all\n")
    done = asterion("site", "withdraw", toml, "--file", names)
    assert done.code == 0
    assert "3 withdrawn" in done.out
    assert "1 of them are in no record" in done.out
    assert "patient" not in done.said.replace("--what patients", "")
    typed = "patient a\npatient c\n"
    told = json.loads(asterion("site", "withdraw", toml, "--json", typed=typed).out)
    assert (told["new"], told["known"]) == (1, 1)
    assert asterion("site", "withdraw", toml, typed="\n").code == 2
    assert asterion("site", "withdraw", toml, "--file", site / "absent").code == 11
    toml.write_text(toml.read_text().replace('group_column = "patient"\n', ""))
    refused = asterion("site", "withdraw", toml, "rows.csv:3")
    assert refused.code == 2
    assert "data.group_column" in refused.err
    check = asterion("site", "check", toml, "--json")
    assert "withdrawals" not in check.out  # rows have other names now
