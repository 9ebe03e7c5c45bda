"""A coordinator's folder with runs in every state, without a process behind it."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.consent.conftest import Clinic
from tests.link.loopback import free_port
from tests.papers import provisioned

from asterion_client.approvals import keep_waiting
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.console.people import set_person
from asterion_shared.errors import AsterionError, QuorumLostError
from asterion_shared.events import (
    DeadlineDerived,
    RoundFinished,
    RunFinished,
    RunStarted,
    SiteAwaited,
    append_event,
)
from asterion_shared.files import write_atomically
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import account_of, in_one_line
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import (
    FinalModel,
    Result,
    RoundResult,
    SiteOutcome,
    SiteSummary,
    Status,
    write_result,
)
from asterion_shared.settings_files import validate

PASSWORD = "correct horse battery staple"  # noqa: S105  # of a test
COMMAND = "asterion server console-password NAME"
PRIVATE = {
    "protects": "site", "noise": "centre", "clip_norm": 1.0, "noise_multiplier": 2.5,
    "delta": 1e-3, "epsilon_limit": 12.0,
}  # fmt: skip


def coordinator(folder: Path, sites: list[str], port: int, **console: object) -> Provisioned:
    """A coordinator whose console serves at a port, with Anna who acts and Otto who looks."""
    provisioned(folder, ["localhost"], sites, port=port + 1)
    lines = "".join(
        f"{key} = {value!r}\n".replace("'", '"')
        for key, value in ({"port": port} | console).items()
    )
    path = folder / "coordinator.toml"
    path.write_text(f"{path.read_text()}\n[console]\n{lines}")
    made = open_provisioned(folder)
    assert made.console_people is not None
    set_person(made.console_people, "anna", "acts", PASSWORD, COMMAND)
    set_person(made.console_people, "otto", "looks", PASSWORD, COMMAND)
    return made


def plan_of(name: str, count: int = 8, **sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": name,
        "task": "segmentation",
        "data": {"classes": ["sky", "source"]},
        "model": {"name": "unet"},
        "rounds": {"count": count, "quorum": 2},
    }
    return validate(Plan, values | sections, name)


def metrics(value: float, spread: float = 0.05) -> dict[str, float | None]:
    return {
        "dice": value, "dice_low": value - spread, "dice_high": value + spread,
        "iou": value * 0.8, "num_cases": 40.0, "baseline/dice": 0.01,
    }  # fmt: skip


def round_of(number: int, sites: list[str], missing: dict[str, str]) -> RoundResult:
    """A round whose Dice rises; ``missing`` gives a code, or ``late``, by site."""
    level = 0.8 * (1 - math.exp(-number / 3))
    outcomes = {
        site: SiteOutcome(outcome="late")
        if missing.get(site) == "late"
        else SiteOutcome(outcome="failed" if missing[site] != "pending" else "refused",
                         code=missing[site], stage="receiving")
        if site in missing
        else SiteOutcome(
            outcome="answered", num_examples=120 + 10 * i, num_test=30 + i,
            num_steps=20 if number else 0, train_loss=1.2 / (number + 0.5) if number else None,
            seconds=24.0 + i, transfer_seconds=2.0, bytes_down=9_000_000, bytes_up=9_100_000,
        )
        for i, site in enumerate(sites)
    }  # fmt: skip
    here = [site for site in sites if site not in missing]
    return RoundResult(
        round=number, asked=tuple(sorted(sites)), outcomes=outcomes,
        pooled=metrics(level), seconds=31.0 + number,
        sites={s: metrics(level * (1 + 0.12 * math.sin(2 + i)), 0.1) for i, s in enumerate(here)},
        bytes_down=9_000_000 * len(sites), bytes_up=9_100_000 * len(here),
        update_norm=0.5 if number else None,
    )  # fmt: skip


def result_of(
    plan: Plan, run: str, sites: list[str], rounds: list[RoundResult], status: Status
) -> Result:
    account = account_of(plan, {s: len([r for r in rounds if r.round]) for s in sites})
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Result(
        run=run, name=plan.name, kind="train", task=plan.task, plan_sha256=plan.sha256,
        status=status, started=now, finished=now, carrier="link",
        privacy=in_one_line(account), privacy_account=account,
        versions={"torch": "2.13.0", "asterion-shared": "0.1.0"},
        rounds_planned=plan.rounds.count, rounds=tuple(rounds),
        final_metrics=rounds[-1].pooled if rounds else {},
        final_model=FinalModel(path="model.safetensors", sha256="a" * 64)
        if status == "finished" else None,
        sites=tuple(SiteSummary(name=s, num_examples=120, num_test=30) for s in sites),
    )  # fmt: skip


def launched(made: Provisioned, plan: Plan, run: str, sites: list[str]) -> RunFolder:
    folder = RunFolder(made.runs / run)
    write_atomically(folder.plan_file, plan.canonical().encode())
    folder.write_launch(Launch(sites=tuple(sorted(sites))))
    return folder


def going_on(
    made: Provisioned, plan: Plan, run: str, sites: list[str], rounds: list[RoundResult]
) -> RunFolder:
    """A run with some rounds, whose next one waits for its last site."""
    folder = launched(made, plan, run, sites)
    append_event(folder.events, RunStarted(run=run, plan=plan.name, task=plan.task,
                 sites=tuple(sorted(sites)), rounds=plan.rounds.count))  # fmt: skip
    for one in rounds:
        append_event(folder.events, RoundFinished(round_result=one))
    number = len(rounds)
    append_event(folder.events, DeadlineDerived(round=number, phase="train", site=sites[0],
                 deadline_seconds=93.0, site_seconds=31.0))  # fmt: skip
    append_event(folder.events, SiteAwaited(round=number, phase="train", site=sites[-1],
                 state="away", since="2026-01-02T03:04:05Z"))  # fmt: skip
    return folder


def ended(
    made: Provisioned,
    plan: Plan,
    run: str,
    sites: list[str],
    rounds: list[RoundResult],
    status: Status = "finished",
) -> RunFolder:
    """A run with its result and report, and its problem where it did not finish."""
    folder = launched(made, plan, run, sites)
    result = write_result(result_of(plan, run, sites, rounds, status), folder.result)
    write_report(result, folder.report, plan=plan)
    append_event(folder.events, RunFinished(result=result))
    if status == "quorum_lost":
        folder.write_problem(QuorumLostError(round_=len(rounds) - 1, answered=1, asked=3,
                             needed=2, why="the plan's quorum"))  # fmt: skip
    elif status != "finished":
        folder.write_problem(AsterionError(f"the run has {status}; see its log"))
    return folder


def at_work(made: Provisioned, run: str, round_: int, sites: list[str]) -> None:
    """Sites with sessions: the first works, the second has answered, the last is away."""
    store = LinkStore(database_url(made))
    for number, site in enumerate(sites):
        store.open_session(site, f"{number:064x}", f"{number:032x}", "0.1.0")
        key = f"{abs(hash((run, site))):064x}"[-64:]
        store.post([StoredOrder(key=key, site=site, run=run, round=round_, message_type="train",
                    content=Parcel((Part(3, b"abc"),)), submission=1, expires=None)])  # fmt: skip
        if number == 0:
            store.count_attempt(key)
        if number == 1:
            store.count_attempt(key)
            store.store_report(key, Parcel((Part(3, b"abc"),)))
    store.close_session(sites[-1], f"{len(sites) - 1:032x}")
    store.close()


def clinic_console(clinic: Clinic) -> None:
    """Give a clinic a console and people; a person approves there, and one plan waits."""
    text = clinic.toml.read_text().replace('approval = "auto"', 'approval = "person"')
    clinic.toml.write_text(f"{text}\n[console]\nport = {free_port()}\n")
    people = clinic.folder / "console-people.json"
    set_person(people, "anna", "acts", PASSWORD, COMMAND)
    set_person(people, "otto", "looks", PASSWORD, COMMAND)
    keep_waiting(clinic.folder / "state", clinic.order("trial-1"))


def everything(folder: Path, port: int, sites: list[str]) -> Provisioned:
    """A coordinator with a run in each state."""
    made = coordinator(folder, sites, port)
    lost = {sites[1]: "unreachable", sites[-1]: "late"}
    ended(made, plan_of("first-look"), "first-look", sites,
          [round_of(n, sites, {}) for n in range(9)])  # fmt: skip
    ended(made, plan_of("sources-2"), "sources-2", sites,
          [round_of(n, sites, lost if n in (3, 4) else {}) for n in range(9)])  # fmt: skip
    long = "a-run-with-a-name-as-long-as-a-name-may-be-and-not-shorter-2026"
    refused = dict.fromkeys(sites[1:], "pending")
    ended(made, plan_of("p"), long, sites,
          [round_of(n, sites, refused if n == 2 else {}) for n in range(3)],
          "quorum_lost")  # fmt: skip
    ended(made, plan_of("disk-gone"), "disk-gone", sites, [], "failed")
    private = plan_of(
        "deep-field", 12, privacy=PRIVATE, algorithm={"weighting": "examples", "max_weight": 1.0},
        rounds={"count": 12, "quorum": 2, "sites_per_round": len(sites)},
    )  # fmt: skip
    run = going_on(made, private, "deep-field", sites,
                   [round_of(n, sites, lost if n == 2 else {}) for n in range(6)])  # fmt: skip
    (run.path / "asked.jsonl").write_text(
        "".join(f'{{"round": {n}, "order": "", "sites": {list(sites)!r}}}\n'.replace("'", '"')
                for n in range(1, 7)))  # fmt: skip
    at_work(made, "deep-field", 6, sites)
    launched(made, plan_of("next-one"), "next-one", sites)
    return made
